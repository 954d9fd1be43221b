"""DashScope's protocol: requests in OpenAI's words, answers and errors in its own form."""

import json
from typing import Any

import pytest

from qwen_vl.api import Answer, Usage
from qwen_vl.serving.body import validate
from qwen_vl.serving.dashscope import Form, GenerationRequest, check_generation
from qwen_vl.serving.errors import ServeError
from qwen_vl.serving.schemas import AssistantMessage, ChatCompletionRequest, UserMessage
from qwen_vl.serving.service import Delta
from qwen_vl.serving.settings import ServeSettings


def read(messages: Any, **parameters: Any) -> dict[str, Any]:
    fields = {"model": "nano", "input": {"messages": messages}, "parameters": parameters}
    return validate(GenerationRequest, fields).to_openai()


def user(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def test_messages_are_rewritten() -> None:
    messages = [
        {"role": "system", "content": [{"text": "Be "}, {"text": "brief."}]},
        {"role": "user", "content": [{"image": "oss://a/b.png"}, {"text": "What is it?"}]},
        {"role": "assistant", "content": [{"text": "A dog."}]},
        {"role": "user", "content": "Which?"},
    ]
    assert read(messages)["messages"] == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "oss://a/b.png"}}, {"type": "text", "text": "What is it?"}],
        },
        {"role": "assistant", "content": "A dog."},
        {"role": "user", "content": "Which?"},
    ]


def test_parameters_are_passed_on_and_judged_once() -> None:
    fields = read(user({"text": "hi"}), top_p=0.5, top_k=3, seed=4, max_tokens=5, stop="x", temperature=0.1, repetition_penalty=1.1, boxes="any")
    asked = validate(ChatCompletionRequest, fields)
    assert asked.sampling == {"max_new_tokens": 5, "temperature": 0.1, "top_p": 0.5, "top_k": 3, "repetition_penalty": 1.1, "seed": 4}
    assert (asked.stops, asked.boxes) == (("x",), "any")
    with pytest.raises(ServeError, match="top_p must be at most 1"):
        validate(ChatCompletionRequest, read(user({"text": "hi"}), top_p=2))


def test_what_only_this_protocol_has_is_not_passed_on() -> None:
    fields = read(user({"text": "hi"}), incremental_output=True, result_format="message", enable_search=False, enable_thinking=False, seed=None)
    assert set(fields) == {"model", "messages"}


TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}, "index": 0}


def test_calls_and_what_they_gave_are_passed_on() -> None:
    messages = [
        *user({"text": "Rain?"}),
        {"role": "assistant", "content": [{"text": ""}], "tool_calls": [CALL]},
        {"role": "tool", "content": [{"text": "sun"}], "tool_call_id": "1", "name": "weather"},
    ]
    asked = check_generation({"model": "nano", "input": {"messages": messages}, "parameters": {"tools": TOOLS}}, ServeSettings())[0]
    _, said, gave = asked.messages
    assert isinstance(said, AssistantMessage) and said.call is not None and said.call.name == "weather"
    assert (gave.role, gave.content, [each.name for each in asked.callable]) == ("tool", "sun", ["weather"])


def test_a_call_is_told_at_its_end_and_not_as_words() -> None:
    fields = {"model": "nano", "input": {"messages": user({"text": "Rain?"})}, "parameters": {"tools": TOOLS}}
    form = Form(check_generation(fields, ServeSettings())[0], is_cumulative=False)
    answer = Answer(text="Thought: look\nAction: weather\nAction Input: {}", usage=Usage(7, 3), finish_reason="stop")
    assert form.delta(Delta(0, "Thought: look"), []) is None
    told = form.delta(Delta(0, "\nAction: weather\nAction Input: {}", (), answer), [answer])
    assert told is not None
    for document in (json.loads(told.decode().split("data:")[1]), form.whole([answer])):
        [choice] = document["output"]["choices"]
        [call] = choice["message"]["tool_calls"]
        assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] == [{"text": "Thought: look"}]
        assert call["function"] == {"name": "weather", "arguments": "{}"} and call["index"] == 0


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        (user({"image": 5}), "input.messages[0].content[0].image must be text."),
        (user({"text": " "}), "input.messages[0].content is an empty question"),
        (user(), "input.messages[0].content must have at least 1 entries."),
        ([*user({"text": "a"}), {"role": "assistant", "content": [{"image": "x"}]}], "input.messages[1] shows a picture, which only"),
        ([{"role": "user"}], "input.messages[0].content is an empty question"),
    ],
)
def test_errors_name_the_fields_of_this_protocol(messages: Any, told: str) -> None:
    with pytest.raises(ServeError) as caught:
        check_generation({"model": "nano", "input": {"messages": messages}}, ServeSettings())
    assert caught.value.message.startswith(told)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({}, "missing_field"),
        ({"model": "nano"}, "missing_field"),
        ({"model": "nano", "input": {}}, "missing_field"),
        ({"model": "nano", "input": {"prompt": "hi"}}, "missing_field"),
        ({"model": "nano", "input": {"messages": "hi"}}, "invalid_value"),
        ({"model": "nano", "input": {"messages": []}, "parameters": {"mystery": 1}}, "unknown_field"),
        ({"model": "nano", "input": {"messages": [{"role": "root", "content": "a"}]}}, "invalid_value"),
        ({"model": "nano", "input": {"messages": user({"text": "a", "image": "b"})}}, "invalid_value"),
        ({"model": "nano", "input": {"messages": user({})}}, "invalid_value"),
        ({"model": "nano", "input": {"messages": user({"video": ["a"]})}}, "unsupported"),
        ({"model": "nano", "input": {"messages": user({"text": "a"})}, "parameters": {"enable_search": True}}, "unsupported"),
    ],
)
def test_other_fields_are_refused(fields: dict[str, Any], code: str) -> None:
    with pytest.raises(ServeError) as caught:
        validate(GenerationRequest, fields)
    assert (caught.value.status, caught.value.code) == (400, code)


ASKED = ChatCompletionRequest(model="nano", messages=[UserMessage(role="user", content="hi")])
ANSWER = Answer(text="A <ref>dog</ref><box>(1,2),(3,4)</box>", usage=Usage(7, 3), finish_reason="stop")


def events(form: Form) -> list[dict[str, Any]]:
    deltas = [Delta(0, "A "), Delta(0, "<ref>dog</ref>"), Delta(0, "<box>(1,2),(3,4)</box>", (), ANSWER)]
    lines = [(form.delta(delta, [ANSWER] if delta.answer else []) or b"").decode().split("\n") for delta in deltas]
    assert [each[:3] for each in lines] == [[f"id:{number}", "event:result", ":HTTP_STATUS/200"] for number in (1, 2, 3)]
    assert all(each[4:] == ["", ""] for each in lines)
    return [json.loads(each[3].removeprefix("data:")) for each in lines]


def texts(documents: list[dict[str, Any]]) -> list[str]:
    return [each["output"]["choices"][0]["message"]["content"][0]["text"] for each in documents]


def test_events_bring_the_whole_or_what_is_new() -> None:
    new, whole = events(Form(ASKED, is_cumulative=False)), events(Form(ASKED, is_cumulative=True))
    assert "".join(texts(new)) == ANSWER.text
    assert texts(whole) == ["A ", "A <ref>dog</ref>", ANSWER.text]
    last = whole[-1]
    assert [each["output"]["choices"][0]["finish_reason"] for each in whole] == ["null", "null", "stop"]
    assert last["usage"] == {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}
    assert last["output"]["choices"][0]["boxes"] == [{"text": "dog", "boxes": [[1, 2, 3, 4]], "quads": []}]
    assert len({each["request_id"] for each in whole}) == 1


def test_errors_have_the_protocols_form() -> None:
    form = Form(ASKED, is_cumulative=True)
    lines = form.error(ServeError(503, "engine_down", "It stopped.")).decode().split("\n")
    assert lines[:4] == ["id:1", "event:error", ":HTTP_STATUS/503", "status:503"]
    assert json.loads(lines[4].removeprefix("data:")) == {"request_id": form.request_id, "code": "ServiceUnavailable", "message": "It stopped."}
    error = ServeError(400, "invalid_image_url", "No.", "messages")
    assert error.to_dashscope("1") == {"request_id": "1", "code": "InvalidParameter.InvalidImageUrl", "message": "No."}
    found = {code: ServeError(404, code, "No.").to_dashscope("1")["code"] for code in ("model_not_found", "not_found")}
    assert found == {"model_not_found": "ModelNotFound", "not_found": "NotFound"}
    assert set(error.to_body("/api/v1/uploads")) == {"request_id", "code", "message"}
    assert error.to_body("/v1/chat/completions") == error.to_openai()
