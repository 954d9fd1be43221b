"""What is available: the machine's memory, or a container's share."""

import os
from pathlib import Path

import pytest
import torch

from qwen_vl.engine import memory
from qwen_vl.engine.memory import available_bytes, memory_bytes

GIB = 2**30


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in for a machine with 16 GiB, of which 10 are available, without a container."""
    (tmp_path / "meminfo").write_text(f"MemTotal: {16 * GIB // 1024} kB\nMemAvailable:   {10 * GIB // 1024} kB\n")
    monkeypatch.setattr(memory, "MACHINE", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "GROUP", tmp_path)
    return tmp_path


CPU = torch.device("cpu")


def test_this_machine() -> None:
    assert 0 <= available_bytes() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") and memory_bytes(CPU) > 0


def test_without_a_container(machine: Path) -> None:
    assert available_bytes() == memory_bytes(CPU) == 10 * GIB


@pytest.mark.parametrize(
    ("limit", "used", "files", "expected"), [("max", 9, 0, 10), (str(8 * GIB), 5, 1, 4), (str(32 * GIB), 1, 0, 10), (str(4 * GIB), 5, 0, 0)]
)
def test_a_containers_share(machine: Path, limit: str, used: int, files: int, expected: int) -> None:
    """Files that are in memory only because they were read lately count as free."""
    (machine / "memory.max").write_text(f"{limit}\n")
    (machine / "memory.current").write_text(f"{used * GIB}\n")
    (machine / "memory.stat").write_text(f"anon 5\ninactive_file {files * GIB}\n")
    assert available_bytes() == expected * GIB


@pytest.mark.parametrize("content", [None, "nothing of the kind\n", "MemAvailable: much\n"])
def test_where_the_system_does_not_tell(machine: Path, content: str | None) -> None:
    (machine / "meminfo").unlink()
    if content is not None:
        (machine / "meminfo").write_text(content)
    assert available_bytes() == 0
    assert memory_bytes(CPU) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
