"""Threads whose queue can be left: what has not begun never does, and what runs keeps its thread."""

import asyncio
import threading
from collections.abc import Callable

import pytest

from qwen_vl.serving.errors import ServeError
from qwen_vl.serving.threads import Threads


class Work:
    """Does as it is told, once it is let."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.gate = threading.Event()

    def __call__(self, number: int) -> int:
        self.begun.append(number)
        assert self.gate.wait(60)
        if number < 0:
            raise ValueError
        return number


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


def test_results_and_errors_come_in_the_order_of_the_work() -> None:
    async def play() -> None:
        work, threads = Work(), Threads(2, "test")
        tasks = [asyncio.create_task(threads.run(work, number)) for number in (1, 2, -3, 4)]
        await until(lambda: len(work.begun) == 2)
        work.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert results[:2] == [1, 2] and isinstance(results[2], ValueError) and results[3] == 4 and sorted(work.begun[:2]) == [1, 2]
        threads.close()

    asyncio.run(play())


def test_who_leaves_takes_along_what_has_not_begun() -> None:
    async def play() -> None:
        work, threads = Work(), Threads(1, "test")
        tasks = [asyncio.create_task(threads.run(work, number)) for number in range(8)]
        await until(lambda: work.begun == [0])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert threads._places.num_waiting == 0 and threads._pool._work_queue.empty()
        last = asyncio.create_task(threads.run(work, 8))
        await asyncio.sleep(0)
        assert work.begun == [0] and threads._places.num_waiting == 1  # the thread is not free before its work ends
        work.gate.set()
        assert await last == 8 and work.begun == [0, 8]
        threads.close()

    asyncio.run(play())


def test_a_close_ends_those_who_wait() -> None:
    async def play() -> None:
        work, threads = Work(), Threads(1, "test")
        running, waiting = (asyncio.create_task(threads.run(work, number)) for number in range(2))
        await until(lambda: work.begun == [0])
        threads.close()
        with pytest.raises(ServeError, match="stopping"):
            await waiting
        with pytest.raises(ServeError, match="stopping"):
            await threads.run(work, 2)
        work.gate.set()
        assert await running == 0 and work.begun == [0]

    asyncio.run(play())
