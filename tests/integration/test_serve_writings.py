"""Whatever the model writes, the server tells it: every special token, spans that are never closed, boxes that are none. B80 and B81.

The parser alone is tests/unit/grounding, decoding alone tests/unit/processing; here both protocols, streams and whole answers.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from qwen_vl.api.loading import BUNDLED
from qwen_vl.processing.tokenization import QWenTokenizer
from tests.integration.serving import Invariants, Server, picture_uri, shown, start_scripted, text_of

DASHSCOPE = "/api/v1/services/aigc/multimodal-generation/generation"


@pytest.fixture(scope="module")
def tokenizer() -> QWenTokenizer:
    return QWenTokenizer.from_pretrained(BUNDLED)


class Scripted:
    """A server whose model writes what it is told to."""

    def __init__(self, server: Server, write: Callable[[list[int]], Any]) -> None:
        self.server, self._write = server, write
        self.hold = Invariants(server)

    def tell(self, ids: list[int]) -> dict[str, Any]:
        """Return the choice of an answer that consists of these tokens; told whole, as a stream and by DashScope it is the same."""
        self._write(ids)
        try:
            fields: dict[str, Any] = {"max_tokens": len(ids), "temperature": 0}
            content = shown("Find the dog.", picture_uri())
            whole = self.server.ask(content, **fields)
            events = self.server.stream(content, **fields)
            asked = {"model": "nano", "input": {"messages": [{"role": "user", "content": [{"text": "hi"}]}]}, "parameters": fields}
            other = self.server.post(DASHSCOPE, json=asked)
        finally:
            self._write([])
        assert whole.status_code == other.status_code == 200, (whole.text, other.text)
        assert events[-1] == {"done": True} and "error" not in events[-2]
        [choice] = whole.json()["choices"]
        assert text_of(events) == choice["message"]["content"]
        assert events[-2]["choices"][0]["delta"]["boxes"] == choice["message"]["boxes"]
        return dict(choice)


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripted]:
    with start_scripted(tmp_path_factory.mktemp("scripted")) as (server, write):
        yield Scripted(server, write)


def test_b81_every_special_token_alone_and_unclosed(scripted: Scripted, tokenizer: QWenTokenizer) -> None:
    # One of the two hundred extra tokens stands for all.
    specials = sorted(token for name, token in tokenizer.special_tokens.items() if not name.startswith("<|extra_") or name == "<|extra_7|>")
    word = tokenizer.byte_pairs.encode(" dog", ())
    for ids in ([token] for token in specials if token != tokenizer.eod_id):
        scripted.tell([*ids, *word])
    for ids in (specials, specials[::-1], [tokenizer.img_start_id] * 60, [tokenizer.img_start_id, *word, *word], [tokenizer.img_end_id] * 3):
        scripted.tell(ids)


def test_b81_bytes_that_are_no_characters(scripted: Scripted, tokenizer: QWenTokenizer) -> None:
    half = tokenizer.byte_pairs.encode("狗", ())[:1]
    lone = [next(token for token in range(256) if tokenizer.decode([token]) == "\ufffd")]
    assert isinstance(scripted.tell([*lone * 5, *half])["message"]["content"], str)


BOXES = [
    "<box>(1,2),(3)</box>",
    "<box>(" + "9" * 60 + ",1),(2,3)</box>",
    "<box>(9,9),(1,1)</box>",
    "<box>(0,0),(1001,5000)</box>",
    "<box>(-5,0),(3,4)</box>",
    "<ref>dog</ref><box>(1,2),(3,4)",
    "<box></box>",
    "<box>(1,2),(3,4)</box>" * 8,
    "<ref><box>(1,1),(2,2)</box></ref>",
    "</box></ref><quad>(1,2),(3,4),(5,6)</quad>",
]


@pytest.mark.parametrize("written", BOXES, ids=[each[:20] for each in BOXES])
def test_b80_boxes_that_are_none(scripted: Scripted, tokenizer: QWenTokenizer, written: str) -> None:
    choice = scripted.tell(tokenizer.byte_pairs.encode(written, tokenizer.special_tokens))
    for found in choice["message"]["boxes"]:
        for x1, y1, x2, y2 in found["boxes"]:
            assert 0 <= x1 <= x2 <= 1000 and 0 <= y1 <= y2 <= 1000


def test_the_neighbours_notice_nothing(scripted: Scripted, tokenizer: QWenTokenizer) -> None:
    with scripted.hold():
        pass
