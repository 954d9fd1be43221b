"""Decoding in processes: what comes back, what is refused, and what happens when a process dies or hangs."""

import io
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from qwen_vl.errors import ConfigError
from qwen_vl.processing.images import load_image, to_pixel_values
from qwen_vl.processing.resolution import Resolution
from qwen_vl.serving import decoder
from qwen_vl.serving.decoder import DecoderLimits, DecoderPool
from qwen_vl.serving.errors import ServeError

DEADLINE_S = 60
FORMATS = ["JPEG", "PNG", "WEBP", "BMP", "GIF"]


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def gradient(width: int = 40, height: int = 30) -> Image.Image:
    return Image.merge(
        "RGB",
        [Image.linear_gradient("L").resize((width, height)), Image.radial_gradient("L").resize((width, height)), Image.new("L", (width, height), 9)],
    )


def png_of_size(width: int, height: int) -> bytes:
    """Return a PNG file whose header claims a size; its data are a few zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10_000))) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    found = DecoderPool(DecoderLimits(num_workers=2, resolution=Resolution(image_size=48)))
    yield found
    found.close()


@pytest.fixture(scope="module")
def full_size_pool() -> Iterator[DecoderPool]:
    found = DecoderPool(DecoderLimits(num_workers=1))
    yield found
    found.close()


@pytest.mark.parametrize("format", FORMATS)
def test_pixels_are_those_of_decoding_here(pool: DecoderPool, format: str) -> None:
    content = encoded(gradient(), format)
    picture = pool.decode(content)
    assert picture.size == (48, 48)
    assert picture.info["original_size"] == (40, 30)
    assert to_pixel_values([picture], 48).equal(to_pixel_values([load_image(content)], 48))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "I;16", "RGBA", "CMYK"])
def test_every_mode_is_converted_as_here(pool: DecoderPool, mode: str) -> None:
    image = gradient().convert("L").convert("I").point(lambda value: value * 256) if mode == "I;16" else gradient().convert(mode)
    content = encoded(image.convert("I;16") if mode == "I;16" else image, "JPEG" if mode == "CMYK" else "PNG")
    assert to_pixel_values([pool.decode(content)], 48).equal(to_pixel_values([load_image(content)], 48))


def test_pictures_keep_their_size_if_no_other_is_wanted(full_size_pool: DecoderPool) -> None:
    assert full_size_pool.decode(encoded(gradient())).tobytes() == gradient().tobytes()


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "unsupported_image_format"),
        (b"x", "unsupported_image_format"),
        (b"%PDF-1.7 and so on", "unsupported_image_format"),
        (b"8BPS" + bytes(100), "unsupported_image_format"),
        (b"\x89PNG\r\n\x1a\n", "invalid_image"),
        (b"\xff\xd8\xff\xe0" + bytes(100), "invalid_image"),
        (b"RIFF\x10\x00\x00\x00WEBPVP8 " + bytes(10), "invalid_image"),
        (png_of_size(60_000, 60_000), "image_too_large"),
        (png_of_size(10**5, 10**5), "image_too_large"),
        (png_of_size(1, 50_000), "image_too_large"),
        (png_of_size(50_000, 1), "image_too_large"),
        (png_of_size(3000, 3000), "invalid_image"),  # too few data
    ],
)
def test_what_is_no_good_picture_is_refused(pool: DecoderPool, content: bytes, code: str) -> None:
    with pytest.raises(ServeError) as caught:
        pool.decode(content)
    assert (caught.value.status, caught.value.code) == (400, code)
    assert "0x" not in caught.value.message
    assert pool.decode(encoded(gradient())).size == (48, 48)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("part", [0.01, 0.5, 0.99])
def test_a_file_that_was_cut_off_is_refused(pool: DecoderPool, format: str, part: float) -> None:
    content = encoded(gradient(400, 300), format)
    with pytest.raises(ServeError) as caught:
        pool.decode(content[: max(1, int(part * len(content)))])
    assert caught.value.code == "invalid_image"


def decoded(pool: DecoderPool, content: bytes) -> bytes | None:
    """Return the pixels of a file, or None if it is refused as damaged."""
    try:
        return pool.decode(content).tobytes()
    except ServeError as error:
        assert error.code == "invalid_image"
        return None


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("size", [(400, 300), (8, 6)])
def test_a_file_whose_end_is_missing_is_refused_or_whole(full_size_pool: DecoderPool, format: str, size: tuple[int, int]) -> None:
    """PNG and GIF are decoded without their end mark, JPEG sometimes: all pixels stand before it. No picture comes back in part."""
    content = encoded(gradient(*size), format)
    whole = decoded(full_size_pool, content)
    found = {count: decoded(full_size_pool, content[:-count]) for count in range(1, 21)}
    assert set(found.values()) <= {None, whole}
    mark = {"PNG": 12, "GIF": 1}.get(format)  # bytes: the chunk IEND, the trailer
    assert found[mark] == whole if mark else found[3] is None


def test_small_pictures_are_pictures(pool: DecoderPool) -> None:
    for size in ((1, 1), (2, 2), (1, 200)):
        assert pool.decode(encoded(Image.new("RGB", size, "red"))).getpixel((5, 5)) == (255, 0, 0)


def test_a_killed_process_fails_its_picture_and_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    is_asked = threading.Event()
    exchange = decoder._exchange

    def exchange_and_tell(process: subprocess.Popen[bytes], content: bytes, limits: DecoderLimits) -> Image.Image | ServeError:
        is_asked.set()
        return exchange(process, content, limits)

    monkeypatch.setattr(decoder, "_exchange", exchange_and_tell)
    own = DecoderPool(DecoderLimits(num_workers=1))
    try:
        own.start()
        [before] = own.pids
        os.kill(before, signal.SIGSTOP)  # so that it is surely busy
        with ThreadPoolExecutor(1) as thread:
            failing = thread.submit(own.decode, encoded(gradient()))
            assert is_asked.wait(DEADLINE_S)
            os.kill(before, signal.SIGKILL)
            error = failing.exception(DEADLINE_S)
        assert isinstance(error, ServeError)
        assert (error.status, error.code, error.retry_after_s) == (503, "image_decoder_lost", 1)
        assert own.decode(encoded(gradient())).size == (40, 30)
        assert own.pids != [before]
    finally:
        own.close()


def test_a_process_that_hangs_is_killed_and_replaced() -> None:
    own = DecoderPool(DecoderLimits(num_workers=1, timeout_s=1))
    with ThreadPoolExecutor(1) as thread:
        try:
            assert own.decode(encoded(gradient())).size == (40, 30)
            [before] = own.pids
            os.kill(before, signal.SIGSTOP)
            error = thread.submit(own.decode, encoded(gradient())).exception(DEADLINE_S)
            assert isinstance(error, ServeError)
            assert (error.status, error.code) == (400, "image_timeout")
            assert own.decode(encoded(gradient())).size == (40, 30)
            assert before not in own.pids
        finally:
            own.close()


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_AS")
def test_memory_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "PROGRAM_BYTES", 60 * 2**20)
    monkeypatch.setattr(decoder, "BYTES_PER_PIXEL", 1)
    own = DecoderPool(DecoderLimits(num_workers=1))
    try:
        with pytest.raises(ServeError) as caught:
            own.decode(encoded(Image.new("L", (7000, 7000))))
        assert caught.value.code in ("image_too_large", "image_decoder_lost")
        assert own.decode(encoded(gradient())).size == (40, 30)
    finally:
        own.close()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_processes_hold_no_secrets_and_no_torch(pool: DecoderPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWEN_VL_API_KEY", "secret")
    own = DecoderPool(DecoderLimits(num_workers=1))
    try:
        own.decode(encoded(gradient()))
        [pid] = own.pids
        place = Path(f"/proc/{pid}")
        assert place.joinpath("environ").read_bytes() == b""
        assert "torch" not in place.joinpath("maps").read_text()
        limits = place.joinpath("limits").read_text()
        assert f"Max address space         {own._workers[0].limits.memory_bytes}" in limits
        assert "Max file size             0" in limits
        assert os.getpgid(pid) != os.getpgid(0)  # Ctrl-C is not for it
    finally:
        own.close()


def test_processes_end_with_the_pool() -> None:
    own = DecoderPool(DecoderLimits(num_workers=2))
    own.start()
    pids = own.pids
    assert len(pids) == 2
    own.close()
    assert own.pids == []
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    with pytest.raises(ServeError, match="Try again"):
        own.decode(encoded(gradient()))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_processes_end_with_the_server_that_was_killed() -> None:
    code = (
        "import time; from qwen_vl.serving.decoder import DecoderLimits, DecoderPool\n"
        "pool = DecoderPool(DecoderLimits(num_workers=1)); pool.start(); print(*pool.pids, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env={"PYTHONPATH": os.pathsep.join(sys.path)}) as server:
        assert server.stdout is not None
        pid = int(server.stdout.readline())
        server.kill()
    deadline = time.monotonic() + DEADLINE_S
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline, "the process outlived its server"
        time.sleep(0.02)


def test_processes_are_replaced_after_so_many_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "PICTURES_PER_WORKER", 2)
    own = DecoderPool(DecoderLimits(num_workers=1))
    try:
        own.decode(encoded(gradient()))
        first = own.pids
        own.decode(encoded(gradient()))
        assert own.pids == []
        own.decode(encoded(gradient()))
        assert len(own.pids) == 1
        assert own.pids != first
    finally:
        own.close()


def test_many_threads_share_few_processes(pool: DecoderPool) -> None:
    contents = [encoded(Image.new("RGB", (5, 5), (number, 0, 0))) for number in range(32)]
    found: dict[int, tuple[int, ...]] = {}

    def decode(number: int) -> None:
        found[number] = pool.decode(contents[number]).getpixel((9, 9))  # type: ignore[assignment]

    threads = [threading.Thread(target=decode, args=[number]) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert found == {number: (number, 0, 0) for number in range(32)}
    assert len(pool.pids) == 2


def test_impossible_limits_are_refused() -> None:
    with pytest.raises(ConfigError, match="timeout_s=0"):
        DecoderLimits(timeout_s=0)
