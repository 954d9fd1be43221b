"""A real server and the real `openai` package: every form of request and answer, sync and async, streamed and whole, with pictures."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from qwen_vl.api import QwenVL
from tests.integration.serving import BEACH, KEY, Server, code_of, picture_uri, shown, start_server, text_of

WHO = [{"role": "user", "content": "Who are you?"}]
DOG = "框出图中的狗"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with start_server(tmp_path_factory.mktemp("openai")) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as found:
        yield found


@pytest.fixture(scope="module")
def nano() -> QwenVL:
    return QwenVL.load()


def ask(client: openai.OpenAI, messages: Any = WHO, **fields: Any) -> Any:
    return client.chat.completions.create(model="nano", messages=messages, **fields)


def about(*pictures: str, question: str = DOG) -> list[dict[str, Any]]:
    return [{"role": "user", "content": shown(question, *pictures)}]


def test_the_answer_is_the_librarys(client: openai.OpenAI, nano: QwenVL) -> None:
    expected = nano.ask(str(BEACH), DOG)
    answer = ask(client, about(picture_uri()))
    choice = answer.choices[0]
    assert (choice.message.content, choice.finish_reason, choice.message.role) == (expected.text, "stop", "assistant")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (expected.usage.prompt_tokens, expected.usage.completion_tokens)
    assert answer.usage.total_tokens == expected.usage.prompt_tokens + expected.usage.completion_tokens
    assert answer.object == "chat.completion" and answer.model == "nano" and answer.id.startswith("chatcmpl-")


def test_boxes_come_beside_the_text_in_pixels_too(client: openai.OpenAI) -> None:
    with Image.open(BEACH) as picture:
        size = picture.size
    answer = ask(client, about(picture_uri()), extra_body={"boxes": "1", "confidence": True})
    (found,) = answer.choices[0].message.model_extra["boxes"]
    ((x1, y1, x2, y2),) = found["boxes_px"]
    assert found["text"] == "狗" and 0 <= x1 < x2 <= size[0] and 0 <= y1 < y2 <= size[1] and x2 > 448 * 0.5
    assert 0 < found["scores"][0]["confidence"] <= 1
    grid = found["boxes"][0]
    assert abs(x2 / size[0] - grid[2] / 1000) < 0.01
    assert ask(client, about(picture_uri()), extra_body={"boxes": "none"}).choices[0].message.model_extra["boxes"] == []


def test_streams_are_the_whole(client: openai.OpenAI) -> None:
    whole = ask(client, about(picture_uri()))
    chunks = list(ask(client, about(picture_uri()), stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant" and len(chunks) > 5
    assert chunks[-2].choices[0].finish_reason == "stop" and chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage and all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-2].choices[0].delta.model_extra["boxes"] == whole.choices[0].message.model_extra["boxes"]
    assert len({chunk.id for chunk in chunks}) == 1


def test_raw_stream_ends_with_done(server: Server) -> None:
    events = server.stream()
    assert events[-1] == {"done": True} and sum("done" in event for event in events) == 1
    assert text_of(events) == server.ask().json()["choices"][0]["message"]["content"]


def test_async_clients_are_served_together(server: Server, client: openai.OpenAI) -> None:
    alone = [ask(client, [{"role": "user", "content": text}], max_tokens=20).choices[0].message.content for text in ("Who are you?", "你是谁?", "Hi")]

    async def gather() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as found:

            async def whole(text: str) -> str | None:
                answer = await found.chat.completions.create(model="nano", messages=[{"role": "user", "content": text}], max_tokens=20)
                return answer.choices[0].message.content

            async def streamed(text: str) -> str:
                stream = await found.chat.completions.create(model="nano", messages=[{"role": "user", "content": text}], max_tokens=20, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            texts = ["Who are you?", "你是谁?", "Hi"]
            return list(await asyncio.gather(*map(whole, texts), *map(streamed, texts)))

    assert asyncio.run(gather()) == alone * 2


def test_several_pictures_and_turns(client: openai.OpenAI, nano: QwenVL) -> None:
    red, blue = (Image.new("RGB", (60, 40), color) for color in ("red", "blue"))
    turns = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": shown("What is different?", picture_uri(red), picture_uri(blue))},
        {"role": "assistant", "content": "The colour."},
        {"role": "user", "content": "Which?"},
    ]
    chat = nano.begin(
        [
            {
                "role": "user",
                "content": [{"type": "image", "image": red}, {"type": "image", "image": blue}, {"type": "text", "text": "What is different?"}],
            },
            {"role": "assistant", "content": "The colour."},
            {"role": "user", "content": "Which?"},
        ],
        max_new_tokens=16,
    )
    answer = ask(client, turns, max_tokens=16)
    assert answer.choices[0].message.content == chat.answer.text and answer.usage.prompt_tokens == chat.answer.usage.prompt_tokens


def test_choices_and_seeds(client: openai.OpenAI) -> None:
    settings: dict[str, Any] = {"model": "nano", "prompt": "The dog is", "temperature": 2.0, "top_p": 1.0, "max_tokens": 12, "n": 3}
    first, second, other = (client.completions.create(seed=seed, **settings) for seed in (5, 5, 6))
    texts = [[choice.text for choice in answer.choices] for answer in (first, second, other)]
    assert texts[0] == texts[1] != texts[2] and len(set(texts[0])) == 3
    assert [choice.index for choice in first.choices] == [0, 1, 2] and first.usage and first.usage.completion_tokens <= 36
    streamed = ["", "", ""]
    for chunk in client.completions.create(seed=5, stream=True, **settings):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == texts[0]
    assert [choice.index for choice in ask(client, n=2, max_tokens=3).choices] == [0, 1]


def test_probabilities(client: openai.OpenAI) -> None:
    whole = ask(client, logprobs=True, top_logprobs=2, max_tokens=8).choices[0]
    tokens = whole.logprobs.content
    assert "".join(token.token for token in tokens) == whole.message.content and len(tokens) == 8
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 and bytes(token.bytes).decode() == token.token for token in tokens)
    chunks = ask(client, logprobs=True, top_logprobs=2, max_tokens=8, stream=True)
    streamed = [token for chunk in chunks if chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.content]
    assert streamed == tokens


def test_stop_strings(client: openai.OpenAI) -> None:
    whole = ask(client).choices[0].message.content
    stop = whole[len(whole) // 2 :][:4]
    expected = whole[: whole.index(stop)].strip()
    for stops in (stop, [stop, "never"]):
        assert ask(client, stop=stops).choices[0].message.content == expected
        pieces = [chunk.choices[0].delta.content or "" for chunk in ask(client, stop=stops, stream=True)]
        assert "".join(pieces) == expected
    assert ask(client, stop=stop).choices[0].finish_reason == "stop"
    assert ask(client, max_tokens=3).choices[0].finish_reason == ask(client, max_completion_tokens=3).choices[0].finish_reason == "length"


def test_json_answers(client: openai.OpenAI) -> None:
    for length in (3, 20):
        answer = ask(client, response_format={"type": "json_object"}, max_tokens=length, temperature=1.0, seed=1)
        assert isinstance(json.loads(answer.choices[0].message.content), dict)
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {}}})
    assert caught.value.code == "unsupported"


def test_models_and_wrong_names(client: openai.OpenAI, server: Server) -> None:
    assert [model.id for model in client.models.list()] == ["nano"] and client.models.retrieve("nano").id == "nano"
    for call in (
        lambda: client.models.retrieve("other"),
        lambda: client.chat.completions.create(model="gpt-4", messages=[{"role": "user", "content": "x"}]),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            call()
        assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model="nano", input="x")
    assert refused.value.code == "unsupported"
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_completions(client: openai.OpenAI, nano: QwenVL) -> None:
    expected = nano.begin_text("The dog is", max_new_tokens=8).answer
    answer = client.completions.create(model="nano", prompt="The dog is", max_tokens=8, logprobs=1)
    assert answer.choices[0].text == expected.text and answer.usage is not None and answer.usage.prompt_tokens == expected.usage.prompt_tokens
    assert answer.choices[0].logprobs is not None and len(answer.choices[0].logprobs.tokens or []) == 8
    assert (
        "".join(chunk.choices[0].text for chunk in client.completions.create(model="nano", prompt="The dog is", max_tokens=8, stream=True))
        == expected.text
    )
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="nano", prompt=[1, 2, 151857])


def test_the_same_routes_under_dashscopes_name(server: Server) -> None:
    with openai.OpenAI(base_url=f"{server.url}/compatible-mode/v1", api_key=KEY, max_retries=0) as client:
        assert ask(client, max_tokens=4).choices[0].finish_reason == "length"


def test_every_route_needs_the_key_but_health(server: Server) -> None:
    document = server.client.get("/openapi.json").json()
    assert "/v1/chat/completions" in document["paths"] and "ChatCompletionRequest" in document["components"]["schemas"]
    # The upload of a file, which the DashScope SDK sends without a key, carries a signed token instead.
    keyed = [path for path in document["paths"] if "{token}" not in path]
    assert len(keyed) >= len(document["paths"]) - 1
    paths = [*keyed, "/openapi.json", "/docs", "/redoc", "/", "/nowhere"]
    with httpx.Client(base_url=server.url, trust_env=False) as stranger:
        for path in paths:
            for method in ("GET", "POST", "OPTIONS", "HEAD", "PUT"):
                for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Bearer {KEY}x"}, {"Authorization": KEY}):
                    response = stranger.request(method, path.replace("{name}", "nano"), headers=headers)
                    assert response.status_code == (200 if (path, method) == ("/health", "GET") else 401), (
                        method,
                        path,
                    )
        assert code_of(stranger.get("/v1/models")) == "invalid_api_key"
        assert stranger.get("/v1/models", auth=("anybody", KEY)).status_code == 200


def test_metrics_count(server: Server) -> None:
    before = server.gauges()
    usage = server.ask(max_tokens=5).json()["usage"]
    after = server.gauges()
    assert after["qwen_vl_new_tokens_total"] - before["qwen_vl_new_tokens_total"] == usage["completion_tokens"] == 5
    assert after["qwen_vl_engine_rounds"] > before["qwen_vl_engine_rounds"] and after["qwen_vl_up"] == 1
    assert 'qwen_vl_requests_total{route="/v1/chat/completions",status="200"}' in server.client.get("/metrics").text


def test_nothing_of_all_this_was_logged(server: Server) -> None:
    assert server.log.count("\n") == 1 and "answers at" in server.log, server.log


def test_it_is_started_as_it_says(tmp_path: Path) -> None:
    """The last one: SIGTERM ends an idle server at once, with 0."""
    with start_server(tmp_path, "--name", "my-model", key=None) as running:
        assert running.client.get("/v1/models").json()["data"][0]["id"] == "my-model"
        assert code_of(running.client.get("/v1/models", headers={"Host": "evil.example"})) == "wrong_host"
        assert running.stop() == 0
