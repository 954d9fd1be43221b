import json
from typing import Any

import pytest

from qwen_vl.serving.scale.affinity import NO_KEY, Subject, subject_of


def key(messages: Any, **more: Any) -> str:
    return subject_of(json.dumps({"model": "nano", "messages": messages} | more).encode()).key


def ask(text: str, *urls: str) -> dict[str, Any]:
    return {"role": "user", "content": [*({"type": "image_url", "image_url": {"url": url}} for url in urls), {"type": "text", "text": text}]}


def test_a_conversation_keeps_its_key() -> None:
    first = {"role": "user", "content": "Hello"}
    later = [{"role": "system", "content": "Be kind."}, first, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "And?"}]
    assert key([first]) == key(later) != key([{"role": "user", "content": "Good morning"}])


def test_questions_about_a_picture_share_a_key() -> None:
    assert key([ask("What is it?", "data:a")]) == key([ask("Where?", "data:a", "data:b")], stream=True) != key([ask("What is it?", "data:b")])


def test_both_protocols_name_a_picture_alike() -> None:
    dashscope = {"input": {"messages": [{"role": "user", "content": [{"image": "data:a"}, {"text": "What?"}]}]}}
    assert subject_of(json.dumps(dashscope).encode()).key == key([ask("Where?", "data:a")])


def test_a_prompts_picture_counts_too() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:a"}}
    prompts = [subject_of(json.dumps({"prompt": prompt}).encode()).key for prompt in ("Once", "Twice", [picture, {"type": "text", "text": "a dog"}])]
    assert len({NO_KEY, *prompts}) == 4 and prompts[2] == key([ask("What?", "data:a")])


def test_handles_are_named_once_and_by_picture_parts_alone() -> None:
    one, other = "oss://f/a.png", "oss://f/b.png"
    said = [ask(f"see {other}x", one, "data:c", other, one), {"role": "assistant", "content": [{"image": "oss://f/c.png"}]}, ask("And?", one)]
    assert subject_of(json.dumps({"messages": said}).encode()).handles == (one, other)
    assert subject_of(json.dumps({"input": {"messages": [{"role": "user", "content": [{"image": other}]}]}}).encode()).handles == (other,)
    assert subject_of(json.dumps({"prompt": [{"type": "image_url", "image_url": {"url": one}}]}).encode()).handles == (one,)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"[]",
        b"3",
        b'{"messages": 3}',
        b'{"messages": [3, {"role": "assistant", "content": "Hi"}]}',
        b'{"input": {"messages": [{"role": "user", "content": ""}]}}',
        b"[" * 100_000,
        b'{"messages": [{"role": "user", "content": "Hi"}], "messages": [{"role": "user", "content": "Ho"}]}',  # the replica refuses it
        b'{"messages": [{"role": "user", "content": "Hi"}], "temperature": NaN}',
        b'{"messages": [{"role": "user", "content": [{"image_url": {"url": 3}}, 4]}]',
    ],
)
def test_what_is_no_conversation_has_none(body: bytes) -> None:
    assert subject_of(body) == Subject(NO_KEY)
