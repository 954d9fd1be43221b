"""Function calling in the release's words: what the model is told, and what is read out of its reply."""

from typing import Any

import pytest

from qwen_vl.prompt.chatml import DEFAULT_SYSTEM
from qwen_vl.serving.body import validate
from qwen_vl.serving.errors import ServeError
from qwen_vl.serving.schemas import ChatCompletionRequest
from qwen_vl.serving.tools import Reply, as_conversation, read_reply

WEATHER = {"name": "weather", "description": "Tells the weather.", "parameters": {"type": "object", "properties": {"城市": {"type": "string"}}}}
TOOLS = [{"type": "function", "function": WEATHER}]
CALL = {"name": "weather", "arguments": '{"城市": "北京"}'}


def converted(messages: list[dict[str, Any]], **fields: Any) -> list[dict[str, Any]]:
    asked = validate(ChatCompletionRequest, {"model": "nano", "messages": messages, **fields})
    contents = [message.content if isinstance(message.content, str) else "" for message in asked.messages]
    return as_conversation(asked.messages, contents, asked.callable)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def text_of(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def test_without_functions_nothing_is_changed() -> None:
    messages = [{"role": "system", "content": "Be kind."}, user("a"), {"role": "assistant", "content": "b"}, user("c")]
    assert converted(messages) == messages
    assert converted([user("a")]) == [{"role": "system", "content": DEFAULT_SYSTEM}, user("a")]
    assert converted(messages, tools=TOOLS, tool_choice="none") == messages


@pytest.mark.parametrize("given", [{"tools": TOOLS}, {"functions": [WEATHER]}])
def test_the_question_is_opened_with_the_functions(given: dict[str, Any]) -> None:
    system, question = converted([{"role": "system", "content": " Be kind.\n"}, user("Rain?")], **given)
    text = text_of(question)
    assert system["content"] == DEFAULT_SYSTEM
    assert text.startswith(
        "Be kind.\n\nAnswer the following questions as best you can. You have access to the following APIs:\n\nweather: Call this tool"
    )
    assert 'Tells the weather. Parameters: {"type": "object", "properties": {"城市": {"type": "string"}}}\n\nUse the following format:' in text
    assert "should be one of [weather]\n" in text and text.endswith("Begin!\n\nQuestion: Rain?")


def test_calls_and_what_they_gave_are_one_turn_that_goes_on() -> None:
    messages = [
        user("天气?"),
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": CALL}]},
        {"role": "tool", "tool_call_id": "1", "content": "sun"},
    ]
    *_, said = converted(messages, tools=TOOLS)
    assert said["role"] == "assistant"
    assert said["content"] == f"Thought: 我可以使用 weather API。\nAction: weather\nAction Input: {CALL['arguments']}\nObservation: sun\nThought:"
    again = [*messages, {"role": "assistant", "content": "晴"}, user("And tomorrow?")]
    opened, turn, last = converted(again, tools=TOOLS)[1:]
    assert text_of(opened).endswith("Question: 天气?") and text_of(last) == "And tomorrow?"
    assert turn["content"].endswith("\nObservation: sun\nThought: 我会作答了。\nFinal answer: 晴")


def test_a_tools_word_without_a_call_is_refused() -> None:
    for messages in ([{"role": "tool", "content": "x"}], [user("a"), {"role": "function", "name": "weather", "content": "x"}]):
        with pytest.raises(ServeError, match="must follow a call") as caught:
            converted(messages, tools=TOOLS)
        assert caught.value.status == 400
    with pytest.raises(ServeError, match="must follow one of the user") as first:
        converted([{"role": "system", "content": "x"}, {"role": "assistant", "content": "x"}])
    assert first.value.param == "messages[1].role"
    with pytest.raises(ServeError, match="first message"):
        converted([user("a"), {"role": "system", "content": "x"}])


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("Thought: look\nAction: weather\nAction Input: {}", Reply("Thought: look", "weather", "{}")),
        ('Action: weather\nAction Input: {"a": 1}\nObservation: no', Reply("", "weather", '{"a": 1}')),
        ("Thought: I now know the final answer.\nFinal Answer: Sun", Reply("Sun")),
        ("Just words", Reply("Just words")),
        ("Action: weather", Reply("Action: weather")),
        ("Action Input: x\nAction: y", Reply("Action Input: x\nAction: y")),
    ],
)
def test_replies_are_read(text: str, reply: Reply) -> None:
    assert read_reply(text) == reply
