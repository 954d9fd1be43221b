"""A model whose answers a test writes: it stands for a loaded one wherever answers are only begun and read."""

import threading
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from qwen_vl.api import Answer, Usage
from qwen_vl.api.draft import RequestCancelledError
from qwen_vl.api.streaming import Piece


class ScriptedStream:
    """An answer that a test writes piece by piece; reads like the engine's own stream."""

    def __init__(self, on_event: Callable[[], None]) -> None:
        self._on_event = on_event
        self._lock = threading.Lock()
        self._waiting = ""
        self._text = ""
        self._error: BaseException | None = None
        self._is_complete = False
        self.is_closed = False
        self.is_over = False

    def write(self, text: str) -> None:
        """Let the model write some more."""
        with self._lock:
            self._waiting += text
        self._on_event()

    def end(self, error: BaseException | None = None) -> None:
        """Let the model end, or fail."""
        self._error, self._is_complete = error, True
        self._on_event()

    def poll(self) -> Piece | None:
        with self._lock:
            text, self._waiting = self._waiting, ""
        self._text += text
        if self._error is not None:
            raise self._error
        if self.is_closed and not self._is_complete:
            raise RequestCancelledError("cancelled")
        self.is_over = self._is_complete
        return Piece(text) if text or self.is_over else None

    @property
    def answer(self) -> Answer:
        return Answer(text=self._text.strip(), usage=Usage(1, 1), finish_reason="stop")

    def close(self) -> None:
        self.is_closed = True
        self._on_event()


class ScriptedEngine:
    """An engine that is always well, and does a round whenever somebody looks."""

    is_closed = False

    def __init__(self) -> None:
        self.num_rounds = 0

    def start(self) -> None: ...

    def close(self) -> None: ...

    def notice_cancelled(self) -> None: ...

    def statistics(self) -> Any:
        self.num_rounds += 1
        return self


class ScriptedModel:
    """Notes what it is asked; `refusals` are raised by the next calls of `begin`, one each."""

    def __init__(self, *, is_chat: bool = True) -> None:
        self.is_chat, self.name = is_chat, "scripted"
        self.model = SimpleNamespace(generation_config=SimpleNamespace(do_sample=False, temperature=None, top_p=None, max_new_tokens=64))
        self.engine = ScriptedEngine()
        self.asked: list[tuple[Sequence[Mapping[str, Any]], dict[str, Any]]] = []
        self.streams: list[ScriptedStream] = []
        self.refusals: list[BaseException] = []
        self.is_quick = False  # answers end at once, empty

    def begin(self, messages: Sequence[Mapping[str, Any]], *, on_event: Callable[[], None], **sampling: Any) -> ScriptedStream:
        self.asked.append((messages, sampling))
        if self.refusals:
            raise self.refusals.pop(0)
        stream = ScriptedStream(on_event)
        self.streams.append(stream)
        if self.is_quick:
            stream.end()
        return stream
