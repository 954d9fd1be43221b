"""The protocol leaves nothing behind; its time limits are shown against a real server (tests/integration/test_serve_faults.py)."""

import asyncio
import gc
import weakref
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from qwen_vl.serving import protocol
from qwen_vl.serving.protocol import BoundedProtocol, bounded


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer with nothing."""
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


class Transport(asyncio.Transport):
    """A connection that nobody sees."""

    def __init__(self) -> None:
        super().__init__()
        self.written, self.is_cut = b"", False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        self.is_cut = True

    def close(self) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


def connect(count: int, *, idle_s: float, most: int) -> list[Transport]:
    """Open connections of one server within a running event loop."""
    kind = protocol.bounded(idle_s, most)
    config = uvicorn.Config(app, http=kind, lifespan="off", log_config=None)
    config.load()
    state, transports = ServerState(), [Transport() for _ in range(count)]
    for transport in transports:
        kind(config, state, {}).connection_made(transport)
    return transports


def test_connections_beyond_the_bound_are_cut_at_once() -> None:
    async def play() -> list[bool]:
        return [transport.is_cut for transport in connect(5, idle_s=60, most=3)]

    assert asyncio.run(play()) == [False] * 3 + [True] * 2


def test_a_connection_that_asks_nothing_is_cut_in_time() -> None:
    async def play() -> None:
        (silent,) = connect(1, idle_s=0.05, most=3)
        async with asyncio.timeout(60):
            while not silent.is_cut:
                await asyncio.sleep(0.01)

    asyncio.run(play())


def test_a_connection_that_is_closed_is_gone_at_once() -> None:
    """Without the garbage collector, which comes after thousands of connections."""

    async def play() -> None:
        config = uvicorn.Config(app, http=bounded(30, 10), lifespan="off", log_config=None)
        config.load()
        connection: BoundedProtocol = bounded(30, 10)(config, ServerState(), {})
        transport = Transport()
        connection.connection_made(transport)
        connection.data_received(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(60):
            while b"204" not in transport.written:
                await asyncio.sleep(0.01)
        left = weakref.ref(connection)
        connection.connection_lost(None)
        del connection
        async with asyncio.timeout(60):
            while left() is not None:
                await asyncio.sleep(0.01)

    gc.disable()
    try:
        asyncio.run(play())
    finally:
        gc.enable()
