"""What a run is surrounded by: the processes it is one of, the packages it was made with, the memory it took.

place = read_place(os.environ, "torchrun --nproc_per_node 2 -m qwen_vl finetune ..")
place.rank, place.world_size
find_versions("torch", "pillow")  # {"torch": "2.9.1", "pillow": "12.0.0"}
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
from torch import distributed as dist

from qwen_vl.errors import ConfigError

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Who this process is among those that were started together."""

    rank: int = 0
    local_rank: int = 0  # among those of this machine
    world_size: int = 1
    is_launched: bool = False  # by torchrun or its like


def read_place(environment: Mapping[str, str], launcher: str) -> Place:
    """Read what torchrun or accelerate say. Args: launcher: the command to recommend.

    Raises: ConfigError if they say half of it, or what cannot be.
    """
    given = [name for name in NAMES if name in environment]
    if "WORLD_SIZE" not in given and "RANK" not in given:
        return Place()
    if missing := [name for name in NAMES if name not in given]:
        raise ConfigError(f"The environment has {', '.join(given)} but not {', '.join(missing)}: start the processes with {launcher}")
    try:
        rank, world_size, local_rank = (int(environment[name]) for name in NAMES[:3])
    except ValueError:
        raise ConfigError(f"RANK, WORLD_SIZE and LOCAL_RANK are not whole numbers: {', '.join(environment[name] for name in NAMES[:3])}") from None
    if not (0 <= rank < world_size and 0 <= local_rank < world_size):
        raise ConfigError(f"RANK={rank} and LOCAL_RANK={local_rank} do not fit WORLD_SIZE={world_size}; start the processes with {launcher}")
    return Place(rank=rank, local_rank=local_rank, world_size=world_size, is_launched=True)


def is_lost_peer(error: RuntimeError) -> bool:
    """Tell whether an exchange failed because the process at its other end is gone."""
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in LOST_PEER)


def find_versions(*names: str) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # also this project's own, run from a source tree
            continue
    return found


def reset_peak_memory(device: torch.device) -> None:
    """Begin to look for the highest memory anew, where that can be."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        RESET.write_text("5", encoding="ascii")
    except OSError:
        return


def peak_memory_bytes(device: torch.device) -> int | None:
    """Return the highest memory since the last reset: on a GPU of torch's allocator, as the release has it, else the process's resident memory.

    None where the system does not tell.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    # Not getrusage: its maximum begins with that of the process that started this one, and cannot be reset.
    try:
        return int(STATUS.read_text(encoding="ascii").partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        return None
