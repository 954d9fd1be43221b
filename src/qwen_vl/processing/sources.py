"""Where pictures come from: turn a path, address, data URI, base64 text, bytes or file object into the bytes of a file.

read_source("https://example.org/dog.jpg")  # b"\\xff\\xd8..."
"""

import binascii
import os
import re
import stat
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit
from urllib.request import url2pathname

from qwen_vl.errors import ImageError, ImageFormatError, ImageMissingError, ImageSizeError
from qwen_vl.processing.decoding import is_picture
from qwen_vl.processing.fetch import FetchPolicy, fetch

MAX_BYTES = 64 * 2**20
MAX_HEAD_CHARS = 100  # of a data URI, before its comma
HANDLE_PREFIX = "picture:"  # spans of pictures that were passed as objects name them so; nothing can be opened by that name

_BLANKS = b" \t\r\n\v\f"
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")
_BASE64 = re.compile(r"[A-Za-z0-9+/=\s]{32,}")
_BASE64_MAGIC = ("/9j/", "iVBORw0KGgo", "UklGR", "R0lGOD", "Qk")  # JPEG, PNG, WebP, GIF, BMP


def names_file(text: str) -> bool:
    """Tell whether the text is a path or an address, and not the picture itself in base64."""
    return text.lstrip()[:5].lower() != "data:" and not _is_base64(text)


def _is_base64(text: str) -> bool:
    """Tell whether the text looks like the base64 of a picture, which paths, having an extension, do not."""
    return text.lstrip().startswith(_BASE64_MAGIC) and _BASE64.fullmatch(text) is not None


def describe(source: object) -> str:
    """Name a source in a message: never more than a line, never the picture's own bytes."""
    if isinstance(source, str) and source.lstrip()[:5].lower() == "data:":
        return "The data URI"
    if isinstance(source, str | os.PathLike):
        text = os.fsdecode(source)
        return f"The picture {text if len(text) <= 200 else text[:197] + '...'!r}"
    return f"The picture ({type(source).__name__})"


def read_source(
    source: str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO,
    *,
    allow_urls: bool = True,
    image_root: str | os.PathLike[str] | None = None,
    max_bytes: int = MAX_BYTES,
    fetch_policy: FetchPolicy | None = None,
) -> bytes:
    """Return the bytes of the file that the source names or holds.

    Raises: ImageError naming the source if it cannot be read, is not allowed, or is too large.
    """
    if isinstance(source, str):
        return _read_text(source, allow_urls, image_root, max_bytes, fetch_policy)
    if isinstance(source, os.PathLike):
        return _read_path(os.fsdecode(source), image_root, max_bytes)
    if isinstance(source, bytes | bytearray | memoryview):
        return _checked(bytes(source), describe(source), max_bytes)
    if hasattr(source, "read"):
        return _read_file_object(source, max_bytes)
    raise ImageError(f"A {type(source).__name__} is not a picture. Pass a path, address, data URI, bytes, file, PIL picture or array.")


def _read_text(text: str, allow_urls: bool, image_root: str | os.PathLike[str] | None, max_bytes: int, fetch_policy: FetchPolicy | None) -> bytes:
    """Read from a text: data URI, address, base64 or path."""
    if not text.strip():
        raise ImageError("The picture's path is empty. Write it between <img> and </img>, or pass the picture.")
    if text.lstrip()[:5].lower() == "data:":
        return read_data_uri(text.strip(), max_bytes)
    if text.startswith(HANDLE_PREFIX):
        raise ImageError(f"{text[:60]!r} stands for a picture that was passed as an object; it names no file. Pass the picture again.")
    scheme = _SCHEME.match(text)
    if scheme is None:
        content = _read_base64(text, max_bytes) if _is_base64(text) else None
        return content if content is not None else _read_path(text, image_root, max_bytes)
    if scheme[1].lower() in ("http", "https"):
        if not allow_urls:
            raise ImageError(f"{describe(text)} is an address, and fetching is off here. Download the picture and pass the file.")
        return fetch(text, fetch_policy or FetchPolicy(max_bytes=max_bytes))
    if scheme[1].lower() == "file":
        return _read_path(_file_uri_path(text), image_root, max_bytes)
    raise ImageError(f"{describe(text)} has the scheme {scheme[1][:20]!r}; only http, https, file and data are read.")


def _file_uri_path(uri: str) -> str:
    """Return the local path of a file: URI. Raises: ImageError if it names another machine."""
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        raise ImageError(f"{describe(uri)} names another machine. A local file is written file:///path/to/picture.png")
    return url2pathname(parts.path)


def read_data_uri(uri: str, max_bytes: int) -> bytes:
    """Decode `data:image/..;base64,..`; blanks may stand between the digits.

    Raises: ImageSizeError, before decoding where that can be told; ImageFormatError if it is no picture's file; ImageError for anything else.
    """
    head, comma, body = uri.partition(",")
    kind = head[:MAX_HEAD_CHARS].lower()
    if not comma or head != head[:MAX_HEAD_CHARS] or not kind.startswith("data:image/") or not kind.endswith(";base64"):
        raise ImageError("The data URI is not a picture in base64. It must begin with data:image/png;base64, or the like.")
    content = _decode_base64(body, max_bytes)
    if not is_picture(content):
        raise ImageFormatError("The data URI holds no picture of a format that is read. Convert the file to PNG or JPEG.")
    return content


def _decode_base64(text: str, max_bytes: int) -> bytes:
    """Decode base64 in the standard alphabet with blanks between. Raises: ImageSizeError, ImageError."""
    if len(text) // 4 * 3 > max_bytes * 1.05 + 4:  # a twentieth for blanks; the exact count follows
        raise ImageSizeError(f"The base64 text is larger than a picture of {max_bytes} bytes. Shrink the picture.")
    try:
        digits = text.encode("ascii").translate(None, _BLANKS)
        if len(digits) % 4:
            raise binascii.Error
        content = binascii.a2b_base64(digits, strict_mode=True)
    except (binascii.Error, UnicodeEncodeError):
        raise ImageError("The data URI holds damaged base64. Encode the file again.") from None
    return _checked(content, "The base64 text", max_bytes)


def _read_base64(text: str, max_bytes: int) -> bytes | None:
    """Decode the base64 of a picture; None if it is not one. Raises: ImageSizeError."""
    try:
        content = _decode_base64(text, max_bytes)
    except ImageSizeError:
        raise
    except ImageError:
        return None
    return content if is_picture(content) else None


def _read_path(path: str, image_root: str | os.PathLike[str] | None, max_bytes: int) -> bytes:
    """Read a regular file. Raises: ImageError naming the path otherwise."""
    name = describe(path)
    try:
        place = Path(path) if image_root is None else _within(Path(path), Path(image_root), name)
        mode = place.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ImageError(f"{name} is a directory. Name a file in it.")
        if not stat.S_ISREG(mode):
            raise ImageError(f"{name} is not a regular file (a pipe or a device). Copy the picture into a file.")
        # Not blocking: should the file have become a pipe since, opening it must not wait for a writer.
        with open(os.open(place, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            return _checked(file.read(max_bytes + 1), name, max_bytes)
    except FileNotFoundError:
        raise ImageMissingError(f"{name} does not exist. Check the path.") from None
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        reason = getattr(error, "strerror", None) or "the path is not valid"
        raise ImageError(f"{name} cannot be read: {reason}.") from None


def _within(path: Path, root: Path, name: str) -> Path:
    """Return the path, links followed, if it lies in the root; a relative one starts there. Raises: ImageError otherwise."""
    place = (root / path).resolve()
    if not place.is_relative_to(root.resolve()):
        raise ImageError(f"{name} lies outside the folder that pictures are read from. Move it there, or name another image_root.")
    return place


def _read_file_object(file: BinaryIO, max_bytes: int) -> bytes:
    """Read a binary file from its start, or a stream from where it is."""
    try:
        if getattr(file, "seekable", lambda: False)():
            file.seek(0)
        content = file.read(max_bytes + 1)
    except (OSError, ValueError):
        raise ImageError(f"{describe(file)} cannot be read. Is it closed, or opened for writing?") from None
    if not isinstance(content, bytes):
        raise ImageError(f"{describe(file)} gives text, not bytes. Open the file in binary mode ('rb').")
    return _checked(content, describe(file), max_bytes)


def _checked(content: bytes, name: str, max_bytes: int) -> bytes:
    """Return the content. Raises: ImageError if it is too large."""
    if len(content) > max_bytes:
        raise ImageSizeError(f"{name} is larger than {max_bytes} bytes. Shrink the picture.")
    return content
