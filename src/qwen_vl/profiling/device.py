"""What a device can do, measured: how fast it copies and multiplies, and how much memory is free."""

import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from qwen_vl.engine.memory import available_bytes
from qwen_vl.modeling.linear import multiply

PROCESSOR = Path("/proc/cpuinfo")
NUM_TRIES, NUM_PER_TRY = 5, 5
COPIED_BYTES = {"cuda": 1 << 30}  # else 256 MiB: larger than any cache
MATRIX_SIDE = {"cuda": 8192}  # else 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceFacts:
    """A device, and what it was measured to do."""

    name: str
    copy_gb_per_s: float  # read and written, together
    matrix_tflop_per_s: float
    matrix_dtype: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def name_of(device: torch.device) -> str:
    """Return the device's name for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({_processor()}, {torch.get_num_threads()} threads)"


def _processor() -> str:
    """Return the processor's name, or at least its kind."""
    try:
        line = next(line for line in PROCESSOR.read_text(encoding="utf-8").splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
    return line.partition(":")[2].strip()


def synchronize(device: torch.device) -> None:
    """Wait until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@torch.no_grad()
def measure_device(device: torch.device, dtype: torch.dtype | None = None) -> DeviceFacts:
    """Measure the bandwidth of a copy and the rate of a matrix product, as the model's layers do it.

    Args: dtype: of the product; bfloat16 on a GPU, else float32.
    """
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    source = torch.zeros(COPIED_BYTES.get(device.type, 1 << 28), dtype=torch.uint8, device=device)  # zeros: pages that are there
    target = torch.zeros_like(source)
    side = MATRIX_SIDE.get(device.type, 1024)
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    copied, multiplied = _best(lambda: target.copy_(source), device), _best(lambda: multiply(left, right), device)
    return DeviceFacts(
        name=name_of(device),
        copy_gb_per_s=round(2 * source.nbytes / copied / 1e9, 2),
        matrix_tflop_per_s=round(2 * side**3 / multiplied / 1e12, 4),
        matrix_dtype=str(dtype).removeprefix("torch."),
    )


def _best(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one run in the best of some tries."""
    work()
    tries = []
    for _ in range(NUM_TRIES):
        synchronize(device)
        begin = time.perf_counter()
        for _ in range(NUM_PER_TRY):
            work()
        synchronize(device)
        tries.append((time.perf_counter() - begin) / NUM_PER_TRY)
    return min(tries)


def free_memory_bytes(device: torch.device) -> int | None:
    """Return the memory that can be taken now: on a GPU its free memory, else the machine's or a container's; None where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if available := available_bytes():
        return available
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
