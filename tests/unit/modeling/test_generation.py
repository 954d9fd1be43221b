"""What `generate` adds: stop words, rows without a token, and peace with whatever the model writes."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.generation import utils as generation_utils
from transformers.generation.logits_process import LogitsProcessor

from qwen_vl.errors import PromptError
from qwen_vl.modeling.generation import OnlyTokens, StopWords
from qwen_vl.modeling.model import QWenLMHeadModel
from qwen_vl.processing.tokenization import QWenTokenizer
from tests.invariants import PAD, full_logits, generate_alone
from tests.reference import greedy, row
from tests.unit.modeling.conftest import MakePrompt


class Write(LogitsProcessor):
    """Make the model write these tokens, whatever it would."""

    def __init__(self, tokens: list[int], prompt_length: int) -> None:
        self.tokens, self.prompt_length = tokens, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        wanted = torch.full_like(scores, float("-inf"))
        wanted[:, self.tokens[input_ids.shape[1] - self.prompt_length]] = 0.0
        return wanted


def test_a_stop_word_ends_the_sequence(tiny_model: QWenLMHeadModel, make_prompt: MakePrompt) -> None:
    prompt = make_prompt("the dog")
    free = generate_alone(tiny_model, prompt, 10, min_new_tokens=10).tolist()
    words = [[9999999], free[2:4]]
    found = generate_alone(tiny_model, prompt, 10, stop_words_ids=words).tolist()
    assert found == [*free[:4], PAD]
    assert words == [[9999999], free[2:4]], "the caller's list is left alone"


def test_a_prompt_that_ends_with_a_stop_word_is_ended_at_once(tiny_model: QWenLMHeadModel, make_prompt: MakePrompt) -> None:
    prompt = make_prompt("the dog")
    assert generate_alone(tiny_model, prompt, 10, stop_words_ids=[prompt.input_ids[-2:].tolist()]).tolist() == [PAD]


def test_stop_words_of_the_generation_config(tiny_model: QWenLMHeadModel, make_prompt: MakePrompt) -> None:
    prompt = make_prompt("the dog")
    settings: Any = copy.deepcopy(tiny_model.generation_config)
    settings.stop_words_ids = [prompt.input_ids[-1:].tolist()]
    assert generate_alone(tiny_model, prompt, 10, generation_config=settings).tolist() == [PAD]


def test_the_end_token_as_a_stop_word_is_dropped() -> None:
    assert StopWords([[PAD], [1, 2]], PAD).words == [[1, 2]]


@pytest.mark.parametrize("words", [[], [[]], [[-1]], [1], "im_end", [["a"]]])
def test_bad_stop_words_are_refused(tiny_model: QWenLMHeadModel, make_prompt: MakePrompt, words: object) -> None:
    with pytest.raises(PromptError, match="stop_words_ids"):
        generate_alone(tiny_model, make_prompt("the dog"), 2, stop_words_ids=words)


def test_rows_without_a_token_are_never_chosen(tiny_model: QWenLMHeadModel, make_prompt: MakePrompt) -> None:
    """857 tokens, 864 rows: with logits that favour the last rows, a token is chosen."""
    num_tokens, vocab_size = 857, tiny_model.config.vocab_size
    assert num_tokens < vocab_size
    scores = OnlyTokens(num_tokens)(torch.zeros(1, 1, dtype=torch.long), torch.arange(float(vocab_size))[None])
    assert int(scores.argmax()) == num_tokens - 1 and scores[0, num_tokens:].max() == float("-inf")
    handle = tiny_model.lm_head.register_forward_hook(lambda module, inputs, logits: logits + torch.arange(vocab_size) * 100.0)
    try:
        found = generate_alone(tiny_model, make_prompt("the dog"), 3)
    finally:
        handle.remove()
    assert found.tolist() == [num_tokens - 1] * 3


def test_processors_leave_the_models_logits_alone(tiny_model: QWenLMHeadModel, make_prompt: MakePrompt) -> None:
    prompt = make_prompt("the dog")
    stop = [prompt.input_ids[-1:].tolist()]
    output = greedy(tiny_model, row(prompt.input_ids), 2, stop_words_ids=stop, return_dict_in_generate=True, output_logits=True)
    torch.testing.assert_close(output.logits[0][0], full_logits(tiny_model, prompt)[-1])


@pytest.mark.parametrize("pictures", ["", "*"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_a_model_may_write_picture_tags(tiny_model: QWenLMHeadModel, make_prompt: MakePrompt, pictures: str, use_cache: bool) -> None:
    """Unclosed, closed too early, or stray: no tag that the model writes is looked up, and none ends the generation."""
    prompt = make_prompt(f"the {pictures} dog")
    start = tiny_model.config.image_start_id
    tokens = [start, start, 100, start + 1, start + 2, start + 1, start, 46]
    found = generate_alone(tiny_model, prompt, len(tokens), logits_processor=[Write(tokens, len(prompt))], use_cache=use_cache)
    assert found.tolist() == tokens


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_span_that_the_model_writes_opens_no_file(tiny_model: QWenLMHeadModel, make_prompt: MakePrompt, use_cache: bool) -> None:
    prompt = make_prompt("the dog")
    tokens = [*make_prompt("*").input_ids.tolist(), 46, 47]
    found = generate_alone(tiny_model, prompt, len(tokens), logits_processor=[Write(tokens, len(prompt))], use_cache=use_cache)
    assert found.tolist() == tokens


def test_chat_extends_the_history_in_place(tiny_model: QWenLMHeadModel, tiny_tokenizer: QWenTokenizer) -> None:
    history: list[object] = []
    reply, returned = tiny_model.chat(tiny_tokenizer, "hi", history=history)
    assert returned is history and history == [("hi", reply)]
    assert tiny_model.chat(tiny_tokenizer, "you", history=history, append_history=False)[1] == [("hi", reply)]


def test_chat_refuses_streams_and_base_models(tiny_model: QWenLMHeadModel, tiny_tokenizer: QWenTokenizer) -> None:
    with pytest.raises(PromptError, match="chat_stream"):
        tiny_model.chat(tiny_tokenizer, "hi", history=None, stream=True)
    with pytest.raises(PromptError, match="base model"):
        tiny_model.chat(tiny_tokenizer, "hi", history=None, chat_format="raw")


def test_chat_gives_no_warning(tiny_model: QWenLMHeadModel, tiny_tokenizer: QWenTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(generation_utils.logger, "warning_once", said.append)
    tiny_model.chat(tiny_tokenizer, "hi", history=None, max_new_tokens=2, do_sample=True, top_p=0.5)
    assert said == []
