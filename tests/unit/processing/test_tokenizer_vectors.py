"""Every row of tokenizer_vectors.json and the golden values of FACTS 13: the release's own answers."""

import re
from typing import Any

import pytest

from qwen_vl.errors import PromptError
from qwen_vl.processing.tokenization import QWenTokenizer

PAD = [151859]


def test_encode_gives_the_released_ids(tokenizer: QWenTokenizer, vectors: dict[str, Any]) -> None:
    rows = [row for row in vectors["encode"] if "ids" in row]
    assert len(rows) == 289
    assert [row["text"] for row in rows if tokenizer.encode(row["text"]) != row["ids"]] == []


def test_decode_gives_the_released_text(tokenizer: QWenTokenizer, vectors: dict[str, Any]) -> None:
    rows = [row for row in vectors["encode"] if "ids" in row]
    assert [row["text"] for row in rows if tokenizer.decode(row["ids"]) != row["decoded"]] == []
    assert [row["text"] for row in rows if tokenizer.decode(row["ids"], skip_special_tokens=True) != row["decoded_skip_special"]] == []


def test_what_the_release_refuses_to_encode_is_refused_by_name(tokenizer: QWenTokenizer, vectors: dict[str, Any]) -> None:
    rows = [row for row in vectors["encode"] if "encode_error" in row]
    assert len(rows) == 32
    for row in rows:
        with pytest.raises(PromptError, match="Unclosed image token" if row["encode_error"] == "ValueError" else "Unclosed|holds the special token"):
            tokenizer.encode(row["text"])


def test_chat_contexts_are_the_released_ones(tokenizer: QWenTokenizer, vectors: dict[str, Any]) -> None:
    assert len(vectors["chat_context"]) == 24
    for row in vectors["chat_context"]:
        raw_text, ids = tokenizer.build_chat_context(row["query"], row["history"], row["system"], row["max_window_size"])
        assert raw_text == row["raw_text"]
        assert ids == row["ids"]


def test_fine_tuning_samples_are_written_as_chat_contexts_are(tokenizer: QWenTokenizer, vectors: dict[str, Any]) -> None:
    for row in vectors["finetune"]:
        texts = [turn["value"] for turn in row["conversations"]]
        history = list(zip(texts[0::2], texts[1::2], strict=True))[:-1]
        _, ids = tokenizer.build_chat_context(texts[-2], history, max_window_size=10**6)
        assert row["input_ids"][: len(ids)] == ids[: row["max_len"]]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("\n", [198]),
        ("\n\n", [271]),
        ("\n\n\n", [1406]),
        ("a\r\nb", [64, 319, 65]),
        ("123", [16, 17, 18]),
        ("3.14", [18, 13, 16, 19]),
        ("你好", [108386]),
        ("这是什么?", [100346, 99245, 30]),
        ("图中的狗是什么品种？", [28029, 101047, 100737, 102021, 104369, 11319]),
        ("框出图中击掌的位置", [101540, 20221, 28029, 15946, 52726, 99933, 104473]),
        ("Picture 1: ", [24669, 220, 16, 25, 220]),
        ("Generate the caption in English with grounding:", [31115, 279, 17256, 304, 6364, 448, 94741, 25]),
        (" Answer:", [21806, 25]),
        ("Human:", [33975, 25]),
        ("Observation:", [37763, 367, 25]),
        ("   a", [256, 264]),
        ("a   b", [64, 256, 293]),
        ("I'M I'm", [40, 27603, 358, 2776]),
        ("🤖", [147238]),
        ("<quad>(1,2),(3,4),(5,6),(7,8)</quad>", [151855, 7, 16, 11, 17, 23547, 18, 11, 19, 23547, 20, 11, 21, 23547, 22, 11, 23, 8, 151856]),
        ("<img>http://a.b/c d.png</img>", [151857, *b"http://a.b/c d.png", *PAD * 238, 151858]),
        ("<img>\u00e9</img>", [151857, 195, 169, *PAD * 254, 151858]),
    ],
)
def test_golden_values(tokenizer: QWenTokenizer, text: str, ids: list[int]) -> None:
    assert tokenizer.encode(text) == ids


def test_golden_chat_contexts(tokenizer: QWenTokenizer) -> None:
    _, ids = tokenizer.build_chat_context("hi")
    assert ids == [151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198, 151644, 872, 198, 6023, 151645, 198, 151644, 77091, 198]
    _, ids = tokenizer.build_chat_context("And the dog?", [("Picture 1: <img>a.png</img>\nWhat is it?", "A beach.")])
    assert len(ids) == 304
    _, ids = tokenizer.build_chat_context("q2", [("q1", None)], system="")
    assert ids == [151644, 8948, 198, 151645, 198, 151644, 872, 198, 80, 16, 151645, 198, 198] + [
        151644,
        872,
        198,
        80,
        17,
        151645,
        198,
        151644,
        77091,
        198,
    ]


@pytest.mark.parametrize(("window", "kept"), [(0, 0), (19, 0), (20, 1), (33, 1), (34, 2)])
def test_the_window_keeps_the_newest_turns(tokenizer: QWenTokenizer, window: int, kept: int) -> None:
    raw_text, _ = tokenizer.build_chat_context("q3", [("q1", "a1"), ("q2", "a2")], system="s", max_window_size=window)
    assert re.findall("q[12]", raw_text) == ["q1", "q2"][2 - kept :]


def test_list_format_is_written_as_released(tokenizer: QWenTokenizer, vectors: dict[str, Any]) -> None:
    for row in vectors["from_list_format"]:
        assert tokenizer.from_list_format(row["list"]) == row["text"]
