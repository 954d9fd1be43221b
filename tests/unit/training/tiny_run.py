"""A training that needs only torch and takes milliseconds a step: what the trainer's tests train."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qwen_vl.training.metrics import read_metrics
from qwen_vl.training.optimizer import make_adamw
from qwen_vl.training.strategy.base import Batch, Parts, Strategy
from qwen_vl.training.strategy.single import SingleStrategy
from qwen_vl.training.trainer import Resume, Summary, Trainer, TrainerSettings

IGNORED = -100
BATCH, DIM, NUM_CLASSES = 8, 6, 3
SETTINGS = TrainerSettings(
    steps=8, learning_rate=0.05, min_learning_rate=0.001, warmup_steps=2, log_steps=1, save_steps=3, keep=2, seed=5, curve=False
)
EXACT = ("step", "loss", "lr", "grad_norm", "accuracy", "evaluation", "skipped", "reason", "ids")  # what a resumed run must repeat; times it cannot


class TinyLearner(nn.Module):
    """Classify vectors. A batch with `spoil` gives a loss or a gradient that is not finite; `scale` makes the loss larger."""

    def __init__(self, dropout: float = 0.2, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Linear(DIM, DIM).requires_grad_(False)
        self.layers = nn.Sequential(nn.Linear(DIM, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, NUM_CLASSES))
        self.scale = scale

    def forward(self, batch: Batch) -> tuple[Tensor, Parts]:
        logits = self.layers(self.frozen(batch["inputs"]))
        loss = self.scale * nn.functional.cross_entropy(logits.float(), batch["labels"], ignore_index=IGNORED, reduction="sum")
        if batch.get("spoil") == "loss":
            loss = loss * torch.nan
        if batch.get("spoil") == "gradient":
            loss = loss + (0 * logits.float()).sum().sqrt()  # 0, but the root's slope there is infinite
        return loss, {"accuracy": (logits.argmax(-1) == batch["labels"]).float().mean()}

    def weight(self, batch: Batch) -> float:
        return float((batch["labels"] != IGNORED).sum())


def batch_of(step: int) -> Batch:
    """Return the batch of a step; its samples have labels or not by chance."""
    draw = torch.Generator().manual_seed(step)
    inputs = torch.randn(BATCH, DIM, generator=draw)
    labels = (inputs.sum(-1) > 0).long() + (inputs[:, 0] > 1).long()
    labels[1:][torch.rand(BATCH - 1, generator=draw) < 0.3] = IGNORED
    return {"inputs": inputs, "labels": labels, "ids": [f"s{step}.{row}" for row in range(BATCH)]}


def stream(cuts: int = 1, spoil: dict[int, str] | None = None, steps: int = 1000) -> Callable[[int], Iterator[tuple[int, list[Batch]]]]:
    """Return the steps, each cut into so many micro-batches; steps in `spoil` are not finite."""

    def steps_from(first: int) -> Iterator[tuple[int, list[Batch]]]:
        for step in range(first, steps):
            whole = batch_of(step)
            rows = torch.arange(BATCH).tensor_split(cuts)
            parts: list[dict[str, Any]] = [
                {"inputs": whole["inputs"][row], "labels": whole["labels"][row], "ids": [whole["ids"][i] for i in row]} for row in rows
            ]
            if spoil and step in spoil:
                parts[-1]["spoil"] = spoil[step]
            yield step, parts

    return steps_from


def save_model(folder: Path, state: dict[str, Tensor]) -> None:
    save_file(state, folder / "model.safetensors")


def tiny_trainer(
    out: Path, *, learner: nn.Module | None = None, strategy: Strategy | None = None, fingerprint: dict[str, Any] | None = None, **changes: Any
) -> Trainer:
    """Return a trainer of a fresh tiny learner; `changes` are settings, or `report`, `evaluate` and `save_model`."""
    hooks = {name: changes.pop(name) for name in ("report", "evaluate") if name in changes}
    save = changes.pop("save_model", save_model)
    settings = replace(SETTINGS, **changes)
    return Trainer(
        learner or TinyLearner(),
        strategy or SingleStrategy(),
        settings,
        out=out,
        make_optimizers=lambda module: make_adamw(module, learning_rate=settings.learning_rate, weight_decay=0.1),
        fingerprint={"seed": settings.seed, "data": "tiny"} if fingerprint is None else fingerprint,
        save_model=save,
        **hooks,
    )


def run_tiny(
    out: Path,
    steps_from: Callable[[int], Iterable[tuple[int, list[Batch]]]] | None = None,
    resume: Resume = None,
    force: bool = False,
    **changes: Any,
) -> Summary:
    """Train a fresh tiny learner."""
    return tiny_trainer(out, **changes).run(steps_from or stream(), resume, force=force)


def exact_rows(out: Path) -> list[dict[str, Any]]:
    """Return what `metrics.jsonl` says that does not depend on the clock."""
    return [{name: row[name] for name in EXACT if name in row} for row in read_metrics(out / "metrics.jsonl")]


def state_of(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a checkpoint's training state."""
    files = sorted((folder / "trainer").glob("*.safetensors"))
    return {f"{file.name}: {name}": tensor for file in files for name, tensor in load_file(file).items()}


def differing(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    """Return the names of the tensors that are not bit-equal."""
    return [name for name in sorted(first.keys() | second.keys()) if name not in first or name not in second or not first[name].equal(second[name])]
