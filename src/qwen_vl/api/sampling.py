"""Sampling settings of one request: checked, named, and turned into a generation config.

Sampling.of(temperature=0.7, seed=1)     # sampling is on, because a temperature was given
Sampling.of(max_new_token=5)             # ConfigError: unknown setting 'max_new_token'; did you mean 'max_new_tokens'?
"""

import copy
import math
from dataclasses import dataclass, fields
from typing import Any

from transformers import GenerationConfig

from qwen_vl.engine import SamplingParams
from qwen_vl.errors import ConfigError, nearest
from qwen_vl.grounding.grammar import BoxRule

DEFAULT_MAX_NEW_TOKENS = 512
MAX_LOGPROBS = 100


LEAST_TEMPERATURE = 1e-5  # below it the most likely token is drawn anyhow, and scores divided by it may be no numbers any more


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """Settings of one request; None leaves the checkpoint's own choice (its generation_config.json)."""

    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None  # 0, or next to it, is greedy
    top_p: float | None = None
    top_k: int | None = None  # 0 is off
    repetition_penalty: float | None = None
    num_beams: int | None = None
    length_penalty: float | None = None
    seed: int | None = None
    boxes: str | None = None  # no malformed boxes, and how many: any, required, none, 2, 1.., 1..4; off
    confidence: bool | None = None  # how sure the model was of each box
    stop: str | list[str] | tuple[str, ...] | None = None  # the answer ends before the first of these strings
    logprobs: int | None = None  # so many alternatives beside each token and its probability

    def __post_init__(self) -> None:
        _check("max_new_tokens", self.max_new_tokens, 1, 1_000_000, whole=True)
        _check("min_new_tokens", self.min_new_tokens, 0, 1_000_000, whole=True)
        _check("temperature", self.temperature, 0, 100)
        _check("top_p", self.top_p, 0, 1)
        _check("top_k", self.top_k, 0, 1_000_000, whole=True)
        _check("repetition_penalty", self.repetition_penalty, 0.01, 100)
        _check("num_beams", self.num_beams, 1, 64, whole=True)
        _check("length_penalty", self.length_penalty, -100, 100)
        _check("seed", self.seed, 0, 2**63 - 1, whole=True)
        for name in ("do_sample", "confidence"):
            if (value := getattr(self, name)) is not None and not isinstance(value, bool):
                raise ConfigError(f"{name}={value!r} must be True or False.")
        _check("logprobs", self.logprobs, 0, MAX_LOGPROBS, whole=True)
        if not isinstance(self.stop, str | list | tuple | None) or not all(isinstance(stop, str) and stop for stop in self.stops):
            raise ConfigError(f"stop={self.stop!r} must be text, or a list of texts that are not empty.")
        if self.boxes is not None and not isinstance(self.boxes, str):
            raise ConfigError(f"boxes={self.boxes!r} must be text such as any, required or 1..4.")
        if self.boxes not in (None, "off"):
            BoxRule.parse(self.boxes)
        if self.top_p == 0:
            raise ConfigError("top_p=0 leaves no token to choose from. Use a number above 0, or temperature=0 for the most likely token.")
        if self.min_new_tokens is not None and self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise ConfigError(f"min_new_tokens={self.min_new_tokens} is more than max_new_tokens={self.max_new_tokens}.")

    @classmethod
    def of(cls, **settings: Any) -> "Sampling":
        """Build from keyword arguments. Raises: ConfigError for an unknown name, with the nearest known one."""
        known = [field.name for field in fields(cls)]
        for name in settings:
            if name not in known:
                hint = nearest(name, known) or f"; there are {', '.join(known)}."
                raise ConfigError(f"unknown setting {name!r}{hint}")
        return cls(**settings)

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def is_sampling(self) -> bool | None:
        """Whether tokens are drawn by chance: as said, else on if a sampling number was given, else None (the checkpoint's choice)."""
        if self.temperature is not None and self.temperature < LEAST_TEMPERATURE:
            return False
        if self.do_sample is None and any(value is not None for value in (self.temperature, self.top_p, self.top_k)):
            return True
        return self.do_sample

    def to_generation_config(self, base: GenerationConfig, stop_ids: list[int], pad_id: int, max_new_tokens: int) -> GenerationConfig:
        """Return a copy of the checkpoint's generation config with these settings, stopping at any of `stop_ids`."""
        config = copy.deepcopy(base)
        config.max_length = None
        config.max_new_tokens = max_new_tokens
        config.eos_token_id, config.pad_token_id = stop_ids, pad_id
        for name in ("min_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "num_beams", "length_penalty"):
            if (value := getattr(self, name)) is not None:
                setattr(config, name, value)
        if self.is_sampling is not None:
            config.do_sample = self.is_sampling
        if not config.do_sample:  # transformers warns of numbers that have no effect
            config.temperature = config.top_p = config.top_k = None
        return config


ENGINE_SETTINGS = {
    *("max_new_tokens", "min_new_tokens", "do_sample", "temperature", "top_k", "top_p", "repetition_penalty"),
    *("eos_token_id", "pad_token_id", "bos_token_id", "max_length", "use_cache", "num_beams", "length_penalty", "early_stopping"),
    *("chat_format", "max_window_size", "transformers_version"),
}
DEFAULT_TOP_K = 50  # what transformers' generate takes where a config says nothing


def to_engine(config: GenerationConfig, seed: int | None, logprobs: int | None = None) -> SamplingParams | None:
    """Return a generation config as the engine's settings; None if it asks for something that only transformers' `generate` does."""
    asked = {name for name, value in config.to_diff_dict().items() if value and not name.startswith("_")}  # the others are notes of transformers
    if config.num_beams not in (None, 1) or not asked <= ENGINE_SETTINGS:
        return None
    drawn: dict[str, Any] = {}
    if config.do_sample:
        top_k, top_p = DEFAULT_TOP_K if config.top_k is None else config.top_k, 1.0 if config.top_p is None else config.top_p
        drawn = {"temperature": float(1.0 if config.temperature is None else config.temperature), "top_k": top_k, "top_p": float(top_p)}
    return SamplingParams(
        max_new_tokens=config.max_new_tokens,
        min_new_tokens=config.min_new_tokens or 0,
        repetition_penalty=float(config.repetition_penalty or 1.0),
        stop_ids=frozenset(config.eos_token_id),
        seed=seed,
        logprobs=logprobs,
        **drawn,
    )


def _check(name: str, value: Any, low: float, high: float, *, whole: bool = False) -> None:
    """Raise ConfigError unless the value is None or a finite number from `low` to `high`."""
    if value is None:
        return
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value) or not low <= value <= high:
        raise ConfigError(f"{name}={value!r} must be a {'whole number' if whole else 'number'} from {low} to {high}.")
