"""The list format, there and back."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_vl.errors import PromptError
from qwen_vl.prompt.list_format import from_list_format, to_list_format

VECTORS = json.loads((Path(__file__).parents[2] / "fixtures" / "tokenizer_vectors.json").read_text(encoding="utf-8"))


def test_every_text_is_split_as_the_release_splits_it() -> None:
    rows = [row for row in VECTORS["encode"] if "list_format" in row]
    assert len(rows) == 228
    assert [row["text"] for row in rows if to_list_format(row["text"]) != row["list_format"]] == []


def test_what_the_release_refuses_to_split_is_split_without_loss() -> None:
    rows = [row for row in VECTORS["encode"] if "list_format_error" in row]
    assert len(rows) == 93
    written = {"text": ("", ""), "image": ("<img>", "</img>"), "ref": ("<ref>", "</ref>"), "box": ("<box>", "</box>"), "quad": ("<quad>", "</quad>")}
    for row in rows:
        pieces = [(written[key], value) for element in to_list_format(row["text"]) for key, value in element.items()]
        assert "".join(start + value + end for (start, end), value in pieces) == row["text"]


@pytest.mark.parametrize("row", VECTORS["from_list_format"], ids=lambda row: str(row["text"])[:20])
def test_prompts_are_written_as_released(row: dict[str, Any]) -> None:
    assert from_list_format(row["list"]) == row["text"]


def test_the_space_after_the_picture_number_is_a_choice() -> None:
    assert from_list_format([{"image": "a.png"}, {"text": "?"}], space_after_picture=True) == "Picture 1: <img>a.png</img>\n?"


def test_the_first_known_key_wins_and_fractions_are_cut() -> None:
    assert from_list_format([{"text": "t", "box": [(1, 2, 3, 4)]}]) == "t"
    assert from_list_format([{"box": [(1.9, 2, 3, 4)], "ref": "a"}]) == "<ref>a</ref><box>(1,2),(3,4)</box>"


@pytest.mark.parametrize(
    "element", [{"ref": "a"}, {"quad": "x"}, {}, "text", {"box": [(1, 2, 3)]}, {"box": [("a", 2, 3, 4)]}, {"box": [float("nan")]}]
)
def test_other_elements_are_refused_by_name(element: Any) -> None:
    with pytest.raises(PromptError, match="Unsupport element: "):
        from_list_format([element])


@given(st.lists(st.sampled_from(["<img>", "</img>", "<ref>", "</ref>", "<box>", "</box>", "<quad>", "a", " é", "\n"]), max_size=20).map("".join))
def test_splitting_is_total_and_loses_nothing(text: str) -> None:
    names = {"text": "{}", "image": "<img>{}</img>", "ref": "<ref>{}</ref>", "box": "<box>{}</box>", "quad": "<quad>{}</quad>"}
    elements = to_list_format(text)
    assert "".join(names[key].format(value) for element in elements for key, value in element.items()) == text
    assert all(len(element) == 1 for element in elements)
