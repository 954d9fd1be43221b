"""What `generate` adds to transformers' own: stop words as in the release, rows without a token masked, pictures encoded once."""

import queue
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.generation import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from qwen_vl.errors import ConfigError, PromptError

from .configuration import QWenConfig
from .pictures import find_spans

STOP_LOGIT = float(2**15)  # what the release sets the end token's logit to, so that sampling cannot miss it


class StopWords(LogitsProcessor):
    """Force the end token once a sequence, prompt included, ends with one of the stop words (lists of token ids)."""

    def __init__(self, stop_words_ids: list[list[int]], eos_token_id: int) -> None:
        words = stop_words_ids
        is_valid = isinstance(words, list) and words and all(isinstance(word, list) and word for word in words)
        if not is_valid or any(not isinstance(token, int) or token < 0 for word in words for token in word):
            raise PromptError(f"stop_words_ids must be a list of non-empty lists of token ids; found {stop_words_ids!r:.100}")
        self.words = [list(word) for word in words if word != [eos_token_id]]
        self.eos_token_id = eos_token_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()  # the caller's logits are an output of generate
        for word in self.words:
            if len(word) <= input_ids.shape[1]:
                matches = (input_ids[:, -len(word) :] == input_ids.new_tensor(word)).all(dim=-1)
                scores[:, self.eos_token_id] = torch.where(matches, STOP_LOGIT, scores[:, self.eos_token_id])
        return scores


class OnlyTokens(LogitsProcessor):
    """Mask the output rows that have no token: the model has more rows than the vocabulary has tokens."""

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        has_no_token = torch.arange(scores.shape[-1], device=scores.device) >= self.num_tokens
        return scores.masked_fill(has_no_token, float("-inf"))


class QWenGenerationMixin(GenerationMixin):
    config: QWenConfig

    def generate(self, inputs: Tensor | None = None, generation_config: Any = None, logits_processor: Any = None, **kwargs: Any) -> Any:
        """Generate as transformers does, with two more arguments.

        Args:
            stop_words_ids: list of token-id lists; when a sequence ends with one, the end token follows. Default: the generation config's.
            pixel_values / image_features: pictures of the spans in `input_ids`, as in `forward`.
        """
        settings = generation_config or self.generation_config
        stop_words_ids = kwargs.pop("stop_words_ids", None)
        if stop_words_ids is None:
            stop_words_ids = getattr(settings, "stop_words_ids", None)
        processors = LogitsProcessorList(logits_processor or [])
        if stop_words_ids is not None:
            processors.append(StopWords(stop_words_ids, _first_eos(kwargs.get("eos_token_id", settings.eos_token_id))))
        if self.config.visual is not None and self.config.image_start_id + 3 < self.config.vocab_size:
            processors.append(OnlyTokens(self.config.image_start_id + 3))
        input_ids = inputs if inputs is not None else kwargs.get("input_ids")
        if input_ids is not None and kwargs.get("inputs_embeds") is None:
            kwargs = self._with_pictures(input_ids, settings, kwargs)
        return super().generate(inputs, generation_config=generation_config, logits_processor=processors, **kwargs)

    @torch.no_grad()
    def _with_pictures(self, input_ids: Tensor, settings: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Encode the pictures once, before any expansion to beams, and state the prompts' lengths: they decide the NTK factor to the end."""
        cache = kwargs.get("past_key_values")
        past_length = int(cache.get_seq_length()) if cache is not None else 0
        features = kwargs.pop("image_features", None)
        pixel_values = kwargs.pop("pixel_values", None)
        if features is None:
            features = self.resolve_image_features(input_ids, pixel_values, past_length)
        if features is not None and kwargs.get("prefill_chunk_size", settings.prefill_chunk_size) is not None:
            raise ConfigError("prefill_chunk_size cannot be combined with pictures: a chunk could end inside one; leave it out")
        if self.config.visual is not None:
            # Not None, even without pictures: what the model writes is never searched for them.
            kwargs["image_features"] = self._no_features() if features is None else features
        mask = kwargs.get("attention_mask")
        if not isinstance(mask, Tensor) or mask.ndim != 2:
            mask = torch.ones_like(input_ids)
        return {**kwargs, "prompt_lengths": mask.sum(dim=-1)}

    def _no_features(self) -> Tensor:
        """Return the features of no pictures: [0, image_slots, hidden_size]."""
        return torch.empty(0, self.config.image_slots, self.config.hidden_size)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        # Features belong to the prompt: they are passed with it and not with the steps that follow from the cache.
        if not is_first_iteration and past_key_values is not None and "image_features" in kwargs:
            kwargs["image_features"] = self._no_features()
        result: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        return result

    def _expand_inputs_for_generation(  # transformers declares it static; the repeat needs to know the spans
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Any]]:
        """Repeat every row `expand_size` times, and with each row all of its pictures together."""
        features = kwargs.pop("image_features", None)
        if features is not None and len(features) and input_ids is not None and expand_size > 1:
            past_length = 0 if kwargs.get("past_key_values") is None else int(kwargs["past_key_values"].get_seq_length())
            spans = find_spans(input_ids[:, past_length:], self.config.image_start_id, self.config.image_slots)
            counts = torch.bincount(spans[:, 0], minlength=len(input_ids)).tolist()
            features = torch.cat([row.repeat(expand_size, 1, 1) for row in features.split(counts)])
        input_ids, kwargs = super()._expand_inputs_for_generation(expand_size, is_encoder_decoder, input_ids, **kwargs)
        if features is not None:
            kwargs["image_features"] = features
        return input_ids, kwargs

    def stream_tokens(self, input_ids: Tensor, **kwargs: Any) -> Iterator[int]:
        """Generate for one prompt and yield each new token id as it comes. Closing the iterator stops the generation.

        Args: input_ids [1, seq]; the rest as for `generate`.
        """
        streamer = _TokenQueue(num_prompt_tokens=input_ids.shape[1])
        criteria = StoppingCriteriaList([*(kwargs.pop("stopping_criteria", None) or []), streamer.stop])

        def work() -> None:
            try:
                self.generate(input_ids, streamer=streamer, stopping_criteria=criteria, **kwargs)
                streamer.items.put(None)
            except BaseException as error:  # noqa: BLE001  the consumer raises it; a thread has no other way to report
                streamer.items.put(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            while (item := streamer.items.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            streamer.stop.is_set = True
            thread.join()


class _StopFlag(StoppingCriteria):
    def __init__(self) -> None:
        self.is_set = False

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), self.is_set, dtype=torch.bool, device=input_ids.device)


class _TokenQueue(BaseStreamer):
    """Hand tokens from the generating thread to the consumer, leaving out the prompt."""

    def __init__(self, num_prompt_tokens: int) -> None:
        self.items: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
        self.stop = _StopFlag()
        self.num_prompt_tokens = num_prompt_tokens

    def put(self, value: Tensor) -> None:
        for token in value.flatten().tolist():
            if self.num_prompt_tokens:
                self.num_prompt_tokens -= 1
            else:
                self.items.put(token)

    def end(self) -> None:
        """Nothing to do: the generating thread reports its own end."""


def _first_eos(eos_token_id: Any) -> int:
    """Return the end token that stop words force. Raises: ConfigError when the checkpoint names none."""
    first = eos_token_id[0] if isinstance(eos_token_id, list) else eos_token_id
    if first is None:
        raise ConfigError("stop_words_ids needs an eos_token_id: set it in the generation config or pass it to generate")
    return int(first)
