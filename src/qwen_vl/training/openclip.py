"""The vision tower of an OpenCLIP checkpoint, under the names and in the layout of Qwen-VL's.

The two towers compute the same up to the first token: OpenCLIP's class token and its position are left out, and so is what follows the blocks
(final norm, projection). Its fused projection holds all queries, then all keys, then all values; Qwen-VL's holds query, key and value of head 0,
then of head 1, .. (FACTS 2.5). The norms' epsilon is 1e-6 here and 1e-5 there (FACTS 2.3).

    tower = open_tower(Path("CLIP-ViT-bigG-14/open_clip_pytorch_model.bin"))
    tower.sizes["width"], tower.tensors["transformer.visual.conv1.weight"].read()
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from qwen_vl.errors import CheckpointError, ConfigError, ShapeError
from qwen_vl.modeling.folder import read_json, shorten
from qwen_vl.modeling.positions import grid_side, resize_position_table
from qwen_vl.modeling.shapes import FLOAT_DTYPES
from qwen_vl.modeling.stored import LazyTensor, open_tensors
from qwen_vl.modeling.vision import NUM_STORED_POSITIONS

CONFIG_FILE = "open_clip_config.json"
FILES_OF_FOLDER = (
    *("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin"),
    *("model.safetensors", "pytorch_model.bin"),
)
PREFIX = "transformer.visual."
HEADS_BY_WIDTH = {768: 12, 1024: 16, 1280: 16, 1408: 16, 1664: 16, 1792: 16}  # of the towers that OpenCLIP publishes
LEFT_OUT = ("class_embedding", "ln_post.weight", "ln_post.bias", "proj")


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionTower:
    """A vision tower, ready to be written."""

    sizes: dict[str, Any]  # of the config's `visual` part: heads, layers, mlp_ratio, patch_size, width
    tensors: dict[str, LazyTensor]  # by Qwen-VL's names


def open_tower(path: Path, num_heads: int | None = None) -> VisionTower:
    """Open the vision tower of an OpenCLIP checkpoint; a text tower beside it is ignored.

    Args:
        path: the weight file, or the folder that holds it.
        num_heads: attention heads, which the tensors do not tell [default: as open_clip_config.json beside the file says, or as the published
            tower of that width has].
    Raises: CheckpointError naming what is missing, too much or of a wrong shape; ConfigError if the heads are unknown or do not fit.
    """
    file = find_file(path)
    stored = _vision_part(file, open_tensors([file]))
    settings = _read_settings(file.parent / CONFIG_FILE)
    sizes = _read_sizes(file, stored)
    sizes["heads"] = _choose_heads(file, sizes["width"], num_heads, settings)
    _check_shapes(file, stored, sizes)
    return VisionTower(sizes=sizes, tensors=dict(_renamed(stored, sizes)))


def find_file(path: Path) -> Path:
    """Return the weight file of a path. Raises: CheckpointError if there is none."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(f"There is no {path}. Give an OpenCLIP weight file, or the folder that holds it.")
    for name in FILES_OF_FOLDER:
        if (path / name).is_file():
            return path / name
    raise CheckpointError(f"{path} holds none of {', '.join(FILES_OF_FOLDER)}. Give an OpenCLIP weight file, or the folder that holds it.")


def interleave_heads(fused: Tensor, num_heads: int) -> Tensor:
    """Re-lay a fused projection from blocks (all queries, all keys, all values) to query, key and value of each head in turn.

    Args: fused [3 * width, ..]. Returns: the same shape.
    """
    return fused.unflatten(0, (3, num_heads, -1)).transpose(0, 1).flatten(0, 2)


def _vision_part(file: Path, stored: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Return the tensors of the vision tower by their bare names, whether or not a text tower stands beside it."""
    stored = {name.removeprefix("module."): tensor for name, tensor in stored.items()}
    if any(name.startswith("visual.") for name in stored):
        stored = {name.removeprefix("visual."): tensor for name, tensor in stored.items() if name.startswith("visual.")}
    if "conv1.weight" not in stored or "class_embedding" not in stored:
        raise CheckpointError(
            f"{file} holds no vision tower of OpenCLIP (no conv1.weight and class_embedding, with or without `visual.`); it begins with "
            f"{shorten(sorted(stored), 3)}. Fetch open_clip_pytorch_model.bin, not the layout of transformers."
        )
    return stored


def _read_settings(path: Path) -> dict[str, Any]:
    """Read what open_clip_config.json says about the vision tower; {} without it. Raises: CheckpointError for a tower of another kind."""
    if not path.is_file():
        return {}
    model = read_json(path).get("model_cfg") or {}
    vision = model.get("vision_cfg") or {}
    if model.get("quick_gelu") or vision.get("timm_model_name"):
        raise CheckpointError(f"{path} describes a tower with QuickGELU or of timm, which Qwen-VL's cannot be made from. Take a plain OpenCLIP ViT.")
    return vision if isinstance(vision, dict) else {}


def _read_sizes(file: Path, stored: Mapping[str, LazyTensor]) -> dict[str, Any]:
    """Read width, layers, patch size and MLP ratio off the tensors."""
    first = stored.get("transformer.resblocks.0.mlp.c_fc.weight")
    if first is None:
        raise CheckpointError(f"{file} lacks transformer.resblocks.0.mlp.c_fc.weight, so its tower has no blocks. Fetch the file again.")
    if len(first.shape) != 2 or len(stored["conv1.weight"].shape) != 4:
        raise CheckpointError(f"{file} holds a tower whose conv1.weight or mlp.c_fc.weight has the wrong number of dimensions. Fetch the file again.")
    width, *_, patch_size = stored["conv1.weight"].shape
    layers = {name.split(".")[2] for name in stored if name.startswith("transformer.resblocks.")}
    return {"width": width, "layers": len(layers), "patch_size": patch_size, "mlp_ratio": find_mlp_ratio(width, first.shape[0])}


def find_mlp_ratio(width: int, mlp_dim: int) -> float:
    """Return the shortest ratio that gives an MLP of that width, which is `int(width * ratio)`: 4.9231 for the released 8192 of 1664."""
    for digits in range(1, 16):
        for ratio in (round(mlp_dim / width, digits), round(mlp_dim / width + 0.5 * 10**-digits, digits)):
            if int(width * ratio) == mlp_dim:
                return ratio
    raise ConfigError(f"No ratio of the width {width} gives an MLP of {mlp_dim}.")


def _choose_heads(file: Path, width: int, given: int | None, settings: Mapping[str, Any]) -> int:
    """Return the number of heads. Raises: ConfigError if nothing tells it, or if it does not divide the width."""
    head_width = settings.get("head_width", 64) if settings else None
    heads = given or (width // head_width if isinstance(head_width, int) and head_width > 0 else HEADS_BY_WIDTH.get(width))
    if heads is None:
        raise ConfigError(f"{file} does not tell its number of attention heads, and no published tower has the width {width}. Give --vision-heads.")
    if heads < 1 or width % heads:
        raise ConfigError(f"{heads} attention heads do not divide the width {width} of {file}. Give --vision-heads.")
    return heads


def _check_shapes(file: Path, stored: Mapping[str, LazyTensor], sizes: Mapping[str, Any]) -> None:
    """Raise: CheckpointError naming tensors that are missing, too many, or of a wrong shape or type."""
    expected = dict(_expected_shapes(sizes))
    positions = stored.get("positional_embedding")
    if positions is not None and len(positions.shape) == 2:
        try:
            expected["positional_embedding"] = (1 + grid_side(positions.shape[0] - 1) ** 2, sizes["width"])
        except (ShapeError, ValueError):
            raise CheckpointError(f"{file}: positional_embedding has {positions.shape[0]} rows, not one and a square number.") from None
    missing = sorted(expected.keys() - stored.keys())
    extra = sorted(stored.keys() - expected.keys() - set(LEFT_OUT))
    common = sorted(expected.keys() & stored.keys())
    wrong = [f"{name} is {list(stored[name].shape)} instead of {list(expected[name])}" for name in common if stored[name].shape != expected[name]]
    odd = [f"{name} is {stored[name].dtype}" for name in common if stored[name].dtype not in FLOAT_DTYPES]
    kinds = (
        (missing, "lacks"),
        (extra, "has tensors that no such tower has:"),
        (wrong, "has tensors of a wrong shape:"),
        (odd, "has weights that are not floating-point numbers:"),
    )
    problems = [f"{what} {shorten(names)}" for names, what in kinds if names]
    if problems:
        raise CheckpointError(f"{file} {'; '.join(problems)}. Give the checkpoint of a plain OpenCLIP ViT.")


def _expected_shapes(sizes: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield OpenCLIP's name and shape of every tensor that is taken over."""
    width, patch, mlp = sizes["width"], sizes["patch_size"], int(sizes["width"] * sizes["mlp_ratio"])
    yield "conv1.weight", (width, 3, patch, patch)
    yield "positional_embedding", (NUM_STORED_POSITIONS + 1, width)
    for name in ("ln_pre.weight", "ln_pre.bias"):
        yield name, (width,)
    for layer in range(sizes["layers"]):
        block = f"transformer.resblocks.{layer}."
        for name in ("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias", "attn.out_proj.bias", "mlp.c_proj.bias"):
            yield block + name, (width,)
        yield block + "attn.in_proj_weight", (3 * width, width)
        yield block + "attn.in_proj_bias", (3 * width,)
        yield block + "attn.out_proj.weight", (width, width)
        yield block + "mlp.c_fc.weight", (mlp, width)
        yield block + "mlp.c_fc.bias", (mlp,)
        yield block + "mlp.c_proj.weight", (width, mlp)


def _renamed(stored: Mapping[str, LazyTensor], sizes: Mapping[str, Any]) -> Iterator[tuple[str, LazyTensor]]:
    """Yield Qwen-VL's name of each tensor that is taken over, and how it is read."""
    heads = sizes["heads"]
    for name in dict(_expected_shapes(sizes)):
        tensor = stored[name]
        if name == "positional_embedding":
            shape = (NUM_STORED_POSITIONS, sizes["width"])
            tensor = LazyTensor(shape, tensor.dtype, lambda read=tensor.read: resize_position_table(read()[1:], NUM_STORED_POSITIONS))  # type: ignore[misc]
        elif "attn.in_proj_" in name:
            name = name.replace("in_proj_", "in_proj.")
            tensor = LazyTensor(tensor.shape, tensor.dtype, lambda read=tensor.read: interleave_heads(read(), heads))  # type: ignore[misc]
        yield PREFIX + name, tensor
