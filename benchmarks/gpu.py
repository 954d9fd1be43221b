"""How fast is the engine on one GPU? The full shape with random weights made on the device: G1 to G3, and the engine's part of G4.

    python -m benchmarks.gpu --out benchmarks/results              # under ten minutes on one H100
    python -m benchmarks.gpu --shape nano --device cpu             # a minute; shows that it runs

    G1, G2   tokens/s and peak memory to 2,048 and 8,192 tokens in all, bfloat16 and Int4: one picture as context, greedy; and once to 2,048 by
             the release's sampling. Speed counts vision tower and prefill, as the release's does; decoding alone stands beside it.
    G3       time to the first token of a picture and 256 tokens: everything new, the picture known, all but the end known
    G4       64 users with a question each about a picture that nobody has seen, 512 requests, 16 to 256 new tokens; and some one at a time

Device, copy bandwidth and matrix rate are measured in the same run. What would begin after the deadline is left out, and said.
"""

import argparse
import gc
import random
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import finish, summarize
from qwen_vl.engine import Engine, EngineSettings, Handle, Picture, Request, SamplingParams
from qwen_vl.errors import CapacityError
from qwen_vl.modeling.configuration import QWenConfig
from qwen_vl.modeling.model import QWenLMHeadModel
from qwen_vl.profiling.costs import INT4, INT4_INT8_HEAD, Costs, prefill_flops
from qwen_vl.profiling.device import DeviceFacts, measure_device, synchronize
from qwen_vl.profiling.report import check_memory, describe, is_released_shape
from qwen_vl.profiling.shapes import NAMES, read_shape
from qwen_vl.profiling.speed import Bench, context_tokens
from qwen_vl.profiling.weights import random_model
from qwen_vl.quantization.head import quantize_head
from qwen_vl.surroundings import peak_memory_bytes, reset_peak_memory

# (tokens/s, GB) to so many tokens; milliseconds; requests/s, tokens/s, times one at a time
DECODE_GOALS = {"G1": {2048: (150.0, 21.5), 8192: (130.0, 25.0)}, "G2": {2048: (300.0, 11.5), 8192: (230.0, 15.0)}}
FIRST_TOKEN_GOALS = {"fresh": 25.0, "picture cached": 15.0, "prefix cached": 8.0}
USER_GOALS = {"requests_per_s": 18.0, "tokens_per_s": 2300.0, "times_one_at_a_time": 20.0}
WARM_UP_GOAL = 90.0  # seconds
PARTS = ("G1", "G2", "G3", "G4")
MIB = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How much is measured."""

    totals: tuple[int, ...]  # tokens of context and answer; of the answer in SMALL
    num_words: int  # beside the picture, in G3
    repeats: int  # of G3
    users: int
    requests: int
    alone: int  # of the requests, one at a time
    user_words: int
    new_tokens: tuple[int, int]  # fewest and most, in G4


FULL = Sizes(totals=(2048, 8192), num_words=256, repeats=20, users=64, requests=512, alone=12, user_words=64, new_tokens=(16, 256))
SMALL = Sizes(totals=(26, 58), num_words=16, repeats=3, users=4, requests=8, alone=3, user_words=8, new_tokens=(4, 12))


class Prompts:
    """Pictures and words by chance, each unlike all others."""

    def __init__(self, model: QWenLMHeadModel) -> None:
        self.model, self.dice, self.config = model, random.Random(0), model.config
        visual = dict(self.config.visual or {})
        self.size, start = int(visual["image_size"]), self.config.image_start_id
        self.span = [start, *[start + 2] * self.config.image_slots, start + 1]
        self.num_pictures = 0

    def words(self, count: int) -> list[int]:
        return [self.dice.randrange(self.config.image_start_id) for _ in range(count)]

    def pixels(self, count: int) -> torch.Tensor:
        """Return new pictures [count, 3, size, size], on the device."""
        return torch.randn(count, 3, self.size, self.size, dtype=self.model.dtype, device=self.model.device)

    @torch.no_grad()
    def see(self, pixel_values: torch.Tensor) -> list[Picture]:
        """Return pictures with their features."""
        features = self.model.get_image_features(pixel_values)
        self.num_pictures += len(features)
        return [Picture(key=str(self.num_pictures - number), features=each) for number, each in enumerate(features)]


def measure_decode(goal: str, model: QWenLMHeadModel, precision: str, sizes: Sizes, facts: DeviceFacts, deadline: float) -> Iterator[dict[str, Any]]:
    """Yield a row for each length, and one by the release's sampling."""
    config, costs, bench = model.config, Costs.of(model.config, precision), Bench(model, max(sizes.totals))
    warm_up = round(bench.warm_up(max(sizes.totals)), 1)
    encoded = bench.encode(sizes.totals[0])
    for total, is_greedy in (*((total, True) for total in sizes.totals), (sizes.totals[0], False)):
        row: dict[str, Any] = {"goal_name": goal, "precision": precision, "total_tokens": total, "sampling": "greedy" if is_greedy else "released"}
        if time.monotonic() > deadline:
            yield row | {"left_out": True}
            continue
        row |= describe(config, costs, total, encoded, bench.generate(total, is_greedy=is_greedy), facts)
        speed, memory = DECODE_GOALS[goal].get(total, (None, None)) if is_greedy else (None, None)
        reached = None
        if speed is not None and memory is not None:
            reached = row["tokens_per_s"] >= speed and (row["generating_peak_bytes"] or 0) <= memory * 1e9 and warm_up <= WARM_UP_GOAL
        yield row | {"goal_tokens_per_s": speed, "goal_gb": memory, "warm_up_seconds": warm_up, "goal_warm_up": WARM_UP_GOAL, "reached": reached}
    bench.close()


def measure_int4(model: QWenLMHeadModel, sizes: Sizes, facts: DeviceFacts, deadline: float) -> Iterator[dict[str, Any]]:
    """Yield the rows of an Int4 model, and the same with its output head in 8 bits, where the device multiplies with such."""
    yield from measure_decode("G2", model, INT4, sizes, facts, deadline)
    if quantize_head(model):
        yield from measure_decode("G2", model, INT4_INT8_HEAD, sizes, facts, deadline)


def measure_first_token(model: QWenLMHeadModel, sizes: Sizes, facts: DeviceFacts) -> Iterator[dict[str, Any]]:
    """Yield a row for each of the three ways to the first token."""
    prompts, device = Prompts(model), model.device
    length = len(prompts.span) + sizes.num_words
    per_position = Costs.of(model.config, str(model.dtype).removeprefix("torch.")).kv_bytes
    kv_bytes = per_position * (length + 128)
    settings = EngineSettings(max_batch=1, chunk_tokens=length, kv_bytes=kv_bytes, prefix_bytes=0, feature_bytes=0)
    bare, keeping = Engine(model, settings), Engine(model, replace(settings, prefix_bytes=4 * per_position * length))

    def first(engine: Engine, ids: list[int], pixels: torch.Tensor, known: list[Picture] | None) -> tuple[float, int]:
        synchronize(device)
        begin = time.perf_counter()
        pictures = prompts.see(pixels) if known is None else known
        token = next(engine.submit(Request(input_ids=ids, sampling=SamplingParams(max_new_tokens=1), pictures=pictures)))
        synchronize(device)
        return time.perf_counter() - begin, token

    times: dict[str, list[float]] = {way: [] for way in FIRST_TOKEN_GOALS}
    num_different = 0
    for number in range(sizes.repeats + 1):  # the first is for warming up
        ids, pixels = [*prompts.span, *prompts.words(sizes.num_words)], prompts.pixels(1)
        known = prompts.see(pixels)
        first(keeping, ids, pixels, known)  # so that it knows them
        found = {
            "fresh": first(bare, ids, pixels, None),
            "picture cached": first(bare, ids, pixels, known),
            "prefix cached": first(keeping, ids, pixels, known),
        }
        if number:
            num_different += len({token for _, token in found.values()}) > 1
            for way, (seconds, _) in found.items():
                times[way].append(1e3 * seconds)
    flops = {"fresh": prefill_flops(model.config, length, 1), "picture cached": prefill_flops(model.config, length, 0)}
    for way, goal in FIRST_TOKEN_GOALS.items():
        values = summarize(times[way])
        share = flops[way] / (values["median"] / 1e3) / (facts.matrix_tflop_per_s * 1e12) if way in flops else None
        yield {
            **{"goal_name": "G3", "what": way, "unit": "ms", "prompt_tokens": length, "goal_ms": goal, **values},
            **{"share_of_matrix_rate": share and round(share, 3), "num_different_tokens": num_different},
            "reached": values["median"] <= goal,
        }
    bare.close()
    keeping.close()


class Users:
    """Users that ask, wait for their answers, and ask again."""

    def __init__(self, model: QWenLMHeadModel, sizes: Sizes) -> None:
        self.prompts, self.sizes = Prompts(model), sizes
        dice = random.Random(1)
        self.lengths = [dice.randint(*sizes.new_tokens) for _ in range(sizes.requests)]
        longest = len(self.prompts.span) + sizes.user_words + sizes.new_tokens[1]
        per_position = Costs.of(model.config, str(model.dtype).removeprefix("torch.")).kv_bytes
        kv_bytes = sizes.users * per_position * -(-longest // 128) * 128
        settings = EngineSettings(max_batch=sizes.users, chunk_tokens=longest, kv_bytes=kv_bytes, prefix_bytes=0, feature_bytes=0)
        self.engine, self.device = Engine(model, settings), model.device

    def ask(self, lengths: list[int]) -> list[Handle]:
        """Submit new questions about new pictures, which are encoded together."""
        pictures = self.prompts.see(self.prompts.pixels(len(lengths)))
        words = (self.prompts.words(self.sizes.user_words) for _ in lengths)
        return [
            self.engine.submit(Request(input_ids=[*self.prompts.span, *each], sampling=SamplingParams(max_new_tokens=length), pictures=[picture]))
            for each, length, picture in zip(words, lengths, pictures, strict=True)
        ]

    def run(self, lengths: list[int], num_users: int) -> dict[str, Any]:
        """Let so many users ask until all requests are answered."""
        waiting, flying = deque(lengths), dict[Handle, float]()
        firsts, num_tokens = list[float](), 0
        synchronize(self.device)
        begin = time.perf_counter()
        while waiting or flying:
            free = min(num_users - len(flying), len(waiting))
            if free:
                now = time.perf_counter()
                flying |= dict.fromkeys(self.ask([waiting.popleft() for _ in range(free)]), now)
            self.engine.step()
            for handle, since in list(flying.items()):
                new = len(handle.poll())
                if new and since:
                    firsts.append(time.perf_counter() - since)
                    flying[handle] = 0.0
                num_tokens += new
                if handle.finish_reason is not None:
                    del flying[handle]
        synchronize(self.device)
        seconds = time.perf_counter() - begin
        if num_tokens != sum(lengths):
            raise SystemExit(f"{num_tokens} tokens came instead of {sum(lengths)}")
        return {
            "requests": len(lengths),
            "users": num_users,
            "seconds": round(seconds, 2),
            "requests_per_s": round(len(lengths) / seconds, 3),
            "tokens_per_s": round(num_tokens / seconds, 1),
            "first_token_ms": summarize([1e3 * each for each in firsts]) | {"values": []},
        }


def measure_users(model: QWenLMHeadModel, sizes: Sizes, facts: DeviceFacts) -> Iterator[dict[str, Any]]:
    """Yield one row for all users together, with some of the same requests one at a time beside it."""
    users = Users(model, sizes)
    users.run(users.lengths[: 2 * sizes.users], sizes.users)  # for warming up: every size of a batch
    users.run(users.lengths[:1], 1)
    reset_peak_memory(users.device)
    alone = users.run(users.lengths[: sizes.alone], 1)
    together = users.run(users.lengths, sizes.users)
    prompt = len(users.prompts.span) + sizes.user_words
    flops = sizes.requests * prefill_flops(model.config, prompt, 1) + sum(prefill_flops(model.config, length, 0) for length in users.lengths)
    row = {"goal_name": "G4", **together, "one_at_a_time": alone, "peak_bytes": peak_memory_bytes(users.device)}
    row["times_one_at_a_time"] = round(together["tokens_per_s"] / alone["tokens_per_s"], 2)
    row["share_of_matrix_rate"] = round(flops / together["seconds"] / (facts.matrix_tflop_per_s * 1e12), 3)
    yield row | {"goals": USER_GOALS, "reached": all(row[name] >= goal for name, goal in USER_GOALS.items())}
    users.engine.close()


def measure(
    parts: list[str], config: QWenConfig, sizes: Sizes, facts: DeviceFacts, device: torch.device, deadline: float
) -> Iterator[dict[str, Any]]:
    """Yield all rows, one model in memory at a time."""
    dense = "bfloat16" if device.type == "cuda" else "float32"
    for precision, wanted in ((dense, ("G1", "G3", "G4")), (INT4, ("G2",))):
        chosen = [part for part in wanted if part in parts]
        if not chosen:
            continue
        model = random_model(config, precision, device)
        works = {
            "G1": lambda model=model: measure_decode("G1", model, dense, sizes, facts, deadline),
            "G2": lambda model=model: measure_int4(model, sizes, facts, deadline),
            "G3": lambda model=model: measure_first_token(model, sizes, facts),
            "G4": lambda model=model: measure_users(model, sizes, facts),
        }
        for part in chosen:
            if time.monotonic() > deadline:
                yield {"goal_name": part, "left_out": True}
                continue
            try:
                yield from works[part]()
            except (torch.OutOfMemoryError, CapacityError) as error:
                yield {"goal_name": part, "out_of_memory": str(error).splitlines()[0]}
        del model, works
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="full", help=f"{', '.join(NAMES)}, or a checkpoint's folder with a config.json")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=8.0, help="no measurement begins after so many")
    parser.add_argument("--out", type=Path, help="file or folder of the JSON document")
    given = parser.parse_args(arguments)
    device, config = torch.device(given.device), read_shape(given.shape)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device here. Try it with: --shape nano --device cpu")
    if not config.visual:
        raise SystemExit(f"{given.shape} is a text-only model; these measurements are about pictures")
    deadline = time.monotonic() + 60 * given.minutes
    sizes = FULL if device.type == "cuda" else replace(SMALL, totals=tuple(context_tokens(config) + new for new in SMALL.totals))
    dense = {"bfloat16"} if set(given.parts) - {"G2"} else set()
    wanted = dense | ({INT4} if "G2" in given.parts else set())
    try:
        check_memory(config, given.shape, {precision: Costs.of(config, precision) for precision in wanted}, sizes.totals, device)
    except CapacityError as error:
        raise SystemExit(str(error)) from None
    facts = measure_device(device)
    print(f"{facts.name}: copies {facts.copy_gb_per_s} GB/s, multiplies {facts.matrix_tflop_per_s} TFLOP/s", file=sys.stderr)
    has_goals, rows = device.type == "cuda" and is_released_shape(config), []
    for row in measure(given.parts, config, sizes, facts, device, deadline):
        rows.append(row if has_goals else row | {"reached": None})
        print(" ".join(f"{name}={value}" for name, value in rows[-1].items() if name != "values"), file=sys.stderr, flush=True)
    shape = {"shape": given.shape, "num_parameters": Costs.of(config, "bfloat16").num_parameters, "torch": torch.__version__}
    finish("gpu", device, shape, 1, rows, given.out, measured_device=facts.to_dict())


if __name__ == "__main__":
    main()
