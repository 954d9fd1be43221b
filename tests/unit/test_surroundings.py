"""What a run learns of the processes beside it, the packages it was made with, and the memory it took."""

from pathlib import Path

import pytest
import torch

from qwen_vl import surroundings
from qwen_vl.errors import ConfigError
from qwen_vl.surroundings import Place, find_versions, read_place

CPU = torch.device("cpu")
LAUNCHER = "torchrun .."
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


def test_torchrun_says_who_this_process_is() -> None:
    assert read_place(TORCHRUN, LAUNCHER) == Place(rank=1, local_rank=1, world_size=2, is_launched=True)
    assert read_place({"LOCAL_RANK": "0"}, LAUNCHER) == Place()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"MASTER_PORT": None}, "not MASTER_PORT"),
        ({"RANK": "one"}, "not whole numbers"),
        ({"RANK": "2"}, "RANK=2"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK=-1"),
        ({"LOCAL_RANK": "GPU-1"}, "not whole numbers"),
        ({"WORLD_SIZE": None}, "not WORLD_SIZE"),
    ],
)
def test_half_an_environment_is_refused(change: dict[str, str | None], message: str) -> None:
    environment = {name: value for name, value in {**TORCHRUN, **change}.items() if value is not None}
    with pytest.raises(ConfigError, match=message):
        read_place(environment, LAUNCHER)


def test_versions_are_of_what_is_installed() -> None:
    assert find_versions("torch", "no-such-package-of-ours") == {"torch": torch.__version__}


@pytest.mark.skipif(not surroundings.RESET.exists(), reason="the peak of resident memory can be reset on Linux alone")
def test_the_peak_is_that_since_the_reset() -> None:
    held = torch.ones(1 << 25)  # 128 MiB
    high = surroundings.peak_memory_bytes(CPU)
    del held
    surroundings.reset_peak_memory(CPU)
    low = surroundings.peak_memory_bytes(CPU)
    assert high is not None and low is not None and high - low > 100 << 20


def test_a_system_that_does_not_tell_the_peak(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(surroundings, "STATUS", tmp_path / "missing")
    monkeypatch.setattr(surroundings, "RESET", tmp_path / "missing" / "file")
    surroundings.reset_peak_memory(CPU)
    assert surroundings.peak_memory_bytes(CPU) is None
