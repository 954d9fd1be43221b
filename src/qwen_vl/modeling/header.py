"""Read and check the header of a safetensors file: names, dtypes, shapes, and that they describe exactly the bytes that follow.

Nothing is believed and no tensor is read, so a forged file costs neither time nor memory. Uses the standard library only.

    read_safetensors_header(Path("weights/model.safetensors"))["lm_head.weight"].shape
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from qwen_vl.errors import CheckpointError

MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 20_000
MAX_DIMS = 8
DTYPE_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"), 1),
}
ENTRY_FIELDS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """What a header says about one tensor."""

    dtype: str  # as safetensors writes it: F32, BF16, I32, ..
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        """Product of the shape."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Size in the file."""
        return self.num_elements * DTYPE_BYTES[self.dtype]


def parse_json(text: str) -> Any:
    """Parse strict JSON. Raises: ValueError for what is not JSON, NaN, infinity, numbers beyond a float, and names given twice in one object."""
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for name, value in pairs:
        if name in record:
            raise ValueError(f"it names {name[:80]!r} twice")
        record[name] = value
    return record


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is too large a number")
    return value


def read_safetensors_header(path: Path) -> dict[str, TensorFacts]:
    """Read names, dtypes and shapes of a safetensors file.

    Raises: CheckpointError naming file and reason if the header does not describe exactly the bytes that follow it.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = _header_length(file.read(8), size)
            text = file.read(header_bytes).decode("utf-8")
        return _tensors_of_header(_parse_header(text), size - 8 - header_bytes)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise CheckpointError(f"{path} is damaged: its safetensors header is not UTF-8 text. Fetch the file again.") from None
    except json.JSONDecodeError:
        raise CheckpointError(f"{path} is damaged: its safetensors header is not JSON. Fetch the file again.") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is truncated, damaged or forged: {error}. Fetch the file again.") from None


def _header_length(prefix: bytes, size: int) -> int:
    """Return the header's length, which the first 8 bytes state. Raises: ValueError if it cannot be."""
    if len(prefix) < 8:
        raise ValueError(f"it has {size} bytes, too few for a safetensors file")
    length = int.from_bytes(prefix, "little")
    if length < 2:
        raise ValueError(f"it states a header of {length} bytes")
    if length > size - 8:
        raise ValueError(f"it states a header of {length} bytes but has only {size} bytes in all")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"it states a header of {length} bytes; at most {MAX_HEADER_BYTES} are accepted")
    return length


def _parse_header(text: str) -> dict[str, Any]:
    """Return the header's object. Raises: ValueError if it is none, or larger than that of the largest checkpoint."""
    # Counted in the text, so that no header becomes millions of Python objects before it is refused. An entry has at most 10 quotes.
    if text.count('"') > 12 * MAX_TENSORS or text.count(",") > (MAX_DIMS + 4) * MAX_TENSORS:
        raise ValueError(f"its header lists more than {MAX_TENSORS} tensors")
    if not text.startswith("{"):
        raise ValueError("its header is not a JSON object")
    header: dict[str, Any] = parse_json(text)
    if len(header.keys() - {"__metadata__"}) > MAX_TENSORS:
        raise ValueError(f"its header lists more than {MAX_TENSORS} tensors")
    return header


def _tensors_of_header(header: Mapping[str, Any], data_bytes: int) -> dict[str, TensorFacts]:
    """Return the tensors of a header. Raises: ValueError if an entry is malformed or the offsets do not cover the data exactly."""
    spans: list[tuple[int, int, str]] = []
    tensors: dict[str, TensorFacts] = {}
    for name, entry in header.items():
        if name != "__metadata__":
            tensors[name], begin, end = _parse_entry(name, entry)
            spans.append((begin, end, name))
    position = 0
    for begin, end, name in sorted(spans):
        if end > data_bytes:
            raise ValueError(f"tensor {name[:80]!r} ends at byte {end} of {data_bytes}")
        if begin != position:
            raise ValueError(f"tensor {name[:80]!r} {'overlaps another' if begin < position else 'leaves a gap before it'}")
        position = end
    if position != data_bytes:
        raise ValueError(f"{data_bytes - position} bytes after the last tensor belong to none")
    return tensors


def _parse_entry(name: str, entry: Any) -> tuple[TensorFacts, int, int]:
    """Return a tensor's facts and where its bytes begin and end. Raises: ValueError naming what is wrong."""
    if not isinstance(entry, dict) or set(entry) != ENTRY_FIELDS:
        raise ValueError(f"tensor {name[:80]!r} has no dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise ValueError(f"tensor {name[:80]!r} has the unknown dtype {str(dtype)[:20]!r}")
    if not _are_counts(shape) or len(shape) > MAX_DIMS:
        raise ValueError(f"tensor {name[:80]!r} has an impossible shape")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise ValueError(f"tensor {name[:80]!r} has impossible data_offsets")
    facts = TensorFacts(dtype, tuple(shape))
    begin, end = offsets
    if end - begin != facts.num_bytes:
        raise ValueError(f"tensor {name[:80]!r} has {end - begin} bytes, but its dtype and shape ask for {facts.num_bytes}")
    return facts, begin, end


def _are_counts(values: Any) -> bool:
    """Tell whether this is a list of whole numbers that fit 63 bits."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)
