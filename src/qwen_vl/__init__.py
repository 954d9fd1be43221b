"""Qwen-VL on today's PyTorch and transformers: chat about pictures, ground phrases in boxes, in English and Chinese.

Importing this package registers its classes with transformers' Auto classes, and does nothing else. The registration waits until the Auto
classes are imported, so that `import qwen_vl` alone, and `qwen-vl --help`, load neither torch nor transformers.
"""

import importlib
from typing import TYPE_CHECKING, Any

from qwen_vl import errors as errors
from qwen_vl._register import register_when_needed

if TYPE_CHECKING:
    from qwen_vl.api import Answer, ChatSession, QwenVL
    from qwen_vl.grounding.box import Box, Quad, Ref
    from qwen_vl.modeling.configuration import QWenConfig
    from qwen_vl.modeling.model import QWenLMHeadModel
    from qwen_vl.processing.image_processor import QWenImageProcessor
    from qwen_vl.processing.processor import QWenVLProcessor
    from qwen_vl.processing.tokenization import QWenTokenizer

__version__ = "0.1.0"

_HOMES = {
    "QwenVL": "qwen_vl.api",
    "Answer": "qwen_vl.api",
    "ChatSession": "qwen_vl.api",
    "Box": "qwen_vl.grounding.box",
    "Quad": "qwen_vl.grounding.box",
    "Ref": "qwen_vl.grounding.box",
    "QWenConfig": "qwen_vl.modeling.configuration",
    "QWenLMHeadModel": "qwen_vl.modeling.model",
    "QWenTokenizer": "qwen_vl.processing.tokenization",
    "QWenImageProcessor": "qwen_vl.processing.image_processor",
    "QWenVLProcessor": "qwen_vl.processing.processor",
}

__all__ = [
    "Answer",
    "Box",
    "ChatSession",
    "QWenConfig",
    "QWenImageProcessor",
    "QWenLMHeadModel",
    "QWenTokenizer",
    "QWenVLProcessor",
    "Quad",
    "QwenVL",
    "Ref",
    "errors",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'qwen_vl' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


register_when_needed()
