"""Look into a `.bin` weight file for code, without unpickling anything.

Transformers reads `.bin` files with `weights_only=True`, which executes nothing. This look comes first so that a file with code in it is
refused by its name, together with what it would have called. Uses the standard library only.

    check_pickle(Path("weights/pytorch_model-00001-of-00010.bin"))
"""

import io
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from qwen_vl.errors import CheckpointError

MAX_PICKLE_BYTES = 16 << 20
MAX_OPCODES = 2_000_000
TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # first of the five pickles of the format before torch 1.6
HARMLESS_MODULES = {"torch", "torch._utils", "torch._tensor", "torch.storage", "torch.serialization", "torch.nn.parameter"}
HARMLESS_NAMES = {"collections OrderedDict", "_codecs encode"}
# Opcodes that find or build objects by other means than the GLOBAL that torch.save writes.
UNUSUAL_OPCODES = {"STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"}


def check_pickle(path: Path) -> None:
    """Look at every name that the file would import.

    Raises: CheckpointError naming the file if it holds anything but tensors, is truncated or is no file of `torch.save`.
    """
    names: list[str] = []
    is_damaged = False
    try:
        with path.open("rb") as file:
            is_archive = file.read(4) == b"PK\x03\x04"
            file.seek(0)
            for name in _names_of_archive(file) if is_archive else _names_of_stream(io.BytesIO(file.read(MAX_PICKLE_BYTES))):
                names.append(name)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError):
        is_damaged = True
    harmful = [name for name in names if not _is_harmless(name)]
    if harmful:
        raise CheckpointError(
            f"{path} is a pickle with code in it: it asks for {harmful[0][:80]!r}. Nothing of it was executed. "
            "Do not use this file; get the checkpoint as safetensors from a source that you trust."
        )
    if is_damaged:
        raise CheckpointError(f"{path} is truncated or no weight file of PyTorch. Fetch the file again, in safetensors if you can.")


def _is_harmless(name: str) -> bool:
    """Tell whether this is one of the names that tensors need. What it may do, `weights_only=True` decides again."""
    return name in HARMLESS_NAMES or name.partition(" ")[0] in HARMLESS_MODULES


def _names_of_archive(file: IO[bytes]) -> Iterator[str]:
    """Yield the names that the zip format of torch.save would import."""
    with zipfile.ZipFile(file) as archive:
        members = [info for info in archive.infolist() if info.filename.rpartition("/")[2].endswith(".pkl")]
        if not any(info.filename.endswith("data.pkl") for info in members):
            raise ValueError("no data.pkl")
        for info in members:
            if info.file_size > MAX_PICKLE_BYTES:
                raise ValueError("too large")
            with archive.open(info) as member:
                yield from _names_of_pickle(member)


def _names_of_stream(file: IO[bytes]) -> Iterator[str]:
    """Yield the names that the five pickles of the old format would import: magic number, version, system, tensors, keys of the storages."""
    yield from _names_of_pickle(file)
    file.seek(0)
    magic = [argument for _, argument, _ in pickletools.genops(file) if isinstance(argument, int) and argument == TORCH_MAGIC]
    if not magic:
        raise ValueError("not written by torch.save")
    for _ in range(4):
        yield from _names_of_pickle(file)


def _names_of_pickle(file: IO[bytes]) -> Iterator[str]:
    """Yield `module name` of every object that one pickle would import."""
    for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if number > MAX_OPCODES:
            raise ValueError("too large")
        if opcode.name == "GLOBAL":
            yield str(argument)
        elif opcode.name in UNUSUAL_OPCODES:
            yield opcode.name
