"""The whole application on a tiny model: what is left of requests that are refused or given up, and how they end with the server."""

import asyncio
import base64
import io
import json
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from qwen_vl.api import QwenVL
from qwen_vl.errors import ConfigError
from qwen_vl.serving.app import create_app
from qwen_vl.serving.decoder import DecoderPool
from qwen_vl.serving.media import MediaLoader
from qwen_vl.serving.service import Service
from qwen_vl.serving.settings import ServeSettings
from tests.tiny import make_checkpoint

CHAT, GENERATION = "/v1/chat/completions", "/api/v1/services/aigc/multimodal-generation/generation"
FILE = io.BytesIO()
Image.new("RGB", (30, 20), "red").save(FILE, "PNG")
PNG = f"data:image/png;base64,{base64.b64encode(FILE.getvalue()).decode()}"
DAMAGED = "data:image/png;base64,AAA"
LONG = 700  # tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny") / "chat")


class Served:
    """A running application."""

    def __init__(self, app: Any, client: httpx.AsyncClient) -> None:
        self.app, self.client = app, client

    @property
    def service(self) -> Service:
        found = self.app.state.service
        assert isinstance(found, Service)
        return found

    @property
    def media(self) -> MediaLoader:
        found = self.app.state.media
        assert isinstance(found, MediaLoader)
        return found

    async def ask(self, *pictures: str, path: str = CHAT, stream: bool = False, num_tokens: int = 4, content: Any = None) -> httpx.Response:
        """Ask about pictures. Args: content: of the body, in place of all else."""
        headers = {"Content-Type": "application/json"} | ({"X-DashScope-SSE": "enable"} if stream and path == GENERATION else {})
        body = json.dumps(fields_of(path, pictures, stream, num_tokens)).encode()
        return await self.client.post(path, content=body if content is None else content, headers=headers)


def fields_of(path: str, pictures: tuple[str, ...], stream: bool, num_tokens: int) -> dict[str, Any]:
    """Return the fields of a request in a path's protocol."""
    lengths = {"max_tokens": num_tokens, "min_tokens": num_tokens}
    if path == GENERATION:
        said = [*({"image": each} for each in pictures), {"text": "what?"}]
        return {"model": "nano", "input": {"messages": [{"role": "user", "content": said}]}, "parameters": lengths}
    shown = [*({"type": "image_url", "image_url": {"url": each}} for each in pictures), {"type": "text", "text": "what?"}]
    return {"model": "nano", "messages": [{"role": "user", "content": shown}], "stream": stream, **lengths}


@pytest.fixture
def serve(folder: Path) -> Callable[..., Any]:
    """Play something with an application of its own."""

    @asynccontextmanager
    async def live(**settings: Any) -> AsyncIterator[Served]:
        app: Any = create_app(QwenVL.load(folder, device="cpu"), ServeSettings(**{"max_running": 2, "max_choices": 2, **settings}))
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost", timeout=120) as client,
        ):
            yield Served(app, client)

    def play(what: Callable[[Served], Awaitable[Any]], **settings: Any) -> Any:
        async def run() -> Any:
            async with asyncio.timeout(120), live(**settings) as served:
                return await what(served)

        return asyncio.run(run())

    return play


class Gate:
    """Holds decoders up until it is opened."""

    def __init__(self) -> None:
        self.is_open, self.num_passed = threading.Event(), 0

    def decode(self, content: bytes) -> Image.Image:
        self.num_passed += 1
        assert self.is_open.wait(60)
        return Image.new("RGB", (42, 42))


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    found = Gate()
    monkeypatch.setattr(DecoderPool, "decode", lambda _, content: found.decode(content))
    return found


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


def code_of(response: httpx.Response) -> str:
    """Return what went wrong, in the words of either protocol, also at the end of a stream."""
    lines = [line.removeprefix("data:") for line in response.text.splitlines() if line.startswith("data:")]
    document = json.loads(lines[-1] if lines else response.text)
    return str(document["code"] if "code" in document else document["error"]["code"])


# -- pictures that are given up


async def leave(served: Served, *pictures: str) -> None:
    """Ask, and leave as soon as the request has been sent and pictures are decoded."""
    body = json.dumps(fields_of(CHAT, pictures, False, 4)).encode()
    waiting = [{"type": "http.request", "body": body}]
    has_begun = asyncio.Event()

    async def receive() -> Any:
        if waiting:
            return waiting.pop()
        await has_begun.wait()
        return {"type": "http.disconnect"}

    async def send(_: Any) -> None:
        pass

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope = {"type": "http", "method": "POST", "path": CHAT, "raw_path": CHAT.encode(), "query_string": b"", "headers": headers, "root_path": ""}
    asking = asyncio.create_task(served.app(scope, receive, send))
    await until(lambda: served.media._decoding._places.num_waiting)
    has_begun.set()
    await asking


@pytest.mark.parametrize("why", ["a bad picture", "a client that leaves"])
def test_pictures_that_nobody_waits_for_are_not_decoded(serve: Callable[..., Any], gate: Gate, why: str) -> None:
    async def play(served: Served) -> None:
        if why == "a bad picture":
            response = await served.ask(*[PNG] * 7, "ftp://host/a.png")
            assert (response.status_code, code_of(response)) == (400, "invalid_image_url")
        else:
            await leave(served, *[PNG] * 8)
        decoding = served.media._decoding
        assert decoding._places.num_waiting == 0 and decoding._pool._work_queue.empty()
        assert served.service.num_admitted == served.service.bodies.num_bytes == 0
        gate.is_open.set()
        num_passed = gate.num_passed
        assert num_passed <= decoding._places.num_places
        assert (await served.ask(PNG)).status_code == 200 and gate.num_passed == num_passed + 1

    serve(play)


def test_a_bad_picture_is_told_before_the_others_are_decoded(serve: Callable[..., Any], gate: Gate) -> None:
    async def play(served: Served) -> None:
        asking = asyncio.create_task(served.ask(DAMAGED, *[PNG] * 7))
        response = await asking
        assert (response.status_code, code_of(response)) == (400, "invalid_image_url")
        gate.is_open.set()

    serve(play)


# -- what bodies hold


def test_bodies_have_a_bound_together(serve: Callable[..., Any]) -> None:
    """A flood of large ones is held at most up to it; those beyond are told to come again, in their protocol's form, and all is let go of."""
    is_over = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b" " * 50_000
        yield b" " * 50_000
        await is_over.wait()
        yield b"{"

    async def play(served: Served) -> None:
        service = served.service
        asking = [asyncio.create_task(served.ask(path=(CHAT, GENERATION)[number % 2], content=slow())) for number in range(20)]
        await until(lambda: sum(task.done() for task in asking) + service.bodies.num_bytes / 100_000 == 20)
        num_held = service.bodies.num_bytes // 100_000
        assert num_held in (1, 2)
        is_over.set()
        responses = await asyncio.gather(*asking)
        refused = [response for response in responses if response.status_code == 429]
        assert {code_of(response) for response in refused} == {"overloaded", "Throttling"} and len(refused) == 20 - num_held
        assert {response.headers["retry-after"] for response in refused} == {"1"}
        assert [response.status_code for response in responses if response not in refused] == [400] * num_held
        assert service.bodies.num_bytes == service.num_admitted == 0
        assert (await served.ask()).status_code == 200

    serve(play, max_body_bytes=150_000, max_held_bytes=230_000, max_waiting=30)


@pytest.mark.parametrize("path", [CHAT, GENERATION])
def test_pictures_are_let_go_of_before_the_answer(serve: Callable[..., Any], path: str) -> None:
    async def play(served: Served) -> None:
        service, most = served.service, [0]

        async def watch() -> None:
            while True:
                most[0] = max(most[0], service.bodies.num_bytes)
                await asyncio.sleep(0)

        watching = asyncio.create_task(watch())
        asking = [asyncio.create_task(served.ask(PNG, path=path, num_tokens=LONG)) for _ in range(4)]  # two of which wait for a place
        await until(lambda: service.places.num_waiting == 2)
        assert service.bodies.num_bytes == 0 and most[0] >= len(PNG)
        watching.cancel()
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    serve(play)


def test_a_bound_that_no_body_can_keep_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_held_bytes=10 .* max_body_bytes=11"):
        ServeSettings(max_body_bytes=11, max_held_bytes=10)


@pytest.mark.parametrize("path", [CHAT, GENERATION])
def test_a_body_that_is_late_is_counted_and_has_a_number(serve: Callable[..., Any], path: str) -> None:
    async def late() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async def play(served: Served) -> None:
        response = await served.ask(path=path, content=late())
        assert (response.status_code, code_of(response)) == (408, "request_timeout" if path == CHAT else "RequestTimeOut")
        assert response.headers["x-request-id"] and response.headers["connection"] == "close"
        assert f'qwen_vl_requests_total{{route="{path}",status="408"}} 1.0' in (await served.client.get("/metrics")).text

    serve(play, body_timeout_s=0.05)


# -- what is noted


def test_metrics_and_log_name_routes_and_methods_of_the_server_alone(serve: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a client writes into a path, as the pattern of the route itself, there are no more names than routes."""
    caplog.set_level("INFO")

    async def play(served: Served) -> set[str]:
        asked = [f"{prefix}/models/secret" for prefix in ("/v1", "/compatible-mode/v1")]
        asked += [f"{path}/{'s' * number}{path.removesuffix('secret')}%7Bname:path%7D" for path in asked for number in (3, 50_000)]
        for path in [*asked, "/api/v1/uploads/secret", "/health/secret", "/v1/secret", "/v1"]:
            await served.client.get(path)
        await served.client.request("SECRET", "/health")
        return set(re.findall(r'route="(.*?)"', (await served.client.get("/metrics")).text))

    models = "/models/{name:path}"
    assert serve(play) == {f"/v1{models}", f"/compatible-mode/v1{models}", "/api/v1/uploads/{token}", "/health", "other"}
    noted = [record.getMessage() for record in caplog.records if record.name == "qwen_vl.serving.app"]
    assert len(noted) == 12 and not [line for line in noted if "secret" in line.lower() or "sss" in line]


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Content-Type": "text/plain"}, "unsupported_media_type"),
        ({"Content-Type": "multipart/form-data; boundary=a"}, "unsupported_media_type"),
        ({}, "unsupported_media_type"),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, "unsupported_content_encoding"),
        ({"Content-Type": "application/json", "Content-Encoding": "identity, br"}, "unsupported_content_encoding"),
    ],
)
def test_bodies_of_other_kinds_are_not_read(serve: Callable[..., Any], headers: dict[str, str], code: str) -> None:
    """What they hold would be a good request."""

    async def play(served: Served) -> None:
        body = json.dumps(fields_of(CHAT, (), False, 4)).encode()
        refused = await served.client.post(CHAT, content=body, headers=headers)
        assert (refused.status_code, code_of(refused)) == (415, code)
        told = await served.client.post(GENERATION, content=body, headers=headers)
        assert (told.status_code, code_of(told)) == (415, "BadRequest.UnsupportedMediaType")

    serve(play)


# -- the end


@pytest.mark.parametrize("path", [CHAT, GENERATION])
@pytest.mark.parametrize("cause", ["drain", "failure"])
def test_every_request_is_told_that_the_server_ends(
    serve: Callable[..., Any], gate: Gate, caplog: pytest.LogCaptureFixture, path: str, cause: str
) -> None:
    """Those that are answered, that wait for a place, whose pictures are decoded, and whose body still comes."""

    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async def play(served: Served) -> None:
        service = served.service
        asking = [asyncio.create_task(served.ask(path=path, stream=number % 2 == 0, num_tokens=LONG)) for number in range(6)]
        await until(lambda: service.places.num_waiting == 4)
        asking += [asyncio.create_task(served.ask(PNG, path=path, stream=number == 0)) for number in range(2)]
        asking += [asyncio.create_task(served.ask(path=path, content=slow()))]
        await until(lambda: gate.num_passed == 2 and service.num_admitted == 9)
        if cause == "drain":
            await service.drain()
        else:
            service.fail("it was told to")
        responses = await asyncio.gather(*asking)
        begun = [response for response in responses if response.status_code == 200]
        assert len(begun) <= 2 and {response.status_code for response in responses if response not in begun} == {503}
        assert {code_of(response) for response in responses} == {EXPECTED[cause] if path == CHAT else "ServiceUnavailable"}
        assert service.num_admitted == 0 and service.places.num_waiting == 0
        assert (await served.ask(path=path)).status_code == 503
        gate.is_open.set()
        await asyncio.to_thread(service.vl.engine.close)  # which is well, and is not closed once it was said to have failed

    serve(play, grace_s=0)
    assert not [record for record in caplog.records if record.name != "qwen_vl.serving.service"]


EXPECTED = {"drain": "shutting_down", "failure": "engine_down"}
