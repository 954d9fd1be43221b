"""Pictures that were made to hurt, and some that only look like it."""

import base64
import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

MIB = 2**20


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def uri(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def picture(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    """Return noise: a picture that compresses badly, so that a cut falls into its pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


GOOD = encoded(picture())


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes = b"", *extra: bytes, depth: int = 8, color: int = 2) -> bytes:
    """Return a PNG file of our own making: the size is what the header claims, the data what is compressed."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def bomb() -> bytes:
    """Return 60,000 x 60,000 pixels of one bit, all black, in about half a megabyte."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", compressed_zeros(7501 * 1000, 60)) + chunk(b"IEND", b"")


def compressed_zeros(part_bytes: int, num_parts: int) -> bytes:
    """Return zlib's form of so many zeros without compressing them all: a part of them stands there several times."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    part = packer.compress(bytes(part_bytes)) + packer.flush(zlib.Z_FULL_FLUSH)
    adler = part_bytes * num_parts % 65521 << 16 | 1  # of zeros: the first of its two sums stays 1, the second counts
    return b"\x78\xda" + part * num_parts + packer.flush() + struct.pack(">I", adler)


def with_extra(kind: bytes, data: bytes) -> bytes:
    """Return a good little PNG with one more chunk."""
    return png(2, 2, b"\x00" + bytes(6) + b"\x00" + bytes(6), chunk(kind, data))


def many_frames(kind: str, num_frames: int, **options: Any) -> bytes:
    frames = [Image.new("L", (4, 4), number % 256) for number in range(num_frames)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)


WRONG_FORMATS = {
    "fits": b"SIMPLE  =                    T" + b" " * 3000,
    "psd": b"8BPS\x00\x01" + bytes(200),
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "pdf": b"%PDF-1.7\n",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
    "icns": b"icns" + struct.pack(">I", 100) + bytes(92),
    "jpeg2000": b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(200),
    "wmf": b"\xd7\xcd\xc6\x9a" + bytes(200),
    "xpm": b"/* XPM */\nstatic char *x[] = {",
    "tiff": b"II*\x00" + bytes(200),
    "ico": b"\x00\x00\x01\x00\x01\x00" + bytes(100),
    "tga": bytes([0, 0, 2]) + bytes(200),
    "zip": b"PK\x03\x04" + bytes(100),
    "avif": b"\x00\x00\x00\x1cftypavif" + bytes(100),
    "text": b"hello",
    "nothing": b"",
    "one byte": b"\x89",
}


def modes() -> dict[str, bytes]:
    """Return files of every mode that a format here can hold."""
    base = picture()
    palette = base.convert("P")
    palette.info["transparency"] = 3
    clear = base.convert("RGBA")
    clear.putalpha(0)
    deep = Image.fromarray((np.arange(1200, dtype=np.uint16) * 50).reshape(30, 40))
    return {
        "1": encoded(base.convert("1")),
        "L": encoded(base.convert("L")),
        "LA": encoded(base.convert("LA")),
        "P": encoded(palette, transparency=3),
        "P bytes": encoded(palette, transparency=bytes(range(256))),
        "I;16": encoded(deep),
        "CMYK": encoded(base.convert("CMYK"), "JPEG"),
        "YCbCr": encoded(base.convert("YCbCr"), "JPEG"),
        "RGBA 0": encoded(clear),
        "RGBA webp": encoded(clear, "WEBP", lossless=True, exact=True),
        "BMP": encoded(base, "BMP"),
        "GIF": encoded(base, "GIF"),
    }


def turned() -> bytes:
    """Return a JPEG whose EXIF data ask for a quarter turn."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(picture(), "JPEG", exif=exif)
