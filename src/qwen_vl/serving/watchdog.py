"""Is the engine alive? Its rounds are its heartbeat: even an idle engine does one when it is poked."""

import asyncio
import itertools
import logging
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

logger = logging.getLogger(__name__)

LEAST_PATIENCE_S = 10.0  # where nobody has asked for another
TICK_S = 0.5
MAX_TICK_S = 2.0  # a tick that took longer says that this process was stopped, not how long the engine has hung


class Watched(Protocol):
    """What is needed of an engine."""

    @property
    def is_closed(self) -> bool: ...

    @property
    def features(self) -> Any: ...  # with num_passes, of the vision tower

    def statistics(self) -> Any: ...  # with num_rounds

    def notice_cancelled(self) -> None: ...  # wakes it for a round


class Watchdog:
    """Watches an engine, and threads that prepare requests for it.

    A thread that prepares a request may wait for the vision tower, behind others' pictures, for as long as the tower goes on.

    Args: limit_s: without a round for so long it hangs, and so does a thread, without a pass of the tower.
    """

    def __init__(self, engine: Watched, limit_s: float) -> None:
        self.engine, self.limit_s = engine, limit_s
        self._numbers = itertools.count()
        self._works: dict[int, list[float]] = {}  # for how long each has been seen, since the tower's last pass
        self._num_passes = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the calling thread as well until the block is left."""
        number = next(self._numbers)
        self._works[number] = [0.0]
        try:
            yield
        finally:
            del self._works[number]

    async def reasons(self) -> AsyncIterator[str]:
        """Wait until something is wrong and yield what it is, once."""
        loop = asyncio.get_running_loop()
        rounds, stalled_s, seen_at = -1, 0.0, loop.time()
        while True:
            await asyncio.sleep(TICK_S)
            passed_s, seen_at = min(loop.time() - seen_at, MAX_TICK_S), loop.time()
            if self.engine.is_closed:
                yield "the engine's thread has died"
                return
            found = self.engine.statistics().num_rounds
            stalled_s = stalled_s + passed_s if found == rounds else 0.0
            rounds = found
            if stalled_s > self.limit_s or self._some_work_hangs(passed_s):
                log_stacks()
                yield f"the engine has hung for more than {self.limit_s:g} s"
                return
            self.engine.notice_cancelled()

    def _some_work_hangs(self, passed_s: float) -> bool:
        num_passes, hangs = self.engine.features.num_passes, False
        goes_on, self._num_passes = num_passes != self._num_passes, num_passes
        for lasted_s in list(self._works.values()):
            if goes_on:
                lasted_s[0] = 0.0
            hangs |= lasted_s[0] > self.limit_s
            lasted_s[0] += passed_s
        return hangs


def log_stacks() -> None:
    """Log where each thread is: functions and lines, no values."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        name = names.get(ident, "")
        if name.startswith(("engine", "prepare")):
            places = [f"{each.name}:{each.lineno}" for each in traceback.extract_stack(frame, limit=None)]
            logger.critical("thread %s is at %s", name, " < ".join(reversed(places)))
