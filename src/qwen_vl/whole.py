"""Write a file or a folder whole or not at all.

with whole_file(Path("report.html")) as work:
    work.write_text(page)  # when the block ends, work becomes report.html
with whole_folder(Path("merged")) as work:
    ...  # write files into work; when the block ends, work becomes merged
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from safetensors import SafetensorError

from qwen_vl.errors import cannot_write
from qwen_vl.lock import start_time


@contextmanager
def whole_file(path: Path, *, remedy: str | None = None, is_flushed: bool = False) -> Iterator[Path]:
    """Give a name to write to, with the same suffix, that becomes `path` when the block ends, and of which nothing is left otherwise.

    A link stays a link: what it points to is replaced. Pipes and devices are written to as they are.

    Args:
        remedy: what to do if the file cannot be written; None leaves the system's error as it is.
        is_flushed: wait until the content is on the disk before it gets its name: it then outlives a loss of power, too.
    Raises: with a remedy ConfigError or DiskError, else OSError.
    """
    place = Path(os.path.realpath(path)) if os.path.islink(path) else path
    is_replaced = os.path.isfile(place) or not os.path.exists(place)
    work = place.with_name(f".{place.stem}.part{os.getpid()}{place.suffix}") if is_replaced else path
    try:
        yield work
        if is_replaced:
            if is_flushed:
                flush(work)
            work.replace(place)
    except OSError as error:
        if remedy is None:
            raise
        raise cannot_write(path, error, remedy) from None
    finally:
        if is_replaced:
            with suppress(OSError):
                work.unlink()


def sweep_parts(folder: Path) -> None:
    """Remove what `whole_file` left in a folder when its process was killed; for who holds the folder: no other writer may be at work there."""
    for path in folder.glob(".*.part*"):
        if re.fullmatch(r"\..+\.part\d+(\.[^.]+)?", path.name) and path.is_file():
            path.unlink(missing_ok=True)


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Give a folder to write into that becomes `out` when all is written and flushed, and of which nothing is left otherwise.

    A folder that `out` was before stays until the new one is whole, and comes back if the new one cannot take its place. What a killed writer left
    beside `out` is removed at the beginning. Whatever the system refuses in the block is told as if it was about `out`: read from elsewhere before.
    Raises: ConfigError or DiskError if it cannot be written.
    """
    place = out.resolve()  # of a link, what it points to; "." has no name of its own
    work, old = place.with_name(f".{place.name}.part{os.getpid()}"), _old(place)
    try:
        with writing(out, "Name another folder, or make room."):
            place.parent.mkdir(parents=True, exist_ok=True)
            put_back(place)
            _sweep_folders(place)
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            yield work
            for path in (*work.rglob("*"), work):
                flush(path)
            if place.exists():
                shutil.rmtree(old, ignore_errors=True)
                place.rename(old)
            work.rename(place)
            flush(place.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        put_back(place)


def _sweep_folders(place: Path) -> None:
    """Remove what `whole_folder` left beside a folder when its process was killed."""
    for left in place.parent.glob(f".{escape(place.name)}.part*"):
        pid = left.name.removeprefix(f".{place.name}.part")
        if pid.isdecimal() and start_time(int(pid)) is None:
            shutil.rmtree(left, ignore_errors=True)


def put_back(out: Path) -> None:
    """Undo a replacement of `out` that was cut between its two renames, so that whoever asks whether `out` is free sees what is in it."""
    place = out.resolve()
    old = _old(place)
    if place.exists():
        shutil.rmtree(old, ignore_errors=True)
    elif old.exists():
        old.rename(place)


def _old(place: Path) -> Path:
    """Return where a folder waits while its successor takes its place: a name without a process, as another one looks for it after a kill."""
    return place.with_name(f".{place.name}.old")


@contextmanager
def writing(place: Path, remedy: str) -> Iterator[None]:
    """Turn what the system refuses in the block into one line. Raises: DiskError for a full disk, ConfigError for all else."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        found = _system_error(error)
        if found is None:
            raise
        raise cannot_write(place, found, remedy) from error


def _system_error(error: Exception) -> OSError | None:
    """Return the system's error, None if it is none; safetensors has its number in the text alone."""
    if isinstance(error, OSError):
        return error
    found = re.search(r"os error (\d+)", str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else None


def digest_file(path: Path) -> str:
    """Return the sha256 of a file's content, as 64 digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Wait until a file's or folder's content is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
