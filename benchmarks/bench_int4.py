"""Is Int4 fast on a CPU, and what does that cost in accuracy? Decoding beside the same model in float32, and beside llama.cpp (C3).

    OMP_NUM_THREADS=2 python -m benchmarks.bench_int4 --shape C --out benchmarks/results

    int4          greedy decoding by the engine, in bfloat16, with PyTorch's int4 kernel
    float32       the model that was rounded to those codes, by the same engine
    int4-head8    int4 with its output head in 8 bits
    llama.cpp     Q4_0 of the same sizes, its head in Q8_0, if llama-cpp-python and gguf can be imported: neither is installed with this project
    llama.cpp, head in 16 bits      the same with the head as large as int4's, which is half of what int4 reads for a token

Weights are random, rounded to the nearest codes; the clock stands still while the prompt is read. Before that the logits of every position of a text
are compared with those of the same codes in float32, which are exact: their distance as a share of their size, the largest difference as a share of
the largest logit, and how often the most likely token is the same; beside it what bfloat16 costs without the kernel. Weights that are random leave
the first and the second token closer together than a trained model's are: `int4_nano` has the figures of one that is trained.
"""

import argparse
import copy
import dataclasses
import importlib
import importlib.util
import random
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.bench_decode import SHAPES, Watch, make_model
from benchmarks.measure import Works, comparisons, finish, measure_rounds
from qwen_vl.engine import Engine, EngineSettings, Request, SamplingParams
from qwen_vl.modeling.model import QWenLMHeadModel
from qwen_vl.quantization.head import quantize_head
from qwen_vl.quantization.linear import Int4Linear
from qwen_vl.quantization.loading import round_layers

GOALS: dict[str, float | None] = {"float32": 2.0, "int4-head8": None, "llama.cpp": 0.8, "llama.cpp, head in 16 bits": None}
HEADS = {"llama.cpp": "Q8_0", "llama.cpp, head in 16 bits": "F16"}  # as its own tool has it at least, and as this project does
NUM_PROMPT, NUM_COMPARED = 64, 64  # tokens of the prompt, and of the text whose logits are compared
MIB = 2**20


def share(model: QWenLMHeadModel) -> QWenLMHeadModel:
    """Return a copy of a model whose tensors are the same: replacing or casting those of one leaves the other's."""
    own = {id(tensor): nn.Parameter(tensor.detach(), requires_grad=False) for tensor in model.parameters()}
    return copy.deepcopy(model, own | {id(tensor): tensor.detach() for tensor in model.buffers()})


def make_models(shape: str, group_size: int) -> dict[str, QWenLMHeadModel]:
    """Return the model in float32, its Int4 relative as the exact reference, the one that is timed, and that with an 8-bit head."""
    dense = make_model(shape).eval().requires_grad_(False)
    exact = share(dense)
    round_layers(exact, group_size)
    quick = share(exact)
    quick.bfloat16()
    with_head = share(quick)
    if not all(layer.kernel for layer in int4_layers(quick)) or not quantize_head(with_head):
        raise SystemExit("no timing: PyTorch has no int4 and int8 kernels for this CPU")
    return {"float32": dense, "exact": exact, "int4": quick, "int4-head8": with_head}


def int4_layers(model: nn.Module) -> list[Int4Linear]:
    """Return the packed layers."""
    return [layer for layer in model.modules() if isinstance(layer, Int4Linear)]


def without_kernel(model: QWenLMHeadModel) -> QWenLMHeadModel:
    """Return the model with every product made of unpacked weights."""
    plain = share(model)
    for layer in int4_layers(plain):
        layer.kernel = dataclasses.replace(layer.kernel, max_rows=0)  # type: ignore[type-var]
    return plain


@torch.inference_mode()
def errors(models: dict[str, QWenLMHeadModel], ids: list[int]) -> dict[str, dict[str, float]]:
    """Return how far the logits of a text are from the exact ones."""

    def logits_of(model: QWenLMHeadModel) -> Tensor:
        logits: Tensor = model(torch.tensor([ids[:NUM_COMPARED]]), use_cache=False).logits[0].float()
        return logits

    expected = logits_of(models["exact"])
    others = {"int4": models["int4"], "int4-head8": models["int4-head8"], "int4, kernel left out": without_kernel(models["int4"])}
    found = {}
    for name, model in others.items():
        logits = logits_of(model)
        found[name] = {
            "relative": round(float((logits - expected).norm() / expected.norm()), 5),
            "largest": round(float((logits - expected).abs().max() / expected.abs().max()), 5),
            "same_token": round(float((logits.argmax(-1) == expected.argmax(-1)).float().mean()), 4),
        }
    return found


def decode(engine: Engine, watch: Watch, ids: list[int], num_tokens: int) -> list[int]:
    """Write tokens; the clock runs from the first one on."""
    handle = engine.submit(Request(input_ids=ids, sampling=SamplingParams(max_new_tokens=num_tokens)))
    with watch.stopped():
        first = next(handle)
    return [first, *handle]


def count_same(tokens: list[int], others: list[int]) -> int:
    """Return how many tokens two answers begin with in common."""
    pairs = zip(tokens, others, strict=True)
    return next((number for number, (one, other) in enumerate(pairs) if one != other), len(tokens))


class LlamaCpp:
    """llama.cpp with a Qwen2-shaped model of the same sizes in Q4_0; its attention and MLP are the same up to names.

    Args: head: how its output head is stored, by GGML's name.
    """

    def __init__(self, model: QWenLMHeadModel, folder: Path, head: str, num_threads: int) -> None:
        llama_cpp: Any = importlib.import_module("llama_cpp")
        path = folder / f"{head}.gguf"
        write_gguf(model, path, head)
        self.model = llama_cpp.Llama(str(path), n_ctx=512, n_threads=num_threads, n_threads_batch=num_threads, use_mmap=False, verbose=False)

    def decode(self, watch: Watch, ids: list[int], num_tokens: int) -> None:
        with watch.stopped():
            self.model.reset()
            self.model.eval(ids)
        for _ in range(num_tokens - 1):
            self.model.eval([int(self.model.sample(temp=0.0))])


def write_gguf(model: QWenLMHeadModel, path: Path, head: str) -> None:
    """Write the language model as llama.cpp's qwen2: linear layers and embedding in Q4_0, the head as it is told."""
    gguf: Any = importlib.import_module("gguf")
    config, stored = model.config, model.state_dict()
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.seq_length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.mlp_dim)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_attention_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(float(config.rotary_emb_base))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([f"t{number}" for number in range(config.vocab_size)])
    writer.add_token_types([1] * config.vocab_size)
    writer.add_token_merges(["t 0"])
    kinds = gguf.GGMLQuantizationType

    def add(name: str, tensor: Tensor, kind: Any = None) -> None:
        values = tensor.float().numpy()
        if kind is None:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    add("token_embd.weight", stored["transformer.wte.weight"], kinds.Q4_0)
    add("output_norm.weight", stored["transformer.ln_f.weight"])
    add("output.weight", stored["lm_head.weight"], kinds[head])
    for layer in range(config.num_hidden_layers):
        theirs, ours = f"blk.{layer}.", f"transformer.h.{layer}."
        for name, weight, bias in zip("qkv", *(stored[f"{ours}attn.c_attn.{kind}"].chunk(3) for kind in ("weight", "bias")), strict=True):
            add(f"{theirs}attn_{name}.weight", weight, kinds.Q4_0)
            add(f"{theirs}attn_{name}.bias", bias)
        for name, source in (("attn_output", "attn.c_proj"), ("ffn_up", "mlp.w1"), ("ffn_gate", "mlp.w2"), ("ffn_down", "mlp.c_proj")):
            add(f"{theirs}{name}.weight", stored[f"{ours}{source}.weight"], kinds.Q4_0)
        add(f"{theirs}attn_norm.weight", stored[f"{ours}ln_1.weight"])
        add(f"{theirs}ffn_norm.weight", stored[f"{ours}ln_2.weight"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="C")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=32, help="written after the prompt")
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    models, watch, dice = make_models(options.shape, options.group_size), Watch(), random.Random(0)
    ids = [dice.randrange(30_000) for _ in range(max(NUM_PROMPT, NUM_COMPARED))]
    found = errors(models, ids)
    print("\n".join(f"{name:24} {values}" for name, values in found.items()), file=sys.stderr)
    settings = EngineSettings(max_batch=1, kv_bytes=512 * MIB, prefix_bytes=0, feature_bytes=0)
    answers = {name: partial(decode, Engine(model, settings), watch, ids[:NUM_PROMPT], options.tokens) for name, model in models.items()}
    num_same = count_same(answers["int4"](), answers.pop("exact")())
    del models["exact"]
    works: Works = {name: answers[name] for name in ("int4", "float32", "int4-head8")}
    with tempfile.TemporaryDirectory() as folder:
        is_built = all(importlib.util.find_spec(name) for name in ("llama_cpp", "gguf"))
        for name, head in HEADS.items() if is_built else ():
            peer = LlamaCpp(models["float32"], Path(folder), head, torch.get_num_threads())
            works[name] = partial(peer.decode, watch, ids[:NUM_PROMPT], options.tokens)
        if not is_built:
            print("llama.cpp: not built", file=sys.stderr)
        rounds = list(measure_rounds(works, options.rounds, clock=watch.now))
    results = list(comparisons(rounds, {name: GOALS[name] for name in works if name != "int4"}))
    for row in results:
        print(f"{row['peer']:12} {row['median']:.2f} x the time of int4, goal {row['goal']}{'  VOID' if row['void'] else ''}", file=sys.stderr)
    speeds = {name: round((options.tokens - 1) / min(each[name] for each in rounds), 1) for name in works}
    config = {
        "shape": options.shape,
        "num_parameters": models["float32"].num_parameters(),
        "tokens": options.tokens,
        "group_size": options.group_size,
    }
    more = {"errors": found, "first_tokens_as_exact": num_same, "best_tokens_per_s": speeds, "llama_cpp": "built" if is_built else "not built"}
    finish("int4", torch.device("cpu"), config, options.rounds, results, options.out, **more)


if __name__ == "__main__":
    main()
