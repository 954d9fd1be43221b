"""Guards of the server, each with a way to take it away and the tests that must notice.

A pytest plugin: `python -m pytest -p tests.integration.guard_mutations` with the guard's name in GUARD runs the tests without it.
"""

import base64
import os
import subprocess
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

Mutation = tuple[Callable[[], None], str]  # takes the guard away; the tests

MEDIA, DECODER, UPLOADS = (f"tests/unit/serving/test_{name}.py" for name in ("media", "decoder", "uploads"))
FORMS, GUARD, BODY = (f"tests/unit/serving/test_{name}.py" for name in ("forms", "guard", "body"))
SIZES = "tests/unit/serving/test_sizes.py"
FETCH = "tests/unit/processing/test_fetch.py"


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


def start_unconfined() -> None:
    from qwen_vl.serving import decoder

    loose = "import main; import qwen_vl.processing.decode_worker as worker; worker.confine = lambda _: None;"
    if "import main;" not in decoder._START:
        raise AttributeError("the decoders start otherwise: mend this list")
    decoder._START = decoder._START.replace("import main;", loose)


def start_with_secrets() -> None:
    class Popen(subprocess.Popen[Any]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "env": dict(os.environ)})

    put("serving.decoder", "subprocess", type("subprocess", (), {**vars(subprocess), "Popen": Popen}))()


def get_anybodys(store: Any, handle: str, _: str) -> bytes:
    upload = store._files.get(handle)
    return bytes(upload.content) if upload else b""


MUTATIONS: dict[str, Mutation] = {
    "private addresses": (put("processing.fetch", "_is_global", lambda _: True), FETCH),
    "allowed hosts": (put("processing.fetch", "_resolve", resolve_only), FETCH),
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
    "unconfined decoders": (start_unconfined, DECODER),
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
}


def pytest_configure(config: pytest.Config) -> None:
    """Take the named guard away."""
    if name := os.environ.get("GUARD"):
        MUTATIONS[name][0]()
