"""Reads what a checkpoint folder says about itself, without loading it: no torch, no weights, only JSON and safetensors headers.

`check_folder` is what loading runs first, so that a wrong folder gives one clear line instead of a library's stack; `read_checkpoint` is what
`qwen-vl info` prints.

    facts = read_checkpoint(Path("weights/7b"))
    facts.kind, facts.num_parameters, facts.tensors["lm_head.weight"].shape
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen_vl.errors import CheckpointError

MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 20_000
MAX_JSON_BYTES = 64 << 20
VOCABULARY_FILE = "qwen.tiktoken"
DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}
DTYPE_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I32": "int32", "I64": "int64", "I8": "int8", "U8": "uint8"}
IGNORED_TENSORS = re.compile(r"h\.\d+\.attn\.(masked_bias|rotary_emb\.inv_freq)$")
QUANTIZED_SUFFIXES = ("qweight", "qzeros", "scales", "g_idx", "bias")

# part -> how its tensors' names begin; the first that fits counts.
PARTS = {
    "vision tower": (
        "transformer.visual.conv1",
        "transformer.visual.positional_embedding",
        "transformer.visual.ln_pre",
        "transformer.visual.transformer.",
    ),
    "resampler": ("transformer.visual.attn_pool.",),
    "projection": ("transformer.visual.ln_post", "transformer.visual.proj"),
    "language model": ("transformer.wte", "transformer.h.", "transformer.ln_f", "lm_head"),
}


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """What a header says about one tensor."""

    dtype: str  # as safetensors writes it: F32, BF16, I32, ..
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        """Product of the shape."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def num_bytes(self) -> int:
        """Size in the file."""
        return self.num_elements * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointFacts:
    """What a checkpoint folder is."""

    folder: Path
    kind: str
    config: dict[str, Any]
    generation_config: dict[str, Any]
    weight_files: tuple[Path, ...]
    tensors: dict[str, TensorFacts] = field(repr=False)  # empty for `.bin` weights, whose headers are pickles
    num_bytes: int  # of the weight files

    @property
    def is_quantized(self) -> bool:
        """Tell whether the folder holds GPTQ weights."""
        return bool(self.config.get("quantization_config"))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises: CheckpointError naming the file if it is missing, too large or not an object."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB: that is no configuration file.")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} has no {path.name}. Give the folder that holds config.json and the weights.") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        raise CheckpointError(f"{path} is not valid JSON. Fetch it again.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, not a JSON object. Fetch it again.")
    return value


def read_safetensors_header(path: Path) -> dict[str, TensorFacts]:
    """Read names, dtypes and shapes of a safetensors file.

    Raises: CheckpointError if the header does not describe exactly the bytes that follow it (a truncated, padded or forged file).
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if size < 8 or header_bytes > min(MAX_HEADER_BYTES, size - 8):
                raise CheckpointError(f"{path} is truncated or no safetensors file ({size} bytes). Fetch it again.")
            header = json.loads(file.read(header_bytes))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        raise CheckpointError(f"{path} has a damaged safetensors header. Fetch it again.") from None
    try:
        return _tensors_of_header(header, size - 8 - header_bytes)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CheckpointError(f"{path} is truncated or its safetensors header does not fit its content ({size} bytes). Fetch it again.") from None


def _tensors_of_header(header: Mapping[str, Any], data_bytes: int) -> dict[str, TensorFacts]:
    """Return the tensors of a header. Raises: ValueError, KeyError, .. if their offsets do not cover the data exactly."""
    spans: list[tuple[int, int]] = []
    tensors: dict[str, TensorFacts] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        facts = TensorFacts(entry["dtype"], tuple(int(size) for size in entry["shape"]))
        begin, end = entry["data_offsets"]
        if end - begin != facts.num_bytes or min(facts.shape, default=0) < 0:
            raise ValueError(name)
        spans.append((begin, end))
        tensors[name] = facts
    position = 0
    for begin, end in sorted(spans):
        if begin != position:
            raise ValueError(begin)
        position = end
    if position != data_bytes or len(tensors) > MAX_TENSORS:
        raise ValueError(position)
    return tensors


def find_weight_files(folder: Path) -> tuple[tuple[Path, ...], dict[str, Any]]:
    """Return the weight files and the index that names them ({} without one); safetensors before `.bin`.

    Raises: CheckpointError if there are none or if the index names a file that is missing.
    """
    for stem in ("model.safetensors", "pytorch_model.bin"):
        index_path = folder / f"{stem}.index.json"
        if index_path.is_file():
            index = read_json(index_path)
            return _files_of_index(folder, index_path, index), index
        if (folder / stem).is_file():
            return (folder / stem,), {}
    raise CheckpointError(
        f"{folder} holds no weights (model.safetensors, pytorch_model.bin or an index of shards). "
        "Large files may not have been fetched: git lfs pull."
    )


def _files_of_index(folder: Path, index_path: Path, index: dict[str, Any]) -> tuple[Path, ...]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index_path} has no weight_map. Fetch it again.")
    names = sorted(set(weight_map.values()))
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise CheckpointError(f"{index_path} names a file outside its folder: {outside[0]!r}. Do not use this checkpoint.")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder} lacks {len(missing)} of {len(names)} weight files: {shorten(missing)}. Fetch them again: git lfs pull.")
    return tuple(folder / name for name in names)


def read_checkpoint(folder: Path) -> CheckpointFacts:
    """Read what a folder is, whichever of the family it is.

    Raises: CheckpointError if the folder or one of its files is missing or damaged.
    """
    check_is_folder(folder)
    config = read_json(folder / "config.json")
    files, index = find_weight_files(folder)
    tensors: dict[str, TensorFacts] = {}
    for file in files:
        if file.suffix == ".safetensors":
            tensors.update(read_safetensors_header(file))
    absent = set(index.get("weight_map", ())) - set(tensors) if tensors else set()
    if absent:
        raise CheckpointError(f"{folder} lacks {len(absent)} tensors that its index names: {shorten(sorted(absent))}. Fetch the weight files again.")
    generation_path = folder / "generation_config.json"
    return CheckpointFacts(
        folder=folder,
        kind=name_kind(config),
        config=config,
        generation_config=read_json(generation_path) if generation_path.is_file() else {},
        weight_files=files,
        tensors=tensors,
        num_bytes=sum(file.stat().st_size for file in files),
    )


def check_is_folder(folder: Path) -> None:
    """Raise CheckpointError unless the folder exists and may hold a model."""
    if not folder.exists():
        raise CheckpointError(
            f"There is no folder {folder}. Give a folder with config.json and weights, or a name of the hub such as Qwen/Qwen-VL-Chat."
        )
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is a file. Give the folder that holds config.json and the weights.")
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} holds an adapter, not a model. Load the model that it was trained on and merge or attach the adapter.")


def name_kind(config: Mapping[str, Any]) -> str:
    """Name the family member that a config belongs to."""
    if config.get("model_type") != "qwen":
        return f"another family (model_type {config.get('model_type')!r})"
    if "audio" in config:
        return "Qwen-Audio"
    return "Qwen-VL" if config.get("visual") else "text-only Qwen"


def check_folder(folder: Path) -> CheckpointFacts:
    """Return the facts of a folder that `QwenVL` can load.

    Raises: CheckpointError naming what is wrong: another family, a missing file, missing, extra or wrongly shaped tensors.
    """
    check_is_folder(folder)
    config = read_json(folder / "config.json")
    kind = name_kind(config)
    if kind not in ("Qwen-VL", "text-only Qwen"):
        raise CheckpointError(
            f"{folder} is {kind}, which this package does not load. It loads Qwen-VL, Qwen-VL-Chat, their Int4 form and text-only Qwen."
        )
    vocabulary = folder / VOCABULARY_FILE
    if not vocabulary.is_file():
        raise CheckpointError(f"{folder} has no tokenizer file {VOCABULARY_FILE}. Large files may not have been fetched: git lfs pull.")
    facts = read_checkpoint(folder)
    if facts.tensors:
        check_tensors(facts)
    return facts


def check_tensors(facts: CheckpointFacts) -> None:
    """Raise CheckpointError unless the stored tensors are exactly those that the config asks for."""
    try:
        expected = expected_shapes(facts.config)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return  # the config itself cannot work: its own class says which field
    stored = {name: tensor.shape for name, tensor in facts.tensors.items() if not IGNORED_TENSORS.search(name)}
    if facts.is_quantized:
        expected = {name: shape for name, shape in expected.items() if f"{name.rpartition('.')[0]}.qweight" not in stored}
        stored = {name: shape for name, shape in stored.items() if f"{name.rpartition('.')[0]}.qweight" not in stored}
    missing, extra = sorted(expected.keys() - stored.keys()), sorted(stored.keys() - expected.keys())
    wrong = sorted(name for name in expected.keys() & stored.keys() if expected[name] != stored[name])
    problems = []
    if missing:
        problems.append(f"lacks {len(missing)} of {len(expected)} tensors: {shorten(missing)}")
    if extra:
        problems.append(f"has {len(extra)} tensors that its config does not ask for: {shorten(extra)}")
    if wrong:
        shapes = [f"{name} is {list(stored[name])} instead of {list(expected[name])}" for name in wrong]
        problems.append(f"has {len(wrong)} tensors of a wrong shape: {shorten(shapes)}")
    if problems:
        raise CheckpointError(f"{facts.folder} {'; '.join(problems)}. Fetch the folder again, config.json and weights together.")


def shorten(names: list[str], limit: int = 3) -> str:
    """Join the first few names and say how many more there are."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def expected_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor that a config asks for, unquantized. Source: FACTS 1.3."""
    shapes = dict(_language_shapes(config))
    if config.get("visual"):
        shapes.update(_vision_shapes(config["visual"]))
    return shapes


def _language_shapes(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    vocab, dim, mlp = int(config["vocab_size"]), int(config["hidden_size"]), int(config["intermediate_size"]) // 2
    heads = int(config["num_attention_heads"]) * int(config.get("kv_channels", 128))
    has_bias = not config.get("no_bias", True)
    yield "transformer.wte.weight", (vocab, dim)
    for layer in range(int(config["num_hidden_layers"])):
        block = f"transformer.h.{layer}"
        yield f"{block}.ln_1.weight", (dim,)
        yield f"{block}.ln_2.weight", (dim,)
        yield f"{block}.attn.c_attn.bias", (3 * heads,)
        for name, shape in {
            "attn.c_attn": (3 * heads, dim),
            "attn.c_proj": (dim, heads),
            "mlp.w1": (mlp, dim),
            "mlp.w2": (mlp, dim),
            "mlp.c_proj": (dim, mlp),
        }.items():
            yield f"{block}.{name}.weight", shape
            if has_bias and name != "attn.c_attn":
                yield f"{block}.{name}.bias", shape[:1]
    yield "transformer.ln_f.weight", (dim,)
    if not config.get("tie_word_embeddings", False):
        yield "lm_head.weight", (vocab, dim)


def _vision_shapes(visual: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, dim, patch, queries = (int(value) for value in (visual["width"], visual["output_dim"], visual["patch_size"], visual.get("n_queries", 256)))
    mlp = int(width * visual["mlp_ratio"])
    prefix = "transformer.visual"
    yield f"{prefix}.conv1.weight", (width, 3, patch, patch)
    yield f"{prefix}.positional_embedding", (256, width)
    yield from _weight_and_bias(f"{prefix}.ln_pre", width)
    for layer in range(int(visual["layers"])):
        block = f"{prefix}.transformer.resblocks.{layer}"
        yield from _weight_and_bias(f"{block}.ln_1", width)
        yield from _weight_and_bias(f"{block}.ln_2", width)
        for name, shape in {
            "attn.in_proj": (3 * width, width),
            "attn.out_proj": (width, width),
            "mlp.c_fc": (mlp, width),
            "mlp.c_proj": (width, mlp),
        }.items():
            yield from _weight_and_bias(f"{block}.{name}", *shape)
    pool = f"{prefix}.attn_pool"
    yield f"{pool}.pos_embed", (queries, dim)
    yield f"{pool}.query", (queries, dim)
    yield f"{pool}.kv_proj.weight", (dim, width)
    yield f"{pool}.attn.in_proj_weight", (3 * dim, dim)
    yield f"{pool}.attn.in_proj_bias", (3 * dim,)
    yield from _weight_and_bias(f"{pool}.attn.out_proj", dim, dim)
    for name in (f"{pool}.ln_q", f"{pool}.ln_kv", f"{prefix}.ln_post"):
        yield from _weight_and_bias(name, dim)
    yield f"{prefix}.proj", (dim, dim)


def _weight_and_bias(name: str, *shape: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def count_stored_parameters(facts: CheckpointFacts) -> dict[str, int]:
    """Return the number of parameters of each tensor: as stored, or as the config asks where the files do not tell (`.bin`).

    A quantized layer counts its codes, under the name of its `qweight`; scales, zero points and indices are no parameters.
    """
    if not facts.tensors:
        return {name: TensorFacts("F32", shape).num_elements for name, shape in expected_shapes(facts.config).items()}
    bits = int((facts.config.get("quantization_config") or {}).get("bits", 4))
    counts = {}
    for name, tensor in facts.tensors.items():
        suffix = name.rpartition(".")[2]
        if IGNORED_TENSORS.search(name) or suffix in ("qzeros", "scales", "g_idx") or is_padding_bias(facts, name):
            continue
        counts[name] = tensor.num_elements * 32 // bits if suffix == "qweight" else tensor.num_elements
    return counts


def is_padding_bias(facts: CheckpointFacts, name: str) -> bool:
    """Tell whether this is one of the zero biases that Int4 files give to layers without a bias (FACTS 1.4)."""
    stem, _, suffix = name.rpartition(".")
    return suffix == "bias" and f"{stem}.qweight" in facts.tensors and not stem.endswith("c_attn") and bool(facts.config.get("no_bias", True))
