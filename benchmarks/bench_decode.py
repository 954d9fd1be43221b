"""Is the engine fast? Decoding, a second question about a picture, the tenth turn of a chat, many requests at once: each beside its peer.

    OMP_NUM_THREADS=2 python -m benchmarks.bench_decode --shape A --what picture text question chat many --out benchmarks/results

    picture    greedy tokens after a picture prompt; peer: the released architecture as a plain loop (C1)
    text       the same without a picture; peer: transformers' generate on a Qwen2 with the same weights, and its compiled static cache (C2)
    question   a second question about the same picture; peers: caches off, and the vision tower left out (C5)
    chat       time to the first token of turn 10; peer: caches off (C6)
    many       requests with answers of 8 to 256 tokens, 8 in flight; peers: one at a time, and a static left-padded batch of 8 (C7)

With THP_MEM_ALLOC_ENABLE=1 in the environment torch asks Linux for pages of 2 MB, for both sides alike; the record says so.

Weights are random numbers of bfloat16 in float32, as those of a released checkpoint on a CPU. `--half` is the engine once it has written 150 tokens:
with exact 16-bit copies of them; without, as it is until then. In each the greedy tokens are compared first: if they differ there is no timing. Where
a clock stands still while a prompt is read, the figure is that of decoding alone.
"""

import argparse
import hashlib
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks.measure import CONTROL, finish, is_void, measure_rounds, ratios, summarize
from benchmarks.reference import PlainLoop
from qwen_vl.engine import Engine, EngineSettings, Handle, Picture, Request, SamplingParams
from qwen_vl.modeling.configuration import QWenConfig
from qwen_vl.modeling.model import QWenLMHeadModel

# hidden, layers, MLP width, vision width, vision layers, picture side in pixels, slots of a picture
SHAPES = {
    "tiny": (256, 2, 320, 48, 2, 42, 25),
    "A": (768, 12, 2048, 384, 12, 448, 256),
    "B": (1024, 24, 2752, 768, 12, 448, 256),
    "C": (2048, 16, 5504, 1024, 16, 448, 256),
}
VOCAB_SIZE, IMAGE_START = 32_000, 31_990
GOALS: dict[str, dict[str, Any]] = {
    "picture": {"plain loop": {"A": 2.0, "B": 1.5, "C": 1.15}},
    "text": {"transformers": 1.3, "transformers, compiled": 1.0},
    "question": {"caches off": {"A": 2.0}, "vision tower left out": 0.9},
    "chat": {"caches off": 5.0},
    "many": {"one at a time": 2.5, "static batch": 1.5},
}
MIB = 2**20
Works = dict[str, Callable[[], object]]


class Watch:
    """A clock that can stand still."""

    def __init__(self) -> None:
        self._left_out = 0.0

    def now(self) -> float:
        return time.perf_counter() - self._left_out

    @contextmanager
    def stopped(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._left_out += time.perf_counter() - begin


def sizes_of(shape: str) -> dict[str, Any]:
    """Return the fields of a config that a shape gives, those of `visual` among them."""
    hidden, layers, mlp, vision, vision_layers, side, slots = SHAPES[shape]
    visual = {"heads": max(vision // 64, 3), "image_size": side, "layers": vision_layers, "mlp_ratio": 4.0, "n_queries": slots, "output_dim": hidden}
    language = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": hidden // 128, "kv_channels": 128}
    return {**language, "intermediate_size": 2 * mlp, "visual": {**visual, "patch_size": 14, "width": vision}}


def make_model(shape: str, seq_length: int = 2048) -> QWenLMHeadModel:
    """Return a model of random weights: numbers of bfloat16, in float32."""
    sizes = sizes_of(shape)
    visual = {**sizes.pop("visual"), "image_start_id": IMAGE_START}
    config = QWenConfig(**sizes, vocab_size=VOCAB_SIZE, seq_length=seq_length, fp32=True, visual=visual)
    torch.manual_seed(0)
    return QWenLMHeadModel(config).to(torch.bfloat16).to(torch.float32).eval()


class Bench:
    """The model, prompts for it, and one method for each question; a method compares tokens and returns what is to be timed, ours first."""

    def __init__(self, shape: str, num_tokens: int, num_requests: int, is_compiled: bool, has_halves: bool = False) -> None:
        self.model, self.watch, self.dice = make_model(shape), Watch(), random.Random(0)
        self.half_bytes = 16 * 1024 * MIB if has_halves else 0
        self.num_tokens, self.num_requests, self.is_compiled = num_tokens, num_requests, is_compiled
        self.span = [IMAGE_START, *[IMAGE_START + 2] * self.model.config.image_slots, IMAGE_START + 1]
        size = self.model.transformer.visual.image_size
        self.pixel_values = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))

    def engine(self, has_caches: bool = True, max_batch: int = 8) -> Engine:
        cache_bytes = 512 * MIB if has_caches else 0
        bounds: dict[str, Any] = {
            "kv_bytes": 2048 * MIB,
            "prefix_bytes": cache_bytes,
            "feature_bytes": cache_bytes // 8,
            "half_bytes": self.half_bytes,
        }
        return Engine(self.model, EngineSettings(max_batch=max_batch, **bounds))

    def words(self, count: int) -> list[int]:
        return [self.dice.randrange(30_000) for _ in range(count)]

    def see(self, engine: Engine) -> Picture:
        """Return the picture with its features, from the engine's cache if it has one."""
        key = hashlib.sha256(self.pixel_values.numpy().tobytes()).hexdigest()
        return Picture(key=key, features=engine.features.fetch([key], [self.pixel_values[0]])[0])

    @staticmethod
    def ask(engine: Engine, ids: list[int], num_tokens: int, pictures: list[Picture]) -> Handle:
        return engine.submit(Request(input_ids=ids, sampling=SamplingParams(max_new_tokens=num_tokens), pictures=pictures))

    def decode(self, engine: Engine, ids: list[int], pictures: list[Picture]) -> list[int]:
        """Write tokens; the clock runs from the first one on."""
        handle = self.ask(engine, ids, self.num_tokens, pictures)
        with self.watch.stopped():
            first = next(handle)
        return [first, *handle]

    def picture(self) -> Works:
        engine, plain, ids = self.engine(), PlainLoop(self.model), [*self.words(10), *self.span, *self.words(30)]
        picture = self.see(engine)

        def loop() -> list[int]:
            tokens = plain.tokens(ids, picture.features[None])
            with self.watch.stopped():
                first = next(tokens)
            return [first, *(next(tokens) for _ in range(self.num_tokens - 1))]

        works: Works = {"ours": partial(self.decode, engine, ids, [picture]), "plain loop": loop}
        return check_equal(works)

    def text(self) -> Works:
        engine, peer, ids = self.engine(), as_qwen2(self.model), self.words(64)

        def generate(**settings: Any) -> list[int]:
            with self.watch.stopped():  # its prefill cannot be told from its decoding: a run for one token is taken off
                begin = time.perf_counter()
                self._generate(peer, [ids], [1], **settings)
                prefill = time.perf_counter() - begin
            tokens = self._generate(peer, [ids], [self.num_tokens], **settings)[0]
            self.watch._left_out += prefill
            return tokens

        works: Works = {"ours": partial(self.decode, engine, ids, []), "transformers": generate}
        if self.is_compiled:
            peer_step = torch.compile(peer.forward, dynamic=False)

            def generate_compiled() -> list[int]:
                kept, peer.forward = peer.forward, peer_step
                try:
                    return generate(cache_implementation="static", disable_compile=True)
                finally:
                    peer.forward = kept

            works["transformers, compiled"] = generate_compiled
        return check_equal(works)

    @staticmethod
    def _generate(model: Any, prompts: list[list[int]], num_tokens: list[int], **settings: Any) -> list[list[int]]:
        """Generate for a left-padded batch, as long as the longest answer."""
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        count = max(num_tokens)
        output = model.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=count, min_new_tokens=count, eos_token_id=None, pad_token_id=0, **settings
        )
        return [row[longest : longest + number].tolist() for row, number in zip(output, num_tokens, strict=True)]

    def question(self) -> Works:
        first, second = ([*self.words(10), *self.span, *self.words(30)] for _ in range(2))
        second[:10] = first[:10]
        ours, off, seen = self.engine(), self.engine(has_caches=False), self.engine(has_caches=False)
        known = self.see(ours)

        def with_caches() -> list[int]:
            with self.watch.stopped():
                ours.forget()
                list(self.ask(ours, first, 10, [self.see(ours)]))
            return list(self.ask(ours, second, 10, [self.see(ours)]))

        def without() -> list[int]:
            return list(self.ask(off, second, 10, [self.see(off)]))

        def without_tower() -> list[int]:
            return list(self.ask(seen, second, 10, [known]))

        return check_equal({"ours": with_caches, "caches off": without, "vision tower left out": without_tower})

    def chat(self) -> Works:
        """Turn 10 of a chat about a picture, each turn of 30 tokens with answers of 20."""
        questions = [[*(self.span if turn == 0 else []), *self.words(30)] for turn in range(10)]
        ours, off = self.engine(), self.engine(has_caches=False)

        def talk(engine: Engine) -> list[int]:
            """Hold the chat and return what was written; the clock runs for the first token of the last turn."""
            ids, written = list[int](), list[int]()
            with self.watch.stopped():
                for question in questions[:-1]:
                    ids += question
                    answer = list(self.ask(engine, ids, 20, [self.see(engine)]))
                    ids, written = ids + answer, written + answer
            handle = self.ask(engine, ids + questions[-1], 20, [self.see(engine)])
            first = next(handle)
            with self.watch.stopped():
                return [*written, first, *handle]

        def last_turn(engine: Engine) -> Callable[[], object]:
            before = [token for question in questions[:-1] for token in [*question, *self.words(20)]]

            def work() -> int:
                with self.watch.stopped():
                    engine.forget()
                    list(self.ask(engine, before, 1, [self.see(engine)]))
                handle = self.ask(engine, before + questions[-1], 20, [self.see(engine)])
                first = next(handle)
                with self.watch.stopped():
                    handle.cancel()
                return first

            return work

        kept = self.model.config.seq_length
        for seq_length in (len(self.span) + 200, kept):  # once with a change of NTK level in the middle
            self.model.config.seq_length = seq_length
            ours.forget()
            check_equal({"ours": partial(talk, ours), "caches off": partial(talk, off)})
        state = self.dice.getstate()
        works: Works = {}
        for name, engine in (("ours", ours), ("caches off", off)):
            self.dice.setstate(state)  # the same words
            works[name] = last_turn(engine)
        return works

    def many(self) -> Works:
        prompts = [self.words(self.dice.randint(16, 128)) for _ in range(self.num_requests)]
        lengths = [int(8 * 32 ** self.dice.random()) for _ in prompts]
        ours, alone = self.engine(has_caches=False), self.engine(has_caches=False, max_batch=1)

        def together(engine: Engine) -> list[list[int]]:
            return [list(handle) for handle in [self.ask(engine, *each, []) for each in zip(prompts, lengths, strict=True)]]

        def static() -> list[list[int]]:
            groups = range(0, len(prompts), 8)
            return [row for start in groups for row in self._generate(self.model, prompts[start : start + 8], lengths[start : start + 8])]

        return check_equal({"ours": partial(together, ours), "one at a time": partial(together, alone), "static batch": static})


def as_qwen2(model: QWenLMHeadModel) -> Qwen2ForCausalLM:
    """Return transformers' Qwen2 with the same weights: its attention and MLP are the same up to names."""
    config, stored = model.config, model.state_dict()
    peer = Qwen2ForCausalLM(
        Qwen2Config(
            **{"vocab_size": config.vocab_size, "hidden_size": config.hidden_size, "intermediate_size": config.mlp_dim},
            **{"num_hidden_layers": config.num_hidden_layers, "num_attention_heads": config.num_attention_heads},
            **{"num_key_value_heads": config.num_attention_heads, "max_position_embeddings": config.seq_length, "rms_norm_eps": 1e-6},
            **{"rope_theta": float(config.rotary_emb_base), "tie_word_embeddings": False},
        )
    )
    renamed = {"model.embed_tokens.weight": stored["transformer.wte.weight"], "model.norm.weight": stored["transformer.ln_f.weight"]}
    renamed["lm_head.weight"] = stored["lm_head.weight"]
    for layer in range(config.num_hidden_layers):
        theirs, ours = f"model.layers.{layer}.", f"transformer.h.{layer}."
        for kind in ("weight", "bias"):
            for name, part in zip("qkv", stored[f"{ours}attn.c_attn.{kind}"].chunk(3), strict=True):
                renamed[f"{theirs}self_attn.{name}_proj.{kind}"] = part
        for name, source in (
            *(("self_attn.o_proj", "attn.c_proj"), ("mlp.up_proj", "mlp.w1"), ("mlp.gate_proj", "mlp.w2"), ("mlp.down_proj", "mlp.c_proj")),
            *(("input_layernorm", "ln_1"), ("post_attention_layernorm", "ln_2")),
        ):
            renamed[f"{theirs}{name}.weight"] = stored[f"{ours}{source}.weight"]
    peer.load_state_dict(renamed)
    return peer.eval()


def check_equal(works: Works) -> Works:
    """Return the works if all give the same tokens; else there is nothing to time."""
    answers = {name: work() for name, work in works.items()}
    expected = answers["ours"]
    for name, answer in answers.items():
        if answer != expected:
            raise SystemExit(f"no timing: the greedy tokens of {name!r} differ from ours")
    return works


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="A")
    parser.add_argument("--what", nargs="+", choices=GOALS, default=list(GOALS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=128, help="written after a prompt, in picture and text")
    parser.add_argument("--requests", type=int, default=32, help="in many")
    parser.add_argument("--compiled", action="store_true", help="text: also beside a compiled static cache, which takes minutes to compile")
    parser.add_argument("--half", action="store_true", help="let the engine keep exact 16-bit copies of the weights")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    bench, results = Bench(options.shape, options.tokens, options.requests, options.compiled, options.half), []
    for what in options.what:
        rounds = list(measure_rounds(getattr(bench, what)(), options.rounds, clock=bench.watch.now))
        is_unsteady = is_void(ratios(rounds, CONTROL))
        for peer in [name for name in rounds[0] if name != "ours"]:
            goal = GOALS[what].get(peer)
            goal = goal.get(options.shape) if isinstance(goal, dict) else goal
            row = {"what": what, "peer": peer, "goal": goal, "void": is_unsteady, **summarize(ratios(rounds, peer))}
            results.append(row)
            print(f"{what:9} {peer:24} {row['median']:.2f} x, goal {goal}{'  VOID' if is_unsteady else ''}", file=sys.stderr)
    config = {"shape": options.shape, "num_parameters": bench.model.num_parameters(), "tokens": options.tokens, "requests": options.requests}
    config |= {"half": options.half, "large_pages": os.environ.get("THP_MEM_ALLOC_ENABLE") == "1"}
    finish("decode", torch.device("cpu"), config, options.rounds, results, options.out)


if __name__ == "__main__":
    main()
