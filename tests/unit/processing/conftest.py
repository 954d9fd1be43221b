"""Vocabularies for the tests: the released one, and the small one of the tiny checkpoint."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from qwen_vl.processing.tokenization import QWenTokenizer

FIXTURES = Path(__file__).parents[2] / "fixtures"


@pytest.fixture(scope="session")
def released_vocabulary() -> Path:
    """The released vocabulary file, as the dashscope package carries it."""
    spec = importlib.util.find_spec("dashscope")  # looks it up without importing it
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError('the tests need the released vocabulary: pip install -e ".[dev]"')
    return Path(spec.submodule_search_locations[0]) / "resources" / "qwen.tiktoken"


@pytest.fixture(scope="session")
def tokenizer(released_vocabulary: Path) -> QWenTokenizer:
    """A tokenizer with the released vocabulary, which no test may change."""
    return QWenTokenizer(released_vocabulary)


@pytest.fixture
def tiny_tokenizer() -> QWenTokenizer:
    """A tokenizer with 640 byte-pair tokens, of the test's own."""
    return QWenTokenizer(FIXTURES / "tiny-448" / "qwen.tiktoken")


@pytest.fixture(scope="session")
def vectors() -> dict[str, Any]:
    """What the released tokenizer gives for hundreds of texts."""
    loaded: dict[str, Any] = json.loads((FIXTURES / "tokenizer_vectors.json").read_text(encoding="utf-8"))
    return loaded
