"""Every way to run the model gives the same answer: with and without a cache, in a batch, in pieces, in turns, streamed, compiled."""

import threading
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from qwen_vl.errors import ConfigError, ShapeError
from qwen_vl.modeling.model import QWenLMHeadModel
from qwen_vl.processing.tokenization import QWenTokenizer
from tests.invariants import (
    Prompt,
    assert_batch_generates_as_alone,
    assert_batched_equals_alone,
    assert_cached_equals_full,
    assert_close,
    assert_interleaved_equals_alone,
    assert_streamed_equals_whole,
    decode_steps,
    full_logits,
    generate_alone,
    gradients,
    static_cache,
)
from tests.reference import greedy, load_model, load_reference, row, training
from tests.unit.modeling.conftest import MakePrompt

NUM_NEW_TOKENS = 12
SIDES = ("left", "right")
Side = Literal["left", "right"]


@pytest.fixture(scope="module")
def prompts(make_prompt: MakePrompt) -> list[Prompt]:
    """Prompts of different lengths with 2, 0, 1 and 3 pictures."""
    return [
        make_prompt("the dog *is left of* the blue square", seed=1),
        make_prompt("图中有一个红色的圆形"),
        make_prompt("*what is in the picture?", seed=2),
        make_prompt("a * b * compare *", seed=3),
    ]


@pytest.fixture(scope="module")
def long_model() -> QWenLMHeadModel:
    """A model trained for 128 tokens, so that NTK scaling and logn work on the prompts here."""
    return load_model("tiny-long")


@pytest.fixture(scope="module")
def long_prompts() -> dict[int, Prompt]:
    """Prompts of random tokens by length: below, at and beyond the training length of 128 and its multiples."""
    generator = torch.Generator().manual_seed(5)
    return {length: Prompt(torch.randint(0, 640, (length,), generator=generator)) for length in (60, 100, 120, 128, 129, 300, 3000)}


class TestCache:
    @pytest.mark.parametrize("split_at", [(1, 7), (4, 31), (31,), (5,)])
    def test_cached_equals_full(self, tiny_model: QWenLMHeadModel, prompts: list[Prompt], split_at: tuple[int, ...]) -> None:
        assert_cached_equals_full(tiny_model, prompts[1], [index for index in split_at if index < len(prompts[1])])

    def test_a_continued_cache_takes_new_pictures(self, tiny_model: QWenLMHeadModel, make_prompt: MakePrompt) -> None:
        prompt = make_prompt("a*b*cd*e", seed=4)
        ends = (prompt.input_ids == tiny_model.config.image_start_id + 1).nonzero()[:, 0] + 1
        assert len(ends) == 3
        assert_cached_equals_full(tiny_model, prompt, ends.tolist())
        assert_cached_equals_full(tiny_model, prompt, [1, int(ends[1])])

    def test_static_equals_dynamic(self, tiny_model: QWenLMHeadModel, prompts: list[Prompt]) -> None:
        for prompt in prompts:
            assert_cached_equals_full(tiny_model, prompt, [], cache=static_cache(tiny_model, 150))
            dynamic = generate_alone(tiny_model, prompt, NUM_NEW_TOKENS)
            assert generate_alone(tiny_model, prompt, NUM_NEW_TOKENS, cache_implementation="static").tolist() == dynamic.tolist()

    @pytest.mark.parametrize("length", [60, 120, 300])
    def test_static_equals_dynamic_on_long_prompts(self, long_model: QWenLMHeadModel, long_prompts: dict[int, Prompt], length: int) -> None:
        prompt = long_prompts[length]
        assert_cached_equals_full(long_model, prompt, [50], cache=static_cache(long_model, 320), state_length=True)
        found = generate_alone(long_model, prompt, NUM_NEW_TOKENS, cache_implementation="static")
        assert found.tolist() == generate_alone(long_model, prompt, NUM_NEW_TOKENS).tolist()

    def test_a_reused_static_cache_forgets(self, long_model: QWenLMHeadModel, long_prompts: dict[int, Prompt]) -> None:
        cache = static_cache(long_model, 320)
        assert_cached_equals_full(long_model, long_prompts[300], [], cache=cache)
        cache.reset()
        assert_cached_equals_full(long_model, long_prompts[100], [], cache=cache)

    def test_generating_without_a_cache(self, tiny_model: QWenLMHeadModel, prompts: list[Prompt]) -> None:
        for prompt in prompts:
            found = generate_alone(tiny_model, prompt, NUM_NEW_TOKENS, use_cache=False)
            assert found.tolist() == generate_alone(tiny_model, prompt, NUM_NEW_TOKENS).tolist()

    def test_generating_without_a_cache_past_the_training_length(self, long_model: QWenLMHeadModel, long_prompts: dict[int, Prompt]) -> None:
        """The NTK factor is that of the prompt until the end, with or without a cache."""
        cached = greedy(long_model, row(long_prompts[120].input_ids), 20, return_dict_in_generate=True, output_logits=True)
        found = greedy(long_model, row(long_prompts[120].input_ids), 20, return_dict_in_generate=True, output_logits=True, use_cache=False)
        assert_close(torch.cat(found.logits), torch.cat(cached.logits))

    def test_a_cache_is_kept_between_calls_of_generate(self, tiny_model: QWenLMHeadModel, make_prompt: MakePrompt) -> None:
        """The second turn brings its own picture; the first one's is in the cache."""
        first, second = make_prompt("one * two", seed=6), make_prompt("three * four", seed=7)
        output = greedy(tiny_model, row(first.input_ids), 5, pixel_values=first.pixel_values, return_dict_in_generate=True)
        ids = torch.cat((output.sequences[0], second.input_ids))
        continued = greedy(tiny_model, row(ids), NUM_NEW_TOKENS, past_key_values=output.past_key_values, pixel_values=second.pixel_values)
        assert first.pixel_values is not None and second.pixel_values is not None
        fresh = Prompt(ids, torch.cat((first.pixel_values, second.pixel_values)))
        assert continued[0, len(ids) :].tolist() == generate_alone(tiny_model, fresh, NUM_NEW_TOKENS).tolist()


class TestChunkedPrefill:
    @pytest.mark.parametrize("length", [100, 129, 300])
    def test_pieces_equal_one_prefill(self, long_model: QWenLMHeadModel, long_prompts: dict[int, Prompt], length: int) -> None:
        assert_cached_equals_full(long_model, long_prompts[length], [40, 41, 90], state_length=True)

    def test_the_first_piece_needs_the_length(self, long_model: QWenLMHeadModel, long_prompts: dict[int, Prompt]) -> None:
        """The test above can fail: without the length the first piece chooses the factor of a short prompt."""
        with pytest.raises(AssertionError, match="largest difference"):
            assert_cached_equals_full(long_model, long_prompts[300], [40])

    @pytest.mark.parametrize("length", [100, 129, 300])
    def test_generate_in_chunks(self, long_model: QWenLMHeadModel, long_prompts: dict[int, Prompt], length: int) -> None:
        found = generate_alone(long_model, long_prompts[length], NUM_NEW_TOKENS, prefill_chunk_size=47)
        assert found.tolist() == generate_alone(long_model, long_prompts[length], NUM_NEW_TOKENS).tolist()

    def test_chunks_and_pictures_are_refused(self, tiny_model: QWenLMHeadModel, prompts: list[Prompt]) -> None:
        with pytest.raises(ConfigError, match="prefill_chunk_size"):
            generate_alone(tiny_model, prompts[0], 2, prefill_chunk_size=8)


class TestBatch:
    @pytest.mark.parametrize("implementation", ["sdpa", "eager"])
    @pytest.mark.parametrize("side", SIDES)
    def test_batched_equals_alone(self, tiny_model: QWenLMHeadModel, prompts: list[Prompt], side: Side, implementation: str) -> None:
        tiny_model.set_attn_implementation(implementation)
        try:
            assert_batched_equals_alone(tiny_model, prompts, side)
            assert_batched_equals_alone(tiny_model, prompts[::-1], side)
        finally:
            tiny_model.set_attn_implementation("sdpa")

    @pytest.mark.parametrize("side", SIDES)
    def test_lengths_around_the_training_length(self, long_model: QWenLMHeadModel, long_prompts: dict[int, Prompt], side: Side) -> None:
        """Each row has the NTK factor and the logn factors of its own length."""
        assert_batched_equals_alone(long_model, [long_prompts[length] for length in (300, 100, 129, 128)], side)

    def test_batch_generates_as_alone(self, tiny_model: QWenLMHeadModel, prompts: list[Prompt]) -> None:
        assert_batch_generates_as_alone(tiny_model, prompts, NUM_NEW_TOKENS)
        assert_batch_generates_as_alone(tiny_model, prompts, NUM_NEW_TOKENS, cache_implementation="static")

    def test_batch_of_short_and_long_prompts_generates_as_alone(self, long_model: QWenLMHeadModel, long_prompts: dict[int, Prompt]) -> None:
        assert_batch_generates_as_alone(long_model, [long_prompts[length] for length in (100, 300, 120)], NUM_NEW_TOKENS)
        assert_batch_generates_as_alone(long_model, [long_prompts[length] for length in (100, 300, 120)], NUM_NEW_TOKENS, prefill_chunk_size=100)


class TestTurns:
    def test_interleaved_requests(self, long_model: QWenLMHeadModel, long_prompts: dict[int, Prompt]) -> None:
        assert_interleaved_equals_alone(long_model, [long_prompts[100], long_prompts[3000]], 8)

    def test_a_step_loop_is_generate(self, long_model: QWenLMHeadModel, long_prompts: dict[int, Prompt]) -> None:
        for length in (120, 3000):
            steps = decode_steps(long_model, long_prompts[length], DynamicCache())
            expected = generate_alone(long_model, long_prompts[length], 10, min_new_tokens=10, logits_processor=[])
            assert [next(steps) for _ in range(10)] == expected.tolist()

    def test_training_after_a_long_prompt(self, long_model: QWenLMHeadModel, long_prompts: dict[int, Prompt]) -> None:
        """Training uses no NTK factor, also at 300 tokens and after an evaluation of them."""
        before = gradients(long_model, long_prompts[300])
        full_logits(long_model, long_prompts[3000])
        after = gradients(long_model, long_prompts[300])
        assert all(torch.equal(before[name], after[name]) for name in before)


class TestStream:
    def test_streamed_equals_whole(self, tiny_model: QWenLMHeadModel, tiny_tokenizer: QWenTokenizer) -> None:
        assert_streamed_equals_whole(tiny_model, tiny_tokenizer, "图中的狗 is where?")

    def test_streamed_pictures(self, monkeypatch: pytest.MonkeyPatch) -> None:
        reference = load_reference("tiny-448")
        monkeypatch.chdir(reference.folder)
        assert_streamed_equals_whole(load_model("tiny-448"), reference.tokenizer, "Picture 1:<img>scene.png</img>\n这是什么?", max_new_tokens=15)

    def test_sampled_streams_repeat_with_their_seed(self, tiny_model: QWenLMHeadModel, tiny_tokenizer: QWenTokenizer) -> None:
        replies = []
        for _ in range(2):
            torch.manual_seed(3)
            replies.append(list(tiny_model.chat_stream(tiny_tokenizer, "hi", history=None, do_sample=True, top_p=0.9)))
        assert replies[0] == replies[1]

    def test_a_closed_stream_ends_its_thread(self, tiny_model: QWenLMHeadModel, tiny_tokenizer: QWenTokenizer) -> None:
        before = threading.active_count()
        stream = tiny_model.chat_stream(tiny_tokenizer, "hi", history=None, max_new_tokens=400)
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert threading.active_count() == before


class TestPicturesInRows:
    """Beams and samples repeat each row with all of its pictures."""

    @pytest.mark.parametrize(("num_beams", "num_returned"), [(3, 1), (4, 2)])
    def test_beams(self, tiny_model: QWenLMHeadModel, prompts: list[Prompt], num_beams: int, num_returned: int) -> None:
        """Embedding the pictures beforehand, so that nothing about them has to be repeated, gives the same beams."""
        kwargs: dict[str, Any] = {"num_beams": num_beams, "num_return_sequences": num_returned}
        for prompt in prompts:
            ids = row(prompt.input_ids)
            with torch.no_grad():
                features = None if prompt.pixel_values is None else tiny_model.get_image_features(prompt.pixel_values)
                embeds = tiny_model.transformer.embed(ids, features)
            expected = tiny_model.generate(inputs_embeds=embeds, max_new_tokens=8, do_sample=False, **kwargs)
            assert torch.equal(greedy(tiny_model, ids, 8, pixel_values=prompt.pixel_values, **kwargs)[:, ids.shape[1] :], expected)

    def test_beams_of_a_batch(self, tiny_model: QWenLMHeadModel, prompts: list[Prompt]) -> None:
        assert_batch_generates_as_alone(tiny_model, prompts, 6, num_beams=3)

    def test_beams_of_short_and_long_prompts(self, long_model: QWenLMHeadModel, long_prompts: dict[int, Prompt]) -> None:
        """The cache's NTK factors are repeated with the rows."""
        assert_batch_generates_as_alone(long_model, [long_prompts[300], long_prompts[100]], 6, num_beams=3)

    def test_samples(self, tiny_model: QWenLMHeadModel, prompts: list[Prompt]) -> None:
        """Sampling from the most probable token alone is greedy, in every returned row."""
        prompt = prompts[0]
        found = tiny_model.generate(
            row(prompt.input_ids), pixel_values=prompt.pixel_values, do_sample=True, top_k=1, num_return_sequences=3, max_new_tokens=NUM_NEW_TOKENS
        )
        expected = generate_alone(tiny_model, prompt, NUM_NEW_TOKENS).tolist()
        assert found[:, len(prompt) :].tolist() == [expected] * 3

    def test_drafted_tokens(self, tiny_model: QWenLMHeadModel, prompts: list[Prompt]) -> None:
        """Prompt lookup reads several tokens after a cache at once."""
        for prompt in prompts:
            found = generate_alone(tiny_model, prompt, NUM_NEW_TOKENS, prompt_lookup_num_tokens=3)
            assert found.tolist() == generate_alone(tiny_model, prompt, NUM_NEW_TOKENS).tolist()


class TestInputs:
    @torch.no_grad()
    def test_embeddings_equal_ids(self, tiny_model: QWenLMHeadModel, prompts: list[Prompt]) -> None:
        prompt = prompts[3]
        assert prompt.pixel_values is not None
        embeds = tiny_model.transformer.embed(row(prompt.input_ids), tiny_model.get_image_features(prompt.pixel_values))
        assert torch.equal(tiny_model(inputs_embeds=embeds).logits[0], full_logits(tiny_model, prompt))
        found = tiny_model.generate(inputs_embeds=embeds, max_new_tokens=NUM_NEW_TOKENS, do_sample=False)
        assert found[0].tolist() == generate_alone(tiny_model, prompt, NUM_NEW_TOKENS).tolist()

    @torch.no_grad()
    def test_features_equal_pixels(self, tiny_model: QWenLMHeadModel, prompts: list[Prompt]) -> None:
        prompt = prompts[3]
        assert prompt.pixel_values is not None
        features = torch.cat([tiny_model.get_image_features(pixels[None]) for pixels in prompt.pixel_values])
        assert_close(tiny_model(row(prompt.input_ids), image_features=features).logits[0], full_logits(tiny_model, prompt))
        found = greedy(tiny_model, row(prompt.input_ids), NUM_NEW_TOKENS, image_features=features)
        assert found[0, len(prompt) :].tolist() == generate_alone(tiny_model, prompt, NUM_NEW_TOKENS).tolist()

    @torch.no_grad()
    def test_pictures_matter(self, tiny_model: QWenLMHeadModel, prompts: list[Prompt]) -> None:
        """The tests of pictures can fail: other pixels, or the same in another order, give other logits."""
        prompt = prompts[0]
        assert prompt.pixel_values is not None
        logits = full_logits(tiny_model, prompt)
        for pixels in (-prompt.pixel_values, prompt.pixel_values.flip(0)):
            assert (full_logits(tiny_model, Prompt(prompt.input_ids, pixels)) - logits).abs().max() > 0.1

    @torch.no_grad()
    def test_wrong_numbers_of_pictures_are_refused(self, tiny_model: QWenLMHeadModel, prompts: list[Prompt]) -> None:
        prompt = prompts[0]
        assert prompt.pixel_values is not None
        with pytest.raises(ShapeError, match="1 pictures for 2 spans"):
            tiny_model(row(prompt.input_ids), pixel_values=prompt.pixel_values[:1])
        with pytest.raises(ShapeError, match="2 pictures for 0 spans"):
            tiny_model(row(prompts[1].input_ids), pixel_values=prompt.pixel_values)
        with pytest.raises(ShapeError, match="expected"):
            tiny_model(row(prompt.input_ids), pixel_values=prompt.pixel_values[..., :-1])
        with pytest.raises(ShapeError, match="exactly one"):
            tiny_model()

    @torch.no_grad()
    def test_token_types_are_ignored(self, tiny_model: QWenLMHeadModel, prompts: list[Prompt]) -> None:
        ids = row(prompts[1].input_ids)
        assert torch.equal(tiny_model(ids, token_type_ids=torch.ones_like(ids)).logits[0], full_logits(tiny_model, prompts[1]))

    @torch.no_grad()
    def test_the_last_logits_alone(self, tiny_model: QWenLMHeadModel, prompts: list[Prompt]) -> None:
        logits = tiny_model(row(prompts[1].input_ids), logits_to_keep=2).logits[0]
        assert logits.shape[0] == 2
        assert_close(logits, full_logits(tiny_model, prompts[1])[-2:])


class TestOutputs:
    @torch.no_grad()
    def test_hidden_states(self, tiny_model: QWenLMHeadModel, prompts: list[Prompt]) -> None:
        output = tiny_model(row(prompts[1].input_ids), output_hidden_states=True)
        states = output.hidden_states
        assert len(states) == tiny_model.config.num_hidden_layers + 1
        assert torch.equal(states[0], tiny_model.transformer.wte(row(prompts[1].input_ids)))
        assert torch.equal(tiny_model.lm_head(states[-1]), output.logits)
        assert tiny_model(row(prompts[1].input_ids)).hidden_states is None

    @torch.no_grad()
    def test_attention_weights(self, tiny_model: QWenLMHeadModel, prompts: list[Prompt]) -> None:
        ids = row(prompts[1].input_ids)
        tiny_model.set_attn_implementation("eager")
        try:
            weights = tiny_model(ids, output_attentions=True).attentions
        finally:
            tiny_model.set_attn_implementation("sdpa")
        config, seq = tiny_model.config, ids.shape[1]
        assert [layer.shape for layer in weights] == [(1, config.num_attention_heads, seq, seq)] * config.num_hidden_layers
        assert all(torch.equal(layer, layer.tril()) for layer in weights)
        assert_close(weights[0].sum(-1), torch.ones(1, config.num_attention_heads, seq))

    @torch.no_grad()
    def test_tuples(self, tiny_model: QWenLMHeadModel, prompts: list[Prompt]) -> None:
        output = tiny_model(row(prompts[1].input_ids), return_dict=False)
        assert isinstance(output, tuple) and torch.equal(output[0][0], full_logits(tiny_model, prompts[1]))


class TestGradients:
    def test_checkpointing_changes_nothing(self, tiny_model: QWenLMHeadModel, prompts: list[Prompt]) -> None:
        expected = gradients(tiny_model, prompts[0])
        tiny_model.activation_checkpointing_enable()
        try:
            found = gradients(tiny_model, prompts[0], use_cache=True)
            with training(tiny_model):
                assert tiny_model(row(prompts[1].input_ids), use_cache=True).past_key_values is None
        finally:
            tiny_model.activation_checkpointing_disable()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)

    def test_checkpointing_is_in_use(self, tiny_model: QWenLMHeadModel, prompts: list[Prompt]) -> None:
        """Each block runs twice: forward, and again for the backward pass."""
        calls: list[Any] = []

        def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            calls.append(module)

        norms: list[Any] = [tiny_model.transformer.h[0].ln_1, tiny_model.transformer.visual.transformer.resblocks[0].ln_1]
        hooks = [norm.register_forward_pre_hook(count) for norm in norms]
        tiny_model.activation_checkpointing_enable()
        try:
            gradients(tiny_model, prompts[2])
        finally:
            tiny_model.activation_checkpointing_disable()
            for hook in hooks:
                hook.remove()
        assert [calls.count(norm) for norm in norms] == [2, 2]

    def test_batched_loss_is_the_mean_over_labels(self, tiny_model: QWenLMHeadModel, prompts: list[Prompt]) -> None:
        ids = row(prompts[1].input_ids)
        labels = ids.clone()
        labels[:, :5] = -100
        with torch.no_grad():
            logits = full_logits(tiny_model, prompts[1])
            expected = torch.nn.functional.cross_entropy(logits[4:-1], ids[0, 5:])
            assert_close(tiny_model(ids, labels=labels).loss, expected)


class TestCompiled:
    @torch.no_grad()
    def test_the_one_token_step_is_one_graph(self, long_model: QWenLMHeadModel, long_prompts: dict[int, Prompt]) -> None:
        """`fullgraph` raises at a graph break. The tokens are those without compiling, also beyond the training length."""
        torch.compiler.reset()
        step = torch.compile(long_model, fullgraph=True, backend="eager")
        for length in (120, 300):
            cache = static_cache(long_model, 320)
            logits = long_model(row(long_prompts[length].input_ids), past_key_values=cache, use_cache=True).logits
            tokens = []
            for index in range(10):
                tokens.append(int(logits[0, -1].argmax()))
                position_ids = torch.tensor([[length + index]])
                logits = step(torch.tensor([[tokens[-1]]]), past_key_values=cache, position_ids=position_ids, use_cache=True).logits
            assert tokens == generate_alone(long_model, long_prompts[length], 10, min_new_tokens=10).tolist()
