"""Places for answers that are written at once: first come, first served, several for a request that wants several answers."""

import asyncio
from collections import deque

from qwen_vl.serving.errors import ServeError


class Places:
    """So many places. For one event loop."""

    def __init__(self, num_places: int) -> None:
        self.num_places = self.num_free = num_places
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._refusal: ServeError | None = None

    @property
    def num_waiting(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    async def take(self, count: int) -> None:
        """Wait until everybody who came before has been served, and `count` places are free; take them.

        Raises: ServeError if nobody is served any more.
        """
        if self._refusal is not None:
            raise self._refusal
        if not self._waiting and self.num_free >= count:
            self.num_free -= count
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (count, turn)
        self._waiting.append(entry)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # the places came in the same moment
                self.give_back(count)
            elif entry in self._waiting:
                self._waiting.remove(entry)
                self._serve()  # whoever stood behind may fit
            raise
        if self._refusal is not None:  # maybe after the places came, but before this task went on
            self.give_back(count)
            raise self._refusal

    def refuse(self, error: ServeError) -> None:
        """Serve nobody any more: those who wait and those who come get the error."""
        self._refusal = error
        self._serve()

    def give_back(self, count: int) -> None:
        """Give places back."""
        self.num_free += count
        self._serve()

    def _serve(self) -> None:
        while self._waiting and (self._refusal is not None or self._waiting[0][0] <= self.num_free or self._waiting[0][1].done()):
            count, turn = self._waiting.popleft()  # those who are refused give their places back at once
            if not turn.done():  # else it was cancelled, and has not noticed yet
                self.num_free -= count
                turn.set_result(None)
