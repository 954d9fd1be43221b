"""The guarded loader: what a reference may be, what it may not, and what a client is told."""

import asyncio
import base64
import io
import re
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from PIL import Image

from qwen_vl.processing import fetch as fetching
from qwen_vl.processing.resolution import Resolution
from qwen_vl.serving.bodies import Bodies
from qwen_vl.serving.decoder import DecoderLimits
from qwen_vl.serving.errors import ServeError
from qwen_vl.serving.media import MediaLimits, MediaLoader
from qwen_vl.serving.settings import ServeSettings
from qwen_vl.serving.uploads import UploadLimits, UploadStore

FILE = io.BytesIO()
Image.new("RGB", (30, 20), "red").save(FILE, "PNG")
PNG = FILE.getvalue()
LEAKS = re.compile(r"0x[0-9a-f]{6,}|/[a-z]+/|\d+\.\d+\.\d+\.\d+|Error|Traceback|PIL|\\")
MAX_BYTES = 100_000


def data_uri(content: bytes = PNG, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


@pytest.fixture(scope="module")
def uploads() -> UploadStore:
    return UploadStore(UploadLimits())


@pytest.fixture(scope="module")
def loader(uploads: UploadStore) -> Iterator[MediaLoader]:
    limits = MediaLimits(max_bytes=MAX_BYTES, decoder=DecoderLimits(num_workers=1, resolution=Resolution(image_size=16)))
    found = MediaLoader(limits, Bodies(MAX_BYTES), uploads)
    yield found
    found.close()


def load(loader: MediaLoader, reference: Any, owner: str = "") -> Image.Image:
    return asyncio.run(loader.load(reference, owner))


def refusal(loader: MediaLoader, reference: Any, owner: str = "") -> ServeError:
    with pytest.raises(ServeError) as caught:
        load(loader, reference, owner)
    assert LEAKS.search(caught.value.message) is None
    return caught.value


@pytest.mark.parametrize(
    "uri", [data_uri(), data_uri(kind="image/jpeg"), data_uri().replace("data:image", "DATA:IMAGE"), data_uri()[:60] + " \r\n\t" + data_uri()[60:]]
)
def test_data_uris_are_decoded(loader: MediaLoader, uri: str) -> None:
    picture = load(loader, uri)
    assert (picture.size, picture.info["original_size"], picture.getpixel((3, 3))) == ((16, 16), (30, 20), (255, 0, 0))


def test_uploads_are_found_by_their_owner(loader: MediaLoader, uploads: UploadStore) -> None:
    handle = uploads.put(uploads.read(uploads.permit("ann")[0]), "red.png", PNG)
    assert load(loader, handle, "ann").info["original_size"] == (30, 20)
    assert refusal(loader, handle, "bob").code == "upload_not_found"
    assert refusal(loader, handle).code == "upload_not_found"


@pytest.mark.parametrize(
    ("reference", "code"),
    [
        ("file:///etc/passwd", "invalid_image_url"),
        ("/etc/passwd", "invalid_image_url"),
        ("../x", "invalid_image_url"),
        ("\\\\host\\share", "invalid_image_url"),
        ("ftp://host/a.png", "invalid_image_url"),
        ("gopher://host/a.png", "invalid_image_url"),
        ("picture:123", "invalid_image_url"),
        ("", "invalid_image_url"),
        (" " + data_uri(), "invalid_image_url"),
        (base64.b64encode(PNG).decode(), "invalid_image_url"),
        (None, "invalid_image_url"),
        (5, "invalid_image_url"),
        ({"url": data_uri()}, "invalid_image_url"),
        ("data:text/html;base64,aGk=", "invalid_image_url"),
        ("data:image/png,abc", "invalid_image_url"),
        ("data:image/png;base64", "invalid_image_url"),
        (f"data:image/{'x' * 200};base64,aGk=", "invalid_image_url"),
        (data_uri()[:-1], "invalid_image_url"),
        (data_uri() + "=", "invalid_image_url"),
        (data_uri(PNG + b"\xff\xfe\xfb\xff").replace("/", "_").replace("+", "-"), "invalid_image_url"),
        (data_uri() + "ü", "invalid_image_url"),
        (data_uri() + "\x00", "invalid_image_url"),
        (data_uri() + "\ud800", "invalid_image_url"),
        (data_uri(b""), "unsupported_image_format"),
        (data_uri(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"), "unsupported_image_format"),
        (data_uri(PNG[:50]), "invalid_image"),
        (data_uri(PNG + bytes(MAX_BYTES)), "image_too_large"),
        ("data:image/png;base64," + "A" * 200_000, "image_too_large"),
        ("https://example.com/a.png", "remote_images_disabled"),
        ("HTTP://127.0.0.1:1/a.png", "remote_images_disabled"),
        ("oss://0/a.png", "upload_not_found"),
    ],
)
def test_everything_else_is_refused(loader: MediaLoader, reference: Any, code: str) -> None:
    error = refusal(loader, reference)
    assert (error.status, error.code) == (400, code)


def test_a_long_text_is_refused_before_it_is_decoded(loader: MediaLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen_vl.processing.sources.binascii.a2b_base64", lambda *_, **__: pytest.fail("it was decoded"))
    assert refusal(loader, "data:image/png;base64," + "A" * 28 * 2**20).code == "image_too_large"


def test_what_is_no_picture_never_reaches_a_decoder(loader: MediaLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader.decoders, "decode", lambda _: pytest.fail("it reached a decoder"))
    for magic in (b"SIMPLE  =", b"8BPS", b"%!PS", b"%PDF", b"<svg", b"icns", b"\x00\x00\x00\x0cjP  ", b"\xd7\xcd\xc6\x9a", b"/* XPM */", b"II*\x00"):
        assert refusal(loader, data_uri(magic + bytes(200))).code == "unsupported_image_format"


def test_a_closed_loader_says_so(uploads: UploadStore) -> None:
    closed = MediaLoader(MediaLimits(), Bodies(MAX_BYTES), uploads)
    closed.close()
    error = refusal(closed, data_uri())
    assert (error.status, error.code) == (503, "shutting_down")


def test_limits_follow_the_servers_settings() -> None:
    settings = ServeSettings(max_image_bytes=5, max_image_pixels=7, allowed_hosts=frozenset({"Pictures.Example"}))
    limits = MediaLimits.of(settings, Resolution(image_size=448))
    assert (limits.max_bytes, limits.decoder.max_pixels, limits.decoder.resolution) == (5, 7, Resolution(image_size=448))
    assert limits.allowed_hosts == {"pictures.example"}


class Handler(BaseHTTPRequestHandler):
    """An allowed host, with a page for each thing that it may do."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        body, status, headers = self.server.pages[self.path]  # type: ignore[attr-defined]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            for part in body:
                self.wfile.write(part)
        except OSError:
            pass  # the client gave up, as it should

    def log_message(self, *_: Any) -> None:
        pass


class Host(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.name = f"pictures.example:{self.server_address[1]}"
        self.pages: dict[str, tuple[Any, int, dict[str, str]]] = {"/a.png": ([PNG], 200, {})}


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """Serve as pictures.example, which resolves to this machine and passes for a public address."""
    found = Host()
    thread = threading.Thread(target=found.serve_forever, args=[0.01], daemon=True)
    thread.start()
    resolve = socket.getaddrinfo
    is_global = fetching._is_global
    names = {"pictures.example": "127.0.0.1"}
    monkeypatch.setattr(socket, "getaddrinfo", lambda name, *rest, **more: resolve(names.get(name, name), *rest, **more))
    monkeypatch.setattr(fetching, "_is_global", lambda ip: ip == "127.0.0.1" or is_global(ip))
    yield found
    found.shutdown()
    found.server_close()
    thread.join()


@pytest.fixture
def fetcher(host: Host) -> Iterator[MediaLoader]:
    limits = MediaLimits(
        max_bytes=MAX_BYTES,
        allowed_hosts=frozenset({host.name}),
        fetch_s=2,
        decoder=DecoderLimits(num_workers=1, resolution=Resolution(image_size=16)),
    )
    found = MediaLoader(limits, Bodies(MAX_BYTES))
    yield found
    found.close()


def test_pictures_of_allowed_hosts_are_fetched(fetcher: MediaLoader, host: Host) -> None:
    host.pages["/hop"] = ([], 302, {"Location": "/a.png"})
    assert load(fetcher, f"http://{host.name}/a.png").info["original_size"] == (30, 20)
    assert load(fetcher, f"http://{host.name}/hop").info["original_size"] == (30, 20)
    assert host.asked == ["/a.png", "/hop", "/a.png"]


def test_fetched_files_are_held_as_bodies_are(fetcher: MediaLoader, host: Host) -> None:
    with fetcher.bodies.hold() as body:
        body.grow(MAX_BYTES - len(PNG) + 1)
        error = refusal(fetcher, f"http://{host.name}/a.png")
        assert (error.status, error.code, error.retry_after_s) == (429, "overloaded", 1)
        body.let_go()
        body.grow(MAX_BYTES - len(PNG))
        assert load(fetcher, f"http://{host.name}/a.png").size == (16, 16)
    assert fetcher.bodies.num_bytes == 0


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:{port}/a.png",
        "http://localhost:{port}/a.png",
        "http://[::1]:{port}/a.png",
        "http://2130706433:{port}/a.png",
        "http://0x7f.1:{port}/a.png",
        "http://pictures.example/a.png",
        "http://pictures.example:22/a.png",
        "http://pictures.example.:{port}/a.png",
        "http://pictures.example.evil.com:{port}/a.png",
        "http://evil.com#pictures.example:{port}",
        "http://pictures.example:{port}@127.0.0.1/a.png",
        "http://pictures.example\\@127.0.0.1:{port}/a.png",
        "http://pіctures.example:{port}/a.png",
        "http:///a.png",
        "https://[",
        "http://pictures.example:{port}\r\n/a.png",
    ],
)
def test_other_addresses_are_refused_without_a_connection(fetcher: MediaLoader, host: Host, address: str) -> None:
    error = refusal(fetcher, address.format(port=host.server_address[1]))
    assert (error.status, error.code) == (400, "image_fetch_failed")
    assert host.asked == []


@pytest.mark.parametrize(
    "target", ["http://127.0.0.1:{port}/a.png", "http://localhost:{port}/a.png", "file:///etc/passwd", "//127.0.0.1:{port}/a.png"]
)
def test_a_redirect_is_checked_as_the_first_address(fetcher: MediaLoader, host: Host, target: str) -> None:
    host.pages["/hop"] = ([], 302, {"Location": target.format(port=host.server_address[1])})
    assert refusal(fetcher, f"http://{host.name}/hop").code == "image_fetch_failed"
    assert host.asked == ["/hop"]


def test_redirects_come_to_an_end(fetcher: MediaLoader, host: Host) -> None:
    for number in range(10):
        host.pages[f"/{number}"] = ([], 302, {"Location": f"/{number + 1}"})
    assert refusal(fetcher, f"http://{host.name}/0").code == "image_fetch_failed"
    assert host.asked == ["/0", "/1", "/2", "/3"]


def test_a_private_address_of_an_allowed_host_is_refused(fetcher: MediaLoader, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # no override: the name leads to this machine, which is no public address
    resolve = socket.getaddrinfo
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", lambda name, *rest, **more: resolve("127.0.0.1", *rest, **more))
        assert refusal(fetcher, f"http://{host.name}/a.png").code == "image_fetch_failed"
    assert host.asked == []


def test_the_connection_goes_to_the_address_that_was_checked(fetcher: MediaLoader, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that resolves to another machine the second time gains nothing: it is resolved once."""
    lookups: list[str] = []
    resolve = socket.getaddrinfo

    def rebind(name: str, *rest: Any, **more: Any) -> Any:
        if name != "pictures.example":
            return resolve(name, *rest, **more)
        lookups.append(name)
        return resolve("127.0.0.1" if len(lookups) == 1 else "127.0.0.2", *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", rebind)
    opened: list[tuple[str, int]] = []
    connect = socket.create_connection

    def open_and_tell(place: tuple[str, int], **more: Any) -> socket.socket:
        opened.append(place)
        return connect(place, **more)

    monkeypatch.setattr(socket, "create_connection", open_and_tell)
    assert load(fetcher, f"http://{host.name}/a.png").size == (16, 16)
    assert opened == [host.server_address]


def drip() -> Iterator[bytes]:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        yield b"x"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("page", "code"),
    [
        (lambda: ((bytes(10_000) for _ in range(10**9)), 200, {}), "image_too_large"),
        (lambda: ([], 200, {"Content-Length": str(10**9)}), "image_too_large"),
        (lambda: ([PNG], 200, {"Content-Length": "5000"}), "image_fetch_failed"),
        (lambda: ([PNG], 200, {"Content-Encoding": "gzip"}), "image_fetch_failed"),
        (lambda: ([PNG], 404, {}), "image_fetch_failed"),
        (lambda: ([b"<html>"], 200, {"Content-Type": "image/png"}), "unsupported_image_format"),
        (lambda: (drip(), 200, {}), "image_fetch_failed"),
    ],
    ids=["endless", "huge", "length lie", "gzip", "404", "html", "slow"],
)
def test_bad_answers_of_an_allowed_host_are_refused(fetcher: MediaLoader, host: Host, page: Any, code: str) -> None:
    host.pages["/a"] = page()
    error = refusal(fetcher, f"http://{host.name}/a")
    assert (error.status, error.code) == (400, code)


def test_what_was_fetched_and_is_no_picture_never_reaches_a_decoder(fetcher: MediaLoader, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetcher.decoders, "decode", lambda _: pytest.fail("it reached a decoder"))
    host.pages["/a"] = ([b"<html>"], 200, {"Content-Type": "image/png"})
    assert refusal(fetcher, f"http://{host.name}/a").code == "unsupported_image_format"


def test_a_lookup_that_hangs_is_given_up(fetcher: MediaLoader, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    is_over = threading.Event()

    def hang(*_: Any, **__: Any) -> Any:
        is_over.wait(60)
        raise OSError

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    try:
        assert refusal(fetcher, f"http://{host.name}/a.png").code == "image_fetch_failed"
    finally:
        is_over.set()
