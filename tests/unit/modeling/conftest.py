"""One tiny model with pictures, and prompts for it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qwen_vl.modeling.model import QWenLMHeadModel
from qwen_vl.processing.tokenization import QWenTokenizer
from tests.invariants import Prompt
from tests.tiny import FIXTURES, IMAGE_SIZE, IMAGE_SLOTS, make_checkpoint

MakePrompt = Callable[..., Prompt]
PICTURE = "<img>p</img>"


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("modeling") / "tiny")


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Path) -> QWenLMHeadModel:
    """A model that tests share: none may change it for good."""
    model: QWenLMHeadModel = QWenLMHeadModel.from_pretrained(tiny_folder)
    model.eval()
    return model


@pytest.fixture(scope="session")
def tiny_tokenizer() -> QWenTokenizer:
    return QWenTokenizer(FIXTURES / "tiny-448" / "qwen.tiktoken", image_slots=IMAGE_SLOTS)


@pytest.fixture(scope="session")
def make_prompt(tiny_tokenizer: QWenTokenizer) -> MakePrompt:
    """Make a prompt of a text; each `*` in it is a picture of random pixels of its own."""

    def make(text: str, seed: int = 0) -> Prompt:
        ids = tiny_tokenizer(text.replace("*", PICTURE), return_tensors="pt")["input_ids"][0]
        num_pictures = text.count("*")
        pixels = torch.randn(num_pictures, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(seed))
        return Prompt(ids, pixels if num_pictures else None)

    return make
