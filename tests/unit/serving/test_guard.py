"""The guard: keys, names, bodies; and the keys' file."""

import asyncio
import base64
import contextlib
import functools
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwen_vl.errors import ConfigError
from qwen_vl.serving import security
from qwen_vl.serving.security import Guard, KeyRing, read_keys
from qwen_vl.serving.settings import ServeSettings


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Read the whole body, then answer with its length and the owner."""
    num_bytes, more = 0, True
    while more:
        message = await receive()
        num_bytes += len(message.get("body", b""))
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": f"{num_bytes} {scope['state']['owner']}".encode()})


async def careless(scope: Scope, receive: Receive, send: Send) -> None:
    """Make something else of whatever is wrong with a body, as frameworks do."""
    try:
        await app(scope, receive, send)
    except Exception:  # noqa: BLE001  as they do
        await send({"type": "http.response.start", "status": 400, "headers": []})
        await send({"type": "http.response.body", "body": b"There was an error parsing the body"})


@functools.cache
def guard_of(settings: ServeSettings, guarded: ASGIApp) -> Guard:
    """Return the only guard of a server: another one would name the owners otherwise."""
    return Guard(guarded, settings)


def call(settings: ServeSettings, *chunks: bytes, path: str = "/v1/models", method: str = "POST", **headers: str) -> tuple[int, str, dict[str, str]]:
    """Return status, body and headers of an answer."""
    return send_to(guard_of(settings, app), chunks, headers, path, method)


def send_to(
    guard: Guard, chunks: Sequence[bytes], headers: Mapping[str, str], path: str = "/v1/models", method: str = "POST", *, ends: bool = True
) -> tuple[int, str, dict[str, str]]:
    """Return status, body and headers of an answer. Args: ends: the body does after the chunks, or is waited for in vain."""
    sent: list[Message] = []
    waiting: list[Message] = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    waiting += [{"type": "http.request", "body": b""}] if ends else []

    async def receive() -> Message:
        if not waiting:
            await asyncio.Event().wait()
        return waiting.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in {"host": "localhost:8000", **headers}.items()]
    scope: dict[str, Any] = {"type": "http", "path": path, "method": method, "headers": named, "state": {}}
    asyncio.run(asyncio.wait_for(guard(scope, receive, send), 60))
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:]).decode(), found


KEYED = ServeSettings(api_keys=("first-key", "second-key"))


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", "Bearer first-key2", "Bearer first-ke", "first-key", "Basic first-key", "Bearer " + "x" * 10**6],
)
def test_without_a_key_nothing_is_told(header: str | None) -> None:
    status, body, headers = call(KEYED, **({} if header is None else {"authorization": header}))
    assert status == 401 and "invalid_api_key" in body and headers["www-authenticate"] and "first" not in body


def test_each_key_opens_and_has_an_owner_of_its_own() -> None:
    owners = {call(KEYED, authorization=f"Bearer {key}")[1] for key in KEYED.api_keys}
    assert len(owners) == 2 and all("key" not in owner for owner in owners)
    basic = base64.b64encode(b"anybody:second-key").decode()
    assert call(KEYED, authorization=f"Basic {basic}")[1] in owners


def test_headers_are_counted() -> None:
    assert call(KEYED, authorization="Bearer first-key", **{f"x{number}": "1" for number in range(98)})[0] == 200
    status, body, _ = call(KEYED, authorization="Bearer first-key", **{f"x{number}": "1" for number in range(99)})
    assert status == 431 and "too_many_headers" in body


def test_the_names_of_owners_are_those_of_one_process() -> None:
    """A name stands in the addresses of uploads: without the process's secret no key can be tried on it."""
    one, other = KeyRing(["first-key"]), KeyRing(["first-key"])
    assert one.owner(b"first-key") == one.owner(b"first-key") != other.owner(b"first-key")
    assert hashlib.sha256(b"first-key").hexdigest() not in (one.owner(b"first-key"), other.owner(b"first-key"))


def test_nothing_goes_without_a_key_but_a_look_at_the_health_and_a_signed_upload() -> None:
    assert call(KEYED, path="/health", method="GET")[0] == call(KEYED, path="/api/v1/uploads/to-Ke_n")[0] == 200
    for method, path in (
        *(("POST", "/health"), ("HEAD", "/health"), ("GET", "/health/"), ("POST", "/api/v1/uploads"), ("POST", "/api/v1/uploads/")),
        *(("GET", "/api/v1/uploads/token"), ("POST", "/api/v1/uploads/token/more"), ("POST", "/api/v1/uploads/a\n")),
    ):
        assert call(KEYED, b"body", path=path, method=method)[0] == 401, (method, path)


def test_every_key_is_compared_whatever_is_presented() -> None:
    ring = KeyRing(["a", "b", "c"])
    with mock.patch("hmac.compare_digest", side_effect=hmac.compare_digest) as compare:
        for presented in (b"a", b"c", b"x", b""):
            compare.reset_mock()
            ring.owner(presented)
            assert compare.call_count == 3
            assert {len(argument) for each in compare.call_args_list for argument in each.args} == {32}


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8000", "localhost.evil.example", "", "[::2]"])
def test_without_keys_only_the_machines_own_names_are_answered(host: str) -> None:
    assert call(ServeSettings(), host=host)[0] == 421
    assert call(KEYED, host=host, authorization="Bearer first-key")[0] == 200


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9", "[::1]:8000", "LOCALHOST:8000"])
def test_the_machines_own_names(host: str) -> None:
    assert call(ServeSettings(), host=host)[0] == 200


@pytest.mark.parametrize("guarded", [app, careless])
def test_bodies_are_counted_while_they_come(guarded: ASGIApp) -> None:
    settings = ServeSettings(max_body_bytes=10)
    guard = Guard(guarded, settings)
    assert send_to(guard, [b"12345", b"67890"], {"content-length": "10"})[:2] == (200, "10 ")
    for answer in (send_to(guard, [b"12345", b"678901"], {"transfer-encoding": "chunked"}), send_to(guard, [], {"content-length": "11"})):
        assert answer[0] == 413 and "request_too_large" in answer[1] and answer[2]["connection"] == "close"
    assert call(settings, b"", content_length="9" * 400)[0] == 413
    for wrong in ("x", "-1", "1e3", "٣"):
        with_wrong = call(settings, b"", content_length=wrong.encode().decode("latin-1"))
        assert with_wrong[0] == 400


@pytest.mark.parametrize("guarded", [app, careless])
@pytest.mark.parametrize(("path", "code"), [("/v1/x", "request_timeout"), ("/api/v1/x", "RequestTimeOut"), ("/gradio_api/x", "request_timeout")])
def test_bodies_are_waited_for_a_while_on_every_route(guarded: ASGIApp, path: str, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And whatever a route makes of it, the client is told so."""
    monkeypatch.setattr(security, "LINGER_S", 0.01)
    guard = Guard(guarded, ServeSettings(body_timeout_s=0.05))
    for headers in ({"content-length": "9"}, {"transfer-encoding": "chunked"}):
        status, body, answered = send_to(guard, [b"12345"], headers, path, ends=False)
        assert status == 408 and f'"{code}"' in body and answered["connection"] == "close"


def test_who_has_sent_a_body_is_not_hurried() -> None:
    """Only the body is timed: not how long its answer takes, nor the wait for the client to leave."""

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(receive(), 0.2)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})

    guard = Guard(slow, ServeSettings(body_timeout_s=0.05))
    assert send_to(guard, [], {}, method="GET")[:2] == send_to(guard, [], {"content-length": "9"})[:2] == (200, "done")


def test_keys_come_from_file_and_environment(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\nfirst\n\nsecond\nfirst\n")
    path.chmod(0o600)
    assert read_keys(path, "third, second") == ("third", "second", "first")
    assert read_keys(None, None) == read_keys(None, " , ") == ()
    for wrong in ("# nothing\n", "a b\n", "ключ\n", "x" * 5000):
        path.write_text(wrong)
        with pytest.raises(ConfigError):
            read_keys(path, None)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys(tmp_path / "missing", None)


def test_open_addresses_need_keys() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        with pytest.raises(ConfigError, match="no API key"):
            ServeSettings(host=host)
        assert ServeSettings(host=host, api_keys=("k",)).host == ServeSettings(host=host, allow_open=True).host == host
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        assert ServeSettings(host=host).is_local
    assert "secret" not in repr(ServeSettings(api_keys=("secret",)))


@pytest.mark.parametrize("wrong", [{"port": -1}, {"port": 70000}, {"max_running": 0}, {"max_waiting": -1}, {"watchdog_s": 0}, {"max_context": 1}])
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ServeSettings(**wrong)
