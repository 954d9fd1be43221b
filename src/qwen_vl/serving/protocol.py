"""uvicorn's HTTP/1.1 with the time limits that it lacks: for a connection that never asks, and for one that never reads.

h11 parses: it bounds header sizes, and a browser's or SDK's request takes it a fraction of a millisecond.
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import h11
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from qwen_vl.serving.settings import ServeSettings

logger = logging.getLogger(__name__)

IS_SLOW = "is_slow"  # in the state of a request's scope: its reader took nothing and was dropped


class BoundedProtocol(H11Protocol):
    """One connection.

    A subclass made by `bounded` holds the limits; uvicorn makes the instances.
    """

    idle_timeout_s: float  # for a request's line and headers, all of them
    send_timeout_s: float  # for a reader to take anything of what waits for it
    max_connections: int
    note_slow: Callable[[], None]  # a reader was dropped

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._idle_timer: asyncio.TimerHandle | None = None
        self._reader_timer: asyncio.TimerHandle | None = None
        self._num_unsent = 0  # bytes, when the reader was last looked at
        self._watched_app, self.app = self.app, partial(self._run, self.app)

    async def _run(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application; it may cut the connection, which closing does only once a reader has taken all bytes."""
        scope["state"]["abort"] = self.transport.abort
        await app(scope, receive, send)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or refuse it if there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.abort()
        else:
            transport.set_write_buffer_limits(0)  # so that `pause_writing` tells of every byte that waits, also on a connection that is closed
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._unwatch()
        self._leave_reader()
        super().connection_lost(exc)
        self.app = self._watched_app  # without the circle through this object, which only the garbage collector would find

    def data_received(self, data: bytes) -> None:
        """Take bytes; those of a request that is not whole do not buy more time."""
        super().data_received(data)
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP; in the middle of an answer, where nothing else can be said, cut the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.abort()

    def pause_writing(self) -> None:
        """Wait for the reader: bytes are left that the system does not take for it."""
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        """Go on: all bytes are on their way."""
        super().resume_writing()
        self._leave_reader()

    def _await_reader(self) -> None:
        self._num_unsent = self.transport.get_write_buffer_size()
        self._reader_timer = self.loop.call_later(self.send_timeout_s, self._look_at_reader)

    def _leave_reader(self) -> None:
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None

    def _look_at_reader(self) -> None:
        """Drop a reader that has taken nothing since the last look; one that is slow may take its time."""
        if self.transport.get_write_buffer_size() < self._num_unsent:
            self._await_reader()
            return
        logger.warning("a reader took nothing for %g s and is dropped", self.send_timeout_s)
        self.note_slow()
        if self.cycle is not None:
            self.cycle.scope["state"][IS_SLOW] = True
        self.transport.abort()

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or bool(self.cycle.response_complete)

    def _watch(self) -> None:
        if not self._is_idle:
            self._unwatch()
        elif self._idle_timer is None and self.timeout_keep_alive_task is None and not self.transport.is_closing():
            self._idle_timer = self.loop.call_later(self.idle_timeout_s, self._cut_idle)

    def _unwatch(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    def _cut_idle(self) -> None:
        self._idle_timer = None
        if self._is_idle:
            self.transport.abort()


def bounded(settings: ServeSettings, max_connections: int, note_slow: Callable[[], None]) -> type[BoundedProtocol]:
    """Return the protocol with these limits. Args: note_slow: called for each reader that is dropped."""
    limits = {"idle_timeout_s": settings.idle_timeout_s, "send_timeout_s": settings.send_timeout_s, "max_connections": max_connections}
    return type("Protocol", (BoundedProtocol,), limits | {"note_slow": staticmethod(note_slow)})
