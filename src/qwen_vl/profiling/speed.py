"""One measured generation, by the release's method: one picture as context, everything else generated, the clock around all of it.

Source: FACTS 10.2 and 10.3. Seed 1024, batch 1, the released chat model's sampling, a forced length, speed = generated tokens / seconds, prefill and
vision tower included; memory is the highest during a run. "Encoding" reads a context of the whole length, a picture among it, and writes one token.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from qwen_vl.engine import Engine, EngineSettings, Picture, Request, SamplingParams, kv_cache, step
from qwen_vl.errors import ConfigError
from qwen_vl.modeling.configuration import QWenConfig
from qwen_vl.modeling.model import QWenLMHeadModel
from qwen_vl.surroundings import peak_memory_bytes, reset_peak_memory

from .device import synchronize

SEED = 1024
TEMPERATURE, TOP_P = 1.0, 0.3  # of the released chat model
TEXT_CONTEXT = 258  # tokens, where a model sees no pictures
FILLER_ID = 100
WARM_UP_TOKENS = 16
PUBLISHED_LENGTHS = {(2048, 258): 1792}  # the release wrote so many, and not 2048 - 258; at 8192 it wrote 8192 - 258

OnTokens = Callable[[int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """One answer and what it took."""

    num_prompt: int
    num_new: int
    seconds: float
    first_token_seconds: float
    peak_bytes: int | None

    @property
    def tokens_per_s(self) -> float:
        """Speed as the release states it: the prompt's time counts, its tokens do not."""
        return self.num_new / self.seconds

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Speed after the first token."""
        return (self.num_new - 1) / (self.seconds - self.first_token_seconds) if self.num_new > 1 else None


def context_tokens(config: QWenConfig) -> int:
    """Return the tokens of the context of a generation: one picture's span."""
    return config.image_slots + 2 if config.visual else TEXT_CONTEXT


def new_tokens(config: QWenConfig, total: int) -> int:
    """Return how many tokens are generated to come to a total. Raises: ConfigError if there is no room for any."""
    context = context_tokens(config)
    if total <= context:
        raise ConfigError(f"tokens={total} must be more than the context of {context} tokens")
    return PUBLISHED_LENGTHS.get((total, context), total - context)


def num_positions(config: QWenConfig, total: int) -> int:
    """Return the positions that keys and values are held for."""
    return -(-max(total, context_tokens(config) + new_tokens(config, total)) // kv_cache.LENGTH_STEP) * kv_cache.LENGTH_STEP


class Bench:
    """A model in an engine without caches, with room for one request of this many tokens."""

    def __init__(self, model: QWenLMHeadModel, longest: int) -> None:
        self.model, self.device = model, model.device
        config = model.config
        per_position = 2 * config.num_hidden_layers * config.num_attention_heads * config.kv_channels * model.dtype.itemsize
        kv_bytes = per_position * num_positions(config, longest)
        self.engine = Engine(model, EngineSettings(max_batch=1, kv_bytes=kv_bytes, prefix_bytes=0, feature_bytes=0))

    def close(self) -> None:
        self.engine.close()

    def generate(self, total: int, on_tokens: OnTokens | None = None, *, is_greedy: bool = False) -> Generation:
        """Write an answer that ends at the total. Raises: ConfigError for a total without room; CapacityError if memory does not suffice."""
        config = self.model.config
        return self._run(context_tokens(config), new_tokens(config, total), on_tokens, is_greedy=is_greedy)

    def encode(self, total: int) -> Generation:
        """Read a picture and filler text up to the total, and write one token."""
        return self._run(total - 1, 1, None)

    def warm_up(self, total: int) -> float:
        """Make what a run makes once, as buffers and compiled steps, and return the seconds that it took."""
        begin = time.perf_counter()
        context = context_tokens(self.model.config)
        self._run(context, new_tokens(self.model.config, total), None, stop_after=WARM_UP_TOKENS)
        if self.device.type == "cuda":  # where steps are recorded for each length, rounded up
            for length in range(context + step.LENGTH_STEP, total - 2, step.LENGTH_STEP):
                self._run(length, 2, None)
        return time.perf_counter() - begin

    def _run(
        self, num_prompt: int, num_new: int, on_tokens: OnTokens | None, *, is_greedy: bool = False, stop_after: int | None = None
    ) -> Generation:
        ids, pixel_values = self._prompt(num_prompt)
        temperature, top_p = (0.0, 1.0) if is_greedy else (TEMPERATURE, TOP_P)
        sampling = SamplingParams(max_new_tokens=num_new, seed=SEED, temperature=temperature, top_p=top_p)
        reset_peak_memory(self.device)
        synchronize(self.device)
        begin, first, count = time.perf_counter(), 0.0, 0
        pictures = []
        if pixel_values is not None:
            with torch.no_grad():
                pictures = [Picture(key="random", features=self.model.get_image_features(pixel_values)[0])]
        handle = self.engine.submit(Request(input_ids=ids, sampling=sampling, pictures=pictures))
        try:
            for count, _ in enumerate(handle, start=1):
                if count == 1:
                    first = time.perf_counter() - begin
                if on_tokens is not None:
                    on_tokens(1)
                if count == stop_after:
                    break
        finally:
            handle.cancel()
        synchronize(self.device)
        seconds = time.perf_counter() - begin
        return Generation(num_prompt=num_prompt, num_new=count, seconds=seconds, first_token_seconds=first, peak_bytes=peak_memory_bytes(self.device))

    def _prompt(self, length: int) -> tuple[list[int], torch.Tensor | None]:
        """Return the ids of a picture's span and filler, and the picture's pixels, as long as asked."""
        config = self.model.config
        if not config.visual:
            return [FILLER_ID] * length, None
        start, size = config.image_start_id, int(config.visual["image_size"])
        span = [start, *[start + 2] * config.image_slots, start + 1]
        generator = torch.Generator().manual_seed(SEED)
        pixel_values = torch.randn(1, 3, size, size, generator=generator).to(self.device, self.model.dtype)
        return [*span, *[FILLER_ID] * (length - len(span))], pixel_values
