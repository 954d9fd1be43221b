"""Training checkpoints, complete or absent: `OUT/checkpoint-<step>`.

A checkpoint is written under a temporary name; every file is flushed to the disk; the manifest of their hashes comes last; then the folder gets
its name. Whatever moment a kill or a full disk chooses, there is either no such folder or a whole one, and the earlier ones are untouched.

    work = start_checkpoint(out, step=100)
    ...  # write files into work
    finish_checkpoint(out, step=100)
    folder = find_checkpoint(out, "latest")
"""

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Literal

from qwen_vl.errors import CheckpointError
from qwen_vl.whole import digest_file, flush, sweep_parts

MANIFEST = "manifest.json"
ASIDE = "discarded-"  # before the name of a checkpoint that a resumed run has left
DELETE = "Delete that checkpoint to go on from the one before it."
RESUME = "What was complete before is still there: mend that or make room, then resume."
logger = logging.getLogger(__name__)


def checkpoint_folder(out: Path, step: int) -> Path:
    """Return where the checkpoint of a step belongs."""
    return out / f"checkpoint-{step}"


def work_folder(out: Path, step: int) -> Path:
    """Return where the checkpoint of a step is written before it has its name."""
    return out / f".checkpoint-{step}.tmp"


def step_of(folder: Path) -> int:
    """Return the step in a checkpoint folder's name, -1 if it is not such a name."""
    found = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(found[1]) if found else -1


def list_checkpoints(out: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first: those with a manifest, damaged or not."""
    folders = [path for path in out.glob("checkpoint-*") if step_of(path) >= 0 and (path / MANIFEST).is_file()]
    return sorted(folders, key=step_of)


def sweep(out: Path) -> None:
    """Remove what a cut run left unfinished."""
    for path in out.glob(".checkpoint-*.tmp"):
        shutil.rmtree(path, ignore_errors=True)
    sweep_parts(out)


def start_checkpoint(out: Path, step: int) -> Path:
    """Make the empty folder into which a checkpoint is to be written."""
    work = work_folder(out, step)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    return work


def finish_checkpoint(out: Path, step: int) -> Path:
    """Flush the written files, add the manifest, and give the folder its name. Returns: the checkpoint."""
    work, folder = work_folder(out, step), checkpoint_folder(out, step)
    files = sorted(path for path in work.rglob("*") if path.is_file())
    for path in files:
        flush(path)
    manifest = {path.relative_to(work).as_posix(): digest_file(path) for path in files}
    (work / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for path in (work / MANIFEST, *(path for path in work.rglob("*") if path.is_dir()), work):
        flush(path)
    if folder.exists():  # damaged, or of a run that was resumed from before it: the new one takes its place
        _remove(folder)
    work.rename(folder)
    flush(out)
    return folder


def rotate(out: Path, keep: int) -> None:
    """Remove all complete checkpoints but the newest `keep`, and those that were set aside once the run has come as far again."""
    folders = list_checkpoints(out)
    for folder in folders[:-keep]:
        _remove(folder)
    for aside in out.glob(f"{ASIDE}checkpoint-*"):
        if folders and 0 <= step_of(aside.with_name(aside.name.removeprefix(ASIDE))) <= step_of(folders[-1]):
            shutil.rmtree(aside, ignore_errors=True)


def set_aside(out: Path, after_step: int) -> None:
    """Rename the checkpoints after a step that a run goes on from: they belong to a past that it leaves."""
    for folder in list_checkpoints(out):
        if step_of(folder) > after_step:
            aside = folder.with_name(f"{ASIDE}{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            logger.warning("%s is newer than the step this run goes on from; it is now %s", folder, aside.name)


def find_checkpoint(out: Path, which: Literal["latest", "latest-valid"] | Path, remedy: str = DELETE) -> Path | None:
    """Return the checkpoint to go on from, verified; None if the run has none yet.

    Args: remedy: what to do about a newest one that is damaged.
    Raises: CheckpointError naming what is damaged.
    """
    if isinstance(which, Path):
        verify(which)
        return which
    folders = list_checkpoints(out)
    for folder in reversed(folders):
        try:
            verify(folder)
            return folder
        except CheckpointError as error:
            if which == "latest":
                raise CheckpointError(f"{error} {remedy}") from None
            logger.warning("passed over: %s", error)
    if folders:
        raise CheckpointError(f"None of the {len(folders)} checkpoints in {out} is undamaged. Start again in another folder.")
    return None


def verify(folder: Path) -> None:
    """Raise CheckpointError unless every file of the checkpoint is there and has the manifest's hash."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is no complete checkpoint: it has no {MANIFEST}.") from None
    except (OSError, ValueError):
        raise CheckpointError(f"{folder / MANIFEST} cannot be read: the checkpoint is damaged.") from None
    if not isinstance(manifest, dict):
        raise CheckpointError(f"{folder / MANIFEST} is not a list of hashes: the checkpoint is damaged.")
    for name, digest in manifest.items():
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} lacks {name}: the checkpoint is damaged.")
        if digest_file(folder / name) != digest:
            raise CheckpointError(f"{folder / name} is damaged: its hash is not the manifest's.")


def _remove(folder: Path) -> None:
    """Remove a checkpoint; first its name, so that it is never there in part."""
    doomed = folder.with_name(f".{folder.name}.old.tmp")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
