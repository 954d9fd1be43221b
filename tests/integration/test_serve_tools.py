"""What the clients' own packages make of calls, logprobs and stop strings, with a model that writes what it is told to. B29, B33."""

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import dashscope
import openai
import pytest
from dashscope import MultiModalConversation

from qwen_vl.api.loading import BUNDLED
from qwen_vl.processing.tokenization import QWenTokenizer
from tests.integration.serving import KEY, Server, start_scripted, text_of

TOOLS: Any = [{"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": {"type": "object"}}}]
CALL = 'Thought: I should look.\nAction: weather\nAction Input: {"city": "Oslo"}'
FINAL = "Thought: I now know the final answer\nFinal Answer: It is sunny."
QUESTION: Any = {"role": "user", "content": "Weather?"}
call: Any = MultiModalConversation.call
Writing = Callable[[str], contextlib.AbstractContextManager[int]]


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Writing]]:
    tokenizer = QWenTokenizer.from_pretrained(BUNDLED)
    with start_scripted(tmp_path_factory.mktemp("tools")) as (server, write):

        @contextlib.contextmanager
        def writing(text: str) -> Iterator[int]:
            """Let the model write this, byte by byte, and give the number of tokens."""
            ids = [tokenizer.mergeable_ranks[bytes([byte])] for byte in text.encode()]
            write(ids)
            try:
                yield len(ids)
            finally:
                write([])

        yield server, writing


@pytest.fixture(scope="module")
def client(scripted: tuple[Server, Writing]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{scripted[0].url}/v1", api_key=KEY, max_retries=0) as found:
        yield found


def test_a_function_is_called_and_its_word_is_heard(scripted: tuple[Server, Writing], client: openai.OpenAI) -> None:
    _, writing = scripted
    messages = [QUESTION]
    with writing(CALL) as count:
        first = client.chat.completions.create(model="nano", messages=messages, tools=TOOLS, max_tokens=count).choices[0]
    assert first.finish_reason == "tool_calls" and first.message.tool_calls
    [made] = first.message.tool_calls
    assert made.type == "function" and (made.function.name, json.loads(made.function.arguments)) == ("weather", {"city": "Oslo"})
    messages += [first.message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": made.id, "content": "sun"}]
    with writing(FINAL) as count:
        last = client.chat.completions.create(model="nano", messages=messages, tools=TOOLS, max_tokens=count).choices[0]
    assert last.message.content == "It is sunny." and not last.message.tool_calls


def test_a_streamed_call_comes_whole_with_its_probabilities(scripted: tuple[Server, Writing], client: openai.OpenAI) -> None:
    _, writing = scripted
    fields: Any = {"model": "nano", "messages": [QUESTION], "tools": TOOLS, "logprobs": True, "top_logprobs": 1}
    with writing(CALL) as count:
        whole = client.chat.completions.create(max_tokens=count, **fields).choices[0]
        chunks = [chunk.choices[0] for chunk in client.chat.completions.create(max_tokens=count, stream=True, **fields)]
    [told] = [chunk.delta.tool_calls for chunk in chunks if chunk.delta.tool_calls]
    assert (told[0].index, told[0].function.name, chunks[-1].finish_reason) == (0, "weather", "tool_calls")
    assert whole.logprobs is not None and len(whole.logprobs.content) == count
    assert [token.token for chunk in chunks if chunk.logprobs for token in chunk.logprobs.content] == [each.token for each in whole.logprobs.content]


@pytest.mark.parametrize("is_stream", [False, True])
def test_dashscopes_package_calls_too(scripted: tuple[Server, Writing], monkeypatch: pytest.MonkeyPatch, is_stream: bool) -> None:
    server, writing = scripted
    monkeypatch.setattr(dashscope, "base_http_api_url", f"{server.url}/api/v1")
    monkeypatch.setattr(dashscope, "api_key", KEY)

    def ask(text: str, messages: list[Any]) -> Any:
        with writing(text) as count:
            found = call(model="nano", messages=messages, tools=TOOLS, max_tokens=count, stream=is_stream)
            found = list(found)[-1] if is_stream else found
        assert found.status_code == 200, found
        return found.output.choices[0]

    messages: list[Any] = [{"role": "user", "content": [{"text": "Weather?"}]}]
    first = ask(CALL, messages)
    [made] = first.message.tool_calls
    assert first.finish_reason == "tool_calls" and made["function"] == {"name": "weather", "arguments": '{"city": "Oslo"}'}
    messages += [dict(first.message), {"role": "tool", "content": [{"text": "sun"}], "tool_call_id": made["id"], "name": "weather"}]
    last = ask(FINAL, messages)
    assert last.message.content == [{"text": "It is sunny."}] and last.finish_reason != "tool_calls"


def test_b29_a_stop_string_of_several_tokens_that_are_no_characters_each(scripted: tuple[Server, Writing]) -> None:
    server, writing = scripted
    for stop in ("狗", ["狗", "x"], "猫狗"):
        with writing("一只猫狗和一只鸟") as count:
            whole = server.ask("hi", max_tokens=count, stop=stop).json()["choices"][0]
            streamed = text_of(server.stream("hi", max_tokens=count, stop=stop))
        expected = "一只" if stop == "猫狗" else "一只猫"
        assert (whole["message"]["content"], whole["finish_reason"], streamed) == (expected, "stop", expected)
