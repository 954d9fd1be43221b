"""The reference checkpoints: small random ones in the released layout, with what the released code gives for them.

All numbers are float32 on a CPU. A case of more than 24 tokens holds the logits of the positions in `NAME.positions` only; features hold every
fifth row.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import features
from safetensors.torch import load_file
from torch import Tensor, nn

import qwen_vl  # noqa: F401  registers the classes and sets the picture loader
from qwen_vl.modeling.model import QWenLMHeadModel
from qwen_vl.processing.images import load_pixel_values
from qwen_vl.processing.tokenization import QWenTokenizer

FIXTURES = Path(__file__).parent / "fixtures"
NAMES = ("tiny-448", "tiny-long")
IMPLEMENTATIONS = ("sdpa", "eager")
PICTURES = {"scene": "scene.png", "alpha": "alpha.png", "gray": "gray.png", "tall": "tall.jpg"}


@dataclass(frozen=True)
class Reference:
    """One folder: its expected values, its tokenizer and its model."""

    name: str

    @property
    def folder(self) -> Path:
        return FIXTURES / self.name

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return load_file(self.folder / "expected.safetensors")

    @cached_property
    def document(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.folder / "expected.json").read_text(encoding="utf-8"))
        return loaded

    @cached_property
    def tokenizer(self) -> QWenTokenizer:
        return QWenTokenizer(self.folder / "qwen.tiktoken")

    def cases(self, kind: str) -> list[dict[str, Any]]:
        return [case for case in self.document["cases"] if case["kind"] == kind]

    @property
    def image_size(self) -> int:
        return load_model(self.name).transformer.visual.image_size

    def pixel_values(self, picture: str) -> Tensor:
        return load_pixel_values([str(self.folder / PICTURES[picture])], self.image_size)

    def decode(self, ids: Any) -> str:
        return str(self.tokenizer.decode(ids))


@lru_cache
def load_reference(name: str) -> Reference:
    return Reference(name)


@lru_cache
def load_model(name: str, implementation: str = "sdpa") -> QWenLMHeadModel:
    """Return a model that tests share: none may change it for good."""
    model: QWenLMHeadModel = QWenLMHeadModel.from_pretrained(FIXTURES / name, attn_implementation=implementation)
    model.eval()
    return model


@contextmanager
def training(model: nn.Module) -> Iterator[None]:
    """Put a shared model in training mode for a while, without gradients before and after."""
    model.zero_grad(set_to_none=True)
    model.train()
    try:
        yield
    finally:
        model.eval()
        model.zero_grad(set_to_none=True)


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a share of the largest expected value."""
    return float((found.detach().double() - expected.double()).abs().max() / expected.double().abs().max())


def is_jpeg_decoded_as_expected() -> bool:
    """Tell whether this Pillow's JPEG decoder is the one of the expected values: libjpeg-turbo 3.2 changed how colours are enlarged."""
    version = features.version("libjpeg_turbo") or "0"
    return tuple(int(number) for number in version.split(".")[:2]) >= (3, 2)


def row(ids: Tensor) -> Tensor:
    """Make a batch of one: [seq] -> [1, seq]."""
    return ids[None]


def greedy(model: QWenLMHeadModel, input_ids: Tensor, max_new_tokens: int, **kwargs: Any) -> Any:
    """Generate greedily for whole rows without padding, unless a mask says otherwise. Returns: [batch, seq + new], or the output with details."""
    kwargs.setdefault("attention_mask", torch.ones_like(input_ids))
    return model.generate(input_ids, max_new_tokens=max_new_tokens, do_sample=False, **kwargs)
