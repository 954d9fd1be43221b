"""What the gateway knows at any time: the requests that are in, and how many replicas answer."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge

from qwen_vl.serving.errors import ServeError
from qwen_vl.serving.stream import work_until

Result = TypeVar("Result")

FRESH_S = 2.0  # so long a look at the replicas is good
PATIENCE_S = 1.0  # with a look, before the last one is told


class Traffic:
    """The requests that are in, and what there was.

    Args:
        max_requests: so many are taken at once.
        max_lent_bytes: of uploaded pictures that travel with them.
    """

    def __init__(self, max_requests: int, max_lent_bytes: int) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("qwen_vl_gateway_requests", "Requests by status", ["status"], registry=self.registry)
        self.retries = Counter("qwen_vl_gateway_retries", "Requests given to another replica because theirs had died", registry=self.registry)
        self.in_flight = Gauge("qwen_vl_gateway_in_flight", "Requests whose answer is not complete", registry=self.registry)
        self.max_requests, self.max_lent_bytes = max_requests, max_lent_bytes
        self.num_in_flight = self.lent_bytes = 0
        self.is_draining = False
        self._cut = asyncio.Event()  # set when the grace time is over

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request, from before its body is read until its answer is complete.

        Raises: ServeError 503 while the server stops, 429 if there are as many as it takes.
        """
        if self.is_draining:
            raise shutting_down()
        if self.num_in_flight >= self.max_requests:
            raise overloaded()
        self._note(+1)
        try:
            yield
        finally:
            self._note(-1)

    @contextmanager
    def lending(self, num_bytes: int) -> Iterator[None]:
        """Count pictures that are lent with a request. Raises: ServeError 429 if there are as many bytes of them as may be."""
        if num_bytes and self.lent_bytes + num_bytes > self.max_lent_bytes:
            raise overloaded()
        self.lent_bytes += num_bytes
        try:
            yield
        finally:
            self.lent_bytes -= num_bytes

    def _note(self, change: int) -> None:
        self.num_in_flight += change
        self.in_flight.set(self.num_in_flight)

    async def uncut(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Do some work for a request that is in. Raises: ServeError 503 when the grace time is over first; else whatever the work raises."""
        return await work_until(self._cut.wait(), shutting_down(), work)

    async def drain(self, grace_s: float) -> None:
        """Take nothing new; wait for those that are in, then cut them."""
        self.is_draining = True
        try:
            async with asyncio.timeout(grace_s):
                while self.num_in_flight:
                    await asyncio.sleep(0.05)
        except TimeoutError:
            self._cut.set()
            await asyncio.sleep(1.0)  # for last events to reach their readers


class Sight:
    """How many replicas answer, as it was lately. Whoever asks often causes no more looks: they come one at a time.

    Args: look: counts them, which takes time; None if they cannot be seen now.
    """

    def __init__(self, look: Callable[[], int | None]) -> None:
        self._look, self._num_ready, self._seen_at = look, 0, float("-inf")
        self._looking: asyncio.Task[None] | None = None

    async def num_ready(self) -> int:
        """Return how many replicas answer."""
        if self._looking is None and asyncio.get_running_loop().time() - self._seen_at > FRESH_S:
            self._looking = asyncio.create_task(self._refresh())
        if self._looking is not None:
            await asyncio.wait([self._looking], timeout=PATIENCE_S)
        return self._num_ready

    async def _refresh(self) -> None:
        try:
            seen = await asyncio.to_thread(self._look)
            self._num_ready = self._num_ready if seen is None else seen
        finally:
            self._seen_at, self._looking = asyncio.get_running_loop().time(), None


def overloaded() -> ServeError:
    """Return the error of a server that has as much to do as it takes."""
    return ServeError(429, "overloaded", "Too many requests wait already. Try again in a moment.", retry_after_s=1)


def shutting_down() -> ServeError:
    """Return the error of a server that stops."""
    return ServeError(503, "shutting_down", "The server stops and takes no new requests.", retry_after_s=5)
