"""`model.chat` and `model.chat_stream`, with the released signatures and results."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from qwen_vl.errors import PromptError

from .configuration import QWenConfig

DEFAULT_SYSTEM = "You are a helpful assistant."
DEFAULT_MAX_WINDOW_SIZE = 6144
_NOT_GIVEN = object()


class ChatMixin:
    """Turn-taking on top of `generate`. The tokenizer builds the context, so this file knows no prompt format."""

    config: QWenConfig

    def chat(
        self,
        tokenizer: Any,
        query: str,
        history: list[Any] | None = None,
        system: str = DEFAULT_SYSTEM,
        append_history: bool = True,
        stream: Any = _NOT_GIVEN,
        stop_words_ids: list[list[int]] | None = None,
        generation_config: Any = None,
        **kwargs: Any,
    ) -> tuple[str, list[Any]]:
        """Answer one query in a dialogue.

        Args:
            tokenizer: a `QWenTokenizer`.
            history: list of (query, reply) pairs, extended in place when `append_history`; None starts a new one.
            kwargs: passed to `generate`; `max_window_size` bounds the kept history in tokens.
        Returns: the reply, with `<ref>` and `<box>` tags, and the history.
        Raises: PromptError for a base model's checkpoint, or for `stream` (use `chat_stream`).
        """
        if stream is not _NOT_GIVEN:
            raise PromptError("chat() has no argument `stream`; call chat_stream() for streaming")
        input_ids, arguments = self._chat_inputs(tokenizer, query, history, system, stop_words_ids, generation_config, kwargs)
        output_ids = self.generate(input_ids, **arguments)  # type: ignore[attr-defined]
        reply = decode_reply(tokenizer, output_ids[0, input_ids.shape[1] :].tolist()).strip()
        history = [] if history is None else history
        if append_history:
            history.append((query, reply))
        return reply, history

    def chat_stream(
        self,
        tokenizer: Any,
        query: str,
        history: Sequence[Any] | None = None,
        system: str = DEFAULT_SYSTEM,
        stop_words_ids: list[list[int]] | None = None,
        logits_processor: Any = None,
        generation_config: Any = None,
        **kwargs: Any,
    ) -> Iterator[str]:
        """Answer one query and yield the whole text so far after each token that completes a character. The history is not extended."""
        input_ids, arguments = self._chat_inputs(tokenizer, query, history, system, stop_words_ids, generation_config, kwargs)
        tokens: list[int] = []
        shown = ""
        for token in self.stream_tokens(input_ids, logits_processor=logits_processor, **arguments):  # type: ignore[attr-defined]
            tokens.append(token)
            text = decode_reply(tokenizer, tokens)
            # A trailing replacement character is a character whose bytes have not all come yet.
            whole = text.rstrip("\ufffd")
            if len(whole) > len(shown):
                shown = whole
                yield shown
        text = decode_reply(tokenizer, tokens)
        if text != shown:
            yield text

    def _chat_inputs(
        self, tokenizer: Any, query: str, history: Any, system: str, stop_words_ids: Any, generation_config: Any, kwargs: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        settings = generation_config or self.generation_config  # type: ignore[attr-defined]
        chat_format = kwargs.pop("chat_format", getattr(settings, "chat_format", None))
        if chat_format != "chatml":
            raise PromptError(
                f"chat needs a chat checkpoint (chat_format 'chatml'), but this one says {chat_format!r}; "
                "for a base model call generate() on plain text"
            )
        max_window_size = kwargs.pop("max_window_size", None) or getattr(settings, "max_window_size", DEFAULT_MAX_WINDOW_SIZE)
        _, ids = tokenizer.build_chat_context(query, history=history, system=system, max_window_size=max_window_size)
        stop_words = [*(stop_words_ids or []), [tokenizer.im_end_id], [tokenizer.im_start_id]]
        input_ids = torch.tensor([ids], device=self.device)  # type: ignore[attr-defined]
        arguments = {"attention_mask": torch.ones_like(input_ids), **kwargs}
        return input_ids, {"stop_words_ids": stop_words, "generation_config": generation_config, **arguments}


def decode_reply(tokenizer: Any, tokens: list[int]) -> str:
    """Decode the new tokens of a chat reply up to its end mark, keeping box tags."""
    ends = {tokenizer.im_end_id, tokenizer.im_start_id, tokenizer.eod_id}
    stop = next((index for index, token in enumerate(tokens) if token in ends), len(tokens))
    text: str = tokenizer.decode(tokens[:stop], skip_special_tokens=False, errors="replace")
    return text
