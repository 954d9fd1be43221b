"""Checkpoints are complete or absent, and a damaged one is refused by name."""

import json
import shutil
from pathlib import Path
from unittest import mock

import pytest

from qwen_vl.errors import CheckpointError
from qwen_vl.training import checkpoint
from qwen_vl.training.checkpoint import (
    MANIFEST,
    find_checkpoint,
    finish_checkpoint,
    list_checkpoints,
    rotate,
    set_aside,
    start_checkpoint,
    sweep,
    verify,
)


def write(out: Path, step: int, content: str = "weights") -> Path:
    """Write a small checkpoint."""
    work = start_checkpoint(out, step)
    (work / "trainer").mkdir()
    (work / "model.bin").write_text(content)
    (work / "trainer" / "optimizer-0.bin").write_text("moments")
    return finish_checkpoint(out, step)


def names(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir())


def test_the_manifest_names_every_file(tmp_path: Path) -> None:
    folder = write(tmp_path, 5)
    assert set(json.loads((folder / MANIFEST).read_text())) == {"model.bin", "trainer/optimizer-0.bin"}
    assert find_checkpoint(tmp_path, "latest") == folder and names(tmp_path) == ["checkpoint-5"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.bin").write_text("weight"), r"model\.bin is damaged"),
        (lambda folder: (folder / "model.bin").write_text("weighus"), r"model\.bin is damaged"),  # one bit
        (lambda folder: (folder / "trainer" / "optimizer-0.bin").unlink(), r"checkpoint-10 lacks trainer/optimizer-0\.bin"),
        (lambda folder: (folder / MANIFEST).write_text('{"model.bin":'), r"manifest\.json cannot be read"),
        (lambda folder: (folder / MANIFEST).write_text("[]"), r"manifest\.json is not a list of hashes"),
    ],
)
def test_damage_is_named_and_latest_valid_takes_the_one_before(tmp_path: Path, damage: mock.Mock, message: str) -> None:
    before, newest = write(tmp_path, 5), write(tmp_path, 10)
    damage(newest)
    with pytest.raises(CheckpointError, match=message + ".*Delete that checkpoint"):
        find_checkpoint(tmp_path, "latest")
    assert find_checkpoint(tmp_path, "latest-valid") == before
    with pytest.raises(CheckpointError, match=message):
        find_checkpoint(tmp_path, newest)
    shutil.rmtree(before)
    with pytest.raises(CheckpointError, match="None of the 1 checkpoints"):
        find_checkpoint(tmp_path, "latest-valid")


def test_a_folder_without_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    before, cut = write(tmp_path, 5), write(tmp_path, 10)
    (cut / MANIFEST).unlink()
    assert find_checkpoint(tmp_path, "latest") == before
    with pytest.raises(CheckpointError, match="no complete checkpoint: it has no manifest"):
        verify(cut)
    verify(write(tmp_path, 10))  # a new one takes its place


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path, "latest") is None and find_checkpoint(tmp_path / "none", "latest-valid") is None
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        find_checkpoint(tmp_path, tmp_path / "none")


def test_what_was_cut_before_its_name_is_swept(tmp_path: Path) -> None:
    write(tmp_path, 5)
    (start_checkpoint(tmp_path, 10) / "model.bin").write_text("half")
    assert find_checkpoint(tmp_path, "latest") == tmp_path / "checkpoint-5"
    sweep(tmp_path)
    assert names(tmp_path) == ["checkpoint-5"]


def test_the_newest_are_kept_by_number(tmp_path: Path) -> None:
    for step in (100, 5, 20):
        write(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    rotate(tmp_path, 2)
    assert names(tmp_path) == ["checkpoint-100", "checkpoint-20", "checkpoint-best"]
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-20", "checkpoint-100"]


def test_checkpoints_of_a_left_future_are_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (5, 10):
        write(tmp_path, step)
    set_aside(tmp_path, 5)
    assert names(tmp_path) == ["checkpoint-5", "discarded-checkpoint-10"] and "newer than the step" in caplog.text


def test_what_was_set_aside_goes_when_the_run_has_come_as_far_again(tmp_path: Path) -> None:
    (tmp_path / "discarded-checkpoint-by-hand").mkdir()
    for step in (5, 10):
        write(tmp_path, step)
    set_aside(tmp_path, 5)
    rotate(tmp_path, 3)
    write(tmp_path, 8)
    rotate(tmp_path, 3)
    assert names(tmp_path) == ["checkpoint-5", "checkpoint-8", "discarded-checkpoint-10", "discarded-checkpoint-by-hand"]
    write(tmp_path, 10)
    rotate(tmp_path, 3)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-5", "checkpoint-8", "discarded-checkpoint-by-hand"]


def test_files_are_flushed_before_the_folder_has_its_name(tmp_path: Path) -> None:
    flushed: list[str] = []
    with mock.patch.object(checkpoint, "flush", lambda path: flushed.append(path.name)):
        write(tmp_path, 5)
    assert flushed == ["model.bin", "optimizer-0.bin", MANIFEST, "trainer", ".checkpoint-5.tmp", tmp_path.name]
