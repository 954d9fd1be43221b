"""Guards of the server, each with a way to take it away and the tests that must notice.

A pytest plugin: `python -m pytest -p tests.integration.guard_mutations` with the guard's name in GUARD runs the tests without it. As a program it is
`qwen-vl` without the guard: `start_server` runs it instead, so tests of a real server notice too.
"""

import asyncio
import base64
import os
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

Mutation = tuple[Callable[[], None], str]  # takes the guard away; the tests

MEDIA, DECODER, UPLOADS = (f"tests/unit/serving/test_{name}.py" for name in ("media", "decoder", "uploads"))
FORMS, GUARD, BODY = (f"tests/unit/serving/test_{name}.py" for name in ("forms", "guard", "body"))
SIZES, GATEWAY, SERVICE, WATCHDOG, PROTOCOL = (
    f"tests/unit/serving/test_{name}.py" for name in ("sizes", "gateway", "service", "watchdog", "protocol")
)
DOOR, APP = "tests/unit/serving/web/test_door.py", "tests/unit/serving/test_app.py"
FETCH = "tests/unit/processing/test_fetch.py"
PROMPTS, BEGIN, ENGINE = "tests/unit/api/test_prompts.py", "tests/unit/api/test_begin.py", "tests/unit/engine/test_engine.py"
FAULTS, CATALOGUE = "tests/integration/test_serve_faults.py", "tests/integration/test_bad_input.py"  # of real servers


def nothing(*_: Any, **__: Any) -> None:
    """Check nothing."""


def put(module: str, name: str, value: Any) -> Callable[[], None]:
    """Return what replaces a name of a module, or of a class in it (`Class.method`)."""

    def replace() -> None:
        owner: Any = __import__(f"qwen_vl.{module}", fromlist=["_"])
        *classes, last = name.split(".")
        for each in classes:
            owner = getattr(owner, each)
        if not hasattr(owner, last):
            raise AttributeError(f"qwen_vl.{module} has no {name} any more: mend this list")
        setattr(owner, last, value)

    return replace


def resolve_only(address: Any, _: Any, deadline: float) -> list[str]:
    from qwen_vl.processing import fetch

    return fetch._look_up(address, deadline)


def resolve_twice() -> None:
    from qwen_vl.processing import fetch

    check = fetch._resolve

    def resolve(address: Any, policy: Any, deadline: float) -> list[str]:
        check(address, policy, deadline)
        return fetch._look_up(address, deadline)

    put("processing.fetch", "_resolve", resolve)()


def in_decoders(module: str, name: str) -> Callable[[], None]:
    """Return what lets a function do nothing in the processes that decode."""

    def replace() -> None:
        from qwen_vl.serving import decoder

        if "import main;" not in decoder._START or not hasattr(__import__(f"qwen_vl.{module}", fromlist=["_"]), name):
            raise AttributeError("the decoders start otherwise: mend this list")
        loose = f"import main; import qwen_vl.{module} as loose; loose.{name} = lambda *_: None;"
        decoder._START = decoder._START.replace("import main;", loose)

    return replace


def wait_for_decoders() -> None:
    timers = {**vars(threading), "Timer": lambda *_: threading.Timer(10**6, nothing)}
    put("serving.decoder", "threading", SimpleNamespace(**timers))()


def start_with_secrets() -> None:
    class Popen(subprocess.Popen[Any]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "env": dict(os.environ)})

    put("serving.decoder", "subprocess", type("subprocess", (), {**vars(subprocess), "Popen": Popen}))()


def get_anybodys(store: Any, handle: str, _: str) -> bytes:
    upload = store._files.get(handle)
    return bytes(upload.content) if upload else b""


async def nothing_soon(*_: Any, **__: Any) -> None:
    """Wait for nothing."""


async def never(*_: Any) -> None:
    """Notice nothing."""
    await asyncio.Event().wait()


async def load_all(parts: Any, media: Any, owner: str) -> list[Any]:
    """Load pictures and wait for none of the others once one has failed."""
    loading = [media.load(part.image_url.url, owner) for part in parts if part.type == "image_url"]
    pictures = iter(await asyncio.gather(*loading))
    return [{"type": "image", "image": next(pictures)} if part.type == "image_url" else {"type": "text", "text": part.text} for part in parts]


async def run_later(threads: Any, work: Callable[[Any], Any], given: Any) -> Any:
    """Leave it to the pool when work begins, whoever waits for it by then."""
    return await asyncio.get_running_loop().run_in_executor(threads._pool, work, given)


@asynccontextmanager
async def forever(*_: Any) -> AsyncGenerator[Callable[[], None]]:
    """Let nothing end."""
    yield nothing


@contextmanager
def anybody(*_: Any) -> Iterator[None]:
    """Let everybody in."""
    yield


def without_time(module: str) -> Callable[[], None]:
    """Return what lets a module wait for ever."""
    endless = {name: lambda _: asyncio.timeout(None) for name in ("timeout", "timeout_at")}
    return put(module, "asyncio", SimpleNamespace(**{**vars(asyncio), **endless}))


def unlimit() -> None:
    from qwen_vl.serving.protocol import bounded

    put("serving.protocol", "bounded", lambda settings, _, note_slow: bounded(settings, 10**9, note_slow))()


def digest_for_all(*arguments: Any) -> list[bytes]:
    from qwen_vl.engine.prefixes import digest_blocks

    return digest_blocks(*arguments[:4])


def read_control_tokens(encoder: Any, text: str) -> list[int]:
    return list(encoder.tokenizer.byte_pairs.encode(text, tuple(encoder.tokenizer.special_tokens)))


MUTATIONS: dict[str, Mutation] = {
    "private addresses": (put("processing.fetch", "_is_global", lambda _: True), FETCH),
    "allowed hosts": (put("processing.fetch", "_resolve", resolve_only), FETCH),
    "connecting to the checked address": (resolve_twice, FETCH),
    "bytes of an answer": (put("processing.fetch", "_read", lambda response, *_: response.read(2_000_000)), FETCH),
    "backslashes and users": (
        put("processing.fetch", "parse_address", lambda url: __import__("qwen_vl.processing.fetch", fromlist=["_"]).Address("http", "a", 80, "/")),
        FETCH,
    ),
    "bytes of a file": (put("processing.sources", "_checked", lambda content, *_: content), MEDIA),
    "strict base64": (put("processing.sources", "_decode_base64", lambda text, _: base64.b64decode(text.encode("utf-8", "replace"))), MEDIA),
    "format by the first bytes": (put("processing.sources", "is_picture", lambda _: True), MEDIA),
    "format of what was fetched": (put("serving.media", "is_picture", lambda _: True), MEDIA),
    "fetching is off": (put("serving.media", "MediaLoader._fetch", lambda *_: __import__("asyncio").sleep(0, b"")), MEDIA),
    "unconfined decoders": (in_decoders("processing.decode_worker", "confine"), DECODER),
    "aspect of pictures": (in_decoders("processing.decoding", "_check_aspect"), DECODER),
    "time of decoders": (wait_for_decoders, f"{DECODER}::test_a_process_that_hangs_is_killed_and_replaced"),
    "secrets of decoders": (start_with_secrets, DECODER),
    "limits of decoders": (put("serving.decoder", "_refusal", lambda *_: None), DECODER),
    "signed permissions": (put("serving.uploads", "UploadStore._sign", lambda *_: bytes(32)), UPLOADS),
    "owners of uploads": (put("serving.uploads", "UploadStore.get", get_anybodys), UPLOADS),
    "room for uploads": (put("serving.uploads", "UploadStore._make_room", nothing), UPLOADS),
    "time of uploads": (put("serving.uploads", "UploadStore._forget_old", nothing), UPLOADS),
    "uploads are pictures": (put("serving.uploads", "is_picture", lambda _: True), UPLOADS),
    "fields of a form": (put("serving.forms", "MAX_FIELDS", 10**6), FORMS),
    "head of a field": (put("serving.forms", "MAX_HEAD_BYTES", 10**6), FORMS),
    "keys": (put("serving.security", "KeyRing.owner", lambda *_: "anybody"), GUARD),
    "number of headers": (put("serving.security", "MAX_HEADERS", 10**6), GUARD),
    "name of the server": (put("serving.security", "Guard._check_host", nothing), GUARD),
    "length of a body": (put("serving.security", "Guard._check_length", nothing), GUARD),
    "doubled keys": (put("serving.body", "_Objects.make", lambda _, pairs: dict(pairs)), BODY),
    "number of fields": (put("serving.body", "MAX_FIELDS", 10**9), BODY),
    "number of values": (put("serving.body", "MAX_MARKS", 10**9), BODY),
    "number of parts": (put("serving.openai", "check_size", nothing), SIZES),
    "secret names of owners": (put("serving.security", "secrets", SimpleNamespace(token_bytes=bytes)), GUARD),
    "NaN": (put("serving.body", "_refuse_constant", float), BODY),
    "infinite numbers": (put("serving.body", "_finite", float), BODY),
    "half characters": (put("serving.body", "_SURROGATE", __import__("re").compile(rb"(?!)")), BODY),
    "bytes of a body that come": (put("serving.security", "Guard._counted", lambda guard, *asked: guard.app(*asked)), GUARD),
    "open addresses need keys": (put("serving.settings", "ServeSettings.is_local", True), GUARD),
    "requests that may wait": (put("serving.service", "Service.admit", anybody), SERVICE),
    "answers written at once": (put("serving.places", "Places.take", nothing_soon), "tests/unit/serving/test_places.py"),
    "owners of prompts": (put("serving.service", "ChatRequest.owner", ""), SERVICE),
    "an engine that hangs": (put("serving.watchdog", "MAX_TICK_S", 0.0), WATCHDOG),
    "a preparing thread that hangs": (put("serving.watchdog", "Watchdog._some_work_hangs", lambda *_: False), WATCHDOG),
    "connections at once": (unlimit, PROTOCOL),
    "time of a silent connection": (put("serving.protocol", "BoundedProtocol._watch", nothing), PROTOCOL),
    "time of a body": (without_time("serving.security"), f"{FAULTS}::test_slow_and_silent_connections_are_cut"),
    "time of a reader": (put("serving.protocol", "BoundedProtocol._await_reader", nothing), f"{FAULTS}::test_a_reader_that_does_not_read_is_dropped"),
    "clients that leave": (put("serving.stream", "_gone", never), f"{FAULTS}::test_for_a_client_that_leaves_nothing_more_is_written"),
    "limits of requests": (put("serving.openai", "check_limits", nothing), CATALOGUE),
    "name of the model": (put("serving.openai", "check_model", nothing), CATALOGUE),
    "routes of the page": (put("serving.web.door", "is_open", lambda *_: True), DOOR),
    "policy of the page": (put("serving.web.door", "CONTENT_SECURITY_POLICY", ""), DOOR),
    "requests of the gateway": (put("serving.scale.traffic", "Traffic.request", anybody), GATEWAY),
    "pictures that the gateway lends": (put("serving.scale.traffic", "Traffic.lending", anybody), GATEWAY),
    "headers of the gateway": (put("serving.scale.gateway", "MAX_HEADER_BYTES", 10**9), GATEWAY),
    "time of a body at the gateway": (without_time("serving.security"), GATEWAY),
    "Ray's own addresses": (put("serving.scale.door", "RAYS", "/none/"), GATEWAY),
    "prefixes of others": (put("engine.engine", "digest_blocks", digest_for_all), ENGINE),
    "ids without a token": (put("engine.engine", "num_tokens_of", lambda model: model.config.vocab_size), ENGINE),
    "pictures by their content": (put("api.pictures", "pixel_key", lambda _: "the same"), BEGIN),
    "control tokens in texts": (put("api.prompts", "PlainEncoder._encode", read_control_tokens), BEGIN),
    "length of texts": (put("api.prompts", "MAX_TEXT_CHARS", 10**9), PROMPTS),
    "pictures that nobody waits for": (put("serving.openai", "load_parts", load_all), APP),
    "work that nobody waits for": (put("serving.threads", "Threads.run", run_later), "tests/unit/serving/test_threads.py"),
    "bytes of all bodies": (put("serving.bodies", "HeldBody.grow", nothing), APP),
    "nothing new while the server stops": (put("serving.service", "Service._check_open", nothing), SERVICE),
    "requests without an answer when the server stops": (put("serving.service", "Service.until_answered", forever), APP),
    "requests that wait when the server stops": (put("serving.places", "Places.refuse", nothing), "tests/unit/serving/test_places.py"),
    "bodies that are no JSON": (put("serving.body", "_check_kind", nothing), APP),
    "compressed bodies": (put("serving.body", "_check_encoding", nothing), APP),
}


def take_away() -> None:
    """Take the guard away that the environment names, if any."""
    if name := os.environ.get("GUARD"):
        MUTATIONS[name][0]()


def pytest_configure(config: pytest.Config) -> None:
    """Begin."""
    take_away()


if __name__ == "__main__":
    from qwen_vl import cli

    take_away()
    sys.exit(cli.main())
