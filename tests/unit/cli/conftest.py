"""A tiny checkpoint, a folder of pictures, and a way to run the command line in this process."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from qwen_vl.cli import main
from tests.tiny import make_checkpoint


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own folder to work in, with two pictures."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 32), (220, 30, 30)).save("red.png")
    Image.new("RGB", (40, 90), (20, 40, 210)).save("blue.jpg")
    return tmp_path


@pytest.fixture
def run(workplace: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    def run_command(*arguments: str | Path) -> Result:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return run_command
