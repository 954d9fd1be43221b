"""What a run has answered so far, on disk: kept by line as it comes, found again after any kill.

A task's folder holds `run.json`, the settings; `answers-0.jsonl` and so on, one file for each process, to which lines are only ever added; and at the
end `samples.jsonl`, one line for each sample in the order of the data, and `score.json`. A run that goes on must have the same settings and prompts:
what differs is refused by name.

    store = Store(folder)
    store.open(settings)                   # by one process, before all others
    done = store.read(prompt_hashes)       # what needs no asking
    with store.journal(rank) as journal:
        journal.add(result, prompt_hash)
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, BinaryIO

from qwen_vl.errors import ConfigError, DataError, cannot_write
from qwen_vl.evaluation.files import write_document
from qwen_vl.evaluation.task import Result, Sample
from qwen_vl.whole import sweep_parts

RUN, SAMPLES, SCORE = "run.json", "samples.jsonl", "score.json"
JOURNALS = "answers-*.jsonl"
DIGEST_DIGITS = 16
DEFAULTS = {field.name: field.default for field in fields(Result)}
TUPLES = ("choice_losses", "confidences")


class Store:
    """The folder of one task's run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, settings: Mapping[str, Any], about: Mapping[str, Any] | None = None) -> None:
        """Make the folder, or make sure that it holds a run with these settings, and cut off what a kill left of last lines.

        Args: about: what is noted beside the settings and may differ, versions say.
        Raises: ConfigError naming the setting that differs; DiskError.
        """
        path = self.folder / RUN
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if path.exists():
                self._compare(json.loads(path.read_text(encoding="utf-8")), settings)
            elif any(self.folder.glob(JOURNALS)):
                raise ConfigError(f"{self.folder} holds answers but no {RUN} that says to what. Name another folder.")
            else:
                write_document(path, {"settings": dict(settings), "about": dict(about or {})})
            for journal in self.folder.glob(JOURNALS):
                cut_half_line(journal)
            sweep_parts(self.folder)
        except OSError as error:
            raise cannot_write(self.folder, error, "Name another folder with --out.") from None
        except ValueError as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"{path} is damaged. Delete {self.folder}, or name another folder.") from None

    def _compare(self, record: Any, settings: Mapping[str, Any]) -> None:
        known = record.get("settings") if isinstance(record, dict) else None
        if not isinstance(known, dict):
            raise ConfigError(f"{self.folder / RUN} is no record of an evaluation. Name another folder.")
        new = json.loads(json.dumps(dict(settings)))
        differing = [name for name in {**known, **new} if known.get(name) != new.get(name)]
        if differing:
            said = ", ".join(f"{name} was {known.get(name)!r} and is {new.get(name)!r}" for name in differing)
            raise ConfigError(f"{self.folder} holds the answers of another run: {said}. Set it as it was, or name another folder with --out.")

    def read(self, prompt_hashes: Mapping[str, str], *, with_failed: bool = False) -> dict[str, Result]:
        """Return the answers to these samples, by id. Samples that failed are to be asked again and left out, but for those asked for.

        Raises: DataError for a line that is damaged, or that answers another prompt.
        """
        answered: dict[str, Result] = {}
        failed: dict[str, Result] = {}
        for place, line in self._lines():
            result, digest = read_line(line, place)
            wanted = prompt_hashes.get(result.id)
            if wanted is None:
                continue  # of a run with more samples
            if wanted != digest:
                raise DataError(
                    f"{place} answers another prompt for sample {result.id} than the data hold now. "
                    "Take the data of that run, or name another folder with --out."
                )
            (answered if result.error is None else failed)[result.id] = result
        return failed | answered if with_failed else answered

    def _lines(self) -> Iterator[tuple[str, str]]:
        """Yield the journals' lines, each with its place in words."""
        for path in sorted(self.folder.glob(JOURNALS)):
            with path.open(encoding="utf-8", newline="\n") as file:
                for number, line in enumerate(file, start=1):
                    yield f"{path} line {number}", line

    @contextmanager
    def journal(self, rank: int = 0) -> Iterator["Journal"]:
        """Open a process's own journal."""
        path = self.folder / JOURNALS.replace("*", str(rank))
        try:
            file = path.open("ab", buffering=0)
        except OSError as error:
            raise cannot_write(path, error, "Name another folder with --out.") from None
        with file:
            yield Journal(path, file)


class Journal:
    """A file of answers that only grows. Each line is handed to the system whole, as soon as it is known."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self._file = path, file

    def add(self, result: Result, prompt_hash: str) -> None:
        """Write one line. Raises: DiskError if the disk is full."""
        append_line(self._file, self.path, json.dumps({"prompt": prompt_hash, **result_to_dict(result)}, ensure_ascii=False))


def append_line(file: BinaryIO, path: Path, text: str) -> None:
    """Add a line to a file that was opened unbuffered for it. Raises: DiskError if the disk is full; what was written of the line is taken back."""
    line = (text + "\n").encode("utf-8", "backslashreplace")
    end = os.fstat(file.fileno()).st_size
    try:
        written = 0
        while written < len(line):  # a full disk may take a part before it says so
            written += file.write(line[written:]) or 0
    except OSError as error:
        os.truncate(file.fileno(), end)
        raise cannot_write(path, error, "Make room and start again: nothing is repeated.") from None


def prompt_hash(sample: Sample, root: Path) -> str:
    """Return a digest of all that decides how a sample is asked: words, choices, and which pictures, by their place below the root."""
    parts = [sample.prompt, *sample.choices, *(name_picture(path, root) for path in sample.pictures)]
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:DIGEST_DIGITS]


def name_picture(path: Path, root: Path) -> str:
    """Return a picture's path below the root, with forward slashes; the whole path if it lies elsewhere."""
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def result_to_dict(result: Result) -> dict[str, Any]:
    """Return a result as JSON can hold it, without what says nothing."""
    return {name: value for name, value in asdict(result).items() if name not in DEFAULTS or value != DEFAULTS[name]}


def read_line(line: str, place: str) -> tuple[Result, str]:
    """Read a journal's line. Raises: DataError naming the place."""
    try:
        record = json.loads(line)
        digest = record.pop("prompt")
        for name in TUPLES:
            if record.get(name) is not None:
                record[name] = tuple(map(float, record[name]))
        if not (isinstance(digest, str) and isinstance(record["id"], str)):
            raise TypeError
        return Result(**record), digest
    except (ValueError, TypeError, KeyError, AttributeError):
        raise DataError(f"{place} is no answer of an evaluation. Delete the line, and its sample is asked again.") from None


def cut_half_line(path: Path) -> None:
    """Cut off what follows the last line end: a kill left it."""
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        end = size
        while end > 0:  # backwards, in pieces: the file may be large
            start = max(0, end - 65536)
            file.seek(start)
            at = file.read(end - start).rfind(b"\n")
            if at >= 0:
                end = start + at + 1
                break
            end = start
        if end < size:
            file.truncate(end)
