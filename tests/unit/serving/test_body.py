"""Strict JSON and checked fields: what is refused, with which code, and in whose words."""

import json
import time
from typing import Any

import pytest

from qwen_vl.errors import ConfigError, ContextLengthError
from qwen_vl.serving.body import parse, validate
from qwen_vl.serving.errors import ServeError, translated
from qwen_vl.serving.schemas import ChatCompletionRequest, CompletionRequest

JSON = {"type": "json_object"}
GOOD: dict[str, Any] = {"model": "nano", "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"{} {}", "invalid_json"),
        (b'{"a": NaN}', "invalid_json"),
        (b'{"a": -Infinity}', "invalid_json"),
        (b'{"a": 1e999}', "invalid_json"),
        (b'{"a": ' + b"9" * 5000 + b"}", "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"a":' * 100_000, "invalid_json"),
        (b"[]", "invalid_type"),
        (b"null", "invalid_type"),
        (b"1", "invalid_type"),
        (b'"x"', "invalid_type"),
        (b"\xff\xfe{\x00}\x00", "invalid_encoding"),
        (b'{"a": "\xc3"}', "invalid_encoding"),
        (b'{"a": "\\ud800"}', "invalid_encoding"),
        (b'{"\\udc00": 1}', "invalid_encoding"),
        (b'{"a": 1, "a": 2}', "duplicate_key"),
        (b'{"x": [{"a": 1, "a": 1}]}', "duplicate_key"),
        (b'{"x": [' + b",".join([b'{"a": 1, "b": 2}'] * 2**14) + b"]}", "too_many_values"),
        (b'{"a": [' + b"[]," * 10_000_000 + b"1]}", "too_many_values"),
        (b'{"a": [' + b"5," * 2**19 + b"1]}", "too_many_values"),
    ],
)
def test_what_is_no_strict_json_is_refused(content: bytes, code: str) -> None:
    started = time.monotonic()
    with pytest.raises(ServeError) as caught:
        parse(content)
    assert (caught.value.status, caught.value.code) == (400, code)
    assert time.monotonic() - started < 2


def test_what_is_strict_json_is_read() -> None:
    assert parse('{"a": "\\ud83d\\ude00 \\u0000 狗", "b": [1, 2.5, true, null]}'.encode()) == {"a": "😀 \x00 狗", "b": [1, 2.5, True, None]}


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": "hi"}, "invalid_value", "messages"),
        ({"messages": None}, "invalid_value", "messages"),
        ({"messages": [3]}, "invalid_value", "messages[0]"),
        ({"messages": [{"role": "root", "content": "x"}]}, "invalid_value", "messages[0].role"),
        ({"messages": [{"role": 3, "content": "x"}]}, "invalid_value", "messages[0].role"),
        ({"messages": [{"content": "x"}]}, "invalid_value", "messages[0].role"),
        ({"messages": [{"role": "user", "content": None}]}, "invalid_value", "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "invalid_value", "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "invalid_value", "messages[0].content"),
        ({"messages": [{"role": "user"}]}, "missing_field", "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "missing_field", "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio", "a": 1}]}]}, "unsupported", "messages[0].content[0]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x", "uuid": "y"}}]}]},
            "unknown_field",
            "messages[0].content[0].image_url.uuid",
        ),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "invalid_value",
            "messages[0].content[0].type",
        ),
        ({"model": None}, "invalid_value", "model"),
        ({"temperature": 1e308}, "invalid_value", "temperature"),
        ({"temperature": -0.1}, "invalid_value", "temperature"),
        ({"temperature": "0.5"}, "invalid_value", "temperature"),
        ({"temperature": True}, "invalid_value", "temperature"),
        ({"top_p": 0}, "invalid_value", "top_p"),
        ({"top_p": 1.1}, "invalid_value", "top_p"),
        ({"top_k": -5}, "invalid_value", "top_k"),
        ({"top_k": 10**12}, "invalid_value", "top_k"),
        ({"n": 0}, "invalid_value", "n"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"max_tokens": 10**18}, "invalid_value", "max_tokens"),
        ({"max_tokens": 1.5}, "invalid_value", "max_tokens"),
        ({"max_tokens": True}, "invalid_value", "max_tokens"),
        ({"max_completion_tokens": 0}, "invalid_value", "max_completion_tokens"),
        ({"min_tokens": 5, "max_tokens": 4}, "invalid_value", "min_tokens"),
        ({"top_logprobs": 3}, "invalid_value", "top_logprobs"),
        ({"stop": 3}, "invalid_value", "stop"),
        ({"stop": ["a", ["b"]]}, "invalid_value", "stop[1]"),
        ({"seed": -1}, "invalid_value", "seed"),
        ({"seed": 2**64}, "invalid_value", "seed"),
        ({"seed": "x"}, "invalid_value", "seed"),
        ({"logit_bias": {"151936": 1}}, "unsupported", "logit_bias"),
        ({"presence_penalty": 0.5}, "unsupported", "presence_penalty"),
        ({"frequency_penalty": -1.0}, "unsupported", "frequency_penalty"),
        ({"response_format": {"type": "json_schema"}}, "unsupported", "response_format"),
        ({"response_format": {"type": "regex"}}, "invalid_value", "response_format.type"),
        ({"tool_choice": "required"}, "unsupported", "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]}, "unsupported", "tools[0].function.strict"),
        ({"response_format": JSON, "stop": ["}"]}, "unsupported", "stop"),
        ({"response_format": JSON, "boxes": "1"}, "unsupported", "boxes"),
        ({"response_format": JSON, "tools": [{"type": "function", "function": {"name": "f"}}]}, "unsupported", "tools"),
        ({"boxes": "<script>"}, "invalid_value", "boxes"),
        ({"boxes": "4..1"}, "invalid_value", "boxes"),
        ({"messages": [{"role": "user", "content": " \n"}]}, "invalid_value", "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 2}]}, "invalid_value", "messages[0].content"),
        ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
        ({"stream_options": 3, "stream": True}, "invalid_value", "stream_options"),
        ({"store": True}, "unsupported", "store"),
        ({"chat_template_kwargs": {}}, "unknown_field", "chat_template_kwargs"),
        ({"mm_hashes": []}, "unknown_field", "mm_hashes"),
        ({"guided_regex": "(a+)+b"}, "unknown_field", "guided_regex"),
        ({"<script>": 1}, "unknown_field", None),
    ],
)
def test_wrong_fields_are_named_in_our_words(fields: dict[str, Any], code: str, param: str | None) -> None:
    with pytest.raises(ServeError) as caught:
        validate(ChatCompletionRequest, GOOD | fields)
    error = caught.value
    assert (error.status, error.code, error.param) == (400, code, param)
    assert len(error.message) < 200 and "pydantic" not in error.message.lower() and "script" not in error.message
    assert json.dumps(error.to_openai())


@pytest.mark.parametrize(
    ("error", "message", "param"),
    [
        (ContextLengthError("max_new_tokens=9 does not fit: 1 is left."), "max_tokens=9 does not fit: 1 is left.", "max_tokens"),
        (ConfigError("min_new_tokens=9 is too many."), "min_tokens=9 is too many.", "min_tokens"),
        (ContextLengthError("The conversation takes 9 tokens."), "The conversation takes 9 tokens.", "messages"),
    ],
)
def test_settings_of_the_engine_are_told_by_the_clients_names(error: Exception, message: str, param: str) -> None:
    told = translated(error)
    assert (told.status, told.message, told.param) == (400, message, param)


def test_a_missing_field_is_named() -> None:
    for missing in GOOD:
        with pytest.raises(ServeError) as caught:
            validate(ChatCompletionRequest, {name: value for name, value in GOOD.items() if name != missing})
        assert (caught.value.code, caught.value.param) == ("missing_field", missing)


def test_neutral_and_ignored_fields_are_taken() -> None:
    neutral = {
        **{name: None for name in ("temperature", "max_tokens", "stop", "n", "tools", "seed", "logit_bias", "response_format")},
        **{"presence_penalty": 0, "frequency_penalty": 0.0, "user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"},
        **{"parallel_tool_calls": True, "max_length": 512, "top_k": 0, "response_format": {"type": "text"}, "function_call": "none"},
    }
    asked = validate(ChatCompletionRequest, GOOD | neutral)
    assert asked.sampling == {"top_k": 0} and asked.num_choices == 1 and asked.stops == () and not asked.as_json


def test_the_newer_name_of_the_length_counts_more() -> None:
    assert validate(ChatCompletionRequest, GOOD | {"max_tokens": 5, "max_completion_tokens": 7}).sampling == {"max_new_tokens": 7}


@pytest.mark.parametrize("prompt", [[1, 2], [[1]], "", [], ["a", "b"], None, {"a": 1}])
def test_prompts_of_completions_are_texts(prompt: Any) -> None:
    with pytest.raises(ServeError) as caught:
        validate(CompletionRequest, {"model": "nano", "prompt": prompt})
    assert caught.value.param is not None and caught.value.param.startswith("prompt")
