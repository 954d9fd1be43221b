"""The protocol leaves nothing behind, and cuts whoever asks nothing or reads nothing; on real connections: tests/integration/test_serve_faults.py."""

import asyncio
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from qwen_vl.serving import protocol
from qwen_vl.serving.protocol import IS_SLOW, BoundedProtocol
from qwen_vl.serving.settings import ServeSettings

HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = HEALTH[:-2] + b"Connection: close\r\n\r\n"


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer with nothing."""
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


class Transport(asyncio.Transport):
    """A connection to a reader that is played here; as asyncio's own it tells the protocol when bytes wait.

    Args: reads: everything, at once. pace: else so many bytes each time that somebody looks, but never the last.
    """

    protocol: BoundedProtocol

    def __init__(self, *, reads: bool = True, pace: int = 0) -> None:
        super().__init__()
        self.reads, self.pace, self.num_looks = reads, pace, 0
        self.written, self.unsent, self.high, self.is_cut, self.is_closed = b"", 0, 2**16, False, False

    def write(self, data: Any) -> None:
        self.written += bytes(data)
        if not self.reads:
            was_paused, self.unsent = self.unsent > self.high, self.unsent + len(data)
            if self.unsent > self.high and not was_paused:
                self.protocol.pause_writing()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = high or 0

    def get_write_buffer_size(self) -> int:
        self.unsent = max(self.unsent - self.pace, 1)
        self.num_looks += 1
        return self.unsent

    def is_closing(self) -> bool:
        return self.is_closed

    def abort(self) -> None:
        self.is_cut = True
        self.protocol.connection_lost(None)

    def close(self) -> None:
        self.is_closed = True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


def connect(
    *transports: Transport,
    idle_s: float = 60.0,
    send_s: float = 60.0,
    most: int = 10,
    note_slow: Callable[[], None] = lambda: None,
) -> list[BoundedProtocol]:
    """Open connections of one server within a running event loop."""
    kind = protocol.bounded(ServeSettings(idle_timeout_s=idle_s, send_timeout_s=send_s), most, note_slow)
    config = uvicorn.Config(app, http=kind, lifespan="off", log_config=None)
    config.load()
    state = ServerState()
    for transport in transports:
        transport.protocol = kind(config, state, {})
        transport.protocol.connection_made(transport)
    return [transport.protocol for transport in transports]


async def until(condition: Callable[[], Any]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


def test_connections_beyond_the_bound_are_cut_at_once() -> None:
    async def play() -> list[bool]:
        transports = [Transport() for _ in range(5)]
        connect(*transports, most=3)
        return [transport.is_cut for transport in transports]

    assert asyncio.run(play()) == [False] * 3 + [True] * 2


def test_a_connection_that_asks_nothing_is_cut_in_time() -> None:
    async def play() -> None:
        silent = Transport()
        connect(silent, idle_s=0.05)
        await until(lambda: silent.is_cut)

    asyncio.run(play())


@pytest.mark.parametrize("asked", [HEALTH, HEALTH + HEALTH, LAST, HEALTH[:-2] + b"rubbish\r\n\r\n"])
def test_a_reader_that_takes_nothing_is_cut_whatever_was_answered(asked: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Also one whose connection the server has closed: that waits until all bytes are taken."""
    slow = []

    async def play() -> None:
        reader = Transport(reads=False)
        (connection,) = connect(reader, send_s=0.05, note_slow=lambda: slow.append(1))
        connection.data_received(asked)
        await until(lambda: reader.is_cut)
        assert connection.cycle is None or connection.cycle.scope["state"][IS_SLOW]

    asyncio.run(play())
    assert slow == [1] and "a reader took nothing for 0.05 s and is dropped" in caplog.messages


def test_more_after_the_last_request_cuts_the_answer_and_raises_nothing() -> None:
    """asyncio would log where it was raised, with the folders of this machine."""

    async def play() -> None:
        reader = Transport(reads=False)  # so that the answer stays as it begins
        (connection,) = connect(reader)
        connection.data_received(LAST)
        await until(lambda: reader.unsent)
        connection.data_received(HEALTH)
        assert reader.is_cut

    asyncio.run(play())


def test_a_reader_that_takes_a_little_is_waited_for() -> None:
    """However long all of it takes."""

    async def play() -> Transport:
        reader = Transport(reads=False, pace=1)
        (connection,) = connect(reader, send_s=0.01)
        connection.data_received(HEALTH)
        await until(lambda: reader.is_cut)
        return reader

    reader = asyncio.run(play())
    assert reader.unsent == 1 and reader.num_looks >= len(reader.written) > 10


def test_a_connection_that_is_closed_is_gone_at_once() -> None:
    """Without the garbage collector, which comes after thousands of connections."""

    async def play() -> None:
        transport = Transport()
        (connection,) = connect(transport)
        connection.data_received(HEALTH)
        await until(lambda: b"204" in transport.written)
        left = weakref.ref(connection)
        connection.connection_lost(None)
        del connection, transport.protocol
        await until(lambda: left() is None)

    gc.disable()
    try:
        asyncio.run(play())
    finally:
        gc.enable()
