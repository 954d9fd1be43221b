"""What generating costs at least: pure functions of a config, before anything is allocated.

A token reads all weights of the decoder and the head, and the keys and values so far, so at batch 1 the copy bandwidth of a device sets a ceiling:

    costs = Costs.of(read_shape("full"), "bfloat16")
    costs.token_bytes(num_prompt=258, num_new=1792)                  # 14.8e9: on average, over an answer
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from qwen_vl.engine.settings import CHUNK_TOKENS
from qwen_vl.errors import ConfigError
from qwen_vl.modeling.configuration import QWenConfig
from qwen_vl.modeling.packed import WHOLE_NUMBERS
from qwen_vl.modeling.shapes import expected_shapes
from qwen_vl.quantization.gptq import GPTQSettings

INT4, INT4_INT8_HEAD = "int4", "int4-int8-head"  # the second one has its output head in 8 bits
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PRECISIONS = (*DTYPES, INT4, INT4_INT8_HEAD)
GROUP_SIZE = GPTQSettings().group_size  # the release's
READ_PARTS = ("transformer.h.", "transformer.ln_f.", "lm_head.")  # by every token
INT4_SETTINGS: dict[str, Any] = {"bits": 4, "quant_method": "gptq", "group_size": GROUP_SIZE}
SCALE_BYTES = 2  # of each row of a head in 8 bits
SLACK_BYTES = 256 * 2**20  # of libraries and the allocator


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """Bytes of a model in some precision."""

    num_parameters: int
    weight_bytes: int  # held
    read_bytes: int  # of them by every token
    kv_bytes: int  # of each position
    work_bytes: int  # held while a picture or a chunk of a prompt is computed, about

    @classmethod
    def of(cls, config: QWenConfig, precision: str, dtype: torch.dtype | None = None) -> "Costs":
        """Return the costs of a shape. Args: dtype: of what Int4 leaves dense, and of keys and values; two bytes if left out.

        Raises: ConfigError for an unknown precision, or a shape that cannot be packed.
        """
        if precision not in PRECISIONS:
            raise ConfigError(f"unknown precision {precision!r}. Use {', '.join(PRECISIONS)}.")
        fields = config.to_dict() | {"quantization_config": None}
        num_parameters = sum(math.prod(shape) for shape in expected_shapes(fields).values())
        size = (dtype or DTYPES.get(precision, torch.bfloat16)).itemsize
        if precision in (INT4, INT4_INT8_HEAD):
            fields["quantization_config"] = INT4_SETTINGS
        held = {name: math.prod(shape) * _size_of(name, size) for name, shape in expected_shapes(fields).items()}
        if precision == INT4_INT8_HEAD:
            held["lm_head.weight"] = config.vocab_size * (config.hidden_size + SCALE_BYTES)
        read = {name: count for name, count in held.items() if _is_read(name, fields)}
        visual = config.visual or {}
        return cls(
            num_parameters=num_parameters,
            weight_bytes=sum(held.values()),
            read_bytes=sum(read.values()),
            kv_bytes=2 * config.num_hidden_layers * config.num_attention_heads * config.kv_channels * size,
            work_bytes=max(_chunk_bytes(config, size), _picture_bytes(visual, size)) + SLACK_BYTES,
        )

    def token_bytes(self, num_prompt: int, num_new: int) -> float:
        """Return the bytes that a token reads, on average over an answer: weights, and keys and values so far."""
        return self.read_bytes + self.kv_bytes * (num_prompt + num_new / 2)

    def needed_bytes(self, num_positions: int) -> int:
        """Return about how much memory an answer takes that ends at this position."""
        return self.weight_bytes + self.kv_bytes * num_positions + self.work_bytes


def _size_of(name: str, size: int) -> int:
    suffix = name.rpartition(".")[2]
    return 4 if suffix in WHOLE_NUMBERS else 2 if suffix == "scales" else size


def _is_read(name: str, fields: Mapping[str, Any]) -> bool:
    """Tell whether every token reads a tensor; indices of groups in order, and biases that are padding, nobody needs."""
    stem, _, suffix = name.rpartition(".")
    is_padding = suffix == "bias" and bool(fields["quantization_config"]) and bool(fields.get("no_bias", True)) and not stem.endswith("c_attn")
    is_tied_head = bool(fields.get("tie_word_embeddings")) and name == "transformer.wte.weight"
    return is_tied_head or name.startswith(READ_PARTS) and suffix != "g_idx" and not is_padding


def _chunk_bytes(config: QWenConfig, size: int) -> int:
    """Return about what a chunk holds: its widest states in a block, and one row of logits in float32."""
    return CHUNK_TOKENS * (4 * config.mlp_dim + 8 * config.hidden_size) * max(size, 4) + 4 * config.vocab_size * 4


def _most_patches(visual: Mapping[str, Any]) -> int:
    """Return how many patches a picture has at the most."""
    return int(visual.get("max_patches") or (visual["image_size"] // visual["patch_size"]) ** 2)


def _picture_bytes(visual: Mapping[str, Any], size: int) -> int:
    """Return about what a picture holds in the vision tower."""
    if not visual:
        return 0
    patches = _most_patches(visual)
    return int(patches * visual["width"] * (8 + 3 * visual["mlp_ratio"]) * max(size, 4))


def prefill_flops(config: QWenConfig, num_tokens: int, num_pictures: int) -> float:
    """Return the floating-point operations of reading a prompt: two for each weight and position that it meets, logits of the last position alone.

    Args: num_tokens: of the prompt, spans included.
    """
    shapes = expected_shapes(config.to_dict() | {"quantization_config": None})
    blocks = sum(math.prod(shape) for name, shape in shapes.items() if ".h." in name and len(shape) == 2)
    attention = 2 * num_tokens**2 * config.hidden_size * config.num_hidden_layers  # causal: half of scores, and of weights times values
    head = 2 * config.vocab_size * config.hidden_size
    return 2 * blocks * num_tokens + attention + head + num_pictures * _picture_flops(config, shapes)


def _picture_flops(config: QWenConfig, shapes: Mapping[str, tuple[int, ...]]) -> float:
    visual = config.visual
    if not visual:
        return 0.0
    patches, queries, dim, width = _most_patches(visual), visual["n_queries"], visual["output_dim"], visual["width"]
    tower = sum(math.prod(shape) for name, shape in shapes.items() if ".resblocks." in name and len(shape) == 2)
    patching = 3 * visual["patch_size"] ** 2 * width
    scores = 4 * patches**2 * width * visual["layers"]
    keys_and_values = 2 * patches * (width * dim + 2 * dim**2)
    resampler = keys_and_values + 2 * queries * 3 * dim**2 + 4 * queries * patches * dim  # and queries, output and projection
    return 2 * patches * (tower + patching) + scores + resampler
