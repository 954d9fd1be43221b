"""The bad-input catalogue against a real server process; the invariants are checked after every case."""

import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.integration import bad_pictures as pictures
from tests.integration.bad_requests import CATALOGUE, CHAT, GENERATION, JSON, Probe, ask, image, text
from tests.integration.serving import BUSY, KEY, LEAKS, STEADY, Invariants, Server, start_server
from tests.integration.wire import Reply, connect, exchange, head

MIB = 2**20
LARGE_BODY_BYTES = 192 * MIB  # up to 28 MiB as bytes, as characters, as the parts of a document, and in a decoder
PEAK_BYTES = {**dict.fromkeys(("B10", "B35", "B53", "B58"), LARGE_BODY_BYTES), "B55": 16 * MIB}  # of cases for which it is not the usual
OPENAI_FIELDS, DASHSCOPE_FIELDS = {"message", "type", "param", "code"}, {"request_id", "code", "message"}


class Brief(Invariants):
    """The invariants with a shorter canary: there are many cases."""

    CANARY_TOKENS = 16


AUDITED = (str(Path(__file__).with_name("audited_server.py")),)


class Audit:
    """What the server has opened, connected to and started since the last look."""

    def __init__(self, path: Path) -> None:
        self._path, self._seen = path, 0

    def news(self) -> list[str]:
        content = self._path.read_bytes()
        found, self._seen = content[self._seen :].decode(), len(content)
        return [line for line in found.splitlines() if "'/proc/self/" not in line]  # what /metrics tells of the process


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    return Audit(tmp_path_factory.mktemp("audit") / "notes")


@pytest.fixture(scope="module")
def hold(tmp_path_factory: pytest.TempPathFactory, audit: Audit) -> Iterator[Invariants]:
    with start_server(tmp_path_factory.mktemp("server"), program=AUDITED, env={**STEADY, "AUDIT": str(audit._path)}) as server:
        good = image(pictures.uri(pictures.GOOD))
        for fields in (ask(), ask(good, text()), ask(stream=True), ask(n=2, logprobs=True), ask(boxes="any")):  # what loads at its first use
            assert server.post(json=fields).status_code == 200
        for path in (GENERATION, "/v1/completions"):
            server.post(path, json={})
        with Brief(server) as found:
            yield found


@pytest.fixture
def server(hold: Invariants, audit: Audit, request: pytest.FixtureRequest) -> Iterator[Server]:
    """Give the server, and check around the test that the invariants hold and that nothing was opened, connected to or started."""
    audit.news()
    case = getattr(request.node, "callspec", None)
    with hold(limit_s=120, max_peak_bytes=PEAK_BYTES.get(case.params.get("name", "") if case else "", Invariants.MAX_PEAK_BYTES)):
        yield hold.server
    assert audit.news() == []


@pytest.fixture
def large(hold: Invariants) -> Iterator[Server]:
    """Give the server for a test that sends a large body."""
    with hold(limit_s=120, max_peak_bytes=LARGE_BODY_BYTES):
        yield hold.server


def check_form(reply: Reply) -> None:
    """Check that an error has a form of errors (I2) and tells nothing (I3)."""
    leak = LEAKS.search(reply.body.decode("utf-8", "replace"))
    assert leak is None, f"the body tells {leak[0]!r}"
    if reply.status < 400 or not reply.headers.get("content-type", "").startswith("application/json"):
        return
    document = reply.json
    error = document.get("error", document)
    assert set(error) == (OPENAI_FIELDS if "error" in document else DASHSCOPE_FIELDS), document
    assert isinstance(error["code"], str)
    assert 5 < len(error["message"]) < 600
    assert "\n" not in error["message"]


def post(server: Server, fields: Any) -> Reply:
    response = server.post(json=fields)
    return Reply(response.status_code, dict(response.headers), response.content)


@pytest.mark.parametrize("name", CATALOGUE)
def test_catalogue(server: Server, name: str) -> None:
    for probe in CATALOGUE[name]():
        reply = exchange(server.address, bytes_of(probe))
        assert reply.status in probe.statuses, f"{name} {probe.note}: {reply.status} {reply.body[:300]!r}"
        assert reply.seconds < probe.limit_s * BUSY, f"{name} {probe.note}: {reply.seconds:.2f} s"
        check_form(reply)
        if reply.status >= 400 and probe.codes is not None:
            assert reply.code in probe.codes, f"{name} {probe.note}: {reply.body[:300]!r}"
        if reply.status == 400 and probe.param is not None:
            param = reply.json["error"]["param"] or ""
            assert param.startswith(probe.param), f"{name} {probe.note}: param {param!r}"


def bytes_of(probe: Probe) -> bytes:
    """Return a probe as it goes over the line."""
    headers = {"Host": "127.0.0.1", **({"Authorization": f"Bearer {probe.key}"} if probe.key else {}), **probe.headers, "Connection": "close"}
    return head(probe.method, probe.path, headers, len(probe.body) if probe.body or probe.method == "POST" else None) + probe.body


# Cases that are no lists of requests.


def good_head(length: int, **more: str) -> bytes:
    return head("POST", CHAT, {"Host": "127.0.0.1", "Authorization": f"Bearer {KEY}", **JSON, **more}, length)


@pytest.mark.parametrize("is_chunked", [False, True])
def test_b07_large_bodies_are_not_read(large: Server, is_chunked: bool) -> None:
    server = large
    if not is_chunked:
        reply = exchange(server.address, good_head(33 * MIB) + bytes(MIB))
    else:
        start = head("POST", CHAT, {"Host": "127.0.0.1", "Authorization": f"Bearer {KEY}", **JSON, "Transfer-Encoding": "chunked"}, None)
        reply = exchange(server.address, start + (b"100000\r\n" + b" " * MIB + b"\r\n") * 34 + b"0\r\n\r\n")
    # A connection that is closed on unread bytes may be reset before the answer is read.
    assert reply.status in (413, 0), reply
    if reply.status:
        assert reply.code == "request_too_large"
        assert reply.headers["connection"] == "close"


def test_b08_a_body_that_does_not_come(server: Server) -> None:
    reply = exchange(server.address, good_head(1000) + b'{"model"', timeout_s=60)
    assert (reply.status, reply.code) == (408, "request_timeout")


def test_what_is_refused_is_let_go(hold: Invariants) -> None:
    """I7: of requests of 28 MiB none is kept until Python looks for cycles, for which others' requests would have to make objects."""
    server, uri = hold.server, "data:image/png;base64," + "A" * 28 * MIB
    server.wait_idle()
    before, kept = server.memory_bytes, []
    for _ in range(6):
        assert post(server, ask(image(uri), text())).code == "image_too_large"
        server.wait_idle()
        kept.append(server.memory_bytes - before)
    assert max(kept) < 56 * MIB, kept


def test_b13_too_many_or_long_headers(server: Server) -> None:
    body = json.dumps(ask()).encode()
    for more in ({f"X-{number}": "1" for number in range(200)}, {"X-Long": "x" * 128 * 1024}):
        reply = exchange(server.address, good_head(len(body), **more) + body)
        assert (reply.status, reply.code) in ((431, "too_many_headers"), (400, None)), len(more)  # a long line is uvicorn's to refuse
        check_form(Reply(200, body=reply.body))
    for line in (b"GET  HTTP/9.9\r\n\r\n", b"\x00" * 100 + b"\r\n\r\n", b"POST " + CHAT.encode() + b" HTTP/1.1\r\nContent-Length: -5\r\n\r\n"):
        assert exchange(server.address, line).status in (0, 400)


def test_b20_the_right_model_is_named(server: Server) -> None:
    [model] = server.client.get("/v1/models").json()["data"]
    assert post(server, ask(model=model["id"])).status == 200


def test_b29_a_stop_string_is_cut_out(server: Server) -> None:
    whole = post(server, ask(max_tokens=20, temperature=0)).json["choices"][0]["message"]["content"]
    stop = whole[len(whole) // 2 :][:2]
    assert stop.strip()
    place = whole.find(stop)
    cut = post(server, ask(max_tokens=20, temperature=0, stop=stop)).json["choices"][0]
    assert (cut["message"]["content"], cut["finish_reason"]) == (whole[:place].rstrip(), "stop")
    stream = post(server, ask(max_tokens=20, temperature=0, stop=[stop, "狗"], stream=True))
    assert streamed_text(stream).rstrip() == whole[:place].rstrip()


def test_b32_a_stream_of_several_is_each_of_them(server: Server) -> None:
    fields = {"max_tokens": 8, "temperature": 1.0, "seed": 3, "n": 2}
    whole = [choice["message"]["content"] for choice in post(server, ask(**fields)).json["choices"]]
    texts, reasons = ["", ""], [None, None]
    for event in server.stream("hi", **fields)[:-1]:
        for choice in event["choices"]:
            texts[choice["index"]] += choice["delta"].get("content") or ""
            reasons[choice["index"]] = choice["finish_reason"]
    assert [each.strip() for each in texts] == whole and None not in reasons


def streamed_text(reply: Reply) -> str:
    lines = [line.removeprefix("data: ") for line in reply.body.decode().split("\n\n") if line]
    return "".join(choice["delta"].get("content") or "" for line in lines[:-1] for choice in json.loads(line)["choices"])


def test_b34_the_context_is_exact(hold: Invariants) -> None:
    with hold(limit_s=120, max_peak_bytes=256 * MIB):  # a full context is honest work
        check_context(hold.server)


def check_context(server: Server) -> None:
    def ask_for(num_words: int) -> Reply:
        return post(server, ask(messages=[{"role": "user", "content": "a" + " a" * (num_words - 1)}]))

    overhead = ask_for(10).json["usage"]["prompt_tokens"] - 10
    fits = ask_for(2047 - overhead)
    assert fits.status == 200
    assert fits.json["usage"] == {**fits.json["usage"], "prompt_tokens": 2047, "completion_tokens": 1}
    for more in (1, 2):
        reply = ask_for(2047 - overhead + more)
        assert (reply.status, reply.code) == (400, "context_length_exceeded")


def test_b37_decomposed_text_loses_nothing(server: Server) -> None:
    answers = [
        post(server, ask(messages=[{"role": "user", "content": question}], max_tokens=12, temperature=0)).json["choices"][0]["message"]["content"]
        for question in ("Où est le caf\u00e9 d\u00e9j\u00e0?", "Ou\u0300 est le cafe\u0301 de\u0301ja\u0300?")
    ]
    assert answers[0] == answers[1]


def test_b41_an_address_in_text_is_not_asked(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/x.png"
        for content in (f"<img>{url}</img>", f"Picture 1: <img>{url}</img>\nWhat?", url):
            assert post(server, ask(messages=[{"role": "user", "content": content}])).status == 200
        assert post(server, ask(image(url), text())).code == "remote_images_disabled"
        with pytest.raises(BlockingIOError):
            listener.accept()


def first_token(server: Server, content: bytes) -> dict[str, float]:
    """Return the likeliest first tokens of an answer about a picture, with their logarithms."""
    reply = post(server, ask(image(pictures.uri(content)), text(), max_tokens=1, temperature=0, logprobs=True, top_logprobs=5))
    return {each["token"]: each["logprob"] for each in reply.json["choices"][0]["logprobs"]["content"][0]["top_logprobs"]}


def test_b61_pictures_are_seen_as_they_are_here(server: Server) -> None:
    """The same picture in every lossless container is the same picture: it is encoded once."""
    base = pictures.picture(300, 200)
    opaque = base.convert("RGBA")
    files = [pictures.encoded(base), pictures.encoded(base, "BMP"), pictures.encoded(base, "WEBP", lossless=True), pictures.encoded(opaque)]
    before = server.gauges()["qwen_vl_feature_cache_misses"]
    seen = [first_token(server, content) for content in files]
    assert server.gauges()["qwen_vl_feature_cache_misses"] == before + 1
    # Beside other requests sums are in another order, which shows in the last digits.
    assert all(each == pytest.approx(seen[0], abs=1e-3) for each in seen)


def test_b63_pictures_with_equal_bytes_are_different(server: Server) -> None:
    pixels = np.random.default_rng(5).integers(0, 256, 30 * 100 * 3, dtype=np.uint8)
    wide, tall = (pictures.encoded(Image.fromarray(pixels.reshape(shape))) for shape in ((30, 100, 3), (100, 30, 3)))
    before = server.gauges()["qwen_vl_feature_cache_misses"]
    seen = [first_token(server, content) for content in (wide, tall, wide)]
    assert server.gauges()["qwen_vl_feature_cache_misses"] == before + 2
    assert seen[0] == pytest.approx(seen[2], abs=1e-3)
    assert seen[0] != pytest.approx(seen[1], abs=1e-3)


def test_b64_a_picture_is_encoded_once(server: Server) -> None:
    fields = ask(image(pictures.uri(pictures.encoded(pictures.picture(33, 44, seed=9)))), text())
    assert post(server, fields).status == 200
    before = server.gauges()["qwen_vl_feature_cache_misses"]
    for _ in range(10):
        assert post(server, fields).status == 200
    assert server.gauges()["qwen_vl_feature_cache_misses"] == before


def num_encoded(server: Server) -> float:
    return server.gauges()["qwen_vl_feature_cache_misses"]


@pytest.mark.parametrize("extra", [{"uuid": "1"}, {"hash": "0" * 64}, {"detail": "low"}])
def test_b65_what_a_client_says_of_a_picture_is_no_key(server: Server, extra: dict[str, str]) -> None:
    """Different pictures of one name are different; one picture under other names is the same."""
    one, other = (pictures.uri(pictures.encoded(pictures.picture(41, 42, seed=len(str(extra)) * seed))) for seed in (3, 5))
    before, seen = num_encoded(server), []
    for picture in (one, other):
        reply = post(server, ask(image(picture, **extra), text(), max_tokens=1))
        assert reply.status == 200 or (reply.status, reply.code) == (400, "unknown_field")
        seen.append(reply.status)
    assert num_encoded(server) == before + seen.count(200)
    for picture in (one, other):
        assert post(server, ask(image(picture), text(), max_tokens=1)).status == 200
    assert num_encoded(server) == before + 2


def test_b66_what_does_not_fit_is_refused_before_pictures_are_encoded(server: Server) -> None:
    before = num_encoded(server)
    new = [image(pictures.uri(pictures.encoded(pictures.picture(20, 21, seed=60 + number)))) for number in range(8)]
    assert post(server, ask(*new, text("a " * 1900))).code == "context_length_exceeded"
    assert num_encoded(server) == before
    assert post(server, ask(*new, text())).status == 200
    assert num_encoded(server) == before + 8


def test_every_error_is_about_the_request_alone(server: Server) -> None:
    """Words of a prompt or a picture's text come back in no error (I3)."""
    word = "s3cr3t-w0rd"
    for fields in (
        ask(model=word),
        ask(**{word: 1}),
        ask(messages=[{"role": word, "content": word}]),
        ask(image(word), text(word)),
        ask(stop=[word * 100]),
        ask(boxes=word),
        ask(boxes=word, response_format={"type": "json_object"}),
        ask(tools=[{"type": word, "function": {"name": word}}]),
        ask(response_format={"type": word}),
        ask(messages=[{"role": "user", "content": word}, {"role": "system", "content": word}]),
        ask(messages=[{"role": "assistant", "content": word}]),
    ):
        reply = post(server, fields)
        assert reply.status in (400, 404)
        assert word not in reply.body.decode()
        assert reply.json["error"]["param"] is not None or word in fields  # a name that the client made up is not told
    assert word not in server.log


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (ask(max_tokens=999_999), "max_tokens"),
        (ask(min_tokens=999_999, max_tokens=...), "min_tokens"),
        (ask(response_format={"type": "json_object"}), "max_tokens"),
        (ask(boxes="3", max_tokens=20), "max_tokens"),
        (ask(messages=[{"role": "user", "content": "  "}]), "messages[0].content"),
    ],
)
def test_errors_speak_of_the_clients_fields(server: Server, fields: dict[str, Any], param: str) -> None:
    reply = post(server, fields)
    assert (reply.status, reply.json["error"]["param"]) == (400, param)
    assert reply.json["error"]["message"].startswith(param)


@pytest.mark.slow
def test_b84_slow_and_idle_connections_harm_nobody(server: Server) -> None:
    body = json.dumps(ask()).encode()
    pipelined = good_head(len(body)) + body
    with connect(server.address) as sock:
        sock.sendall(pipelined * 3)
        assert [read_one(sock).status for _ in range(3)] == [200] * 3
    half = exchange(server.address, good_head(len(body), Connection="close") + body, half_close=True)
    assert half.status in (0, 200)  # a half-closed connection may count as one that was closed
    idle = [connect(server.address, 90) for _ in range(1000)]
    dripping = connect(server.address, 90)
    try:
        begin = time.monotonic()
        waits = []
        while time.monotonic() - begin < 20:
            try:
                dripping.sendall(pipelined[:1])
            except OSError:
                break
            start = time.perf_counter()
            assert server.health == 200
            waits.append(time.perf_counter() - start)
            time.sleep(0.5)
        assert sorted(waits)[len(waits) // 2] < 0.1  # half of them, as machines are shared
        for sock in (*idle, dripping):
            assert sock.recv(1) == b""  # cut, not answered
        assert time.monotonic() - begin < 60
    finally:
        for sock in (*idle, dripping):
            sock.close()


def read_one(sock: socket.socket) -> Reply:
    """Read one answer of several on the connection, byte by byte."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += sock.recv(1)
    length = int(re.search(rb"content-length: (\d+)", received.lower())[1])  # type: ignore[index]
    body = b""
    while len(body) < length:
        body += sock.recv(length - len(body))
    return Reply(int(received.split()[1]), body=body)
