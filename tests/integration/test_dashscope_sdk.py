"""DashScope's own package against a real server process: whole and streamed, sync and async, with local files."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dashscope
import httpx
import pytest
from dashscope import AioMultiModalConversation, MultiModalConversation
from dashscope.common.error import UploadFileException
from PIL import Image

from tests.integration.serving import BEACH, KEY, Server, picture_uri, start_server

# The package's annotations leave out what its functions take.
call: Any = MultiModalConversation.call
call_async: Any = AioMultiModalConversation.call
# So many tokens that a stream has several pieces, however quickly they come.
SETTINGS: dict[str, Any] = {"model": "nano", "min_tokens": 40, "max_tokens": 40, "temperature": 0.0}
GENERATION = "/api/v1/services/aigc/multimodal-generation/generation"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with start_server(tmp_path_factory.mktemp("server")) as found:
        yield found


@pytest.fixture(autouse=True)
def sdk(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point the package at the server."""
    monkeypatch.setattr(dashscope, "base_http_api_url", f"{server.url}/api/v1")
    monkeypatch.setattr(dashscope, "api_key", KEY)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)


def question(image: str | None = None, words: str = "What is in the picture?") -> list[dict[str, Any]]:
    shown = [{"image": image}] if image else []
    return [{"role": "user", "content": [*shown, {"text": words}]}]


def text_of(response: Any) -> str:
    assert response.status_code == 200, (response.code, response.message)
    [part] = response.output.choices[0].message.content
    return str(part["text"])


@pytest.fixture(scope="module")
def expected(server: Server) -> str:
    """What the OpenAI protocol answers to the same question."""
    content = [{"type": "image_url", "image_url": {"url": picture_uri()}}, {"type": "text", "text": "What is in the picture?"}]
    return str(server.ask(content, min_tokens=40, max_tokens=40, temperature=0).json()["choices"][0]["message"]["content"])


def test_a_local_file_is_uploaded_and_seen(expected: str) -> None:
    response = call(messages=question(f"file://{BEACH}"), **SETTINGS)
    assert text_of(response) == expected
    assert response.output.choices[0].finish_reason in ("stop", "length")
    assert response.usage.input_tokens > 48  # the picture alone
    assert 0 < response.usage.output_tokens <= 40
    assert response.request_id


def test_a_plain_path_and_a_data_uri_are_the_same_picture(expected: str) -> None:
    for image in (str(BEACH), picture_uri()):
        assert text_of(call(messages=question(image), **SETTINGS)) == expected


def test_several_files_and_turns(tmp_path: Path) -> None:
    paths = []
    for number, color in enumerate(("red", "blue")):
        paths.append(tmp_path / f"图 {number}.png")
        Image.new("RGB", (50, 40), color).save(paths[-1])
    messages = [
        {"role": "system", "content": [{"text": "You are brief."}]},
        {"role": "user", "content": [{"image": f"file://{paths[0]}"}, {"image": f"file://{paths[1]}"}, {"text": "Compare them."}]},
        {"role": "assistant", "content": [{"text": "One is red."}]},
        {"role": "user", "content": [{"text": "And the other?"}]},
    ]
    response = call(messages=messages, **SETTINGS)
    assert text_of(response)
    assert response.usage.input_tokens > 2 * 48


@pytest.mark.parametrize("is_incremental", [True, False, None])
def test_streams(expected: str, is_incremental: bool | None) -> None:
    kept = {} if is_incremental is None else {"incremental_output": is_incremental}
    responses = list(call(messages=question(f"file://{BEACH}"), stream=True, **kept, **SETTINGS))
    texts = [text_of(response) for response in responses]
    assert len(texts) >= 2
    if is_incremental:
        assert "".join(texts).strip() == expected
    else:
        assert texts[-1].strip() == expected
        assert all(later.startswith(earlier) for earlier, later in zip(texts, texts[1:], strict=False))
    reasons = [response.output.choices[0].finish_reason for response in responses]
    assert set(reasons[:-1]) == {"null"}
    assert reasons[-1] in ("stop", "length")
    assert responses[-1].usage.output_tokens > 0


def test_async_calls(expected: str) -> None:
    async def ask() -> tuple[str, list[str]]:
        whole = await call_async(messages=question(f"file://{BEACH}"), **SETTINGS)
        stream = await call_async(messages=question(picture_uri()), stream=True, incremental_output=True, **SETTINGS)
        pieces = [text_of(response) async for response in stream]
        from dashscope.api_entities.aio_session import close_shared_aio_session

        await close_shared_aio_session()
        return text_of(whole), pieces

    whole, pieces = asyncio.run(ask())
    assert whole == expected
    assert "".join(pieces).strip() == expected
    assert len(pieces) >= 2


def test_several_answers(expected: str) -> None:
    response = call(messages=question(picture_uri()), n=2, **SETTINGS)
    assert [choice.message.content[0]["text"] for choice in response.output.choices] == [expected] * 2


def test_settings_have_their_effect() -> None:
    words = question(words="Tell me a story.")
    wild = {"model": "nano", "temperature": 1.5, "top_p": 0.99, "top_k": 50, "max_tokens": 12, "seed": 1}
    one, two = (text_of(call(messages=words, **wild)) for _ in range(2))
    assert one == two
    free = {name: value for name, value in SETTINGS.items() if name != "min_tokens"}
    short = call(messages=words, **{**free, "max_tokens": 1})
    assert (short.usage.output_tokens, short.output.choices[0].finish_reason) == (1, "length")
    whole = text_of(call(messages=question(words="Who are you?"), **free))
    assert "nano" in whole
    assert text_of(call(messages=question(words="Who are you?"), stop="nano", **free)) == whole.partition("nano")[0].rstrip()


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"model": "other"}, 404, "ModelNotFound"),
        ({"top_p": 5.0}, 400, "InvalidParameter.InvalidValue"),
        ({"enable_search": True}, 400, "InvalidParameter.Unsupported"),
        ({"messages": question("https://example.com/a.png")}, 400, "InvalidParameter.RemoteImagesDisabled"),
        ({"messages": question("oss://mine/a.png")}, 400, "InvalidParameter.UploadNotFound"),
        ({"messages": question("/does/not/exist.png")}, 400, "InvalidParameter.InvalidImageUrl"),
        ({"messages": [{"role": "user", "content": [{"video": "data:video/mp4;base64,"}]}]}, 400, "InvalidParameter.Unsupported"),
        ({"api_key": "wrong"}, 401, "InvalidApiKey"),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True])
def test_errors_are_understood(changes: dict[str, Any], status: int, code: str, is_stream: bool) -> None:
    response = call(**{"messages": question(words="hi"), "stream": is_stream, **SETTINGS, **changes})
    if is_stream:
        [response] = list(response)
    assert (response.status_code, response.code) == (status, code)
    assert len(response.message) > 10


def test_what_is_no_picture_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "secrets.png"
    path.write_text("not a picture")
    with pytest.raises(UploadFileException, match="Only pictures"):
        call(messages=question(f"file://{path}"), **SETTINGS)


def form(folder: str, name: str, content: bytes) -> dict[str, Any]:
    return {"data": {"key": f"{folder}/{name}"}, "files": {"file": (name, content)}}


def test_uploads_need_a_permission_and_belong_to_it(server: Server) -> None:
    data = server.client.get("/api/v1/uploads", params={"action": "getPolicy", "model": "nano"}).json()["data"]
    assert data["upload_host"].startswith(server.url)
    content = BEACH.read_bytes()
    anybody = httpx.Client(trust_env=False)
    with anybody:
        assert anybody.get(f"{server.url}/api/v1/uploads?action=getPolicy").status_code == 401
        assert anybody.post(data["upload_host"], **form(data["upload_dir"], "a.png", content)).status_code == 200
        elsewhere = anybody.post(data["upload_host"], **form("other", "a.png", content))
        assert elsewhere.json()["code"] == "InvalidParameter.InvalidForm"
        outside = anybody.post(data["upload_host"], **form(data["upload_dir"], "../../a.png", content))
        assert outside.json()["code"] == "InvalidParameter.InvalidUploadName"
        assert anybody.post(data["upload_host"] + "x", **form(data["upload_dir"], "a.png", content)).status_code == 403
        assert anybody.post(data["upload_host"], json={}).status_code == 415
        large = anybody.post(data["upload_host"], **form(data["upload_dir"], "b.png", content + bytes(20 * 2**20)))
        assert (large.status_code, large.json()["code"]) == (413, "BadRequest.TooLarge")
    handle = f"oss://{data['upload_dir']}/a.png"
    assert text_of(call(messages=question(handle), **SETTINGS))
    openai_form = [{"type": "image_url", "image_url": {"url": handle}}, {"type": "text", "text": "What is it?"}]
    assert server.ask(openai_form).status_code == 200


def test_boxes_come_beside_the_text(server: Server) -> None:
    body = {
        "model": "nano",
        "input": {"messages": question(picture_uri(), "Find the dog.")},
        "parameters": {"boxes": "1", "confidence": True, "temperature": 0, "max_tokens": 60},
    }
    choice = server.post(GENERATION, json=body).json()["output"]["choices"][0]
    [ref] = choice["boxes"]
    [box] = ref["boxes"]
    with Image.open(BEACH) as picture:
        sides = picture.size * 2
    # On the grid of 0..999; in pixels of the picture that was sent, not of the square that the model saw.
    [found] = ref["boxes_px"]
    assert found == pytest.approx([value * side / 1000 for value, side in zip(box, sides, strict=True)], abs=1)
    assert ref["scores"][0] is not None


def test_events_are_written_as_the_protocol_says(server: Server) -> None:
    body = {"model": "nano", "input": {"messages": question(words="hi")}, "parameters": {"incremental_output": True, "max_tokens": 3}}
    response = server.post(GENERATION, json=body, headers={"X-DashScope-SSE": "enable"})
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.strip().split("\n\n")
    assert [event.split("\n")[:3] for event in events] == [[f"id:{number + 1}", "event:result", ":HTTP_STATUS/200"] for number in range(len(events))]
