"""The watchdog sees an engine that is dead or hangs, and no other."""

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

from qwen_vl.serving import watchdog
from qwen_vl.serving.watchdog import Watchdog


class Engine:
    """Does a round whenever it is poked, unless told to hang. Args: encodes: its vision tower ends a pass in every round."""

    def __init__(self, *, encodes: bool = False) -> None:
        self.is_closed = self.hangs = False
        self.num_rounds, self.encodes = 0, encodes
        self.features = SimpleNamespace(num_passes=7)

    def statistics(self) -> Any:
        return SimpleNamespace(num_rounds=self.num_rounds)

    def notice_cancelled(self) -> None:
        self.num_rounds += not self.hangs
        self.features.num_passes += self.encodes


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "TICK_S", 0.005)


async def first_reason(dog: Watchdog, within_s: float) -> str | None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            async for reason in dog.reasons():
                return reason
    return None


def test_an_idle_engine_is_alive() -> None:
    assert asyncio.run(first_reason(Watchdog(Engine(), 0.05), 0.5)) is None


def test_a_closed_engine_is_dead() -> None:
    engine = Engine()
    engine.is_closed = True
    assert asyncio.run(first_reason(Watchdog(engine, 1000), 60)) == "the engine's thread has died"


def test_an_engine_without_rounds_hangs() -> None:
    engine = Engine()
    engine.hangs = True
    assert "has hung" in str(asyncio.run(first_reason(Watchdog(engine, 0.05), 60)))


def test_a_thread_that_prepares_for_too_long_hangs() -> None:
    dog = Watchdog(Engine(), 0.05)
    with dog.watching():
        assert "has hung" in str(asyncio.run(first_reason(dog, 60)))
    assert asyncio.run(first_reason(dog, 0.5)) is None


def test_a_thread_that_waits_for_a_busy_tower_does_not_hang() -> None:
    """Others' pictures come first; only a tower that ends no pass any more hangs."""
    engine = Engine(encodes=True)
    dog = Watchdog(engine, 0.05)

    async def play() -> str | None:
        with dog.watching():
            assert await first_reason(dog, 0.5) is None
            engine.encodes = False
            return await first_reason(dog, 60)

    assert "has hung" in str(asyncio.run(play()))


def test_a_process_that_was_stopped_is_no_engine_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a long stop one tick seems to have taken an hour: the engine is given its time all the same."""
    engine = Engine()

    async def play() -> str | None:
        loop = asyncio.get_running_loop()
        real, jump = loop.time, [0.0]
        dog = Watchdog(engine, 100.0)

        def later() -> float:
            return real() + jump[0]

        monkeypatch.setattr(loop, "time", later)

        async def stop() -> None:
            await asyncio.sleep(0.05)
            engine.hangs = True
            jump[0] = 3600.0
            await asyncio.sleep(0.05)
            engine.hangs = False

        stopping = asyncio.create_task(stop())
        found = asyncio.create_task(first_reason(dog, 10_000))
        await stopping
        await asyncio.sleep(0.1)
        assert not found.done()
        found.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await found
        return None

    asyncio.run(play())
