"""Threads for work that would hold up the event loop, with a queue that can be left.

decoding = Threads(2, "decode")
picture = await decoding.run(decode, content)
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from qwen_vl.serving.errors import ServeError
from qwen_vl.serving.places import Places

Given = TypeVar("Given")
Result = TypeVar("Result")


class Threads:
    """So many threads, for one event loop. Work begins in the order in which it came.

    Whoever is cancelled before its work begins takes it along; what runs by then ends by itself, and nothing else begins in its place before.
    """

    def __init__(self, num_threads: int, name: str) -> None:
        self._places = Places(num_threads)
        self._pool = ThreadPoolExecutor(num_threads, name)

    async def run(self, work: Callable[[Given], Result], given: Given) -> Result:
        """Wait for a thread, and for what it makes of a value. Raises: what the work raises; ServeError 503 once this is closed."""
        await self._places.take(1)
        running = asyncio.get_running_loop().run_in_executor(self._pool, work, given)
        running.add_done_callback(lambda _: self._places.give_back(1))  # when the thread is free, not when nobody waits for it any more
        return await asyncio.shield(running)

    def close(self) -> None:
        """Take no more work."""
        self._places.refuse(ServeError(503, "shutting_down", "The server is stopping.", retry_after_s=1))
        self._pool.shutdown(wait=False)
