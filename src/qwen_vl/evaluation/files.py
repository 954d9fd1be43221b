"""Read and write the files of benchmarks: JSON, JSON lines, and tab-separated tables.

Text is UTF-8 with or without a byte order mark, with any line ends. Not a number and infinity, which JSON does not know, are refused. Every error
names the file and the record.

    for record in read_jsonl(Path("vqav2_val.jsonl")):
        record.text("question"), record.id("question_id")
"""

import csv
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_vl.errors import DataError, cannot_write
from qwen_vl.whole import digest_file, whole_file

Entry = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Record:
    """An object of a data file, and where it stands there."""

    entry: Entry
    place: str  # for messages

    def need(self, key: str) -> Any:
        """Return a value. Raises: DataError if it is missing or null."""
        value = self.entry.get(key)
        if value is None:
            raise DataError(f"{self.place} has no {key!r}. Add it, or remove the record.")
        return value

    def text(self, key: str) -> str:
        """Return a text that says something. Raises: DataError."""
        value = self.need(key)
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{self.place}: {key!r} is {_show(value)}, not a text. Correct it.")
        return value

    def optional_text(self, key: str) -> str:
        """Return a text, "" where there is none. Raises: DataError."""
        value = self.entry.get(key)
        if value is not None and not isinstance(value, str):
            raise DataError(f"{self.place}: {key!r} is {_show(value)}, not a text. Correct it.")
        return value or ""

    def id(self, key: str) -> str:
        """Return a whole number or a text, as text. Raises: DataError."""
        value = self.need(key)
        if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip():
            raise DataError(f"{self.place}: {key!r} is {_show(value)}, neither a whole number nor a text. Correct it.")
        return str(value)

    def number(self, key: str) -> float:
        """Return a finite number. Raises: DataError."""
        value = self.need(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise DataError(f"{self.place}: {key!r} is {_show(value)}, not a number. Correct it.")
        return float(value)

    def index(self, key: str, length: int) -> int:
        """Return a whole number from 0 to length - 1. Raises: DataError."""
        value = self.need(key)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < length:
            raise DataError(f"{self.place}: {key!r} is {_show(value)}, not a whole number from 0 to {length - 1}. Correct it.")
        return value

    def texts(self, key: str, at_least: int = 1) -> list[str]:
        """Return a list of texts; a single text is a list of one. Raises: DataError."""
        value = self.need(key)
        found = [value] if isinstance(value, str) else value
        if not isinstance(found, list) or len(found) < at_least or not all(isinstance(each, str) for each in found):
            raise DataError(f"{self.place}: {key!r} is {_show(value)}, not a list of {at_least} or more texts. Correct it.")
        return found

    def box(self, key: str) -> tuple[float, float, float, float]:
        """Return four finite numbers. Raises: DataError."""
        value = self.need(key)
        if not isinstance(value, list) or len(value) != 4 or not all(_is_number(each) for each in value):
            raise DataError(f"{self.place}: {key!r} is {_show(value)}, not four numbers. Correct it.")
        x1, y1, x2, y2 = map(float, value)
        return x1, y1, x2, y2

    def text_of_each(self, key: str, inner: str) -> list[str]:
        """Return one text, which may be empty, of each object of a list. Raises: DataError."""
        value = self.entry.get(key)
        if isinstance(value, list) and all(isinstance(each, dict) and isinstance(each.get(inner), str) for each in value):
            return [each[inner] for each in value]  # without a Record for each: VQAv2 has two millions
        for record in self.records(key):
            if not isinstance(record.need(inner), str):
                raise DataError(f"{record.place}: {inner!r} is {_show(record.need(inner))}, not a text. Correct it.")
        raise DataError(f"{self.place} has no list {key!r}. Add it, or remove the record.")

    def records(self, key: str) -> list["Record"]:
        """Return the objects of a list. Raises: DataError."""
        return list(entries_of(self.entry, key, self.place))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _show(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}.."


def read_json(path: Path) -> Any:
    """Return a whole JSON file. Raises: DataError naming the file, and the line if its JSON is broken."""
    return _parse(_read_text(path), str(path), is_line=False)


def read_object(path: Path) -> Record:
    """Return a JSON file that holds one object. Raises: DataError."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise DataError(f"{path} holds a {type(value).__name__}, not an object. Is it another file?")
    return Record(value, str(path))


def read_list(path: Path) -> list[Record]:
    """Return a JSON file that holds a list of objects. Raises: DataError."""
    return list(entries_of({"list": read_json(path)}, "list", str(path)))


def entries_of(document: Entry, key: str, place: str) -> Iterator[Record]:
    """Yield the objects of one of a document's lists. Raises: DataError."""
    value = document.get(key)
    if not isinstance(value, list):
        raise DataError(f"{place} has no list {key!r}. Is it another file?")
    for number, entry in enumerate(value, start=1):
        if not isinstance(entry, dict):
            raise DataError(f"{place}: entry {number} of {key!r} is {_show(entry)}, not an object. Correct it.")
        yield Record(entry, f"{place}: entry {number} of {key!r}")


def read_jsonl(path: Path) -> list[Record]:
    """Return the objects of a file with one on each line; empty lines are skipped. Raises: DataError naming file and line."""
    records = []
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if line.strip():
            place = f"{path}: line {number}"
            entry = _parse(line, place, is_line=True)
            if not isinstance(entry, dict):
                raise DataError(f"{place} is {_show(entry)}, not an object. Correct it.")
            records.append(Record(entry, place))
    if not records:
        raise DataError(f"{path} is empty. It must hold one record a line.")
    return records


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file, without blanks around them and without empty ones. Raises: DataError."""
    return [line.strip() for line in _read_text(path).split("\n") if line.strip()]


def read_tsv(path: Path, columns: Sequence[str]) -> list[Record]:
    """Return the rows of a tab-separated table with a heading; empty cells are left out. Raises: DataError naming file and line."""
    lines = _read_text(path).split("\n")
    limit = csv.field_size_limit(sys.maxsize)  # pictures stand in the cells
    try:
        reader = csv.reader((f"{line}\n" for line in lines), delimiter="\t", strict=True)
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num} is not a row of a table: {error}. Save it anew.") from None
    finally:
        csv.field_size_limit(limit)
    heading = rows[0][1] if rows else []
    missing = [column for column in columns if column not in heading]
    if missing:
        raise DataError(f"{path} has no column {missing[0]!r}; its columns are {', '.join(heading)[:200]}. Is it another file?")
    for number, row in rows[1:]:
        if len(row) != len(heading):
            raise DataError(f"{path}: line {number} has {len(row)} cells, the heading {len(heading)}. Correct it.")
    found = [Record({name: cell for name, cell in zip(heading, row, strict=True) if cell}, f"{path}: line {number}") for number, row in rows[1:]]
    if not found:
        raise DataError(f"{path} has no rows. It must hold one record a row.")
    return found


def _read_text(path: Path) -> str:
    """Return a file's text with "\\n" as line ends. Raises: DataError if it cannot be read or is not UTF-8."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Check the path.") from None
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}: line {line} holds the byte 0x{content[error.start]:02x}, which is not UTF-8. Save the file as UTF-8.") from None


class _NotJson(ValueError):
    """A constant that JSON does not know."""


def _refuse(constant: str) -> float:
    raise _NotJson(constant)


def _parse(text: str, place: str, *, is_line: bool) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        where = place if is_line else f"{place}: line {error.lineno}"
        raise DataError(f"{where} is not valid JSON: {error.msg} at character {error.colno}. Is the file cut off?") from None
    except _NotJson as error:
        raise DataError(f"{place} holds {error}, which is not a number in JSON. Correct it.") from None
    except (ValueError, RecursionError):
        raise DataError(f"{place} holds a number too long, or lists too deep, to be read. Correct it.") from None


def refuse_repeats(places: Iterable[tuple[str, str]], what: str) -> None:
    """Raise DataError for an id that stands in two records. Args: places: (id, place of its record)."""
    seen: dict[str, str] = {}
    for number, place in places:
        if number in seen:
            raise DataError(f"{place} has the {what} {number!r} of {seen[number]} again. Ids must differ: remove one record.")
        seen[number] = place


def write_json(path: Path, value: Any) -> Path:
    """Write a JSON file whole or not at all, making its folder. Raises: ConfigError or DiskError."""
    return write_bytes(path, _encode(value))


def write_jsonl(path: Path, records: Iterable[Entry]) -> Path:
    """Write one record a line, whole or not at all, making the folder. Raises: ConfigError or DiskError."""
    return write_bytes(path, b"".join(map(_encode, records)))


def _encode(value: Any) -> bytes:
    """Return JSON as one line; a character that UTF-8 cannot hold becomes its escape, which JSON reads back."""
    return (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "backslashreplace")


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file whole or not at all, making its folder. Raises: ConfigError or DiskError."""
    remedy = "Name another folder."
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error, remedy) from None
    with whole_file(path, remedy=remedy) as work:
        work.write_bytes(content)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write a text as UTF-8, whole or not at all; a character that UTF-8 cannot hold becomes its escape. Raises: ConfigError or DiskError."""
    return write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_document(path: Path, value: Any) -> Path:
    """Write a JSON document that people read, one value a line, whole or not at all. Raises: ConfigError or DiskError."""
    return write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal. Raises: DataError if it cannot be read."""
    try:
        return digest_file(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Check the path.") from None
