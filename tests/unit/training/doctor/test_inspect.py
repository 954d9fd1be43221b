"""Everything the doctor finds, and that it agrees with what training reads."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qwen_vl.errors import DataError
from qwen_vl.processing.images import load_image
from qwen_vl.training.conversations.formats import CONTROL_TOKENS, read_conversation
from qwen_vl.training.doctor import inspect
from qwen_vl.training.doctor.findings import ERROR, KINDS, printable

from .conftest import Check, Record, kinds, say, show

BOX = "<box>(100,200),(300,400)</box>"


def messages(*pairs: tuple[str, Any]) -> Record:
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


IMAGE = {"type": "image", "image": "a.png"}
CLEAN = [
    say("Hello", "Hi"),
    say(show("Find it."), f"<ref>it</ref>{BOX}", "And?", "That is all.", id="2"),
    say("Picture 1: <img>a.png</img>\nPicture 2: <img>b.png</img>\nCompare.", "They differ.", id="3"),
    messages(("system", "Be kind."), ("user", [IMAGE, {"type": "text", "text": "What?"}]), ("assistant", "Noise.")),
    {"id": "5", "image": "a.png", "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Much noise."}]},
]


def test_nothing_is_found_in_clean_data_of_any_format(check: Check) -> None:
    examination = check(*CLEAN)
    assert examination.findings == [] and examination.num_errors == 0
    assert {checked.form for checked in examination.records} == {"released", "messages", "llava"}
    assert all(checked.length and checked.num_trained for checked in examination.records)
    lines = check(text="".join(json.dumps(record) + "\r\n" for record in CLEAN), name="train.jsonl")
    assert [checked.length for checked in lines.records] == [checked.length for checked in examination.records]


CASES: list[tuple[Any, list[str]]] = [
    (3, ["record"]),
    ({}, ["record"]),
    ({"conversations": []}, ["record"]),
    ({"conversations": [3]}, ["role"]),
    (say("a", "b", "c"), ["order"]),
    ({"conversations": [{"from": "user", "value": "a"}] * 2}, ["order", "order"]),
    ({"conversations": [{"from": "bot", "value": "a"}, {"from": "user", "value": ""}]}, ["role", "empty", "order"]),
    (messages(("user", "a"), ("user", "b"), ("assistant", "c")), ["order"]),
    (messages(("user", []), ("assistant", "c")), ["empty"]),
    (messages(("tool", "a"), ("user", "b"), ("assistant", "c")), ["role"]),
    (say("a", " "), ["empty"]),
    (say("", "b"), ["empty"]),
    (say("a", "b<|im_end|>", "c<|im_start|>user", "d"), ["marker", "marker"]),
    ({"conversations": [{"from": "assistant", "value": "x"}, *say("a", "b")["conversations"]]}, ["first-answer"]),
    (say(show("a", "gone.png"), "b"), ["picture-missing"]),
    (say(show("a", "cut.png"), "b"), ["picture-unreadable"]),
    (say(show("a", "."), "b"), ["picture-unreadable"]),
    (say(show("a", "https://example.org/a.png"), "b"), ["picture-address"]),
    (say("<img>a.png\nWhat?", "b"), ["tag"]),
    (say("What</img>?", "b"), ["tag"]),
    (say("<img>a<ref>.png</img>", "b"), ["tag"]),
    (say(show("a"), f"<ref>x{BOX}"), ["tag"]),
    (say(show("a"), f"<ref>x{BOX}</ref>"), ["tag"]),
    (say("a", "<imgpad>"), ["tag"]),
    (say(show("a"), "<box>(1,2),(3)</box>"), ["box-unreadable"]),
    (say(show("a"), "<box>(1,2),(3,1000)</box><box>(1,2),(3,1004)</box>"), ["box-off-grid"]),
    (say(show("a"), "<box>(3,2),(1,4)</box>"), ["box-order"]),
    (say(show("a"), "<box>(3,2),(3,4)</box>"), ["box-empty"]),
    (say(show("a"), "<box>(0.1,0.2),(0.3,0.4)</box>"), ["box-scale"]),
    (say("a", BOX), ["box-no-picture"]),
    (say("Picture 2: <img>a.png</img>\na", "b"), ["numbering"]),
    (say(show("a"), "b", show("c"), "d"), ["numbering"]),
    (say(show("a"), "<img>b.png</img>\nthere"), ["picture-answer"]),
    (say(show("a"), "<img>b.png</img>"), ["picture-answer", "untrained"]),
    (say("a", "b " * 400), ["long"]),
    (say("Picture 1: <img>a.png</img>\n" * 30, "b"), ["numbering", "long", "cut-picture"]),
]


@pytest.mark.parametrize(("record", "expected"), CASES, ids=lambda value: str(value)[:60])
def test_each_kind_is_found_and_agrees_with_training(check: Check, folder: Path, record: Any, expected: list[str]) -> None:
    examination = check(record, max_length=300)
    assert kinds(examination) == expected, examination.findings
    try:
        read_conversation(1, record, folder)
    except DataError:
        assert examination.num_errors, "what training refuses is an error"
    else:
        assert examination.records[0].conversation
    assert all(finding.record == 1 and finding.found for finding in examination.findings)


def test_a_file_is_not_missing_because_of_its_name(check: Check, folder: Path) -> None:
    (folder / "does not exist.png").write_bytes(b"no picture")
    assert kinds(check(say(show("a", "does not exist.png"), "b"))) == ["picture-unreadable"]


def test_every_kind_has_a_case(check: Check) -> None:
    assert {kind for _, found in CASES for kind in found} == set(KINDS) - {"json", "same-content", "same-id"}


def test_the_whole_file_is_looked_through(check: Check) -> None:
    examination = check(*(record for record, _ in CASES), max_length=300)
    assert {finding.record for finding in examination.findings} == set(range(1, len(CASES) + 1))


def test_duplicates_name_the_first(check: Check) -> None:
    examination = check(say("a", "b", id="x"), say("a", "b", id="y"), say("a", "c", id="x"))
    assert [(finding.record, finding.kind, finding.found) for finding in examination.findings] == [
        (2, "same-content", "the same as record 1"),
        (3, "same-id", "record 1 has the id too"),
    ]


def test_broken_json_ends_the_file_with_an_error(check: Check) -> None:
    examination = check(text=json.dumps([say("a", "b")])[:-1] + ', {"id": ')
    assert kinds(examination) == ["json"] and examination.findings[0].record == 2
    assert "record 2 (line 1)" in examination.findings[0].found


@pytest.mark.parametrize("text", ["", "[]", "x", "[" * 10_000])
def test_a_file_without_records_is_refused(check: Check, text: str) -> None:
    with pytest.raises(DataError, match=r"train\.json"):
        check(text=text)


def test_boxes_belong_to_the_latest_picture(check: Check) -> None:
    record = say("Picture 1: <img>a.png</img>\nPicture 2: <img>b.png</img>\nwhere?", "<box>(30,300),(1400,1900)</box>")
    examination = check(record)
    assert examination.guess.scale == "pixels" and kinds(examination) == ["box-scale"]
    assert [box.size for box in examination.records[0].boxes()] == [(1500, 2000)]


def test_each_picture_is_opened_once(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def load(name: str) -> Image.Image:
        opened.append(name)
        return load_image(name)

    monkeypatch.setattr(inspect, "load_image", load)
    check(*(say(show(str(number)), "b", id=str(number)) for number in range(5)))
    assert len(opened) == 1


def test_progress_is_told(check: Check) -> None:
    told: list[tuple[str, int, int]] = []
    check(*CLEAN, progress=lambda *count: told.append(count))
    assert told[:5] == [("records", number, 0) for number in range(1, 6)] and told[-1] == ("pictures", 2, 2)


@pytest.mark.parametrize("text", ["\x1b[31mred", "two\nlines", "\ud800", "x" * 10_000, "\u202eleft"])
def test_data_cannot_play_with_the_terminal(check: Check, text: str) -> None:
    shown = printable(text)
    assert shown.isprintable() and len(shown) <= 300 and shown.encode()
    examination = check({"id": text, "conversations": [{"from": text, "value": text}]})
    for finding in examination.findings:
        assert finding.found.isprintable() and finding.id.isprintable() and finding.id.encode()


def test_control_tokens_all_begin_alike() -> None:
    """What the quick look for them relies on."""
    assert all(token.startswith("<|") for token in CONTROL_TOKENS)


def test_severities_are_two() -> None:
    assert {kind.severity for kind in KINDS.values()} == {ERROR, "warning"}
