"""uvicorn's HTTP/1.1 with the time limits that it lacks: for a connection that never asks, and for one that never reads.

h11 parses: it bounds header sizes, and a browser's or SDK's request takes it a fraction of a millisecond.
"""

import asyncio
from functools import partial
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol


class BoundedProtocol(H11Protocol):
    """One connection.

    A subclass made by `bounded` holds the limits; uvicorn makes the instances.
    """

    idle_timeout_s: float = 30.0  # for a request's line and headers, all of them
    max_connections: int = 1000

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._idle_timer: asyncio.TimerHandle | None = None
        self._watched_app, self.app = self.app, partial(self._run, self.app)

    async def _run(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application; it may cut the connection, which closing cannot do while bytes wait for a reader."""
        scope["state"]["abort"] = self.transport.abort
        await app(scope, receive, send)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or refuse it if there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.abort()
        else:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._unwatch()
        super().connection_lost(exc)
        self.app = self._watched_app  # without the circle through this object, which only the garbage collector would find

    def data_received(self, data: bytes) -> None:
        """Take bytes; those of a request that is not whole do not buy more time."""
        super().data_received(data)
        self._watch()

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


def bounded(idle_timeout_s: float, max_connections: int) -> type[BoundedProtocol]:
    """Return the protocol with these limits."""
    return type("Protocol", (BoundedProtocol,), {"idle_timeout_s": idle_timeout_s, "max_connections": max_connections})
