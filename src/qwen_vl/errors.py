"""The exception tree: every error that is about the user's input or machine, and not our bug.

The command line prints a `QwenVLError` as one `error:` line; anything else is a bug and keeps its traceback.
"""


class QwenVLError(Exception):
    """Root of all errors that this package raises on purpose."""


class ConfigError(QwenVLError, ValueError):
    """A setting that cannot work: unknown key, impossible size, unknown dtype or device."""


class CheckpointError(QwenVLError):
    """A model folder that cannot be loaded or written."""


class ImageError(QwenVLError, ValueError):
    """A picture that cannot be found, read, decoded or accepted."""


class PromptError(QwenVLError, ValueError):
    """A prompt that cannot be built: unclosed tags, wrong roles, empty questions."""


class ShapeError(QwenVLError, ValueError):
    """Tensors whose shapes do not fit each other or the model."""


class CapacityError(QwenVLError):
    """A request that does not fit: context window, memory, or disk."""
