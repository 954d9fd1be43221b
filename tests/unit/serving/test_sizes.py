"""How many entries the lists of a request may have: counted before any is looked at, as telling of each that is wrong takes microseconds."""

import time
from typing import Any

import pytest

from qwen_vl.serving.dashscope import check_generation
from qwen_vl.serving.errors import ServeError
from qwen_vl.serving.openai import check
from qwen_vl.serving.schemas import ChatCompletionRequest, CompletionRequest
from qwen_vl.serving.settings import ServeSettings

SETTINGS = ServeSettings()
MANY = 1_000_000
EMPTY = {"type": "text", "text": ""}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def ask(route: str, fields: dict[str, Any]) -> Any:
    """Check the fields of a request: `content` of one message, `messages`, or others."""
    messages = fields.pop("messages", None) or [user(fields.pop("content", "hi"))]
    if route == "dashscope":
        return check_generation({"model": "nano", "input": {"messages": messages}, "parameters": fields}, SETTINGS)[0]
    if route == "completions":
        return check(CompletionRequest, {"model": "nano", "prompt": messages[0]["content"], **fields}, SETTINGS)
    return check(ChatCompletionRequest, {"model": "nano", "messages": messages, **fields}, SETTINGS)


@pytest.mark.parametrize("route", ["chat", "completions", "dashscope"])
@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"content": [EMPTY] * (SETTINGS.max_parts + 1)}, "too_many_parts", ("messages", "prompt")),
        ({"content": [5] * MANY}, "too_many_parts", ("messages", "prompt")),
        ({"stop": [5] * MANY}, "invalid_value", ("stop",)),
    ],
)
def test_long_lists_are_refused_before_their_entries(route: str, fields: dict[str, Any], code: str, param: tuple[str, ...]) -> None:
    started = time.process_time()
    with pytest.raises(ServeError) as caught:
        ask(route, dict(fields))
    assert (caught.value.status, caught.value.code) == (400, code) and caught.value.param in param
    assert time.process_time() - started < 1  # a million wrong entries take 3 to 5 s to tell of


def test_parts_are_counted_over_all_messages() -> None:
    half = [{"text": "a"}] * (SETTINGS.max_parts // 2 + 1)
    with pytest.raises(ServeError) as caught:
        ask("dashscope", {"messages": [user(half), user(half)]})
    assert caught.value.code == "too_many_parts"


@pytest.mark.parametrize("route", ["chat", "dashscope"])
def test_as_many_parts_as_messages_are_taken(route: str) -> None:
    part = {"text": "a"} if route == "dashscope" else {"type": "text", "text": "a"}
    assert len(ask(route, {"messages": [user([part])] * SETTINGS.max_messages}).messages) == SETTINGS.max_messages
