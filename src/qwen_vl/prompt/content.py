"""What a message says: text and pictures, kept apart.

In a plain string a picture is written `<img>path</img>`, so whoever writes the string can name a picture. A `Content` keeps
pictures and text apart: a tag that is typed in its text stays text.

    split_pictures("a <img>b.png</img> c")  # Content((Text("a "), PicturePath("b.png"), Text(" c")))
"""

from collections.abc import Iterator
from dataclasses import dataclass

from qwen_vl.errors import PromptError
from qwen_vl.grounding.tags import IMG_END, IMG_START


@dataclass(frozen=True, slots=True)
class Text:
    """A stretch of text outside picture spans."""

    value: str

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class PicturePath:
    """What stands between `<img>` and `</img>`, byte for byte."""

    value: str

    def __str__(self) -> str:
        return f"{IMG_START}{self.value}{IMG_END}"


@dataclass(frozen=True, slots=True)
class Content:
    """Texts and pictures in order."""

    pieces: tuple[Text | PicturePath, ...]

    def __str__(self) -> str:
        return "".join(map(str, self.pieces))

    @property
    def num_pictures(self) -> int:
        return sum(isinstance(piece, PicturePath) for piece in self.pieces)


def split_pictures(text: str) -> Content:
    """Read the pictures that a text names. Raises: PromptError for `<img>` without `</img>`."""
    return Content(tuple(_split(text)))


def _split(text: str) -> Iterator[Text | PicturePath]:
    """Yield the text's pieces in order, leaving empty texts out."""
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
