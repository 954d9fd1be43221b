"""What four bits cost the bundled checkpoint: exam, held-out loss and size, quantized by GPTQ and by rounding to the nearest.

    python -m benchmarks.int4_nano --scenes 500 --out benchmarks/results
    python -m benchmarks.int4_nano --scenes 500 --variants gptq --dtype bfloat16 --out benchmarks/results/int4_nano_bf16_cpu.json

Calibration draws scenes below the seeds of the exam; the exam draws those by which recipes are chosen (--exam takes the real one's), the held-out
loss others of the same. A task counts both languages together. `lost` is in points; `error` is its standard error, from the questions that only one
of the two models answers rightly. The bar: GPTQ loses at most 2 points in each task, its loss is below that of rounding, and its quantized layers
take at most 0.4 of their size in 16 bits. The last line of stdout is the JSON document.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import finish
from qwen_vl.api import QwenVL
from qwen_vl.api.loading import BUNDLED, load_tokenizer
from qwen_vl.evaluation.picturebook import Question, answer_batch, mark, write_exam
from qwen_vl.picturebook.catalog import DEVELOPMENT_SEED_START, EVALUATION_SEED_START
from qwen_vl.picturebook.drawing import draw_scene
from qwen_vl.picturebook.export import CONVERSATIONS, write_book
from qwen_vl.picturebook.scene import Scene
from qwen_vl.processing.images import to_pixel_values
from qwen_vl.quantization.gptq import GPTQSettings
from qwen_vl.quantization.quantize import quantize
from qwen_vl.training.conversations.calibration import CalibrationConversations

CALIBRATION_SEED = 500_000_000  # far from those of nano's own training
HELD_OUT = 100_000  # from the first scene of the exam to the first of the held-out loss
MAX_POINTS, MAX_SHARE = 2.0, 0.4
MAX_LENGTH = 2048
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gptq": ("gptq", {}),
    "rtn": ("rtn", {}),
    "gptq-act-order": ("gptq", {"desc_act": True}),
    "gptq-64": ("gptq", {"group_size": 64}),
    "gptq-32": ("gptq", {"group_size": 32}),
    "rtn-32": ("rtn", {"group_size": 32}),
}


def make(variant: str, model: Path, data: Path, num_samples: int, out: Path) -> dict[str, Any]:
    """Quantize the model and return what is said about it."""
    method, settings = VARIANTS[variant]
    chosen = None
    if method == "gptq":
        chosen = CalibrationConversations(model, load_tokenizer(model), data, num_samples=num_samples, max_length=MAX_LENGTH, seed=0)
    summary = quantize(model, out, chosen, GPTQSettings(**settings), method=method).to_dict()
    del summary["out"]  # a temporary folder
    errors = summary.pop("errors").values()
    mean = round(sum(errors) / len(errors), 5) if errors else None
    return {**summary, "mean_layer_error": mean, "layer_share": round(summary["layer_bytes"] / summary["dense_layer_bytes"], 3)}


def load(folder: Path, dtype: str = "float32") -> QwenVL:
    """Load a checkpoint on the CPU: in float32 Int4 layers compute exactly what is stored, bfloat16 is what Int4 folders run in."""
    return QwenVL.load(folder, device="cpu", dtype=dtype)


class HeldOut:
    """Right answers about scenes that are in no exam: how likely a model thinks their tokens, and the token that ends each."""

    def __init__(self, num_scenes: int, first_seed: int) -> None:
        self.scenes, questions = write_exam(num_scenes, first_seed)
        self.questions = sorted(questions, key=lambda question: (len(question.scenes), len(question.answer)))

    def predict(self, vl: QwenVL, batch_size: int = 32) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities at all tokens of the answers, [num_tokens, vocab_size], and the tokens."""
        features = encode(vl, self.scenes)
        parts = [predict_answers(vl, self.questions[start : start + batch_size], features) for start in range(0, len(self.questions), batch_size)]
        return torch.cat([part for part, _ in parts]), torch.cat([tokens for _, tokens in parts])

    def compare(self, dense: tuple[Tensor, Tensor], found: tuple[Tensor, Tensor]) -> dict[str, float]:
        """Return the mean cross-entropy, in nats; by how much it is above the dense model's, with its standard error; the divergence from that model.

        The error takes tokens for independent. The divergence is the mean of KL(dense, found).
        """
        before, after = losses(dense), losses(found)
        added, error = mean_and_error(after - before)
        divergence = float((dense[0].exp() * (dense[0] - found[0])).sum(1).mean())
        figures = {"held_out_loss": float(after.mean()), "added_loss": added, "added_error": error, "divergence": divergence}
        return {name: round(value, 5) for name, value in figures.items()}


def losses(found: tuple[Tensor, Tensor]) -> Tensor:
    """Return the cross-entropy of each token, in nats."""
    log_probabilities, tokens = found
    return -log_probabilities.gather(1, tokens[:, None])[:, 0]


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Return the mean and its standard error, of values that are taken for independent."""
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


@torch.no_grad()
def predict_answers(vl: QwenVL, questions: Sequence[Question], features: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probabilities and tokens of the right answers to some questions, asked together."""
    rows = []
    for question in questions:
        spans = "\n".join(f"Picture {number}: <img></img>" for number, _ in enumerate(question.scenes, start=1))
        prompt = vl.tokenizer.build_chat_context(f"{spans}\n{question.text}")[1]
        rows.append((prompt, [*vl.tokenizer.encode(question.answer), vl.tokenizer.im_end_id]))
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    input_ids = torch.full((len(rows), longest), vl.tokenizer.eod_id)
    is_answer = torch.zeros_like(input_ids, dtype=torch.bool)
    for place, (prompt, answer) in enumerate(rows):  # padded on the right, where causal attention does not look
        input_ids[place, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        is_answer[place, len(prompt) : len(prompt) + len(answer)] = True
    pictures = features[torch.tensor([scene for question in questions for scene in question.scenes])]
    logits = vl.model(input_ids, image_features=pictures, use_cache=False).logits
    return logits[:, :-1][is_answer[:, 1:]].float().log_softmax(-1), input_ids[is_answer]


@torch.no_grad()
def encode(vl: QwenVL, scenes: Sequence[Scene], batch_size: int = 64) -> Tensor:
    """Return the features of scenes, [num_scenes, image_slots, dim]."""
    size = vl.model.transformer.visual.image_size
    chunks = [scenes[start : start + batch_size] for start in range(0, len(scenes), batch_size)]
    return torch.cat([vl.model.get_image_features(to_pixel_values([draw_scene(scene) for scene in chunk], size)) for chunk in chunks])


class Exam:
    """The picture book's exam, question by question."""

    def __init__(self, num_scenes: int, first_seed: int) -> None:
        self.scenes, questions = write_exam(num_scenes, first_seed)
        self.questions = sorted(questions, key=lambda question: (question.task, len(question.scenes)))

    def take(self, vl: QwenVL, batch_size: int = 64) -> list[bool]:
        """Return which questions a model answers rightly, greedily."""
        features, answers = encode(vl, self.scenes), []
        for start in range(0, len(self.questions), batch_size):
            answers += answer_batch(vl, self.questions[start : start + batch_size], features)
        return [mark(question, answer)[0] for question, answer in zip(self.questions, answers, strict=True)]

    def compare(self, before: Sequence[bool], after: Sequence[bool]) -> dict[str, dict[str, float]]:
        """Return by task, and for all questions, the scores in percent and what was lost."""
        found = {}
        for task in ["all", *sorted({question.task for question in self.questions})]:
            pairs = [(one, other) for question, one, other in zip(self.questions, before, after, strict=True) if task in ("all", question.task)]
            num_right = [sum(one for one, _ in pairs), sum(other for _, other in pairs)]
            num_changed = sum(one != other for one, other in pairs)
            values = {"before": num_right[0], "after": num_right[1], "lost": num_right[0] - num_right[1], "error": num_changed**0.5}
            found[task] = {name: round(100 * value / len(pairs), 2) for name, value in values.items()} | {"asked": len(pairs)}
        return found


def check(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return which bars GPTQ reaches; {} if it was not measured."""
    by_name = {each["variant"]: each for each in results}
    if "gptq" not in by_name:
        return {}
    gptq = by_name["gptq"]
    beyond = [task for task, row in gptq["tasks"].items() if row["lost"] > MAX_POINTS]
    verdict = {"points": not beyond, "beyond_points": beyond, "size": gptq["layer_share"] <= MAX_SHARE}
    if "below_rounding" in gptq:
        verdict["better_than_rounding"] = gptq["below_rounding"] > 0
        verdict["beyond_chance"] = gptq["below_rounding"] > 2 * gptq["below_rounding_error"]
    return verdict


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUNDLED)
    parser.add_argument("--variants", nargs="+", default=["gptq", "rtn"], choices=list(VARIANTS))
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the quantized models; the other one is in float32")
    parser.add_argument("--samples", type=int, default=128, help="of the calibration")
    parser.add_argument("--scenes", type=int, default=500, help="of the exam")
    parser.add_argument("--held-out", type=int, default=100, help="scenes of the held-out loss")
    parser.add_argument("--exam", action="store_true", help="take the scenes of the exam, not those by which recipes are chosen")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    first_seed = EVALUATION_SEED_START if given.exam else DEVELOPMENT_SEED_START
    exam, held_out = Exam(given.scenes, first_seed), HeldOut(given.held_out, first_seed + HELD_OUT)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_book(CALIBRATION_SEED, max(1, given.samples // 4), folder / "calibration", conversations=True)
        dense = load(given.model)
        before, expected = exam.take(dense), held_out.predict(dense)
        token_losses: dict[str, Tensor] = {}
        results: list[dict[str, Any]] = [{"variant": "dense", "held_out_loss": held_out.compare(expected, expected)["held_out_loss"]}]
        print(f"dense: loss {results[0]['held_out_loss']}", flush=True)
        for variant in given.variants:
            made = make(variant, given.model, folder / "calibration" / CONVERSATIONS, given.samples, folder / variant)
            vl = load(folder / variant, given.dtype)
            predicted = held_out.predict(vl)
            token_losses[variant] = losses(predicted)
            figures, tasks = held_out.compare(expected, predicted), exam.compare(before, exam.take(vl))
            results.append({"variant": variant, **made, **figures, "tasks": tasks})
            shown = ", ".join(f"{task} {row['before']} -> {row['after']} (+-{row['error']})" for task, row in tasks.items())
            print(f"{variant}: {figures}, layers at {made['layer_share']} of 16 bits; {shown}", flush=True)
    if {"gptq", "rtn"} <= set(token_losses):
        below, error = mean_and_error(token_losses["rtn"] - token_losses["gptq"])
        gptq = next(each for each in results if each["variant"] == "gptq")
        gptq |= {"below_rounding": round(below, 5), "below_rounding_error": round(error, 5)}
        print(f"GPTQ's loss is below that of rounding by {below:.5f} +- {error:.5f}", flush=True)
    config = {
        "model": given.model.name,
        "dtype": given.dtype,
        "scenes": given.scenes,
        "held_out": given.held_out,
        "first_seed": first_seed,
        **asdict(GPTQSettings()),
    }
    finish("int4_nano", torch.device("cpu"), config, 1, results, given.out, bar=check(results))


if __name__ == "__main__":
    main()
