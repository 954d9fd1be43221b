"""Merge an adapter into its base model and write a complete model folder, which needs neither of them any more.

merge_adapter(Path("adapter"), Path("merged"))                                        # into the base that the adapter names
merge_adapter(Path("adapter"), Path("merged"), Path("Qwen-VL-Chat-Int4"))             # a dense model of the Int4 base's weights
"""

from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from qwen_vl.errors import CheckpointError, ConfigError
from qwen_vl.modeling.folder import check_is_folder, find_companions, read_folder
from qwen_vl.modeling.loading import PRECISIONS
from qwen_vl.modeling.model import QWenLMHeadModel
from qwen_vl.quantization.loading import register_quantization
from qwen_vl.whole import put_back, whole_folder

from .adapters import load_adapter, read_adapter_config

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16} | PRECISIONS
STORED_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16}  # all else is merged in float32
MAX_SHARD_SIZE = "2GB"


def merge_adapter(adapter: Path, out: Path, model: Path | None = None, dtype: str | None = None, *, is_forced: bool = False) -> Path:
    """Write the base model with the adapter's weights in it: configuration, weights, tokenizer and generation settings, complete or absent.

    An Int4 base is dequantised: a sum with an adapter has no place in 4 bits. Only in float32 are the merged model's answers those of the base
    with the adapter attached; 16 bits round the sums.

    Args:
        model: folder of the base model [default: the one that the adapter names].
        dtype: "float32", "bfloat16" or "float16" [default: that of the base's embeddings].
        is_forced: replace a model folder `out` that exists.
    Returns: `out`.
    Raises: CheckpointError naming what does not fit; ConfigError if `out` exists or cannot be written; DiskError.
    """
    base = find_base(adapter) if model is None else model
    check_is_folder(base)
    check_free(out, base, adapter, is_forced=is_forced)
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}. Use {', '.join(DTYPES)}.")
    merged = merge(adapter, base, _stored_dtype(base) if dtype is None else DTYPES[dtype])
    companions = _read_companions(base)
    with whole_folder(out) as work:
        merged.save_pretrained(work, max_shard_size=MAX_SHARD_SIZE)
        (work / "generation_config.json").unlink(missing_ok=True)
        for name, content in companions.items():
            (work / name).write_bytes(content)
    return out


def find_base(adapter: Path) -> Path:
    """Return the folder of the base model that an adapter names. Raises: CheckpointError if it is no folder here."""
    name = str(read_adapter_config(adapter).get("base_model_name_or_path") or "")
    if not name or not Path(name).is_dir():
        raise CheckpointError(f"{adapter} was made for the model {name!r}, which is no folder here. Name the base model's folder: --model.")
    return Path(name)


def merge(adapter: Path, base: Path, dtype: torch.dtype) -> QWenLMHeadModel:
    """Return the merged model, dense, in evaluation mode. Raises: CheckpointError naming what does not fit."""
    register_quantization()
    model = QWenLMHeadModel.from_pretrained(base, dtype=dtype)
    if getattr(model, "is_quantized", False):
        model = model.dequantize(dtype)
    merged: Any = load_adapter(model, adapter).merge_and_unload()
    broken = [name for name, parameter in merged.named_parameters() if not torch.isfinite(parameter).all()]
    if broken:
        raise CheckpointError(f"{broken[0]} of {base} with {adapter} is not finite in {dtype}. Merge in float32 or bfloat16.")
    for name, precision in PRECISIONS.items():  # a flag that asks for another dtype than the files'
        setattr(merged.config, name, bool(getattr(merged.config, name)) and precision == dtype)
    merged.generation_config = GenerationConfig()  # the base's file is copied as it is
    return merged.to(dtype).eval()


def check_free(out: Path, base: Path, adapter: Path, *, is_forced: bool) -> None:
    """Raise: ConfigError if `out` may not be written."""
    put_back(out)
    if any(out.resolve() == place.resolve() for place in (base, adapter)):
        raise ConfigError(f"{out} is the base model or the adapter itself. Name another folder.")
    if out.is_file():
        raise ConfigError(f"{out} is a file. Name a folder.")
    if any(place.resolve().is_relative_to(out.resolve()) for place in (base, adapter)):
        raise ConfigError(f"{out} holds the base model or the adapter. Name another folder.")
    held = list(out.iterdir()) if out.is_dir() else []
    if held and not is_forced:
        raise ConfigError(f"{out} is not empty. Add --force to replace it, or name another folder.")
    if held and not (out / "config.json").is_file() or any(path.is_dir() for path in held):
        raise ConfigError(f"{out} is more than a model folder, and all of it would be replaced. Name another folder.")


def _read_companions(base: Path) -> dict[str, bytes]:
    """Return the small files beside a model's weights, by name. Raises: CheckpointError for one that cannot be read."""
    try:
        return {file.name: file.read_bytes() for file in find_companions(base)}
    except OSError as error:
        raise CheckpointError(f"{error.filename or base} cannot be read: {error.strerror}. Fetch it again.") from error


def _stored_dtype(base: Path) -> torch.dtype:
    """Return the dtype in which a model's embeddings are stored."""
    contents = read_folder(base)
    if contents.tensors:
        facts = contents.tensors.get("transformer.wte.weight")
        return STORED_DTYPES.get(facts.dtype if facts else "", torch.float32)
    stated = contents.config.get("dtype") or contents.config.get("torch_dtype")
    return DTYPES.get(str(stated), torch.float32)
