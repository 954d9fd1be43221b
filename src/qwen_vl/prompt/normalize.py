"""Unicode normalisation of prompts: NFC everywhere but inside `<img>..</img>`.

The release normalises file names too, so that a file with a decomposed name is not found (FACTS quirk 3).
Here a path is left as it was written.

    split_pictures("a <img>b.png</img> c")  # [Text("a "), PicturePath("b.png"), Text(" c")]
"""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from qwen_vl.errors import PromptError
from qwen_vl.grounding.tags import IMG_END, IMG_START

MAX_MARKS_IN_A_ROW = 1024  # reordering combining marks takes quadratic time in the length of such a run


@dataclass(frozen=True, slots=True)
class Text:
    """A stretch of prompt outside picture spans."""

    value: str


@dataclass(frozen=True, slots=True)
class PicturePath:
    """What stands between `<img>` and `</img>`, byte for byte."""

    value: str


def normalize(text: str) -> str:
    """Return the NFC form.

    Raises: PromptError if more combining marks follow each other than any writing needs, because that takes minutes.
    """
    if text.isascii():
        return text
    classes = bytes(map(unicodedata.combining, text))  # one byte per character; 0 is a base character
    longest = max(map(len, classes.split(b"\0")))
    if longest > MAX_MARKS_IN_A_ROW:
        raise PromptError(f"The text has {longest} combining marks in a row; at most {MAX_MARKS_IN_A_ROW} are read. Remove them.")
    return unicodedata.normalize("NFC", text)


def split_pictures(text: str) -> Iterator[Text | PicturePath]:
    """Yield the text's pieces in order, leaving empty texts out.

    Raises: PromptError for `<img>` without `</img>`.
    """
    position = 0
    while (start := text.find(IMG_START, position)) >= 0:
        end = text.find(IMG_END, start)
        if end < 0:
            raise PromptError(f"Unclosed image token: {IMG_START} at character {start} has no {IMG_END} after it. Close it or remove it.")
        if start > position:
            yield Text(text[position:start])
        yield PicturePath(text[start + len(IMG_START) : end])
        position = end + len(IMG_END)
    if position < len(text):
        yield Text(text[position:])
