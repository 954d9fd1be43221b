"""Who this process is among those that evaluate together, and what they say to each other: little, as each works on its own samples.

    with join(os.environ) as processes, hold_together(out, processes):
        mine = processes.share_of(samples)
        ...
        processes.wait()

Several are started by `torchrun --nproc-per-node 8 -m qwen_vl evaluate ..`; a process that was started alone is all there is.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from torch import distributed as dist

from qwen_vl.errors import CapacityError, LockError, QwenVLError, cannot_write
from qwen_vl.lock import hold_folder
from qwen_vl.surroundings import is_lost_peer, read_place

PATIENCE = timedelta(days=7)  # for the slowest: shares differ, and the first process also scores
LAUNCHER = "torchrun --nproc_per_node 2 -m qwen_vl evaluate .."
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Processes:
    """One of `world_size` processes."""

    rank: int = 0
    local_rank: int = 0  # among those of this machine
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that reports and scores."""
        return self.rank == 0

    def share_of(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return this process's part: every item is in exactly one part, and their sizes differ by one at most."""
        return items[self.rank :: self.world_size]

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.world_size > 1:
            dist.barrier()

    def hear(self, word: str | None) -> str | None:
        """Return what the main process says. Args: word: what to say; only the main process's counts."""
        if self.world_size == 1:
            return word
        words = [word]
        dist.broadcast_object_list(words, src=0)
        return words[0]


ALONE = Processes()


@contextmanager
def join(environment: Mapping[str, str]) -> Iterator[Processes]:
    """Find the other processes, and leave them at the end.

    Raises: ConfigError for an environment that says half of who this process is, or what cannot be; CapacityError if another process is gone.
    """
    place = read_place(environment, LAUNCHER)
    if not place.is_launched:
        yield ALONE
        return
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Processes(place.rank, place.local_rank, place.world_size)
    except RuntimeError as error:
        if not is_lost_peer(error):
            raise
        raise CapacityError("Another process of this evaluation is gone; what it wrote before says why. Start again: nothing is repeated.") from error
    finally:
        dist.destroy_process_group()


@contextmanager
def hold_together(folder: Path, processes: Processes = ALONE) -> Iterator[None]:
    """Make a folder and hold it for all processes until the block ends; the main one does, and the others hear whether it could.

    Raises: LockError naming the process that holds it; ConfigError or DiskError if it cannot be made. The others raise LockError for any of these.
    """
    if not processes.is_main:
        if (refusal := processes.hear(None)) is not None:
            raise LockError(refusal)
        yield
        return
    with ExitStack() as stack:
        try:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise cannot_write(folder, error, "Name another folder.") from None
            stack.enter_context(hold_folder(folder))
        except QwenVLError as error:
            processes.hear(str(error))
            raise
        processes.hear(None)
        yield
