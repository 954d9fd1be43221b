"""What must hold for every way to run the model, each stated once: cached = full, batched = alone, streamed = whole, ..

Each function raises AssertionError when its statement fails. Tolerances are shares of the largest logit: float32 sums in another order differ by
about 1e-6 of it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, StaticCache

from qwen_vl.modeling.model import QWenLMHeadModel
from tests.reference import greedy, relative_difference, row, training

SHARE = 1e-5
PAD = 640  # the end-of-text id of the small vocabulary


@dataclass(frozen=True)
class Prompt:
    """One request: ids [seq] and the pixels [num_images, 3, image_size, image_size] of its spans, or None."""

    input_ids: Tensor
    pixel_values: Tensor | None = None

    def __len__(self) -> int:
        return len(self.input_ids)


def pixels_of(prompts: Sequence[Prompt]) -> Tensor | None:
    """Return the pixels of several prompts, row by row."""
    pixels = [prompt.pixel_values for prompt in prompts if prompt.pixel_values is not None]
    return torch.cat(pixels) if pixels else None


def pad(prompts: Sequence[Prompt], side: Literal["left", "right"]) -> tuple[Tensor, Tensor]:
    """Return ids and attention mask [batch, longest]."""
    longest = max(map(len, prompts))
    ids, mask = torch.full((len(prompts), longest), PAD), torch.zeros(len(prompts), longest, dtype=torch.long)
    for index, prompt in enumerate(prompts):
        columns = slice(longest - len(prompt), longest) if side == "left" else slice(0, len(prompt))
        ids[index, columns], mask[index, columns] = prompt.input_ids, 1
    return ids, mask


@torch.no_grad()
def full_logits(model: QWenLMHeadModel, prompt: Prompt) -> Tensor:
    """Return the logits [seq, vocab_size] of one pass without a cache."""
    logits: Tensor = model(row(prompt.input_ids), pixel_values=prompt.pixel_values, use_cache=False).logits[0]
    return logits


def generate_alone(model: QWenLMHeadModel, prompt: Prompt, max_new_tokens: int, **kwargs: Any) -> Tensor:
    """Return the greedy new tokens [new] of one request."""
    output_ids: Tensor = greedy(model, row(prompt.input_ids), max_new_tokens, pixel_values=prompt.pixel_values, **kwargs)
    return output_ids[0, len(prompt) :]


def assert_close(found: Tensor, expected: Tensor, share: float = SHARE) -> None:
    difference = relative_difference(found, expected)
    assert difference <= share, f"the largest difference is {difference:.2e} of the largest value; at most {share:.0e} is allowed"


@torch.no_grad()
def assert_cached_equals_full(
    model: QWenLMHeadModel, prompt: Prompt, split_at: Sequence[int], *, cache: Cache | None = None, state_length: bool = False
) -> None:
    """Reading a prompt in pieces, each after the cache of those before, gives the logits of reading it at once.

    Args: split_at: where pieces end; no piece may end inside a picture. state_length: tell the first piece how long the whole is (NTK).
    """
    cache = DynamicCache() if cache is None else cache
    extra = {"prompt_lengths": torch.tensor([len(prompt)])} if state_length else {}
    num_read, pieces = 0, []
    for start, end in zip([0, *split_at], [*split_at, len(prompt)], strict=True):
        ids = prompt.input_ids[start:end]
        num_pictures = int((ids == model.config.image_start_id).sum())
        pixels = prompt.pixel_values[num_read : num_read + num_pictures] if prompt.pixel_values is not None and num_pictures else None
        pieces.append(model(row(ids), past_key_values=cache, pixel_values=pixels, use_cache=True, **extra).logits[0])
        num_read += num_pictures
    assert prompt.pixel_values is None or num_read == len(prompt.pixel_values)
    assert_close(torch.cat(pieces), full_logits(model, prompt))


@torch.no_grad()
def assert_batched_equals_alone(model: QWenLMHeadModel, prompts: Sequence[Prompt], side: Literal["left", "right"]) -> None:
    """Rows of a padded batch give the logits that each gives alone, whatever the others' lengths and numbers of pictures."""
    ids, mask = pad(prompts, side)
    logits = model(ids, attention_mask=mask, pixel_values=pixels_of(prompts)).logits
    for index, prompt in enumerate(prompts):
        assert_close(logits[index, mask[index].bool()], full_logits(model, prompt))


def assert_batch_generates_as_alone(model: QWenLMHeadModel, prompts: Sequence[Prompt], max_new_tokens: int, **kwargs: Any) -> None:
    """A left-padded batch generates the tokens that each row generates alone, beams and all."""
    ids, mask = pad(prompts, "left")
    kwargs["min_new_tokens"] = max_new_tokens
    found = greedy(model, ids, max_new_tokens, attention_mask=mask, pixel_values=pixels_of(prompts), **kwargs)
    for index, prompt in enumerate(prompts):
        alone = generate_alone(model, prompt, max_new_tokens, **kwargs)
        assert found[index, ids.shape[1] :].tolist() == alone.tolist(), f"row {index}"


def assert_streamed_equals_whole(model: QWenLMHeadModel, tokenizer: Any, query: str, **kwargs: Any) -> None:
    """The last text of a stream is the whole reply, and every text before begins it."""
    texts = list(model.chat_stream(tokenizer, query, history=None, **kwargs))
    reply, _ = model.chat(tokenizer, query, history=None, **kwargs)
    assert len(texts) > 1 and texts[-1].strip() == reply
    assert all(later.startswith(text) for text, later in zip(texts, texts[1:], strict=False))


def decode_steps(model: QWenLMHeadModel, prompt: Prompt, cache: Cache) -> Iterator[int]:
    """Yield greedy tokens one forward pass at a time, so that several requests can take turns."""
    with torch.no_grad():
        logits = model(row(prompt.input_ids), past_key_values=cache, pixel_values=prompt.pixel_values, use_cache=True).logits
    while True:
        token = logits[0, -1].argmax()
        yield int(token)
        with torch.no_grad():
            logits = model(token.view(1, 1), past_key_values=cache, use_cache=True).logits


def assert_interleaved_equals_alone(model: QWenLMHeadModel, prompts: Sequence[Prompt], num_tokens: int) -> None:
    """Requests that take turns on one model give the tokens that each gives alone on it."""
    requests = [decode_steps(model, prompt, DynamicCache()) for prompt in prompts]
    taken: list[list[int]] = [[] for _ in prompts]
    for _ in range(num_tokens):
        for request, tokens in zip(requests, taken, strict=True):
            tokens.append(next(request))
    for prompt, tokens in zip(prompts, taken, strict=True):
        alone = decode_steps(model, prompt, DynamicCache())
        assert tokens == [next(alone) for _ in range(num_tokens)]


def static_cache(model: QWenLMHeadModel, max_cache_len: int) -> StaticCache:
    return StaticCache(config=model.config, max_cache_len=max_cache_len)


def assert_same_weights(found: QWenLMHeadModel, expected: QWenLMHeadModel) -> None:
    """Two models hold the same tensors, bit for bit, under the same names."""
    theirs = expected.state_dict()
    assert found.state_dict().keys() == theirs.keys()
    assert [name for name, tensor in found.state_dict().items() if tensor.dtype != theirs[name].dtype or not torch.equal(tensor, theirs[name])] == []


def assert_saved_equals_loaded(model: QWenLMHeadModel, folder: Path, prompt: Prompt, **kwargs: Any) -> None:
    """A model that was saved and loaded gives the same bits, and only safetensors were written."""
    model.save_pretrained(folder, **kwargs)
    assert not [path for path in folder.iterdir() if path.suffix not in {".safetensors", ".json"}]
    again = QWenLMHeadModel.from_pretrained(folder)
    assert_same_weights(again, model)
    assert torch.equal(full_logits(again.eval(), prompt), full_logits(model, prompt))


def gradients(model: QWenLMHeadModel, prompt: Prompt, **kwargs: Any) -> dict[str, Tensor]:
    """Return the gradient of every trained parameter for one prompt as its own labels."""
    with training(model):
        ids = row(prompt.input_ids)
        model(ids, pixel_values=prompt.pixel_values, labels=ids, **kwargs).loss.backward()
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
