"""The training loop, for every learner and every strategy: steps, accumulation, clipping, logging, evaluation, saving, resuming.

    trainer = Trainer(learner, strategy, settings, out=out, make_optimizers=make, fingerprint={"seed": 1}, save_model=save)
    summary = trainer.run(stream, resume="latest")

A learner is any module whose forward takes a batch and gives (sum of losses, parts for the record), and which has `weight(batch)`: by how much
that sum is to be divided, for example its number of labels. The loss of a step is the sum over micro-batches and ranks over the total weight, so
it does not depend on how a step is cut. What a step sees is the caller's: `run` asks for the steps from a given one on.

A step is a pure function of the weights, the optimizer's state and its number: its data come from `steps_from`, its rate from the schedule, and
what is drawn by chance (dropout) from generators that are seeded anew for each step and rank. So a checkpoint of weights, optimizer and step
number is all that a run needs to go on as if it had never stopped.

The folder OUT holds `metrics.jsonl`, `loss.png` and the last checkpoints:

    OUT/checkpoint-<step>/  what save_model writes, loadable by itself
        trainer/            weights.safetensors, optimizer-<rank>.safetensors, state.json
        manifest.json       sha256 of every file
"""

import json
import logging
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qwen_vl import errors
from qwen_vl.errors import CheckpointError, ConfigError, DataError, DivergedError, QwenVLError
from qwen_vl.lock import hold_folder
from qwen_vl.surroundings import peak_memory_bytes
from qwen_vl.whole import writing

from . import checkpoint
from .curves import draw_curve
from .metrics import Meter, MetricsFile, Row
from .optimizer import set_learning_rate
from .schedule import SCHEDULES, Schedule, learning_rate
from .strategy.base import Batch, MakeOptimizers, Parts, Strategy

MAX_SKIPPED = 3  # steps in a row that are not finite; so many stop the run
STATE, WEIGHTS = "state.json", "weights.safetensors"

Resume = Literal["latest", "latest-valid"] | Path | None
StepsFrom = Callable[[int], Iterable[tuple[int, list[Batch]]]]  # first step -> (step, this rank's micro-batches) from there on
SaveModel = Callable[[Path, dict[str, Tensor]], None]  # (checkpoint folder, trained weights by name): write them in their final form
Evaluate = Callable[[Strategy], Mapping[str, float]]  # on every rank, with the learner in evaluation mode and without gradients
Report = Callable[[Row], None]
logger = logging.getLogger(__name__)


class Learner(Protocol):
    """What a run trains: any `nn.Module` with these."""

    def __call__(self, batch: Batch) -> tuple[Tensor, Parts]:
        """Return the sum of the losses, and means by name for the record."""

    def weight(self, batch: Batch) -> float:
        """Return by how much the sum is to be divided, for example the number of labels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerSettings:
    """How long, how fast, and what is kept."""

    steps: int
    learning_rate: float  # the highest
    min_learning_rate: float = 0.0
    warmup_steps: int = 0
    schedule: Schedule = "cosine"
    clip: float = 1.0  # largest norm of the gradient; 0 does not clip
    log_steps: int = 10
    save_steps: int = 0  # 0: only at the end (and by save_seconds)
    save_seconds: float | None = None  # save also when so much time has passed since the last
    keep: int = 2  # checkpoints
    eval_steps: int = 0  # 0: only at the end, if there is an evaluation
    seed: int = 0
    curve: bool = True  # draw loss.png at the end
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "learning_rate", "log_steps", "keep"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be positive")
        for name in ("min_learning_rate", "warmup_steps", "clip", "save_steps", "eval_steps", "seed"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}={getattr(self, name)} must not be negative")
        if self.schedule not in SCHEDULES:
            raise ConfigError(f"schedule={self.schedule!r} is none of {', '.join(SCHEDULES)}")
        if self.min_learning_rate > self.learning_rate:
            raise ConfigError(f"min_learning_rate={self.min_learning_rate} is more than learning_rate={self.learning_rate}")

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        return learning_rate(
            step,
            steps=self.steps,
            highest=self.learning_rate,
            lowest=self.min_learning_rate,
            warmup_steps=self.warmup_steps,
            schedule=self.schedule,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Remedies:
    """What to do about a run that cannot go on, in the words of the command that trains; these hold for any."""

    other_settings: str = "Give those of before, or name another folder."
    damaged: str = checkpoint.DELETE


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What a run came to."""

    steps: int  # done in all
    first_step: int  # at which this call began: 0, or that of the checkpoint
    loss: float  # mean of the last logged steps
    skipped: int  # steps whose loss or gradient was not finite, over the whole run
    seconds: float  # of this call
    peak_memory_bytes: int  # 0 where the system does not tell
    checkpoint: Path  # the last
    evaluation: dict[str, float] = field(default_factory=dict)  # the last


@dataclass(slots=True)
class Progress:
    """Where a run is, beside weights and optimizer: all of it is in every checkpoint."""

    step: int = 0  # steps done
    skipped: int = 0
    skipped_in_row: int = 0
    loss: float = math.nan  # last logged
    evaluation: dict[str, float] = field(default_factory=dict)
    meter: dict[str, list[float]] = field(default_factory=dict)


class Trainer:
    """Train a learner for a number of steps. All ranks make one alike and run it once."""

    def __init__(
        self,
        learner: nn.Module,
        strategy: Strategy,
        settings: TrainerSettings,
        *,
        out: Path,
        make_optimizers: MakeOptimizers,
        fingerprint: Mapping[str, Any],
        save_model: SaveModel,
        evaluate: Evaluate | None = None,
        report: Report | None = None,
        remedies: Remedies | None = None,
    ) -> None:
        """Take what a run needs; nothing is written yet.

        Args:
            learner: see `Learner`; parameters with `requires_grad` are trained.
            out: folder of the checkpoints and metrics, the same on all ranks.
            make_optimizers: called with the learner as the strategy wrapped it; `optimizer.make_adamw` is one.
            fingerprint: JSON values that must be equal when the run goes on (data hash, seed, batch sizes, world size, model).
            save_model: writes the trained weights in their final form; called on rank 0 for every checkpoint.
            evaluate: called every `eval_steps` and at the end; returns means by name.
            report: called on rank 0 with every row of the metrics as it is written, with `steps` added.
        """
        if not any(parameter.requires_grad for parameter in learner.parameters()):
            raise ConfigError("Every part is frozen: there is nothing to train. Let at least one part learn.")
        self.learner, self.strategy, self.settings, self.out = learner, strategy, settings, out
        self.make_optimizers, self.save_model, self.evaluate, self.report = make_optimizers, save_model, evaluate, report
        self.remedies = remedies or Remedies()
        self.fingerprint = json.loads(json.dumps(dict(fingerprint)))  # as it will be read back: tuples are lists
        self.progress, self.meter = Progress(), Meter()
        self.metrics: MetricsFile | None = None
        self.saved: Path | None = None

    def run(self, steps_from: StepsFrom, resume: Resume = None, *, force: bool = False) -> Summary:
        """Train until `settings.steps`.

        Args:
            steps_from: gives (step, micro-batches of this rank) from the asked step on; the same for the same step, always.
            resume: None begins anew; "latest" goes on from the newest checkpoint, or begins if there is none; "latest-valid" takes the newest
                that is undamaged; a path takes that one.
            force: go on even if the fingerprint differs.
        Raises: CheckpointError (damaged, or of another run), LockError, ConfigError or DiskError (`out` cannot be written), DivergedError,
            DataError (the steps ended early).
        """
        begun = time.monotonic()
        with ExitStack() as stack:
            with self._all_or_none():
                if self.strategy.is_main:
                    self.out.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(hold_folder(self.out))
            self.strategy.prepare(self.learner, self.make_optimizers)
            self._begin(resume, force=force)
            first_step = self.progress.step
            with self._all_or_none():
                if self.strategy.is_main:
                    self.metrics = MetricsFile(self.out, first_step, tensorboard=self.settings.tensorboard)
                    stack.callback(self.metrics.close)
            self._train(steps_from)
            if self.strategy.is_main and self.settings.curve:
                with writing(self.out, checkpoint.RESUME):
                    draw_curve(self.out)
        assert self.saved is not None  # every run has at least one step, and the last is saved
        return Summary(
            steps=self.progress.step,
            first_step=first_step,
            loss=self.progress.loss,
            skipped=self.progress.skipped,
            seconds=time.monotonic() - begun,
            peak_memory_bytes=peak_memory_bytes(self.strategy.device) or 0,
            checkpoint=self.saved,
            evaluation=self.progress.evaluation,
        )

    # Beginning, and going on

    def _begin(self, resume: Resume, *, force: bool) -> None:
        """Find and verify the checkpoint to go on from, and take its state."""
        found: list[str | None] = [None]
        with self._all_or_none():
            if self.strategy.is_main:
                found = [self._find(resume)]
        folder = self.strategy.gather(found[0])[0]  # hashing is once for all ranks
        if folder is None:
            return
        self.saved = Path(folder)
        state = json.loads((self.saved / "trainer" / STATE).read_text(encoding="utf-8"))
        if not force:
            self._check_fingerprint(state["fingerprint"])
        self.strategy.load_state(self.saved / "trainer", load_file(self.saved / "trainer" / WEIGHTS))
        self.progress = Progress(**state["progress"])
        self.meter.restore(self.progress.meter)
        with self._all_or_none():
            if self.strategy.is_main:
                checkpoint.set_aside(self.out, self.progress.step)

    def _find(self, resume: Resume) -> str | None:
        checkpoint.sweep(self.out)
        if resume is not None:
            found = checkpoint.find_checkpoint(self.out, resume, self.remedies.damaged)
            return None if found is None else str(found)
        if checkpoint.list_checkpoints(self.out):
            raise ConfigError(f"{self.out} holds the checkpoints of a run. Resume it (--resume), or name another folder.")
        return None

    def _check_fingerprint(self, before: Mapping[str, Any]) -> None:
        """Raise CheckpointError naming the settings that the run was begun with and that differ now."""
        differing = [name for name in sorted(before.keys() | self.fingerprint.keys()) if before.get(name) != self.fingerprint.get(name)]
        if differing:
            changes = "; ".join(f"{name} was {before.get(name)!r}, is {self.fingerprint.get(name)!r}" for name in differing)
            raise CheckpointError(f"{self.saved} is of a run with other settings: {changes}. {self.remedies.other_settings}")

    # Training

    def _train(self, steps_from: StepsFrom) -> None:
        settings, progress = self.settings, self.progress
        if progress.step >= settings.steps:
            return
        self.learner.train()
        self.meter.reset_clock()
        last_save = time.monotonic()
        for step, batches in steps_from(progress.step):
            if step != progress.step:
                raise DataError(f"The data gave step {step} where step {progress.step} was due.")
            self._step(step, batches)
            progress.step = done = step + 1
            is_end = done == settings.steps
            if is_end or done % settings.log_steps == 0:
                self._log()
            paused = time.monotonic()
            if self.evaluate is not None and (is_end or is_due(done, settings.eval_steps)):
                self._evaluate(self.evaluate)
            if is_end or is_due(done, settings.save_steps) or self._is_time_to_save(last_save):
                self._save()
                last_save = time.monotonic()
            self.meter.since += time.monotonic() - paused  # rates are of training
            if is_end:
                return
        raise DataError(f"The data ended after {progress.step} of {settings.steps} steps. Give more, or lower the number of steps.")

    def _step(self, step: int, batches: list[Batch]) -> None:
        """Run one step, or skip it if its loss or gradient is not finite: then weights and optimizers stay as they are."""
        strategy, learner = self.strategy, self.learner
        seed_step(self.settings.seed, strategy.rank, step)
        rate = self.settings.rate(step)
        set_learning_rate(strategy.optimizers, rate)
        divisor = strategy.sum(sum(learner.weight(batch) for batch in batches)) or 1.0  # type: ignore[operator]  # Learner.weight
        losses: list[Tensor] = []
        recorded: list[Parts] = []
        for number, batch in enumerate(batches, start=1):
            loss, parts = strategy.forward_backward(batch, divisor, is_last=number == len(batches))
            losses.append(loss)
            recorded.append(parts)
            self.meter.count(batch)
        total = strategy.sum(float(torch.stack(losses).sum()))  # the first wait for the device
        norm = float(strategy.clip(self.settings.clip or math.inf))
        if math.isfinite(total) and math.isfinite(norm):
            strategy.step()
            self.progress.skipped_in_row = 0
            self.meter.add({"loss": total, "grad_norm": norm})
            for parts in recorded:
                self.meter.add(parts)
            strategy.zero_grad()
        else:
            may_recover = strategy.skip() and math.isfinite(total)  # too large a loss scale, found by trying
            strategy.zero_grad()
            self._skip(step, batches, total, norm, counts=not may_recover)
        self.meter.steps += 1

    def _skip(self, step: int, batches: list[Batch], loss: float, norm: float, *, counts: bool) -> None:
        """Count and log a skipped step. Raises: DivergedError if it is one too many in a row."""
        progress = self.progress
        progress.skipped += 1
        progress.skipped_in_row = progress.skipped_in_row + 1 if counts else 0
        ids = [name for names in self.strategy.gather([str(name) for batch in batches for name in batch.get("ids", ())]) for name in names]
        reason = f"loss {loss}, gradient norm {norm}"
        logger.warning("step %d skipped (%s); batch: %s", step + 1, reason, ", ".join(ids))
        self._write({"step": step + 1, "skipped": progress.skipped, "reason": reason, "ids": ids})
        if progress.skipped_in_row == MAX_SKIPPED:
            intact = f"{self.saved} is intact" if self.saved else "nothing was saved yet"
            raise DivergedError(
                f"The loss or its gradient was not finite in {MAX_SKIPPED} steps in a row, {step - MAX_SKIPPED + 2} to {step + 1} ({reason}; "
                f"batch: {', '.join(ids[:8])}). Lower the learning rate or look at those samples; {intact}."
            )

    def _log(self) -> None:
        """Write the means since the last logged step."""
        meter, step = self.meter, self.progress.step
        seconds = max(time.monotonic() - meter.since, 1e-9)
        counts = self.strategy.gather([meter.tokens, meter.pictures, peak_memory_bytes(self.strategy.device) or 0])
        means = meter.means()
        if "loss" in means:
            self.progress.loss = means["loss"]
            self._write(
                {
                    "step": step,
                    "loss": means.pop("loss"),
                    "lr": self.settings.rate(step - 1),
                    "grad_norm": means.pop("grad_norm"),
                    **means,
                    "tokens_per_s": round(sum(tokens for tokens, _, _ in counts) / seconds, 1),
                    "pictures_per_s": round(sum(pictures for _, pictures, _ in counts) / seconds, 2),
                    "memory_bytes": max(memory for _, _, memory in counts),
                    "seconds_left": round(seconds / max(1, meter.steps) * (self.settings.steps - step), 1),
                    "skipped": self.progress.skipped,
                }
            )
        meter.reset()

    def _evaluate(self, evaluate: Evaluate) -> None:
        self.learner.eval()
        with torch.no_grad():
            self.progress.evaluation = {name: float(value) for name, value in evaluate(self.strategy).items()}
        self.learner.train()
        self._write({"step": self.progress.step, "evaluation": self.progress.evaluation})

    def _write(self, row: Row) -> None:
        if self.metrics is not None:
            with writing(self.metrics.path, checkpoint.RESUME):
                self.metrics.write(row)
            if self.report is not None:
                self.report({**row, "steps": self.settings.steps})

    # Saving

    def _is_time_to_save(self, last_save: float) -> bool:
        if self.settings.save_seconds is None:
            return False
        is_due = self.strategy.is_main and time.monotonic() - last_save >= self.settings.save_seconds
        return self.strategy.sum(float(is_due)) > 0  # the main rank's clock counts

    def _save(self) -> None:
        """Write a checkpoint, then remove the oldest. Raises: DiskError or ConfigError, with nothing half-written left behind."""
        step, is_main = self.progress.step, self.strategy.is_main
        work = checkpoint.work_folder(self.out, step)
        self.progress.meter = self.meter.state()
        try:
            with self._all_or_none():
                if is_main:
                    checkpoint.start_checkpoint(self.out, step)
                    (work / "trainer").mkdir()
            with self._all_or_none():
                self.strategy.save_state(work / "trainer")
            weights = self.strategy.model_state()
            with self._all_or_none():
                if is_main:
                    self._write_main(work, weights)
                    checkpoint.finish_checkpoint(self.out, step)
        except BaseException:
            if is_main:
                checkpoint.sweep(self.out)
            raise
        self.saved = checkpoint.checkpoint_folder(self.out, step)
        with self._all_or_none():
            if is_main:
                checkpoint.rotate(self.out, self.settings.keep)

    def _write_main(self, work: Path, weights: dict[str, Tensor]) -> None:
        """Write what rank 0 writes of a checkpoint."""
        self.save_model(work, weights)
        save_file(weights, work / "trainer" / WEIGHTS)
        state = {"progress": asdict(self.progress), "fingerprint": self.fingerprint, "settings": asdict(self.settings)}
        (work / "trainer" / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        if self.metrics is not None:
            self.metrics.sync()  # rows up to this step must outlast a power cut as the checkpoint does

    @contextmanager
    def _all_or_none(self) -> Iterator[None]:
        """Run a block that may fail on one rank only: then it fails on all, and none waits for the others for ever."""
        failure: Exception | None = None
        try:
            with writing(self.out, checkpoint.RESUME):
                yield
        except (QwenVLError, OSError) as error:
            failure = error
        told = self.strategy.gather(None if failure is None else [type(failure).__name__, str(failure)])
        if failure is not None:
            raise failure
        for name, message in filter(None, told):
            raise getattr(errors, name, CheckpointError)(message)


def is_due(done: int, every: int) -> bool:
    """Tell whether something that happens every so many steps (0: never) happens after `done` steps."""
    return every > 0 and done % every == 0


def seed_step(seed: int, rank: int, step: int) -> None:
    """Seed all generators (python, numpy, torch on every device) as a pure function of seed, rank and step."""
    words = np.random.SeedSequence([seed, rank, step]).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]) << 32 | int(words[3]))
