"""Who is served when: the higher priority first, within one first come, first served; and nobody is let in whose worst case does not fit beside those
that are in.

Requests that write sit in rows 0 to n-1 of the cache, those whose prompts are being read in the rows after them. As memory is bounded by worst cases,
a request that is in stays in, unless one of higher priority needs its place: then it waits again, and goes on later where it was.
"""

import bisect
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from .prefixes import Span
from .request import Handle, Request
from .sampling import Sampler


@dataclass(eq=False, kw_only=True, slots=True)
class Job:
    """A request in flight."""

    request: Request
    handle: Handle
    sampler: Sampler
    ids: list[int]  # the prompt, then what was generated
    spans: list[Span]
    level: int  # NTK
    generation: int  # of the weights for which its pictures were encoded
    was_put_back: bool = False  # it has had to wait again
    arrival: int = 0  # counts requests in the order in which they came
    row: int = -1  # of the cache; -1 while it waits
    num_cached: int = 0  # positions in the cache
    read_to: int = 0  # where the chunk ends that is being read
    embeds: Tensor | None = field(default=None, repr=False)  # of `ids`, while they are read: [1, seq, dim]
    digests: list[bytes] | None = field(default=None, repr=False)  # of the blocks of `ids`, while they wait or are read
    reason: str | None = None  # why it has ended
    error: BaseException | None = None  # why it has failed

    @property
    def has_ended(self) -> bool:
        """Whether it has nothing more to do but to leave."""
        return self.reason is not None or self.error is not None

    @property
    def num_prompt(self) -> int:
        return len(self.ids) - len(self.sampler.generated)

    @property
    def worst_length(self) -> int:
        """Positions that the request needs at most."""
        return self.num_prompt + self.request.sampling.max_new_tokens

    @property
    def turn(self) -> tuple[int, int]:
        """What is less for whoever is served first."""
        return -self.request.priority, self.arrival

    def leave_row(self) -> None:
        """Note that nothing of it is in the cache any more."""
        self.row, self.num_cached, self.embeds, self.digests = -1, 0, None, None


Fits = Callable[[int, int], bool]


class Scheduler:
    """Three queues.

    Args:
        max_batch: how many requests may be in at once.
        fits: whether so many rows of so many positions are within the memory.
    """

    def __init__(self, max_batch: int, fits: Fits) -> None:
        self.max_batch, self._fits = max_batch, fits
        self.waiting: list[Job] = []  # in the order of their turns
        self.reading: list[Job] = []
        self.writing: list[Job] = []  # in the order of their rows

    @property
    def active(self) -> list[Job]:
        """Those that have a row, in the order of the rows."""
        return [*self.writing, *self.reading]

    @property
    def is_idle(self) -> bool:
        return not self.waiting and not self.active

    def add(self, job: Job) -> None:
        """Let a request wait for its turn."""
        bisect.insort(self.waiting, job, key=lambda each: each.turn)

    def _has_room(self, jobs: list[Job]) -> bool:
        return len(jobs) <= self.max_batch and self._fits(len(jobs), max(job.worst_length for job in jobs))

    def admit(self, is_put_off: Callable[[Job], bool]) -> Job | None:
        """Let in the first of those that wait, but for those that are put off; it gets the next row.

        There must be room for those that are put off as well, so that nobody takes their places.
        """
        needed = self.active
        for job in self.waiting:
            needed.append(job)
            if not self._has_room(needed):
                return None
            if not is_put_off(job):
                self.waiting.remove(job)
                job.row = len(self.active)
                self.reading.append(job)
                return job
        return None

    def begin_writing(self, job: Job) -> None:
        """Note that a prompt has been read; prompts are read to their end in the order of their rows."""
        self.reading.remove(job)
        self.writing.append(job)

    def victims(self) -> list[Job]:
        """Return who has to wait again so that the first of those that wait can come in: of lower priority than it, the last first. Or nobody."""
        if not self.waiting:
            return []
        first, staying, victims = self.waiting[0], self.active, list[Job]()
        lower = sorted((job for job in staying if job.request.priority < first.request.priority), key=lambda job: job.turn)
        while not self._has_room([*staying, first]):
            if not lower:
                return []
            victims.append(lower.pop())
            staying.remove(victims[-1])
        return victims

    def put_back(self, job: Job) -> None:
        """Let a request that is in wait again."""
        self._drop([job])
        job.was_put_back = True
        self.add(job)

    def remove_ended(self) -> list[Job]:
        """Take out and return those that have ended."""
        gone = [job for job in (*self.waiting, *self.active) if job.has_ended]
        self._drop(gone)
        return gone

    def _drop(self, jobs: list[Job]) -> None:
        if jobs:
            gone = {id(job) for job in jobs}
            self.waiting, self.reading, self.writing = ([job for job in queue if id(job) not in gone] for queue in self._queues)

    @property
    def _queues(self) -> tuple[list[Job], list[Job], list[Job]]:
        return self.waiting, self.reading, self.writing

    def moves(self) -> list[tuple[Job, int]]:
        """Return who must move to which row so that no row between is empty; in an order in which no row is overwritten that is still needed."""
        count = len(self.writing)
        taken = {job.row for job in self.writing}
        free = (row for row in range(count) if row not in taken)
        moves = [(job, next(free)) for job in self.writing if job.row >= count]
        return moves + [(job, row) for row, job in enumerate(self.reading, start=count) if job.row != row]

    def sort_rows(self) -> None:
        """Bring those that write into the order of their rows, after the moves."""
        self.writing.sort(key=lambda job: job.row)
