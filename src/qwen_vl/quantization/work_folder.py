"""The folder beside the one that is to be made: finished blocks, after which a run that was cut goes on, and the new folder until it is whole."""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor

from qwen_vl.errors import ConfigError
from qwen_vl.whole import digest_file, flush, sweep_parts, whole_file

from .dense import block_prefix

MANIFEST, BLOCKS, FOLDER, OLD = "manifest.json", "blocks", "folder", "old"
OWN_NAMES = {MANIFEST, BLOCKS, FOLDER, OLD}
DIGEST_LENGTH = 64  # characters of a hash, which says nothing to people

logger = logging.getLogger(__name__)


class WorkFolder:
    """Finished blocks, one file each, and a manifest of their hashes and of what they were made with.

    Args: is_forced: begin anew where a run of other settings has left something.
    Attributes: finished: what the manifest says of each finished block.
    Raises: ConfigError naming a setting that differs from those of the run that began here.
    """

    def __init__(self, folder: Path, fingerprint: Mapping[str, Any], *, is_forced: bool) -> None:
        self.folder, self.is_forced = folder, is_forced
        self.given: dict[str, Any] = {}  # what this run is made with, as far as it is known; the fingerprint has what is known of an earlier one, too
        self.fingerprint: dict[str, Any] = {}
        self.finished: list[dict[str, Any]] = []
        found = self._read_manifest()
        if found is None:
            self._begin()
        else:
            self.fingerprint, self.finished = found["fingerprint"], found["blocks"]
        self.settle(json.loads(json.dumps(fingerprint)))
        self._drop_damaged()

    def settle(self, more: Mapping[str, Any]) -> None:
        """Add to the fingerprint. Raises: ConfigError if it differs from that of the run that began here."""
        differing = [name for name, value in more.items() if self.fingerprint.get(name, value) != value]
        if differing and not self.is_forced:
            name = differing[0]
            known, given = (str(values[name]) for values in (self.fingerprint, more))
            shown = f" ({given}; it was {known})" if len(known) < DIGEST_LENGTH else ""
            raise ConfigError(f"{self.folder} was begun with another {name}{shown}. Go on with the same, or add --force to begin anew.")
        self.given |= more
        if differing:
            self._begin()
        self.fingerprint |= self.given
        self._write_manifest()

    def path(self, index: int) -> Path:
        """Return the file of a block."""
        return self.folder / BLOCKS / f"block-{index:05}.safetensors"

    def add(self, index: int, tensors: Mapping[str, Tensor], errors: Mapping[str, float]) -> None:
        """Keep a finished block: its file first, then its line in the manifest."""
        path = self.path(index)
        _write(path, save(dict(tensors), metadata={"format": "pt"}))
        self.finished.append({"sha256": digest_file(path), "errors": dict(errors)})
        self._write_manifest()

    def read(self, index: int) -> dict[str, Tensor]:
        """Return the tensors of a finished block by their names within it."""
        return {name.removeprefix(block_prefix(index)): tensor for name, tensor in load_file(self.path(index)).items()}

    def publish(self, out: Path) -> None:
        """Give the finished folder its name, and remove everything else."""
        old = self.folder / OLD
        if out.is_dir() and not any(out.iterdir()):
            out.rmdir()
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)
            out.rename(old)
        (self.folder / FOLDER).rename(out)
        flush(out.parent)
        self._clear()
        remove_if_empty(self.folder)

    def _begin(self) -> None:
        """Begin anew: nothing of what an earlier run was made with holds for this one."""
        self._clear()
        self.fingerprint, self.finished = {}, []
        (self.folder / BLOCKS).mkdir(parents=True, exist_ok=True)

    def _drop_damaged(self) -> None:
        """Forget the first block whose file is not whole, and those after it: they are made again."""
        for index, block in enumerate(self.finished):
            path = self.path(index)
            if not path.is_file() or digest_file(path) != block["sha256"]:
                logger.warning("%s is damaged: blocks from %d on are made again", path, index + 1)
                del self.finished[index:]
                return

    def _clear(self) -> None:
        """Remove all that runs leave behind, but for a lock. Raises: ConfigError if there is anything else."""
        sweep_parts(self.folder)
        found = [path for path in self.folder.glob("*") if not path.name.startswith(".")]
        foreign = [path.name for path in found if path.name not in OWN_NAMES]
        if foreign:
            raise ConfigError(
                f"{self.folder} holds {foreign[0]}, which no quantization made. Move it, or name another folder than {self.folder.stem}."
            )
        for path in found:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _read_manifest(self) -> dict[str, Any] | None:
        """Return the manifest; None if there is none that can be read."""
        try:
            found = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
            return found if isinstance(found["fingerprint"], dict) and isinstance(found["blocks"], list) else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def _write_manifest(self) -> None:
        content = {"fingerprint": self.fingerprint, "blocks": self.finished}
        _write(self.folder / MANIFEST, (json.dumps(content, indent=1) + "\n").encode())


def part_folder(out: Path) -> Path:
    """Return where the finished blocks of a run that is to make `out` are kept."""
    return out.with_name(f"{out.name}.part")


def _put_back(out: Path) -> None:
    """Undo a replacement of `out` that was cut between its two renames."""
    old = part_folder(out) / OLD
    if old.is_dir() and not out.exists():
        old.rename(out)


def check_free(out: Path, model: Path, *, is_forced: bool) -> None:
    """Raise: ConfigError if `out` may not be written. What a kill hid of it is put back first: it is not free."""
    if out.name in ("", ".."):
        raise ConfigError(f"{out} is no name for a folder. Name a new one.")
    _put_back(out)
    if out.resolve() == model.resolve():
        raise ConfigError(f"{out} is the model itself. Name another folder.")
    if out.is_file():
        raise ConfigError(f"{out} is a file. Name a folder.")
    if out.is_dir() and any(out.iterdir()) and not is_forced:
        raise ConfigError(f"{out} is not empty. Add --force to replace it, or name another folder.")


def remove_if_empty(folder: Path) -> None:
    """Remove a folder that holds nothing."""
    try:
        folder.rmdir()
    except OSError:
        return


def _write(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all, and its name too outlives a loss of power."""
    with whole_file(path, is_flushed=True) as work:
        work.write_bytes(content)
    flush(path.parent)
