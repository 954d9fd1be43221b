"""The gateway in front of replicas that are played here, without Ray."""

import asyncio
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import httpx
import pytest
from PIL import Image

from qwen_vl.serving.run import MAX_HEADER_BYTES
from qwen_vl.serving.scale.door import Door
from qwen_vl.serving.scale.gateway import Gateway, Message, Messages, ReplicaLostError
from qwen_vl.serving.scale.traffic import Sight
from qwen_vl.serving.settings import ServeSettings

KEY = {"Authorization": "Bearer key"}
CHAT, GENERATION = "/v1/chat/completions", "/api/v1/services/aigc/multimodal-generation/generation"
SMALL = ServeSettings(api_keys=("key",), max_body_bytes=2**18, max_image_bytes=2**20, max_images=2, body_timeout_s=5)


LOOP = asyncio.Runner()  # one for all requests of a gateway


@pytest.fixture(scope="module", autouse=True)
def end_loop() -> Iterator[None]:
    yield
    LOOP.close()


class Said:
    """Messages of an answer, of which one may be an error. Args: gap_s: before each."""

    def __init__(self, *messages: Message | Exception, gap_s: float = 0.0) -> None:
        self.waiting, self.gap_s, self.is_cancelled = list(messages), gap_s, False

    def __aiter__(self) -> "Said":
        return self

    async def __anext__(self) -> Message:
        await asyncio.sleep(self.gap_s)
        if not self.waiting:
            raise StopAsyncIteration
        found = self.waiting.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    def cancel(self) -> None:
        self.is_cancelled = True


def start(kind: str = "application/json", status: int = 200) -> Message:
    return {"type": "http.response.start", "status": status, "headers": [(b"content-type", kind.encode())]}


def piece(content: bytes, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": content, "more_body": more}


class Replicas:
    """Answers as told, and remembers what it was asked."""

    def __init__(self, *answers: Callable[[], Said]) -> None:
        self.answers, self.asked = list(answers), list[tuple[str, Message, bytes, Mapping[str, bytes]]]()

    def __call__(self, key: str, scope: Message, body: bytes, lent: Mapping[str, bytes]) -> Messages:
        self.asked.append((key, scope, body, lent))
        return self.answers.pop(0)() if self.answers else Said(start(), piece(b"{}"))


def gateway_to(replicas: Any, settings: ServeSettings = SMALL, look: Callable[[], int | None] = lambda: 1, max_requests: int = 3) -> Gateway:
    return Gateway(settings, replicas, look, max_requests)


def client_of(gateway: Gateway) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(Door(gateway.app)), base_url="http://localhost")


def ask(gateway: Gateway, method: str, path: str, headers: Mapping[str, str] = KEY, **more: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        async with client_of(gateway) as client:
            return await client.request(method, path, headers=headers, **more)

    return LOOP.run(send())


@pytest.mark.parametrize(
    "body", [b'{"model": "a", "model": "oss://x"}', b'{"a": NaN, "b": "oss://x"}', b'{"messages": [{"role": "user", "content": "oss://x"}]} ']
)
def test_a_body_travels_as_it_came(body: bytes) -> None:
    replicas = Replicas()
    assert ask(gateway_to(replicas), "POST", CHAT, content=body).status_code == 200
    assert replicas.asked[0][2] == body


def noise(seed: int) -> bytes:
    """Return a picture of half a megabyte, as it cannot be packed."""
    buffer = io.BytesIO()
    Image.effect_noise((800, 600 + seed), 100).save(buffer, "PNG")
    return buffer.getvalue()


def test_an_upload_named_many_times_travels_once_beside_the_body() -> None:
    """A small body cannot grow in the gateway, and pictures do not count as its length."""
    replicas = Replicas()
    gateway = gateway_to(replicas)  # whose pictures are longer than a body may be
    contents = [noise(number) for number in range(3)]
    owner = owner_at(gateway)
    handles = [gateway.uploads.put(gateway.uploads.read(gateway.uploads.permit(owner)[0]), "a.png", content) for content in contents]

    def body(*named: str) -> bytes:
        return json.dumps({"messages": [{"role": "user", "content": [{"image": handle} for handle in named]}]}).encode()

    for named, lent in (((handles[0],) * 500, 1), (handles[:2], 2), (handles, 0), (("oss://0/x",) * 10_000, 0)):
        sent = body(*named)
        started = time.monotonic()
        assert ask(gateway, "POST", CHAT, content=sent).status_code == 200
        assert time.monotonic() - started < 2
        _, _, passed, found = replicas.asked[-1]
        assert passed == sent and [found[handle] for handle in found] == contents[:lent]
    gateway.traffic.max_lent_bytes = len(contents[0]) + 1
    refused = ask(gateway, "POST", CHAT, content=body(*handles[:2]))
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
    assert ask(gateway, "POST", CHAT, content=body(handles[0])).status_code == 200 and gateway.traffic.lent_bytes == 0


def owner_at(gateway: Gateway) -> str:
    """Return the gateway's name for whoever has the key."""
    token = ask(gateway, "GET", "/api/v1/uploads?action=getPolicy").json()["data"]["upload_host"].rpartition("/")[2]
    return gateway.uploads.read(token).owner


def test_health_is_told_by_the_gateway_while_replicas_are_busy() -> None:
    def never() -> Said:
        return Said(start(), gap_s=60)

    gateway = gateway_to(Replicas(never))

    async def run() -> tuple[httpx.Response, httpx.Response]:
        async with client_of(gateway) as client:
            busy = asyncio.create_task(client.post(CHAT, headers=KEY, content=b"{}"))
            while not gateway.traffic.num_in_flight:
                await asyncio.sleep(0.01)
            healthy = await asyncio.wait_for(client.get("/health"), 2)
            gateway.traffic.is_draining = True
            draining = await client.get("/health")
            busy.cancel()
            return healthy, draining

    healthy, draining = LOOP.run(run())
    assert (healthy.status_code, healthy.json()) == (200, {"status": "ok"})
    assert (draining.status_code, draining.json()) == (503, {"status": "draining"})
    down = ask(gateway_to(Replicas(), look=lambda: 0), "GET", "/health", headers={})
    assert (down.status_code, down.json()) == (503, {"status": "down"})


def test_looks_at_the_replicas_are_few_and_a_look_in_vain_changes_nothing() -> None:
    looks: list[int | None] = [2, None]

    async def run() -> list[int]:
        seen: list[int | None] = []

        def look() -> int | None:
            seen.append(looks[len(seen)])
            return seen[-1]

        sight = Sight(look)
        found = await asyncio.gather(*(sight.num_ready() for _ in range(100)))
        sight._seen_at = float("-inf")
        return [*found, await sight.num_ready(), len(seen)]

    assert LOOP.run(run()) == [2] * 101 + [2]


def test_strangers_are_told_nothing_and_read_nothing() -> None:
    replicas = Replicas()
    gateway = gateway_to(replicas)
    for method, path in (
        ("POST", "/health"),
        ("POST", "/api/v1/uploads/"),
        ("PUT", "/api/v1/uploads/x"),
        ("GET", "/-/routes"),
        ("GET", "/-/healthz"),
    ):
        assert ask(gateway, method, path, headers={}).status_code == 401, path
    assert ask(gateway, "POST", "/api/v1/uploads/x", headers={}, content=b"a").status_code == 403
    assert not replicas.asked
    assert ask(gateway, "GET", "/-/routes").status_code == 200 and replicas.asked[0][1]["path"] == "/-/routes/"  # which no replica knows


def test_requests_are_counted_before_their_bodies_are_read() -> None:
    gateway = gateway_to(Replicas(), max_requests=1)

    async def slow() -> Any:
        yield b"{"
        await asyncio.sleep(60)

    async def run() -> httpx.Response:
        async with client_of(gateway) as client:
            first = asyncio.create_task(client.post(CHAT, headers=KEY, content=slow()))
            while not gateway.traffic.num_in_flight:
                await asyncio.sleep(0.01)
            refused = await client.post(CHAT, headers=KEY, content=slow())
            first.cancel()
            return refused

    refused = LOOP.run(asyncio.wait_for(run(), 10))
    assert (refused.status_code, refused.json()["error"]["code"], refused.headers["retry-after"]) == (429, "overloaded", "1")


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    async def slow() -> Any:
        yield b"{"
        await asyncio.sleep(60)

    replicas = Replicas()
    late = gateway_to(replicas, replace(SMALL, body_timeout_s=0.05))
    refused = ask(late, "POST", CHAT, content=slow())
    assert (refused.status_code, refused.json()["error"]["code"]) == (408, "request_timeout")
    assert not replicas.asked and late.traffic.num_in_flight == 0


def test_bodies_have_a_bound_together_until_a_replica_answers() -> None:
    answers = asyncio.Event()

    class Waiting(Said):
        async def __anext__(self) -> Message:
            await answers.wait()
            return await super().__anext__()

    def waits() -> Said:
        return Waiting(start(), piece(b"{}"))

    replicas = Replicas(*[waits] * 4)
    gateway = gateway_to(replicas, replace(SMALL, max_held_bytes=2**19), max_requests=9)
    body = bytes(2**17)

    async def run() -> list[httpx.Response]:
        async with client_of(gateway) as client:
            asking = [asyncio.create_task(client.post(CHAT, headers=KEY, content=body)) for _ in range(4)]
            while len(replicas.asked) < 4:
                await asyncio.sleep(0.01)
            refused = await client.post(CHAT, headers=KEY, content=body)
            answers.set()
            return [*await asyncio.gather(*asking), refused, await client.post(CHAT, headers=KEY, content=body)]

    *answered, refused, last = asyncio.run(asyncio.wait_for(run(), 60))
    assert [response.status_code for response in (*answered, last)] == [200] * 5
    assert (refused.status_code, refused.json()["error"]["code"], refused.headers["retry-after"]) == (429, "overloaded", "1")


def test_a_body_is_let_go_of_once_a_replica_answers() -> None:
    gateway = gateway_to(Replicas(lambda: Said(start(), piece(b"{", True), piece(b"}"))), max_requests=1)
    held: list[int] = []
    sent = [{"type": "http.request", "body": b" " * 1000}]

    async def receive() -> Message:
        if sent:
            return sent.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        held.append(gateway.bodies.num_bytes)

    async def run() -> None:
        headers = [(b"authorization", b"Bearer key"), (b"content-length", b"1000")]
        scope = {"type": "http", "method": "POST", "path": CHAT, "query_string": b"", "headers": headers}
        await asyncio.wait_for(gateway.app(scope, receive, send), 60)

    asyncio.run(run())
    assert held == [0, 0, 0]


def test_a_client_that_leaves_while_it_sends_is_no_fault_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    gateway, sent = gateway_to(Replicas()), list[Message]()

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"authorization", b"Bearer key"), (b"content-length", b"2")]
    scope = {"type": "http", "method": "POST", "path": CHAT, "query_string": b"", "headers": headers}
    LOOP.run(gateway.app(scope, receive, send))
    assert sent[0]["status"] == 499 and not caplog.records and gateway.traffic.num_in_flight == 0


@pytest.mark.parametrize("path", [CHAT, GENERATION])
def test_a_cut_stream_ends_in_the_words_of_its_protocol(path: str) -> None:
    replicas = Replicas(lambda: Said(start("text/event-stream"), piece(b"data: 1\n\n", True), ReplicaLostError()))
    lines = ask(gateway_to(replicas), "POST", path, content=b"{}").text.strip().splitlines()
    document = json.loads(lines[-1].removeprefix("data:"))
    if path == CHAT:
        assert document["error"]["code"] == "engine_down"
    else:
        assert lines[-5:-1] == ["id:2", "event:error", ":HTTP_STATUS/503", "status:503"] and document["code"] == "ServiceUnavailable"


def test_a_replica_that_dies_before_it_said_anything_costs_nothing() -> None:
    def dies() -> Said:
        return Said(ReplicaLostError())

    replicas = Replicas(dies, dies)
    gateway = gateway_to(replicas)
    assert ask(gateway, "POST", CHAT, content=b"{}").status_code == 200 and len(replicas.asked) == 3
    replicas.answers = [dies] * 3
    assert ask(gateway, "POST", CHAT, content=b"{}").json()["error"]["code"] == "engine_down"
    assert "qwen_vl_gateway_retries_total 5.0" in ask(gateway, "GET", "/metrics").text


def test_what_is_not_answered_when_the_grace_time_is_over_is_told_so() -> None:
    """A plain request whose replica still works on it, and one whose body is still on its way."""
    working = Said(start(), gap_s=600)
    replicas = Replicas(lambda: working)
    gateway = gateway_to(replicas)

    async def slow() -> Any:
        yield b"{"
        await asyncio.sleep(600)

    async def run() -> list[httpx.Response]:
        async with client_of(gateway) as client:
            asked = [asyncio.create_task(client.post(CHAT, headers=KEY, content=content)) for content in (b"{}", slow())]
            while gateway.traffic.num_in_flight < 2 or not replicas.asked:
                await asyncio.sleep(0.01)
            await gateway.traffic.drain(0.1)
            return list(await asyncio.wait_for(asyncio.gather(*asked), 60))

    for answer in LOOP.run(run()):
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")
    assert working.is_cancelled and gateway.traffic.num_in_flight == 0


def test_methods_and_faults_are_told_in_our_form(caplog: pytest.LogCaptureFixture) -> None:
    replicas = Replicas()
    gateway = gateway_to(replicas)
    assert ask(gateway, "TRACE", CHAT).status_code == 200 and replicas.asked[0][1]["method"] == "TRACE"  # the replica knows what it takes
    assert ask(gateway, "PUT", "/metrics").json()["error"]["code"] == "method_not_allowed"

    def fails(*asked: Any) -> Messages:
        raise RuntimeError("secret")

    for path in (CHAT, GENERATION):
        failed = ask(gateway_to(fails), "POST", path, content=b"{}")
        assert failed.status_code == 500 and "secret" not in failed.text + caplog.text
        assert failed.json().get("code") == "InternalError" or failed.json()["error"]["code"] == "internal_error"


def test_headers_have_a_bound() -> None:
    replicas = Replicas()
    refused = ask(gateway_to(replicas), "POST", CHAT, headers=KEY | {"x-long": "x" * MAX_HEADER_BYTES}, content=b"{}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_header") and not replicas.asked
    assert ask(gateway_to(replicas), "POST", CHAT, headers=KEY | {"x-long": "x" * 60_000}, content=b"{}").status_code == 200
