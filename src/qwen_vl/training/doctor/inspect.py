"""Look through a whole data file: every record, every picture, every box.

What training refuses is decided by what training itself reads with (`conversations`); here is found what it would not say, or only about the
first record: a record that is refused always has an error, and one that has none is read.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen_vl.errors import DataError, ImageError, ImageMissingError
from qwen_vl.processing.images import load_image
from qwen_vl.processing.tokenization import QWenTokenizer
from qwen_vl.prompt.content import PicturePath, split_pictures
from qwen_vl.training.conversations.conversation import ASSISTANT, Conversation
from qwen_vl.training.conversations.encoding import Counts, encode_conversation
from qwen_vl.training.conversations.formats import CONTROL_TOKENS, detect_format, read_conversation
from qwen_vl.training.conversations.records import read_records

from .findings import ERROR, Finding, printable
from .scale import Guess, RawBox, Size, check_box, guess_scale, read_boxes
from .tags import find_tag_problems
from .texts import begins_with_answer, check_roles, find_slots

WHOLE = 2**31  # tokens: no limit
ADDRESS = ("http://", "https://")
NUMBERED = re.compile(r"Picture (\d+)(?=: ?<img>)")
Progress = Callable[[str, int, int], None]  # what is done, how many are, of how many (0: not known)


def no_progress(what: str, done: int, total: int) -> None:
    """Say nothing."""


@dataclass(slots=True, kw_only=True)
class Checked:
    """A record and what was found in it. `conversation` and `length` are None where it cannot be read or encoded."""

    number: int
    id: str
    form: str = "unknown"
    conversation: Conversation | None = None
    length: int | None = None  # tokens
    num_trained: int = 0  # tokens
    findings: list[Finding] = field(default_factory=list)
    turn_sizes: list[list[Size | None]] = field(default_factory=list)  # of each turn: sizes of the latest picture before each box

    def add(self, kind: str, found: str) -> None:
        """Note a finding."""
        self.findings.append(Finding(record=self.number, id=self.id, kind=kind, found=printable(found)))

    @property
    def has_error(self) -> bool:
        """Tell whether something must be mended."""
        return any(finding.severity == ERROR for finding in self.findings)

    def boxes(self) -> Iterator[RawBox]:
        """Yield the boxes of all turns."""
        if self.conversation:
            for turn, sizes in zip(self.conversation.turns, self.turn_sizes, strict=True):
                yield from read_boxes(turn.text, sizes)


class PictureChecker:
    """Opens each picture once. `sizes` has those that can be read, `problems` what is wrong with the others."""

    def __init__(self, fetch: bool = False) -> None:
        self.fetch = fetch
        self.sizes: dict[str, Size] = {}
        self.problems: dict[str, tuple[str, str]] = {}

    def check(self, references: Sequence[str], progress: Progress = no_progress) -> None:
        """Open pictures, in several threads, that were not opened before."""
        new = [name for name in dict.fromkeys(references) if name not in self.sizes and name not in self.problems]
        with ThreadPoolExecutor() as pool:
            for number, (name, found) in enumerate(zip(new, pool.map(self._open, new), strict=True), start=1):
                if isinstance(found[0], int):
                    self.sizes[name] = found[0], int(found[1])
                else:
                    self.problems[name] = found[0], str(found[1])
                progress("pictures", number, len(new))

    def _open(self, name: str) -> tuple[int | str, int | str]:
        """Return the size of a picture, or (kind, what is wrong)."""
        if name.lower().startswith(ADDRESS) and not self.fetch:
            return "picture-address", name[:200]
        try:
            return load_image(name).size
        except ImageMissingError as error:
            return "picture-missing", str(error)
        except ImageError as error:
            return "picture-unreadable", str(error)


class Doctor:
    """Checks records one by one. What concerns the whole file, `check_file` adds.

    Args:
        folder: where relative picture paths start.
        max_length: most tokens of a sample.
    """

    def __init__(self, tokenizer: QWenTokenizer, folder: Path, max_length: int, pictures: PictureChecker) -> None:
        self.tokenizer, self.folder, self.max_length, self.pictures = tokenizer, folder, max_length, pictures

    def read(self, number: int, record: object) -> Checked:
        """Read a record, and find what is wrong with its messages, tags and lengths; pictures and boxes are not looked at yet."""
        found = record.get("id") if isinstance(record, dict) else None
        checked = Checked(number=number, id=printable(str(number if found is None else found), 80))
        for slot in find_slots(record):
            self._check_text(checked, slot.text, f"message {slot.message + 1}")
        try:
            checked.conversation = read_conversation(number, record, self.folder)
            checked.form = detect_format(record)
        except DataError as error:
            for kind, what in check_roles(record):
                checked.add(kind, what)
            if not checked.has_error:
                checked.add("record", str(error))
            return checked
        if begins_with_answer(record):
            checked.add("first-answer", "the first message is the assistant's")
        self._check_pictures_in_text(checked, checked.conversation)
        self._measure(checked, checked.conversation)
        return checked

    def _check_text(self, checked: Checked, text: str, place: str) -> None:
        for problem in find_tag_problems(text):
            checked.add("tag", f"{place}: {problem}")
        markers = [token for token in CONTROL_TOKENS if token in text] if "<|" in text else []
        if markers:
            checked.add("marker", f"{place} holds {', '.join(markers[:5])}")

    def _check_pictures_in_text(self, checked: Checked, conversation: Conversation) -> None:
        """Find pictures in answers and numbers that do not count the pictures."""
        if any(turn.role == ASSISTANT and split_pictures(turn.text).num_pictures for turn in conversation.turns):
            checked.add("picture-answer", "an answer shows a picture")
        numbers = [int(match[1][:9]) for turn in conversation.turns for match in NUMBERED.finditer(turn.text)]
        if numbers and numbers != list(range(1, len(numbers) + 1)):
            checked.add("numbering", f"the pictures are numbered {', '.join(map(str, numbers[:8]))}{' ..' if len(numbers) > 8 else ''}")

    def _measure(self, checked: Checked, conversation: Conversation) -> None:
        """Count tokens, and find what is too long and where the release would cut it."""
        counts = Counts()
        try:
            sample = encode_conversation(self.tokenizer, conversation, WHOLE, counts=counts)
        except DataError as error:
            checked.add("record", str(error))
            return
        if sample is None:
            kind = "long" if counts.skipped_long else "untrained"
            checked.add(kind, "its text is too long to be encoded" if counts.skipped_long else "no answer holds anything but pictures")
            return
        checked.length = len(sample.input_ids)
        checked.num_trained = sum(label >= 0 for label in sample.labels)
        if checked.length > self.max_length:
            checked.add("long", f"{checked.length} tokens, {checked.length - self.max_length} more than {self.max_length}")
            spans = self.tokenizer.image_spans(list(sample.input_ids))
            cut = next((number for number, (start, end) in enumerate(spans, start=1) if start < self.max_length <= end), None)
            if cut:
                checked.add("cut-picture", f"picture {cut} spans token {self.max_length}, where the release cuts")

    def look(self, checked: Checked) -> None:
        """Add what is wrong with the pictures, and note their sizes for the boxes; the pictures must have been opened."""
        if checked.conversation is None:
            return
        for name in dict.fromkeys(checked.conversation.pictures):
            if name in self.pictures.problems:
                checked.add(*self.pictures.problems[name])
        checked.turn_sizes = list(sizes_by_turn(checked.conversation, self.pictures.sizes))

    def judge(self, checked: Checked, guess: Guess) -> None:
        """Add what is wrong with the boxes: for each kind the first one found, with the number of others."""
        found: dict[str, list[str]] = {}
        for box in checked.boxes():
            problem = check_box(box, guess)
            if problem:
                found.setdefault(problem[0], []).append(problem[1])
        for kind, shown in found.items():
            checked.add(kind, shown[0] + (f" and {len(shown) - 1} more" if len(shown) > 1 else ""))
        if checked.conversation and not checked.conversation.pictures and any(True for _ in checked.boxes()):
            checked.add("box-no-picture", "boxes, but no picture")


def sizes_by_turn(conversation: Conversation, sizes: dict[str, Size]) -> Iterator[list[Size | None]]:
    """Yield for each turn the size of the latest picture before each of its boxes."""
    shown = 0
    for turn in conversation.turns:
        found: list[Size | None] = []
        for piece in split_pictures(turn.text).pieces:
            if isinstance(piece, PicturePath):
                shown += 1
            else:
                size = sizes.get(conversation.pictures[shown - 1]) if shown else None
                found += [size for _ in read_boxes(piece.value)]
        yield found


def content_key(conversation: Conversation) -> str:
    """Return a digest of everything that is said and shown."""
    said: list[Any] = [conversation.system, conversation.pictures, [(turn.role, turn.text) for turn in conversation.turns]]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def find_duplicates(records: Sequence[Checked]) -> None:
    """Add what is there twice: contents, and ids of different contents."""
    contents: dict[str, int] = {}
    ids: dict[str, int] = {}
    for checked in records:
        if checked.conversation:
            first = contents.setdefault(content_key(checked.conversation), checked.number)
            if first != checked.number:
                checked.add("same-content", f"the same as record {first}")
                continue
        first = ids.setdefault(checked.id, checked.number)
        if first != checked.number:
            checked.add("same-id", f"record {first} has the id too")


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """All records of a file, what its boxes are taken for, and the pictures."""

    path: Path
    max_length: int
    records: list[Checked]
    guess: Guess
    doctor: Doctor

    @property
    def findings(self) -> list[Finding]:
        """Everything found, by record."""
        return [finding for checked in self.records for finding in checked.findings]

    @property
    def num_errors(self) -> int:
        """Number of findings that are errors."""
        return sum(finding.severity == ERROR for finding in self.findings)


def check_file(
    path: Path,
    tokenizer: QWenTokenizer,
    *,
    max_length: int = 2048,
    fetch: bool = False,
    boxes: Guess | None = None,
    progress: Progress = no_progress,
) -> Examination:
    """Look through a data file in any format that training reads.

    Args:
        max_length: most tokens of a sample.
        fetch: open pictures at addresses too.
        boxes: how boxes are written, if it is known; otherwise it is guessed.
    Raises: DataError if the file cannot be opened or holds no records.
    """
    pictures = PictureChecker(fetch)
    doctor = Doctor(tokenizer, path.parent, max_length, pictures)
    records: list[Checked] = []
    damage = None
    reader = read_records(path)
    try:
        for number, record in reader:
            records.append(doctor.read(number, record))
            progress("records", number, 0)
    except DataError as error:
        if not records:
            raise
        damage = str(error)
    if not records:
        raise DataError(f"{path} holds no records. There is nothing to check.")
    pictures.check([name for checked in records if checked.conversation for name in checked.conversation.pictures], progress)
    for checked in records:
        doctor.look(checked)
    guess = boxes or guess_scale([box for checked in records for box in checked.boxes()])
    for checked in records:
        doctor.judge(checked, guess)
    find_duplicates(records)
    if damage:
        records.append(Checked(number=len(records) + 1, id=""))
        records[-1].add("json", damage)
    return Examination(path=path, max_length=max_length, records=records, guess=guess, doctor=doctor)
