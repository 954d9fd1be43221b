"""How much memory there is for caches and copies."""

import os
from pathlib import Path

import torch

MACHINE = Path("/proc/meminfo")
GROUP = Path("/sys/fs/cgroup")  # of a container, as it sees its own
ELSEWHERE = 8 * 2**30  # bytes, where the system does not tell


def memory_bytes(device: torch.device) -> int:
    """Return what a device has left for caches, beside weights that have been loaded; where a system does not tell, half of its memory."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if available := available_bytes():
        return available
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):  # not every system tells even that
        return ELSEWHERE


def available_bytes() -> int:
    """Return how much of the machine's memory, or of a container's share of it, could be taken now; 0 where the system does not tell."""
    try:
        available = _numbers(MACHINE)["MemAvailable:"] * 1024
    except (OSError, KeyError, ValueError):
        return 0
    try:
        limit = int((GROUP / "memory.max").read_text(encoding="ascii"))
        used = int((GROUP / "memory.current").read_text(encoding="ascii")) - _numbers(GROUP / "memory.stat")["inactive_file"]
    except (OSError, KeyError, ValueError):  # no container, or one without a limit, which says "max"
        return available
    return max(0, min(available, limit - used))


def _numbers(file: Path) -> dict[str, int]:
    """Read lines of a name and a number."""
    return {words[0]: int(words[1]) for line in file.read_text(encoding="ascii").splitlines() if len(words := line.split()) > 1}
