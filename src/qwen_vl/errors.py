"""The exception tree: every error that is about the user's input or machine, and not our bug.

The command line prints a `QwenVLError` as one `error:` line and leaves with its `exit_code`; anything else is a bug and keeps its traceback.
"""

import difflib
import errno
from collections.abc import Iterable
from typing import ClassVar


class QwenVLError(Exception):
    """Root of all errors that this package raises on purpose."""

    exit_code: ClassVar[int] = 1


class ConfigError(QwenVLError, ValueError):
    """A setting that cannot work: unknown key, impossible size, unknown dtype or device, a path that cannot be written."""

    exit_code = 2


class CheckpointError(QwenVLError):
    """A model folder that cannot be loaded or written."""


class ImageError(QwenVLError, ValueError):
    """A picture that cannot be found, read, decoded or accepted."""


class ImageMissingError(ImageError):
    """A picture file that does not exist."""


class ImageFormatError(ImageError):
    """A file of another format than those that are decoded."""


class ImageSizeError(ImageError):
    """A picture of too many pixels or bytes, or too long and thin."""


class PromptError(QwenVLError, ValueError):
    """A prompt that cannot be built: unclosed tags, wrong roles, empty questions."""


class ShapeError(QwenVLError, ValueError):
    """Tensors whose shapes do not fit each other or the model."""


class CapacityError(QwenVLError):
    """A request that does not fit: context window, memory, or disk."""


class ContextLengthError(CapacityError):
    """A request that is longer than the model, or the memory set aside for one, can ever hold."""


class DataError(QwenVLError, ValueError):
    """A data file or record that cannot be used; names the record's number."""

    exit_code = 2


class LockError(QwenVLError):
    """An output folder that another process is writing to."""

    exit_code = 3


class DiskError(CapacityError):
    """A disk that is full; what was complete before is still there."""

    exit_code = 4


class DivergedError(QwenVLError):
    """A training whose loss or gradient stays infinite or not a number."""

    exit_code = 5


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception says that the memory does not suffice.

    PyTorch raises an error of its own on a GPU only; on a CPU it is a plain RuntimeError, and so is Python's of a thread that has no room.
    """
    if isinstance(error, RuntimeError):
        is_torchs = type(error).__name__ == "OutOfMemoryError"
        return is_torchs or any(words in str(error) for words in ("allocate memory", "not enough memory", "start new thread"))
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)


def cannot_write(name: object, error: OSError, remedy: str) -> QwenVLError:
    """Return the error of a path that cannot be written: `DiskError` when the disk is full, else `ConfigError`."""
    kind = DiskError if error.errno in (errno.ENOSPC, errno.EDQUOT) else ConfigError
    return kind(f"{name} cannot be written: {error.strerror or type(error).__name__}. {remedy}")


def nearest(name: object, known: Iterable[object], *, most: int = 1) -> str:
    """Return "; did you mean 'x'?", to follow what is said of a name that is none of those known; empty if none of them is like it."""
    near = difflib.get_close_matches(str(name), [str(each) for each in known], n=most)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
