"""What is measured of a device is there, and of the right kind."""

from pathlib import Path

import pytest
import torch

from qwen_vl.engine import memory
from qwen_vl.profiling import device

CPU = torch.device("cpu")


def test_rates() -> None:
    facts = device.measure_device(CPU)
    assert facts.copy_gb_per_s > 0 and facts.matrix_tflop_per_s > 0 and facts.matrix_dtype == "float32" and facts.name.startswith("cpu (")


@pytest.mark.skipif(not device.RESET.exists(), reason="the peak of resident memory can be reset on Linux alone")
def test_the_peak_is_that_since_the_reset() -> None:
    held = torch.ones(1 << 25)  # 128 MiB
    high = device.peak_memory_bytes(CPU)
    del held
    device.reset_peak_memory(CPU)
    low = device.peak_memory_bytes(CPU)
    assert high is not None and low is not None and high - low > 100 << 20


def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(device, "STATUS", tmp_path / "missing")
    monkeypatch.setattr(memory, "MACHINE", tmp_path / "missing")
    monkeypatch.setattr(device, "RESET", tmp_path / "missing" / "file")
    device.reset_peak_memory(CPU)
    assert device.peak_memory_bytes(CPU) is None and (device.free_memory_bytes(CPU) or 0) > 0
