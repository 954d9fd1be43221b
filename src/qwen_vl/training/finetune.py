"""Tune a checkpoint on conversations, on any number of processes.

    summary = finetune(resolve({"model": "Qwen/Qwen-VL-Chat", "data": "train.json", "out": "tuned", "preset": "lora"}))

The folder `output_dir` ends up as the tuned model, or as the adapter. Beside it lie the checkpoints `checkpoint-N`, each usable by itself,
`metrics.jsonl`, `settings.json` with what was resolved, versions and commit, and `trainer_state.json`, the metrics as plotting scripts read them.
"""

import json
import math
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qwen_vl.errors import ConfigError
from qwen_vl.lock import hold_folder
from qwen_vl.modeling.fingerprint import name_model
from qwen_vl.processing.resolution import Resolution
from qwen_vl.whole import digest_file, flush, writing

from .adapters import save_adapter
from .building import DTYPES, is_chat, load_model, load_tokenizer, make_learner, make_optimizers
from .checkpoint import RESUME
from .conversations.conversation import Conversation
from .conversations.features import FeatureCache
from .conversations.formats import read_conversations
from .conversations.loader import ConversationDataset, ConversationStream
from .learner import count_labels
from .metrics import METRICS, read_metrics
from .parts import choose_parts, parts_table
from .run_record import describe_run, history_row, write_json
from .settings import FinetuneSettings
from .strategy.base import Batch, Strategy, to_device
from .strategy.deepspeed import DeepSpeedStrategy
from .strategy.fsdp2 import FSDP2Strategy
from .strategy.launch import launch
from .trainer import Remedies, Resume, Summary, Trainer, TrainerSettings

Report = Callable[[str, Any], None]  # ("loading", name), ("data", counts), ("parts", rows), ("step", metrics row)
TELLING_FILES = ("config.json", "adapter_config.json")  # without them a folder is no model and no adapter
SETTINGS_FILE, STATE_FILE = "settings.json", "trainer_state.json"
MODEL_PREFIX = "model."  # of the learner's names
FEATURE_BYTES = 8 << 30  # room for the features of pictures, in memory
MODEL_SHARD_SIZE = "2048MB"  # of a file of weights, as the release's text advises
# Settings that may differ when a run goes on: how fast it learns, how it is watched and where it runs, not what it sees and learns.
MAY_CHANGE = frozenset(
    """model_name_or_path data_path eval_data_path output_dir cache_dir dataloader_num_workers cache_features
    num_train_epochs max_steps per_device_eval_batch_size learning_rate min_learning_rate lr_scheduler_type warmup_ratio warmup_steps
    weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm vision_layer_decay gradient_checkpointing selective_checkpointing
    torch_compile device logging_steps report_to eval_strategy eval_steps save_strategy save_steps save_total_limit""".split()
)
REMEDIES = Remedies(
    other_settings="Give those of before, or go on regardless with --force.",
    damaged="Take the newest undamaged one with --resume latest-valid.",
)
YOUNGER = frozenset({"max_patches"})  # than the first runs: named only where they are given, so that a run from before them goes on


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneSummary:
    """What a run came to."""

    output: Path
    steps: int
    first_step: int
    loss: float
    skipped: int  # steps whose loss or gradient was not finite
    seconds: float
    peak_memory_bytes: int
    num_trained: int  # parameters
    data: dict[str, int]  # what became of the records
    evaluation: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**asdict(self), "output": str(self.output)}


def finetune(
    settings: FinetuneSettings, *, resume: Resume = None, force_resume: bool = False, report: Report | None = None
) -> FinetuneSummary | None:
    """Tune a checkpoint; every process of a run calls this alike.

    Args:
        resume: None begins anew; "latest" and "latest-valid" go on from the newest (undamaged) checkpoint, a path from that one.
        force_resume: go on even if settings or data differ that change what is learnt.
        report: hears of the run as it goes, in the first process only.
    Returns: what it came to, in the first process; None in the others.
    Raises: CheckpointError, ConfigError, DataError, CapacityError, LockError, DiskError, DivergedError.
    """
    out = Path(settings.output_dir)
    _check_output(out, is_resumed=resume is not None)
    with launch(settings) as strategy:
        strategy.barrier()  # nobody writes before all have looked
        run = _Run(settings, strategy, report if strategy.is_main and report is not None else _say_nothing)
        return run.tune(out, resume, force_resume)


def _say_nothing(event: str, content: Any) -> None:
    """Report nothing."""


def _check_output(out: Path, *, is_resumed: bool) -> None:
    """Raise: ConfigError unless a run can be written there."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file. Name a folder.")
    if not is_resumed and out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise ConfigError(f"{out} is not empty. Add --resume to go on with its run, or name another folder.")


class _Run:
    """One process's share of a run: model, data, and what the trainer asks for."""

    def __init__(self, settings: FinetuneSettings, strategy: Strategy, report: Report) -> None:
        self.settings, self.strategy, self.report = settings, strategy, report
        # Before the model, which takes longer: a mistake in the data is said at once.
        data, evaluation = (self._read(path) for path in (settings.data_path, settings.eval_data_path))
        report("loading", settings.model_name_or_path)
        torch.manual_seed(settings.seed)
        self.tokenizer = load_tokenizer(settings)
        self.model = load_model(settings)
        self.choice = choose_parts(
            self.model, settings.method, fix_vit=settings.fix_vit, is_chat=is_chat(settings, self.model), overrides=settings.parts
        )
        self.learner = make_learner(settings, self.model, self.choice)
        # What is frozen is written from here: of a sharded module, no process has it whole.
        trained = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        keeps = settings.method == "full" and strategy.is_main
        self.frozen = {name: value.detach() for name, value in self.model.state_dict().items() if name not in trained} if keeps else {}
        self.features = self._keep_features()
        self.stream = self._stream(data, settings.per_device_train_batch_size, settings.gradient_accumulation_steps)
        self.evaluation = self._stream(evaluation, settings.per_device_eval_batch_size, 1) if evaluation else None
        self.num_pictures = sum(len(conversation.pictures) for conversation in data)
        report("data", self.counts())
        rows = parts_table(self.learner.model)
        self.num_trained = sum(row.num_trained for row in rows)  # once sharded, parameters may have no size
        report("parts", rows)

    def counts(self) -> dict[str, int]:
        """Return what became of the training records so far."""
        return {"samples": self.stream.counts.samples, "pictures": self.num_pictures, **self.stream.counts.to_dict()}

    def _keep_features(self) -> FeatureCache | None:
        if not self.settings.cache_features:
            return None
        if isinstance(self.strategy, (FSDP2Strategy, DeepSpeedStrategy)):
            raise ConfigError("cache_features needs the whole vision tower in each process; leave it out with fsdp and with deepspeed")
        self.learner.has_features = True
        return FeatureCache(self.learner.inner.transformer.visual, max_bytes=FEATURE_BYTES, autocast=self.strategy.autocast)

    def _read(self, path: str | None) -> list[Conversation]:
        return read_conversations(Path(path), allow_special_tokens=self.settings.allow_special_tokens) if path else []

    def _stream(self, conversations: list[Conversation], micro_batch_size: int, accumulation: int) -> ConversationStream:
        """Make the steps of this process from conversations."""
        settings = self.settings
        visual = self.learner.inner.config.visual
        dataset = ConversationDataset(
            conversations,
            self.tokenizer,
            max_length=settings.model_max_length,
            resolution=Resolution.of(visual) if visual else None,
            form=settings.data_format,
            lazy=settings.lazy_preprocess,
            long=settings.long_samples,
            allow_special_tokens=settings.allow_special_tokens,
            on_bad_picture=settings.bad_pictures,
            features=self.features,
        )
        return ConversationStream(
            dataset,
            seed=settings.seed,
            micro_batch_size=micro_batch_size,
            accumulation=accumulation,
            rank=self.strategy.rank,
            world_size=self.strategy.world_size,
            num_workers=settings.dataloader_num_workers,
        )

    def tune(self, out: Path, resume: Resume, force_resume: bool) -> FinetuneSummary | None:
        """Train, and write the finished model into `out` itself."""
        settings, strategy = self.settings, self.strategy
        schedule = self._trainer_settings()
        trainer = Trainer(
            self.learner,
            strategy,
            schedule,
            out=out,
            make_optimizers=lambda learner: make_optimizers(learner, settings),
            fingerprint=self._fingerprint(),
            save_model=self.save,
            evaluate=self._evaluate if self.evaluation is not None else None,
            report=lambda row: self.report("step", row),
            remedies=REMEDIES,
        )

        def steps_from(first_step: int) -> Iterable[tuple[int, list[Batch]]]:
            if strategy.is_main:
                write_json(out / SETTINGS_FILE, describe_run(settings, strategy))  # the trainer holds the folder by now
            return self.stream.steps_from(first_step, schedule.steps)

        summary = trainer.run(steps_from, resume, force=force_resume)
        state = strategy.model_state()
        if strategy.is_main:
            with writing(out, RESUME), hold_folder(out):
                self._finish(out, state, summary)
        strategy.barrier()
        return self._summarize(out, summary) if strategy.is_main else None

    def _trainer_settings(self) -> TrainerSettings:
        settings, epoch = self.settings, self.stream.steps_per_epoch
        steps = settings.max_steps if settings.max_steps > 0 else math.ceil(settings.num_train_epochs * epoch)
        saves = {"no": 0, "epoch": epoch, "steps": settings.save_steps}
        evaluations = {"no": 0, "epoch": epoch, "steps": settings.eval_steps or settings.logging_steps}
        return TrainerSettings(
            steps=steps,
            learning_rate=settings.learning_rate,
            min_learning_rate=settings.min_learning_rate,
            warmup_steps=settings.num_warmup_steps(steps),
            schedule=settings.schedule,
            clip=settings.max_grad_norm,
            log_steps=settings.logging_steps,
            save_steps=saves[settings.save_strategy],
            keep=settings.save_total_limit or sys.maxsize,
            eval_steps=evaluations[settings.eval_strategy],
            seed=settings.seed,
            tensorboard=settings.report_to == "tensorboard",
        )

    def _fingerprint(self) -> dict[str, Any]:
        """Return what must be equal when the run goes on."""
        settings = {name: value for name, value in asdict(self.settings).items() if name not in YOUNGER or value is not None}
        kept = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items() if name not in MAY_CHANGE}
        data = digest_file(Path(self.settings.data_path))
        model = name_model(self.model, with_adapters=False)  # they are what is trained
        return {**kept, "data": data, "world_size": self.strategy.world_size, "parts": dict(self.choice), "model": model}

    @torch.no_grad()
    def _evaluate(self, strategy: Strategy) -> dict[str, float]:
        """Return the mean loss per label over the evaluation data."""
        if self.evaluation is None:
            return {}
        loss, labels = 0.0, 0
        for _, batches in self.evaluation.steps_from(0, self.evaluation.steps_per_epoch):
            for batch in batches:
                with strategy.autocast():
                    total, _ = strategy.module(to_device(batch, strategy.device))
                loss += float(total)
                labels += count_labels(batch)
        return {"loss": strategy.sum(loss) / max(1.0, strategy.sum(labels))}

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write the adapter, or the whole model with its tokenizer, into a folder. Args: state: what is trained, by the learner's names."""
        trained = {name.removeprefix(MODEL_PREFIX): value for name, value in state.items()}
        if self.settings.method == "full":
            dtype = DTYPES[self.settings.precision]  # the trainer's own file keeps what learns in float32
            weights = {name: value.to("cpu", dtype if value.is_floating_point() else None) for name, value in {**self.frozen, **trained}.items()}
            self.model.save_pretrained(folder, state_dict=weights, max_shard_size=MODEL_SHARD_SIZE)
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            write_json(folder / "config.json", config | {"dtype": str(dtype).removeprefix("torch.")})  # of the files, not of the model in memory
        else:
            save_adapter(self.learner.model, folder, trained)
        self.tokenizer.save_pretrained(folder)

    def _finish(self, out: Path, state: Mapping[str, Tensor], summary: Summary) -> None:
        """Write the finished model and the run's record into `out`: the file that makes the folder loadable goes first and comes last."""
        work = out / ".finished.tmp"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            self._finish_from(work, out, state)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        write_json(out / STATE_FILE, self._state(out, summary))

    def _finish_from(self, work: Path, out: Path, state: Mapping[str, Tensor]) -> None:
        """Write the finished model into `work`, then move it to `out`."""
        self.save(work, state)
        files = sorted(work.iterdir(), key=lambda path: path.name in TELLING_FILES)
        for path in files:
            flush(path)
        for name in TELLING_FILES:  # of an earlier end of this run
            (out / name).unlink(missing_ok=True)
        for path in files:
            path.replace(out / path.name)
        flush(out)

    def _state(self, out: Path, summary: Summary) -> dict[str, Any]:
        """Return the run's record under the names that Hugging Face's trainer uses."""
        epoch = self.stream.steps_per_epoch
        history = [history_row(row, epoch) for row in read_metrics(out / METRICS)]
        return {"global_step": summary.steps, "epoch": summary.steps / epoch, "max_steps": summary.steps, "log_history": history}

    def _summarize(self, out: Path, summary: Summary) -> FinetuneSummary:
        return FinetuneSummary(
            output=out,
            steps=summary.steps,
            first_step=summary.first_step,
            loss=summary.loss,
            skipped=summary.skipped,
            seconds=summary.seconds,
            peak_memory_bytes=summary.peak_memory_bytes,
            num_trained=self.num_trained,
            data=self.counts(),
            evaluation=dict(summary.evaluation),
        )
