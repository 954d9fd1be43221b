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


def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "MACHINE", tmp_path / "missing")
    assert (device.free_memory_bytes(CPU) or 0) > 0
