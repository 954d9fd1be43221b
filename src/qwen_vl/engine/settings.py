"""Bounds of an engine, those that suit a model and its machine, and what an engine says of itself."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from qwen_vl.errors import ConfigError, nearest
from qwen_vl.modeling.model import QWenLMHeadModel

from .kv_cache import SlotCache
from .lru import CacheStatistics
from .memory import memory_bytes

MIB = 2**20
CHUNK_TOKENS = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSettings:
    """Bounds of an engine."""

    max_batch: int = 16  # requests in at once
    chunk_tokens: int = CHUNK_TOKENS  # of prompts read in one round
    block_tokens: int = 32  # what the prefix cache keeps as one
    kv_bytes: int  # for keys and values of requests in flight
    prefix_bytes: int  # 0: no prefix is kept
    feature_bytes: int  # 0: no picture's features are kept
    compile: bool | None = None  # the one-token step; None: on CUDA, where launches count. Compiling takes up to a minute when it is first needed
    half_bytes: int | None = None  # for exact 16-bit copies of weights, which a CPU reads in half the time; None: made when they pay

    def __post_init__(self) -> None:
        for name in ("max_batch", "chunk_tokens", "block_tokens", "kv_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)!r} must be at least 1")
        for name in ("prefix_bytes", "feature_bytes", "half_bytes"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"{name}={getattr(self, name)!r} must not be negative")

    @classmethod
    def check(cls, bounds: Mapping[str, Any]) -> None:
        """Look at bounds by name, before there is a model. Raises: ConfigError for a name that is none, and for a value that cannot work."""
        names = [each.name for each in fields(cls)]
        for name in bounds:
            if name not in names:
                hint = nearest(name, names) or f"; there are {', '.join(names)}."
                raise ConfigError(f"{name!r} is no setting of the engine{hint}")
        cls(**{"kv_bytes": 1, "prefix_bytes": 0, "feature_bytes": 0, **bounds})

    @classmethod
    def suited_to(cls, model: QWenLMHeadModel, **bounds: Any) -> "EngineSettings":
        """Return bounds for this model on its device, whose weights are there already.

        Half of the memory that is left is for requests in flight, or more, up to four fifths, if one whole context needs it; a tenth for prefixes.

        Args: bounds: taken as they are, by name. Raises: ConfigError as `check`.
        """
        cls.check(bounds)
        memory = memory_bytes(model.device)
        whole_context = SlotCache(model, 0).position_bytes * int(model.config.max_position_embeddings)
        suited = {
            "kv_bytes": max(1, min(max(memory // 2, whole_context), memory * 4 // 5)),
            "prefix_bytes": min(memory // 10, 4096 * MIB),
            "feature_bytes": min(memory // 20, 256 * MIB),
        }
        return cls(**{**suited, **bounds})


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineStatistics:
    """What the engine holds and has done."""

    num_waiting: int
    num_reading: int
    num_writing: int
    num_rounds: int
    num_prompt_tokens: int  # read, without those that the prefix cache had
    num_new_tokens: int
    num_preempted: int  # times that a request had to wait again
    kv_bytes: int
    half_bytes: int
    is_compiled: bool  # whether the one-token step is, and has not been given up
    prefixes: CacheStatistics
    features: CacheStatistics
