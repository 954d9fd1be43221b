"""From a prompt of token ids to an answer, whole or piece by piece."""

import contextlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from qwen_vl.api.answer import Answer
from qwen_vl.api.boxes import box_processors
from qwen_vl.api.draft import Draft, RequestStream
from qwen_vl.api.json_mode import JsonProcessor
from qwen_vl.api.sampling import DEFAULT_MAX_NEW_TOKENS, Sampling, to_engine
from qwen_vl.api.task import Prompt, Task
from qwen_vl.engine import Engine, Handle, Request
from qwen_vl.engine import Picture as EnginePicture
from qwen_vl.errors import CapacityError, ConfigError, ContextLengthError, is_out_of_memory
from qwen_vl.modeling.model import QWenLMHeadModel
from qwen_vl.processing.tokenization import QWenTokenizer


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes answers with one model."""

    model: QWenLMHeadModel
    tokenizer: QWenTokenizer
    engine: Engine

    def write(self, prompt: Prompt, sampling: Sampling) -> Answer:
        """Return the whole answer. Raises: CapacityError, ConfigError."""
        task = self._task(prompt, sampling)
        if task.params is None:
            draft = self._draft(task)
            draft.read(self._generate(task))
            return draft.answer()
        with RequestStream(self._draft(task), self._submit(task)) as stream:  # closed also by Ctrl-C
            return stream.answer

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[str, None, Answer]:
        """Yield the answer's text in pieces and return the whole.

        The request is in the engine's queue at once, so that several streams are written together; one that is dropped is cancelled.
        Raises: CapacityError, ConfigError.
        """
        task = self._task(prompt, sampling)
        if task.has_beams:
            raise ConfigError("num_beams above 1 cannot stream: the best beam is known only at the end. Use ask, or one beam.")
        pieces = self._pieces(task, self._generate_one_by_one(task) if task.params is None else self._submit(task))
        next(pieces)  # the empty piece: from here on the generator ends its request when it is dropped
        return pieces

    def begin(self, prompt: Prompt, sampling: Sampling, on_event: Callable[[], None] | None = None, *, as_json: bool = False) -> RequestStream:
        """Put a request into the engine's queue and return its stream, which can be polled.

        Args:
            on_event: called by the engine's thread whenever something is new; must return at once.
            as_json: write nothing but one JSON object.
        Raises: CapacityError, ConfigError.
        """
        task = self._task(prompt, sampling)
        if task.params is None:
            raise ConfigError("these settings, or the checkpoint's generation_config.json, ask for something that only ask can do, such as beams.")
        if as_json and sampling.boxes not in (None, "off"):
            raise ConfigError(f"boxes={sampling.boxes!r} and an answer that is JSON exclude each other. Leave one out.")
        if as_json:
            grammar = JsonProcessor(self.tokenizer, task.params.max_new_tokens)
            task = replace(task, params=replace(task.params, processors=[*task.params.processors, grammar]))
        return RequestStream(self._draft(task), self._submit(task), on_event)

    def can_stream(self, sampling: Sampling) -> bool:
        """Tell whether an answer with these settings comes token by token: without beams."""
        return (sampling.num_beams or self.model.generation_config.num_beams or 1) == 1

    def _pieces(self, task: Task, tokens: Handle | Generator[int, None, None]) -> Generator[str, None, Answer]:
        draft = self._draft(task)
        with contextlib.closing(tokens):
            yield ""
            if isinstance(tokens, Handle):
                draft.engine_logprobs = tokens.logprobs
            if task.prompt.prefix:
                yield task.prompt.prefix
            for token_id in tokens:
                if text := draft.take(token_id):
                    yield text
                if draft.is_stopped:
                    break
        if text := draft.finish():
            yield text
        return draft.answer()

    def _draft(self, task: Task) -> Draft:
        return Draft(self.tokenizer, task, self._stop_ids)

    def _submit(self, task: Task) -> Handle:
        """Hand a task to the engine."""
        if task.params is None:
            raise ValueError("the engine cannot do this task")
        pictures = [EnginePicture(key=picture.key, features=picture.features) for picture in task.prompt.pictures]
        request = Request(input_ids=task.prompt.ids, sampling=task.params, pictures=pictures, salt=task.prompt.salt)
        try:
            return self.engine.submit(request)
        except CapacityError as error:
            raise ContextLengthError(str(error)) from None

    def _generate(self, task: Task) -> list[int]:
        """Return the new tokens that transformers' `generate` gives: for beams, and settings of a checkpoint that the engine does not know."""
        input_ids, arguments = self._arguments(task)
        with _seeded(task.sampling.seed, self.model.device), memory_errors():
            output_ids = self.model.generate(input_ids, **arguments)  # [1, prompt + new]
        new_ids: list[int] = output_ids[0, input_ids.shape[1] :].tolist()
        return new_ids

    def _generate_one_by_one(self, task: Task) -> Generator[int, None, None]:
        if task.sampling.seed is not None:  # between two tokens the caller may draw, too: from the same generator, which all threads share
            yield from self._generate(task)
            return
        input_ids, arguments = self._arguments(task)
        tokens = cast(Generator[int, None, None], self.model.stream_tokens(input_ids, **arguments))
        with memory_errors(), contextlib.closing(tokens):
            yield from tokens

    @property
    def _stop_ids(self) -> list[int]:
        return [self.tokenizer.eod_id, self.tokenizer.im_end_id, self.tokenizer.im_start_id]

    def _task(self, prompt: Prompt, sampling: Sampling) -> Task:
        """Settle all that does not depend on who does the work. Raises: CapacityError, ConfigError."""
        base = self.model.generation_config
        max_new_tokens = self.check_length(len(prompt.ids), sampling, prompt.max_context)
        config = sampling.to_generation_config(base, self._stop_ids, self.tokenizer.eod_id, max_new_tokens)
        params = to_engine(config, sampling.seed, sampling.logprobs)
        if params is None and sampling.logprobs is not None:
            raise ConfigError("logprobs come with one beam only, and with settings that the engine knows. Leave logprobs or num_beams out.")
        # The engine shows a processor what was generated, `generate` the prompt too.
        num_shown = len(prompt.ids) if params is None else 0
        processors = box_processors(self.tokenizer, sampling, num_shown, max_new_tokens)
        return Task(prompt, sampling, config, processors, None if params is None else replace(params, processors=processors))

    def _arguments(self, task: Task) -> tuple[Tensor, dict[str, Any]]:
        """Return the ids [1, seq] and the keyword arguments of `generate`."""
        input_ids = torch.tensor([task.prompt.ids], device=self.model.device)  # [1, seq]
        arguments: dict[str, Any] = {
            "attention_mask": torch.ones_like(input_ids),
            "generation_config": task.config,
            "logits_processor": task.processors,
        }
        if task.prompt.pictures:
            arguments["image_features"] = torch.stack([picture.features for picture in task.prompt.pictures])  # [num_images, image_slots, dim]
        return input_ids, arguments

    def check_length(self, num_prompt_tokens: int, sampling: Sampling, max_context: int | None = None) -> int:
        """Return how many tokens to write at most: what was asked for, or as much of the default as fits, but no fewer than the least asked for.

        Raises: ContextLengthError if the prompt, or the prompt with what was asked for, is longer than the context.
        """
        default = self.model.generation_config.max_new_tokens or DEFAULT_MAX_NEW_TOKENS
        limit = int(self.model.config.max_position_embeddings)
        limit = limit if max_context is None else min(limit, max_context)
        room = limit - num_prompt_tokens
        if room < 1:
            raise ContextLengthError(
                f"The conversation takes {num_prompt_tokens} tokens, but "
                f"this model's context holds {limit}. Shorten the text, show fewer pictures or start anew."
            )
        asked, least = sampling.max_new_tokens, sampling.min_new_tokens or 0
        name, needed = ("min_new_tokens", least) if asked is None else ("max_new_tokens", asked)
        if needed > room:
            raise ContextLengthError(
                f"{name}={needed} does not fit: the conversation takes {num_prompt_tokens} of the context's {limit} tokens. At most {room} are left."
            )
        return asked or max(min(default, room), least)


@contextlib.contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Draw from a generator with this seed inside the block, and leave the caller's own random state as it was."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Turn a lack of memory into CapacityError."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise CapacityError("The memory does not suffice for this conversation. Shorten it, use a smaller dtype or another device.") from None
