"""The trainer's invariants: accumulated = one large batch, resumed = uninterrupted, a skipped step changes nothing; and what goes wrong by name."""

import errno
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qwen_vl.errors import CheckpointError, ConfigError, DataError, DiskError, DivergedError, LockError
from qwen_vl.training import checkpoint, curves, trainer
from qwen_vl.training.checkpoint import list_checkpoints, verify
from qwen_vl.training.metrics import MetricsFile, read_metrics
from qwen_vl.training.strategy.base import Batch, Precision, Strategy
from qwen_vl.training.strategy.single import SingleStrategy
from qwen_vl.training.trainer import TrainerSettings, seed_step

from .tiny_run import TinyLearner, batch_of, differing, exact_rows, run_tiny, save_model, state_of, stream, tiny_trainer


class Stopped(Exception):
    """Stands for whatever ends a run from outside."""


def stop_before(step: int) -> Any:
    """Return steps that break off before one."""

    def steps_from(first: int) -> Iterator[tuple[int, list[Batch]]]:
        for number, batches in stream()(first):
            if number == step:
                raise Stopped
            yield number, batches

    return steps_from


def checkpoints(out: Path) -> list[str]:
    return [folder.name for folder in list_checkpoints(out)]


# Invariants


@pytest.mark.parametrize("cuts", [2, 3, 8])
def test_accumulated_equals_one_large_batch(tmp_path: Path, cuts: int) -> None:
    for name, number in (("whole", 1), ("cut", cuts)):
        run_tiny(tmp_path / name, stream(number), learner=TinyLearner(dropout=0.0))
    whole, cut = exact_rows(tmp_path / "whole"), exact_rows(tmp_path / "cut")
    for name in ("loss", "grad_norm"):
        assert [row[name] for row in cut] == pytest.approx([row[name] for row in whole], rel=1e-5)  # fp32, another order of sums
    weights = [state_of(tmp_path / name / "checkpoint-8") for name in ("whole", "cut")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_resumed_equals_uninterrupted(tmp_path: Path, precision: Precision) -> None:
    evaluate = lambda strategy: {"loss": float(strategy.module(batch_of(99))[0])}  # noqa: E731
    options: dict[str, Any] = {"log_steps": 2, "eval_steps": 4, "evaluate": evaluate}  # the cut at 3 is between two logged steps
    run_tiny(tmp_path / "whole", strategy=SingleStrategy(precision=precision), **options)
    for step in (2, 5, 5, 7):
        with pytest.raises(Stopped):
            run_tiny(tmp_path / "cut", stop_before(step), resume="latest", strategy=SingleStrategy(precision=precision), **options)
    summary = run_tiny(tmp_path / "cut", resume="latest", strategy=SingleStrategy(precision=precision), **options)
    assert (summary.first_step, summary.steps, summary.checkpoint.name) == (6, 8, "checkpoint-8")
    assert differing(state_of(tmp_path / "whole" / "checkpoint-8"), state_of(tmp_path / "cut" / "checkpoint-8")) == []
    assert exact_rows(tmp_path / "whole") == exact_rows(tmp_path / "cut")


@pytest.mark.parametrize("spoil", ["loss", "gradient"])
def test_a_skipped_step_changes_nothing(tmp_path: Path, spoil: str, caplog: pytest.LogCaptureFixture) -> None:
    summary = run_tiny(tmp_path, stream(cuts=2, spoil={3: spoil, 4: spoil}), steps=6, save_steps=1, keep=9)
    before, after = (state_of(tmp_path / f"checkpoint-{step}") for step in (3, 5))
    assert differing(before, after) == []
    assert differing(after, state_of(tmp_path / "checkpoint-6"))  # but the next step does
    assert summary.skipped == 2 and math.isfinite(summary.loss)
    rows = exact_rows(tmp_path)
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 6]
    assert [(row["step"], row["skipped"], row["ids"][0]) for row in rows if "reason" in row] == [(4, 1, "s3.0"), (5, 2, "s4.0")]
    assert ("loss nan" in rows[3]["reason"]) == (spoil == "loss") and "step 4 skipped" in caplog.text


def test_chance_is_a_function_of_seed_rank_and_step() -> None:
    def draw(*key: int) -> Tensor:
        seed_step(*key)
        return torch.rand(4)

    assert draw(1, 0, 7).equal(draw(1, 0, 7))
    assert not any(draw(1, 0, 7).equal(draw(*other)) for other in ((2, 0, 7), (1, 1, 7), (1, 0, 8)))


# Steps that are not finite


def test_three_skipped_steps_in_a_row_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"3 steps in a row, 5 to 7 \(loss nan.*batch: s6\.0, .*checkpoint-4 is intact") as error:
        run_tiny(tmp_path, stream(spoil=dict.fromkeys((4, 5, 6), "loss")), save_steps=4)
    assert error.value.exit_code == 5
    verify(tmp_path / "checkpoint-4")
    run_tiny(tmp_path, resume="latest-valid")  # the samples were mended
    run_tiny(tmp_path.with_name("whole"))
    assert differing(state_of(tmp_path / "checkpoint-8"), state_of(tmp_path.with_name("whole") / "checkpoint-8")) == []


def test_skipped_steps_in_a_row_are_counted_across_a_resume(tmp_path: Path) -> None:
    spoilt = stream(spoil=dict.fromkeys((1, 2, 3), "gradient"))
    with pytest.raises(DivergedError):
        run_tiny(tmp_path, spoilt, save_steps=1)
    assert checkpoints(tmp_path) == ["checkpoint-2", "checkpoint-3"]
    with pytest.raises(DivergedError, match="2 to 4"):
        run_tiny(tmp_path, spoilt, save_steps=1, resume="latest")


def test_a_finite_step_starts_the_count_anew(tmp_path: Path) -> None:
    assert run_tiny(tmp_path, stream(spoil=dict.fromkeys((1, 2, 4, 5), "loss"))).skipped == 4


def test_too_large_a_loss_scale_is_found_without_giving_up(tmp_path: Path) -> None:
    summary = run_tiny(tmp_path, learner=TinyLearner(scale=1e3), strategy=SingleStrategy(precision="fp16"), steps=12)
    assert 3 < summary.skipped < 12 and math.isfinite(summary.loss)


# What a run writes


def test_rows_say_how_it_goes(tmp_path: Path) -> None:
    reported: list[dict[str, Any]] = []
    summary = run_tiny(
        tmp_path, log_steps=4, eval_steps=4, evaluate=lambda strategy: {"loss": 1.5, "rank": strategy.rank}, report=reported.append, curve=True
    )
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [{**row, "steps": 8} for row in rows] == reported
    assert [row["step"] for row in rows] == [4, 4, 8, 8]
    assert rows[1]["evaluation"] == summary.evaluation == {"loss": 1.5, "rank": 0.0}
    names = {"step", "loss", "lr", "grad_norm", "accuracy", "tokens_per_s", "pictures_per_s", "memory_bytes", "seconds_left", "skipped"}
    assert set(rows[0]) == names and rows[2]["seconds_left"] == 0 and rows[0]["memory_bytes"] > 0
    assert summary.loss == rows[2]["loss"] and summary.peak_memory_bytes > 0
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_tensorboard_files_are_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run_tiny(tmp_path, steps=2, tensorboard=True, evaluate=lambda strategy: {"loss": 1.0})
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_tensorboard_has_the_rows_of_a_checkpoint_even_if_the_run_is_killed(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    metrics = MetricsFile(tmp_path, 0, tensorboard=True)
    (file,) = (tmp_path / "tensorboard").glob("events.*")
    before = file.stat().st_size
    metrics.write({"step": 1, "loss": 2.0})
    metrics.sync()
    assert file.stat().st_size > before
    metrics.close()


def test_a_missing_drawing_library_is_said_and_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    run_tiny(tmp_path, steps=1, curve=True)
    assert not (tmp_path / curves.CURVE).exists() and 'pip install "qwen-vl[train]"' in caplog.text


def test_checkpoints_hold_the_model_and_rotate(tmp_path: Path) -> None:
    summary = run_tiny(tmp_path, save_steps=2, keep=3)
    assert checkpoints(tmp_path) == ["checkpoint-4", "checkpoint-6", "checkpoint-8"]
    names = {path.relative_to(summary.checkpoint).as_posix() for path in summary.checkpoint.rglob("*") if path.is_file()}
    inside = {f"trainer/{name}" for name in ("optimizer-0.safetensors", "state.json", "weights.safetensors")}
    assert names == {"manifest.json", "model.safetensors"} | inside
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-4", "checkpoint-6", "checkpoint-8", "metrics.jsonl"]


def test_time_saves_too(tmp_path: Path) -> None:
    run_tiny(tmp_path, steps=3, save_steps=0, save_seconds=0.0, keep=9)
    assert checkpoints(tmp_path) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]


def test_nothing_but_the_end_saves_by_default(tmp_path: Path) -> None:
    run_tiny(tmp_path, save_steps=0)
    assert checkpoints(tmp_path) == ["checkpoint-8"]


# A full disk


@pytest.mark.parametrize("where", ["start_checkpoint", "save_model", "save_file", "flush", "metrics"])
def test_a_full_disk_leaves_what_was_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    out = tmp_path / "cut"
    full = OSError(errno.ENOSPC, "No space left on device")

    def fill(*arguments: Any) -> None:
        if where in ("save_model", "save_file"):
            path = out / ".checkpoint-6.tmp" / "half"
            path.write_bytes(b"x" * 1000)  # after so many bytes
        raise full

    run_tiny(tmp_path / "whole")
    run_tiny(out, steps=3)
    with monkeypatch.context() as patch:
        if where == "save_model":
            trained = tiny_trainer(out, save_model=fill)
        elif where == "metrics":
            trained = tiny_trainer(out)
            patch.setattr(MetricsFile, "write", fill)
        else:
            trained = tiny_trainer(out)
            patch.setattr(trainer if where == "save_file" else checkpoint, where, fill)
        with pytest.raises(DiskError, match="No space left.*make room, then resume") as error:
            trained.run(stream(), resume="latest")
    assert error.value.exit_code == 4
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint-3", "metrics.jsonl"]
    verify(out / "checkpoint-3")


def test_after_a_full_disk_the_run_goes_on_as_if_nothing_was(tmp_path: Path) -> None:
    def fail_at_6(folder: Path, state: dict[str, Tensor]) -> None:
        save_model(folder, state)
        if "checkpoint-6" in folder.name:
            raise OSError(errno.ENOSPC, "No space left on device")

    run_tiny(tmp_path / "whole")
    with pytest.raises(DiskError):
        run_tiny(tmp_path / "cut", save_model=fail_at_6)
    run_tiny(tmp_path / "cut", resume="latest")
    assert differing(state_of(tmp_path / "whole" / "checkpoint-8"), state_of(tmp_path / "cut" / "checkpoint-8")) == []


# Resuming


def test_a_run_is_not_begun_over_another(tmp_path: Path) -> None:
    run_tiny(tmp_path)
    with pytest.raises(ConfigError, match="Resume it"):
        run_tiny(tmp_path)


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    first = run_tiny(tmp_path)
    again = run_tiny(tmp_path, resume="latest")
    assert (again.first_step, again.steps, again.loss, again.checkpoint) == (8, 8, first.loss, first.checkpoint)
    longer = run_tiny(tmp_path, resume="latest", steps=10, learning_rate=0.01)
    assert (longer.first_step, longer.steps) == (8, 10)


def test_changed_settings_are_refused_by_name(tmp_path: Path) -> None:
    run_tiny(tmp_path, steps=3, fingerprint={"seed": 5, "data": "a", "world_size": 1, "shape": (1, 2)})
    run_tiny(tmp_path, steps=4, resume="latest", fingerprint={"seed": 5, "data": "a", "world_size": 1, "shape": (1, 2)})
    changed: dict[str, Any] = {"seed": 5, "data": "b", "world_size": 2, "shape": (1, 2)}
    with pytest.raises(CheckpointError, match=r"data was 'a', is 'b'; world_size was 1, is 2\. Give those of before, or name"):
        run_tiny(tmp_path, resume="latest", fingerprint=changed)
    assert run_tiny(tmp_path, resume="latest", fingerprint=changed, force=True).first_step == 4


def test_a_damaged_checkpoint_is_passed_over_on_demand(tmp_path: Path) -> None:
    run_tiny(tmp_path / "whole", save_steps=2)
    run_tiny(tmp_path / "cut", steps=6, save_steps=2, schedule="constant")
    run_tiny(tmp_path / "whole2", save_steps=2, schedule="constant")
    path = tmp_path / "cut" / "checkpoint-6" / "trainer" / "optimizer-0.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"optimizer-0\.safetensors is damaged"):
        run_tiny(tmp_path / "cut", resume="latest", save_steps=2, schedule="constant")
    assert run_tiny(tmp_path / "cut", resume="latest-valid", save_steps=2, schedule="constant").first_step == 4
    assert differing(state_of(tmp_path / "whole2" / "checkpoint-8"), state_of(tmp_path / "cut" / "checkpoint-8")) == []
    assert exact_rows(tmp_path / "whole2") == exact_rows(tmp_path / "cut")


def test_an_older_checkpoint_can_be_named(tmp_path: Path) -> None:
    run_tiny(tmp_path, keep=9)
    last = state_of(tmp_path / "checkpoint-8")
    with pytest.raises(Stopped):
        run_tiny(tmp_path, stop_before(4), resume=tmp_path / "checkpoint-3", keep=9)
    assert checkpoints(tmp_path) == ["checkpoint-3"]  # the others are of the future that was left
    assert run_tiny(tmp_path, resume="latest", keep=9).first_step == 3
    assert differing(last, state_of(tmp_path / "checkpoint-8")) == []


def test_a_checkpoint_of_another_learner_is_refused(tmp_path: Path) -> None:
    run_tiny(tmp_path, steps=3)
    learner = TinyLearner()
    learner.frozen.requires_grad_(True)
    with pytest.raises(CheckpointError, match=r"lacks 2 tensors: frozen\.bias, frozen\.weight"):
        run_tiny(tmp_path, resume="latest", learner=learner)
    learner = TinyLearner()
    learner.layers[0].requires_grad_(False)
    with pytest.raises(CheckpointError, match=r"besides what this run trains, 2 tensors: layers\.0\.bias"):
        run_tiny(tmp_path, resume="latest", learner=learner)


# Two writers, and what cannot work


def test_two_trainers_on_one_folder(tmp_path: Path) -> None:
    def meet(row: dict[str, Any]) -> None:
        with pytest.raises(LockError, match="in use by process"):
            run_tiny(tmp_path, resume="latest")

    run_tiny(tmp_path, steps=1, report=meet)
    run_tiny(tmp_path, steps=2, resume="latest")  # and afterwards it is free


def test_steps_that_are_missing_are_not_passed_over(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="ended after 5 of 8 steps"):
        run_tiny(tmp_path / "a", stream(steps=5))
    with pytest.raises(DataError, match="gave step 1 where step 0 was due"):
        run_tiny(tmp_path / "b", lambda first: stream()(first + 1))


def test_errors_of_the_data_stay_what_they_are(tmp_path: Path) -> None:
    def broken(first: int) -> Iterator[tuple[int, list[Batch]]]:
        raise FileNotFoundError("picture.png")
        yield

    with pytest.raises(FileNotFoundError, match=r"picture\.png"):
        run_tiny(tmp_path, broken)


def test_a_frozen_learner_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to train"):
        tiny_trainer(tmp_path, learner=TinyLearner().requires_grad_(False))


def test_an_output_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file cannot be written"):
        run_tiny(tmp_path / "file")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps=0 must be positive"),
        ({"learning_rate": math.nan}, "learning_rate=nan must be positive"),
        ({"warmup_steps": -1}, "warmup_steps=-1 must not be negative"),
        ({"schedule": "cosin"}, "schedule='cosin' is none of cosine, linear, constant"),
        ({"min_learning_rate": 2.0}, "min_learning_rate=2.0 is more than learning_rate=1.0"),
    ],
)
def test_settings_that_cannot_work_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainerSettings(**({"steps": 1, "learning_rate": 1.0} | changes))


def test_a_failure_of_one_rank_is_every_ranks(tmp_path: Path) -> None:
    """Rank 1 fails because rank 0 did: with its error, and without waiting for it."""

    class SecondRank(SingleStrategy):
        rank, world_size = 1, 2

        def gather(self, value: Any) -> list[Any]:
            return [["DiskError", "the disk of the other is full"], value]

    second: Strategy = SecondRank()
    with pytest.raises(DiskError, match="of the other"):
        run_tiny(tmp_path, strategy=second)
    assert not list(tmp_path.iterdir())


def test_the_state_says_how_the_run_was_set(tmp_path: Path) -> None:
    state = json.loads((run_tiny(tmp_path).checkpoint / "trainer" / "state.json").read_text())
    assert state["fingerprint"] == {"seed": 5, "data": "tiny"} and state["settings"]["learning_rate"] == 0.05 and state["progress"]["step"] == 8
