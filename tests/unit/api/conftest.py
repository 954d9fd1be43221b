"""One tiny chat model and one tiny base model for all tests of the api."""

from pathlib import Path

import pytest
from PIL import Image

from qwen_vl.api import QwenVL
from tests.tiny import make_checkpoint


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny") / "chat")


@pytest.fixture(scope="session")
def vl(chat_folder: Path) -> QwenVL:
    return QwenVL.load(chat_folder, device="cpu")


@pytest.fixture(scope="session")
def base_vl(tmp_path_factory: pytest.TempPathFactory) -> QwenVL:
    return QwenVL.load(make_checkpoint(tmp_path_factory.mktemp("tiny") / "base", generation={"chat_format": "raw"}), device="cpu")


@pytest.fixture
def red() -> Image.Image:
    return Image.new("RGB", (64, 32), (220, 30, 30))


@pytest.fixture
def blue() -> Image.Image:
    return Image.new("RGB", (40, 90), (20, 40, 210))
