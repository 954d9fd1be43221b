"""The engine beside others: interleaving, cancelling, failing, threads, seeds, caches. Random schedules are in tests/parity/test_engine.py."""

import contextlib
import random
import threading
from collections.abc import Iterator
from typing import Any, ClassVar
from unittest import mock

import pytest
import torch
from transformers import AutoModelForCausalLM

from qwen_vl.engine import Engine, EngineSettings, Picture, Request, SamplingParams
from qwen_vl.engine.sampling import Sampler
from qwen_vl.engine.views import RowsView
from qwen_vl.errors import CapacityError, ConfigError, ShapeError
from qwen_vl.modeling.model import QWenLMHeadModel
from qwen_vl.training.adapters import add_adapters
from qwen_vl.training.parts import choose_parts
from tests.reference import FIXTURES, greedy, row
from tests.schedules import assert_all_accounted_for, make_case, random_picture, span_ids
from tests.unit.engine.conftest import MakeEngine, random_ids


def ask(engine: Engine, ids: list[int], max_new_tokens: int = 8, pictures: list[Picture] | None = None, salt: str = "", **settings: Any) -> Any:
    sampling = SamplingParams(max_new_tokens=max_new_tokens, **settings)
    return engine.submit(Request(input_ids=ids, sampling=sampling, pictures=pictures or [], salt=salt))


@contextlib.contextmanager
def restored(weight: torch.Tensor) -> Iterator[None]:
    """Give a weight back what it held when the block ends."""
    kept = weight.detach().clone()
    try:
        yield
    finally:
        with torch.no_grad():
            weight.copy_(kept)


class TestTurns:
    def test_a_long_prompt_holds_nobody_up(self, long_model: QWenLMHeadModel, make_engine: MakeEngine) -> None:
        short, long = make_case(long_model, random_ids(20, 1), 12), make_case(long_model, random_ids(500, 2), 4)
        engine = make_engine(chunk_tokens=40)
        writer = engine.submit(short.request(12))
        first = [next(writer), next(writer)]
        reader = engine.submit(long.request(4))
        num_rounds = engine.statistics().num_rounds
        rest = list(writer)
        assert [*first, *rest] == short.expected
        assert engine.statistics().num_rounds - num_rounds <= 10 and engine.statistics().num_reading == 1
        assert list(reader) == long.expected

    def test_requests_write_together(self, long_model: QWenLMHeadModel, make_engine: MakeEngine) -> None:
        engine = make_engine()
        cases = [make_case(long_model, random_ids(length, length), 10) for length in (5, 30, 140)]
        handles = [engine.submit(case.request(10)) for case in cases]
        assert [list(handle) for handle in handles] == [case.expected for case in cases]
        assert engine.statistics().num_rounds <= 3 + 2 + 10

    def test_a_level_is_the_prompts_to_the_end(self, long_model: QWenLMHeadModel, make_engine: MakeEngine) -> None:
        case = make_case(long_model, random_ids(120, 7), 20)
        assert list(make_engine().submit(case.request(20))) == case.expected

    @pytest.mark.parametrize("name", ["tiny-448", "tiny-long"])
    def test_packed_weights(self, name: str) -> None:
        model = AutoModelForCausalLM.from_pretrained(FIXTURES / name / "int4", dtype=torch.float32).eval()
        engine = Engine(model, EngineSettings(kv_bytes=2**24, prefix_bytes=0, feature_bytes=0))
        cases = [make_case(model, random_ids(length, length), 6) for length in (9, 40)]
        handles = [engine.submit(case.request(6)) for case in cases]
        assert [list(handle) for handle in handles] == [case.expected for case in cases]

    def test_adapters(self) -> None:
        model = QWenLMHeadModel.from_pretrained(FIXTURES / "tiny-448").eval()
        adapted = add_adapters(model, choose_parts(model, "lora", is_chat=True), rank=4)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        adapted.eval()
        engine = Engine(model, EngineSettings(kv_bytes=2**24, prefix_bytes=0, feature_bytes=0))
        case = make_case(model, random_ids(30, 1), 8)
        assert list(engine.submit(case.request(8))) == case.expected
        with adapted.disable_adapter():
            assert make_case(model, random_ids(30, 1), 8).expected != case.expected

    def test_plain_attention(self, long_model: QWenLMHeadModel, make_engine: MakeEngine) -> None:
        cases = [make_case(long_model, random_ids(length, length), 6) for length in (9, 140)]
        long_model.set_attn_implementation("eager")
        try:
            engine = make_engine(chunk_tokens=30)
            handles = [engine.submit(case.request(6)) for case in cases]
            assert [list(handle) for handle in handles] == [case.expected for case in cases]
        finally:
            long_model.set_attn_implementation("sdpa")

    def test_attention_that_takes_masks_of_padding_only(self, long_model: QWenLMHeadModel, make_engine: MakeEngine) -> None:
        engine, cases = make_engine(), [make_case(long_model, random_ids(length, length), 6) for length in (9, 140, 30)]
        mask_of = RowsView.attention_mask
        with mock.patch.object(RowsView, "attention_mask", lambda view, _: mask_of(view, "flash_attention_2")):
            handles = [engine.submit(case.request(6)) for case in cases]
            assert [list(handle) for handle in handles] == [case.expected for case in cases]

    def test_stop_ids_end_a_request(self, long_model: QWenLMHeadModel, make_engine: MakeEngine) -> None:
        case = make_case(long_model, random_ids(30, 3), 12)
        stop = case.expected[4]
        handle = ask(make_engine(), case.input_ids, 12, stop_ids=frozenset({stop}))
        assert list(handle) == case.expected[: case.expected.index(stop) + 1] and handle.finish_reason == "stop"

    def test_logprobs_are_those_of_one_pass(self, long_model: QWenLMHeadModel, make_engine: MakeEngine) -> None:
        ids = random_ids(30, 3)
        handle = ask(make_engine(), ids, 5, logprobs=2)
        tokens = list(handle)
        with torch.no_grad():
            logits = long_model(row(torch.tensor([*ids, *tokens]))).logits[0, len(ids) - 1 : -1, : long_model.config.image_start_id + 3]
        expected = logits.log_softmax(-1)
        assert [each.token_id for each in handle.logprobs] == tokens
        for index, each in enumerate(handle.logprobs):
            assert each.logprob == pytest.approx(float(expected[index, each.token_id]), abs=1e-4)
            assert [token for token, _ in each.alternatives] == expected[index].topk(2).indices.tolist()

    @pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "seed": 3}, {"logprobs": 5}])
    def test_rows_without_a_token_are_never_written(self, long_model: QWenLMHeadModel, make_engine: MakeEngine, settings: dict[str, Any]) -> None:
        weight, least = long_model.lm_head.weight, long_model.config.image_start_id + 3
        with restored(weight):
            with torch.no_grad():
                weight[least] = 100 * weight[0]
                weight[least + 1] = -weight[least]  # one of the two is by far the most likely
            handle = ask(make_engine(), random_ids(30, 3), 6, **settings)
            assert max(list(handle)) < least
            assert all(token < least for each in handle.logprobs for token, _ in each.alternatives)


class TestChance:
    SETTINGS: ClassVar[dict[str, Any]] = {"temperature": 1.5, "top_p": 0.9}

    def test_a_seed_gives_what_generate_gives(self, long_model: QWenLMHeadModel, make_engine: MakeEngine) -> None:
        ids = random_ids(40, 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(11)
            arguments = {"do_sample": True, "top_k": 0, "max_new_tokens": 10, "min_new_tokens": 10, **self.SETTINGS}
            expected = long_model.generate(row(torch.tensor(ids)), attention_mask=torch.ones(1, 40), **arguments)[0, 40:].tolist()
        assert list(ask(make_engine(), ids, 10, seed=11, **self.SETTINGS)) == expected

    def test_samples_do_not_depend_on_neighbours(self, make_engine: MakeEngine) -> None:
        ids = random_ids(40, 1)
        alone = list(ask(make_engine(), ids, 10, seed=5, **self.SETTINGS))
        engine = make_engine()
        others = [ask(engine, random_ids(length, 9), 12, seed=5, **self.SETTINGS) for length in (3, 200)]
        assert list(ask(engine, ids, 10, seed=5, **self.SETTINGS)) == alone
        assert all(len(list(other)) == 12 for other in others)


class TestCaches:
    def test_a_second_turn_reads_only_what_is_new(self, long_model: QWenLMHeadModel, make_engine: MakeEngine) -> None:
        engine = make_engine()
        first = make_case(long_model, random_ids(60, 1), 16)
        assert list(engine.submit(first.request(16))) == first.expected
        second = make_case(long_model, [*first.input_ids, *first.expected, *random_ids(30, 2)], 8)
        handle = engine.submit(second.request(8))
        assert list(handle) == second.expected
        assert handle.num_cached_tokens == 64, "the 75 positions that were written hold four whole blocks of 16"

    def test_a_chat_that_crosses_a_level_is_read_anew(self, long_model: QWenLMHeadModel, make_engine: MakeEngine) -> None:
        engine = make_engine()
        first = make_case(long_model, random_ids(100, 1), 8)
        assert list(engine.submit(first.request(8))) == first.expected
        second = make_case(long_model, [*first.input_ids, *first.expected, *random_ids(40, 2)], 8)
        for num_cached in (0, 144):  # beyond 128 all keys differ; the second time they are known
            handle = engine.submit(second.request(8))
            assert list(handle) == second.expected and handle.num_cached_tokens == num_cached

    def test_the_last_token_is_always_read(self, long_model: QWenLMHeadModel, make_engine: MakeEngine) -> None:
        engine, case = make_engine(block_tokens=8), make_case(long_model, random_ids(64, 1), 8)
        found = [engine.submit(case.request(8)) for _ in range(2)]
        assert [list(handle) for handle in found] == [case.expected] * 2
        assert [handle.num_cached_tokens for handle in found] == [0, 56]

    def test_a_picture_is_its_content(self, long_model: QWenLMHeadModel, make_engine: MakeEngine) -> None:
        red, blue = random_picture(long_model, 1), random_picture(long_model, 2)
        ids = [*random_ids(10, 1), *span_ids(long_model, b"a.png"), *random_ids(20, 2)]
        renamed = [*random_ids(10, 1), *span_ids(long_model, b"other"), *random_ids(20, 2)]
        engine = make_engine()
        for prompt, picture, num_cached in ((ids, red, 0), (ids, blue, 0), (renamed, red, 272), (ids, blue, 272)):
            case = make_case(long_model, prompt, 6, [picture])
            handle = engine.submit(case.request(6))
            assert list(handle) == case.expected and handle.num_cached_tokens == num_cached

    def test_a_salt_separates(self, make_engine: MakeEngine) -> None:
        engine, ids = make_engine(), random_ids(64, 1)
        for salt, num_cached in (("a", 0), ("b", 0), ("a", 48)):
            handle = ask(engine, ids, salt=salt)
            list(handle)
            assert handle.num_cached_tokens == num_cached

    def test_changed_weights_empty_the_caches(self, make_engine: MakeEngine, long_model: QWenLMHeadModel) -> None:
        engine, case = make_engine(), make_case(long_model, random_ids(64, 1), 4)
        for _ in range(2):
            list(engine.submit(case.request(4)))
        engine.forget_if_changed()
        assert engine.statistics().prefixes.num_entries > 0
        weight = long_model.get_parameter("transformer.h.0.attn.c_proj.weight")
        with restored(weight):
            with torch.no_grad():
                weight.mul_(-1)
            engine.forget_if_changed()
            assert engine.statistics().prefixes.num_bytes == 0
            changed = make_case(long_model, case.input_ids, 4)
            assert list(engine.submit(changed.request(4))) == changed.expected

    def test_what_was_read_with_other_weights_is_not_kept(self, make_engine: MakeEngine, long_model: QWenLMHeadModel) -> None:
        """Of requests that were in flight when the weights changed."""
        engine, ids = make_engine(), random_ids(64, 1)
        written, read, waiting = (ask(engine, ids if number else random_ids(64, 2), 40) for number in range(3))
        next(written)
        weight = long_model.get_parameter("transformer.h.0.attn.c_proj.weight")
        with restored(weight):
            with torch.no_grad():
                weight.mul_(-1)
            engine.forget_if_changed()
            for handle in (written, read, waiting):
                list(handle)
            assert engine.statistics().prefixes.num_entries == 0
            case = make_case(long_model, ids, 4)
            for num_cached in (0, 48):
                handle = engine.submit(case.request(4))
                assert list(handle) == case.expected and handle.num_cached_tokens == num_cached

    @pytest.mark.parametrize("change", ["data", "adapter", "merged"])
    def test_changes_that_leave_no_version_are_noticed(self, change: str) -> None:
        model = QWenLMHeadModel.from_pretrained(FIXTURES / "tiny-448").eval()
        adapted = add_adapters(model, choose_parts(model, "lora", is_chat=True), rank=4)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        adapted.eval()
        engine = Engine(model, EngineSettings(kv_bytes=2**24, prefix_bytes=2**20, feature_bytes=0))
        ids = random_ids(64, 1)
        list(ask(engine, ids, 4))
        engine.forget_if_changed()
        assert engine.statistics().prefixes.num_entries > 0
        with adapted.disable_adapter() if change == "adapter" else contextlib.nullcontext():
            if change == "data":
                model.get_parameter("transformer.h.0.ln_1.weight").data.mul_(-1)
            if change == "merged":
                adapted.merge_adapter()
            engine.forget_if_changed()
            assert engine.statistics().prefixes.num_entries == 0
            case = make_case(model, ids, 4)
            assert list(engine.submit(case.request(4))) == case.expected

    def test_features_are_counted_and_forgotten(self, make_engine: MakeEngine) -> None:
        engine = make_engine()
        with mock.patch.object(engine.model, "get_image_features", return_value=torch.ones(1, 4, 4)):
            engine.features.fetch(["a"], [torch.zeros(3, 2, 2)])
        assert engine.statistics().features.num_bytes == 64
        engine.forget()
        assert engine.statistics().features.num_bytes == 0


class TestEnds:
    @pytest.mark.parametrize("is_working", [False, True])
    def test_a_thousand_cancelled_requests_leave_nothing(self, make_engine: MakeEngine, is_working: bool) -> None:
        engine, dice = make_engine(chunk_tokens=8, kv_bytes=2**21), random.Random(3)
        if is_working:
            engine.start()
        handles = []
        for index in range(1000):
            handles.append(ask(engine, random_ids(dice.randint(1, 30), index), 5))
            if not is_working and dice.random() < 0.2:
                engine.step()
            dice.choice(handles[-5:]).cancel()
            handles[-1].cancel() if dice.random() < 0.9 else None
        for handle in handles:
            handle.cancel()
            list(handle)
        assert sum(handle.finish_reason == "cancelled" for handle in handles) > 900
        assert all(handle.finish_reason in ("cancelled", "length") for handle in handles)
        assert_all_accounted_for(engine)

    def test_cancelling_frees_at_once(self, make_engine: MakeEngine) -> None:
        engine = make_engine()
        handle = ask(engine, random_ids(20, 1), 50)
        next(handle)
        handle.close()
        assert (engine.statistics().num_writing, handle.finish_reason) == (0, "cancelled")
        assert len(list(handle)) == 1, "the first round wrote two tokens"
        handle.cancel()

    def test_who_cancels_while_another_works_is_noticed_after_the_round(self, make_engine: MakeEngine) -> None:
        """Though nobody asks for anything any more."""
        engine = make_engine()
        first, second = ask(engine, random_ids(30, 1), 1), ask(engine, random_ids(30, 2), 50)
        inside, go_on = threading.Event(), threading.Event()

        def wait() -> None:
            inside.set()
            go_on.wait(60)

        first.on_news = wait
        working = threading.Thread(target=lambda: list(first))
        working.start()
        assert inside.wait(60)
        second.cancel()
        go_on.set()
        working.join(60)
        assert engine.statistics().num_waiting == engine.statistics().num_reading == engine.statistics().num_writing == 0

    def test_what_can_never_fit_is_refused(self, make_engine: MakeEngine) -> None:
        engine = make_engine(kv_bytes=2**20)
        with pytest.raises(CapacityError, match="MiB are allowed"):
            ask(engine, random_ids(400, 1), 50)

    @pytest.mark.parametrize("ids", [[], [896], [-1]])
    def test_bad_ids_are_refused(self, make_engine: MakeEngine, ids: list[int]) -> None:
        with pytest.raises(ConfigError, match="prompt"):
            ask(make_engine(), ids)

    def test_pictures_must_match_the_spans(self, make_engine: MakeEngine, long_model: QWenLMHeadModel) -> None:
        picture = random_picture(long_model, 1)
        with pytest.raises(ShapeError, match="0 picture spans"):
            ask(make_engine(), [1, 2, 3], pictures=[picture])
        with pytest.raises(ShapeError, match="shapes"):
            ask(make_engine(), span_ids(long_model, b"a"), pictures=[Picture(key="a", features=picture.features[:5])])

    def test_a_closed_engine_ends_everybody_and_takes_nobody(self, make_engine: MakeEngine) -> None:
        engine = make_engine()
        handles = [ask(engine, random_ids(20, 1), 50) for _ in range(6)]
        next(handles[0])
        engine.close()
        assert [len(list(handle)) for handle in handles] == [1, 2, 2, 2, 0, 0] and {handle.finish_reason for handle in handles} == {"cancelled"}
        with pytest.raises(ConfigError, match="closed"):
            ask(engine, [1])
        engine.close()

    def test_no_bound_may_be_nothing(self) -> None:
        with pytest.raises(ConfigError, match="max_batch"):
            EngineSettings(max_batch=0, kv_bytes=1, prefix_bytes=0, feature_bytes=0)
        with pytest.raises(ConfigError, match="prefix_bytes"):
            EngineSettings(kv_bytes=1, prefix_bytes=-1, feature_bytes=0)

    def test_an_engine_suits_its_model(self, long_model: QWenLMHeadModel) -> None:
        engine = Engine(long_model)
        assert engine.slots.fits(1, long_model.config.max_position_embeddings) and engine.settings.prefix_bytes > 0

    @pytest.mark.parametrize(("left", "expected"), [(10 * 2**30, 5 * 2**30), (1000, 800)])
    def test_bounds_are_those_of_the_memory_that_is_left(
        self, long_model: QWenLMHeadModel, monkeypatch: pytest.MonkeyPatch, left: int, expected: int
    ) -> None:
        """Half of it; where a whole context needs more, four fifths."""
        monkeypatch.setattr("qwen_vl.engine.settings.memory_bytes", lambda device: left)
        suited = EngineSettings.suited_to(long_model)
        assert suited.kv_bytes == expected and suited.kv_bytes + suited.prefix_bytes + suited.feature_bytes <= left


class Fails:
    """A constraint that raises at some length."""

    def __init__(self, error: Exception, length: int) -> None:
        self.error, self.length = error, length

    def allowed(self, generated_ids: list[int]) -> None:
        if len(generated_ids) == self.length:
            raise self.error


class TestFailures:
    @pytest.mark.parametrize("length", [0, 3])
    def test_who_fails_fails_alone(self, long_model: QWenLMHeadModel, make_engine: MakeEngine, length: int) -> None:
        engine, case = make_engine(), make_case(long_model, random_ids(30, 1), 10)
        before, failing = engine.submit(case.request(10)), ask(engine, [4, 5], constraint=Fails(ValueError("mine"), length))
        after = engine.submit(case.request(10))
        with pytest.raises(ValueError, match="mine"):
            list(failing)
        assert list(before) == list(after) == case.expected and failing.finish_reason is None
        assert_all_accounted_for(engine)

    @pytest.mark.parametrize("place", ["reserve", "write"])
    def test_without_memory_one_request_fails(self, long_model: QWenLMHeadModel, make_engine: MakeEngine, place: str) -> None:
        engine, case = make_engine(), make_case(long_model, random_ids(300, 1), 10)
        with mock.patch.object(engine.slots, place, side_effect=MemoryError), pytest.raises(CapacityError):
            list(engine.submit(case.request(10)))
        assert list(engine.submit(case.request(10))) == case.expected
        assert_all_accounted_for(engine)

    def test_without_memory_for_prefixes_nothing_fails(self, long_model: QWenLMHeadModel, make_engine: MakeEngine) -> None:
        engine, case = make_engine(), make_case(long_model, random_ids(60, 1), 10)
        with mock.patch.object(engine.slots, "read", side_effect=MemoryError):
            assert list(engine.submit(case.request(10))) == case.expected
        assert engine.statistics().prefixes.num_bytes == 0

    def test_memory_that_ends_while_growing(self, long_model: QWenLMHeadModel, make_engine: MakeEngine) -> None:
        engine, short, long = make_engine(), make_case(long_model, random_ids(30, 1), 10), make_case(long_model, random_ids(400, 2), 10)
        writer = engine.submit(short.request(10))
        first = next(writer)
        zeros, calls = engine.slots._zeros, list[int]()

        def fail_in_the_second_layer(*arguments: Any) -> Any:
            calls.append(1)
            if len(calls) == 3:
                raise torch.OutOfMemoryError
            return zeros(*arguments)

        with mock.patch.object(engine.slots, "_zeros", side_effect=fail_in_the_second_layer), pytest.raises(CapacityError):
            list(engine.submit(long.request(10)))
        assert [first, *writer] == short.expected
        assert list(engine.submit(long.request(10))) == long.expected

    def test_an_interrupted_round_is_done_again(self, long_model: QWenLMHeadModel, make_engine: MakeEngine) -> None:
        """Ctrl-C in the forward pass, in the choice of the first token and in that of a later one."""
        engine, case = make_engine(chunk_tokens=20), make_case(long_model, random_ids(150, 1), 10)
        handles = [engine.submit(case.request(10)), ask(engine, case.input_ids, 10, repetition_penalty=1.0000001)]
        for number in range(30):
            target, name = [(long_model.transformer, "forward"), (Sampler, "scores"), (long_model.lm_head, "forward")][number % 3]
            with mock.patch.object(target, name, side_effect=KeyboardInterrupt), contextlib.suppress(KeyboardInterrupt):
                engine.step()
            if number % 2:
                engine.step()
        assert [list(handle) for handle in handles] == [case.expected] * 2
        assert_all_accounted_for(engine)

    def test_a_step_that_fails_ends_those_in_it(self, long_model: QWenLMHeadModel, make_engine: MakeEngine) -> None:
        engine, case = make_engine(), make_case(long_model, random_ids(30, 1), 10)
        handles = [engine.submit(case.request(10)) for _ in range(2)]
        next(handles[1])
        with mock.patch.object(long_model.transformer, "forward", side_effect=MemoryError):
            engine.step()
        for handle in handles:
            with pytest.raises(CapacityError):
                list(handle)
        assert list(engine.submit(case.request(10))) == case.expected
        assert_all_accounted_for(engine)

    def test_numbers_that_overflow_stay_with_their_request(self, long_model: QWenLMHeadModel, make_engine: MakeEngine) -> None:
        """A picture that is not a number poisons its own row, and neither its neighbours nor the next in that row."""
        engine, case, long = make_engine(), make_case(long_model, random_ids(30, 1), 10), make_case(long_model, random_ids(300, 2), 30)
        poison = Picture(key="nan", features=torch.full((256, 256), float("nan")))
        neighbour = engine.submit(long.request(30))
        next(neighbour)
        poisoned = ask(engine, span_ids(long_model, b"a"), 4, pictures=[poison])
        assert len(list(poisoned)) == 4
        assert list(engine.submit(case.request(10))) == case.expected
        assert list(neighbour) == long.expected[1:]
        assert_all_accounted_for(engine)

    def test_a_bug_in_the_thread_is_everybodys_error(self, make_engine: MakeEngine) -> None:
        engine = make_engine()
        with mock.patch.object(engine, "_make_way", side_effect=RuntimeError("bug")):
            handle = ask(engine, [1, 2])
            engine.start()
            with pytest.raises(RuntimeError, match="bug"):
                list(handle)
        with pytest.raises(ConfigError, match="closed"):
            ask(engine, [1])


class TestThreads:
    @pytest.mark.parametrize("is_working", [False, True])
    def test_many_callers(self, long_model: QWenLMHeadModel, make_engine: MakeEngine, is_working: bool) -> None:
        others = set(threading.enumerate())
        engine = make_engine()
        if is_working:
            engine.start()
        cases = [make_case(long_model, random_ids(length, length), 10) for length in (5, 30, 60, 140, 200, 260)]
        found: dict[int, list[int]] = {}
        threads = [
            threading.Thread(target=lambda index=index, case=case: found.update({index: list(engine.submit(case.request(10)))}))
            for index, case in enumerate(cases)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert found == {index: case.expected for index, case in enumerate(cases)}
        engine.close()
        assert not any(thread.name == "engine" for thread in set(threading.enumerate()) - others)

    def test_news_and_polling(self, long_model: QWenLMHeadModel, make_engine: MakeEngine) -> None:
        engine, case = make_engine(), make_case(long_model, random_ids(30, 1), 10)
        engine.start()
        handle, has_ended, tokens = engine.submit(case.request(10)), threading.Event(), list[int]()

        def look() -> None:
            if handle.finish_reason is not None:
                has_ended.set()

        handle.on_news = look
        look()
        assert has_ended.wait(30)
        while len(tokens) < 10:
            tokens += handle.poll()
        assert tokens == case.expected and handle.poll() == [] and list(handle) == []


def test_the_first_step_is_generates(long_model: QWenLMHeadModel, make_engine: MakeEngine) -> None:
    """The helper of these tests is `generate` itself, which ends where the end token comes."""
    ids = random_ids(30, 1)
    expected = greedy(long_model, row(torch.tensor(ids)), 3, min_new_tokens=3)[0, 30:].tolist()
    assert list(ask(make_engine(), ids, 3)) == expected
