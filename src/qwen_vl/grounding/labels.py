"""Fit label text into a picture and find a place for it: inside the picture, close to its box, over as little other text as possible.

label = fit_label("the dog", 640, 480)
layout = LabelLayout(640, 480)
if label is not None:
    layout.place(label, (100, 80, 300, 400), (255, 0, 0))
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ImageFont

from qwen_vl.grounding.fonts import load_font

MIN_FONT_PX = 9  # smaller Chinese characters are blots
MAX_LABEL_CHARS = 200
MAX_LINES = 3
ELLIPSIS = "\u2026"
NUM_STACKED = 12  # places tried below the box's top edge, one label height apart

PxBox = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Label:
    """Text broken into lines at a font size, with the size of its plate in pixels."""

    lines: tuple[str, ...]
    font: ImageFont.FreeTypeFont
    padding: int
    line_height: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class PlacedLabel:
    """A label, the top left pixel of its plate, and its box's colour."""

    label: Label
    x: int
    y: int
    colour: tuple[int, int, int]


def font_size_px(width: int, height: int) -> int:
    """Choose the label size for a picture: 1/34 of its side, at least 14, less on pictures too low for that."""
    wanted = max(int((width * height) ** 0.5 / 34), 14)
    return min(wanted, max(height // 4, MIN_FONT_PX), max(width // 5, MIN_FONT_PX))


def fit_label(text: str, width: int, height: int, font_path: str | Path | None = None) -> Label | None:
    """Break a one-line text to fit a picture, up to three lines, the rest cut with an ellipsis; None if the picture is too small for text."""
    size_px = font_size_px(width, height)
    font = load_font(size_px, font_path)
    padding = max(size_px // 6, 1)
    ascent, descent = font.getmetrics()
    line_height = ascent + descent
    max_lines = min(MAX_LINES, (height - 2 * padding) // line_height)
    lines = _break_lines(_printable(text), font, width - 2 * padding, max_lines) if max_lines > 0 else ()
    if not lines:
        return None
    text_width = max(_width(font, line) for line in lines)
    return Label(lines, font, padding, line_height, text_width + 2 * padding, line_height * len(lines) + 2 * padding)


def _printable(text: str) -> str:
    """Cut endless text and show characters that have no shape as U+FFFD."""
    shown = text if len(text) <= MAX_LABEL_CHARS else text[:MAX_LABEL_CHARS] + ELLIPSIS
    return "".join(character if character.isprintable() else "\ufffd" for character in shown)


def _width(font: ImageFont.FreeTypeFont, text: str) -> int:
    left, _, right, _ = font.getbbox(text)
    return int(max(right, font.getlength(text)) - min(left, 0)) + 1


def _break_lines(text: str, font: ImageFont.FreeTypeFont, max_width: int, max_lines: int) -> tuple[str, ...]:
    """Fill lines greedily; empty when not even one character and the ellipsis fit."""
    lines: list[str] = []
    while text and len(lines) < max_lines:
        if _width(font, text) <= max_width:
            return (*lines, text)
        last = len(lines) == max_lines - 1
        count = _count_fitting(text, font, max_width, ELLIPSIS if last else "")
        if not count:
            return ()
        count = count if last else _count_to_space(text, count)
        lines.append(text[:count].rstrip() + (ELLIPSIS if last else ""))
        text = text[count:].lstrip()
    return tuple(lines)


def _count_fitting(text: str, font: ImageFont.FreeTypeFont, max_width: int, ending: str) -> int:
    """Count the leading characters that fit together with `ending`."""
    count = 0
    while count < len(text) and _width(font, text[: count + 1] + ending) <= max_width:
        count += 1
    return count


def _count_to_space(text: str, count: int) -> int:
    """Go back to the last space among the first `count` characters, unless that leaves less than half of them."""
    space = text.rfind(" ", 0, count + 1)
    return space if space > count // 2 else count


class LabelLayout:
    """Places labels of one picture one after another and remembers the pixels that they cover."""

    def __init__(self, width: int, height: int) -> None:
        self._width, self._height = width, height
        self._covered = np.zeros((height, width), dtype=bool)
        self.placed: list[PlacedLabel] = []

    def place(self, label: Label, box_px: PxBox, colour: tuple[int, int, int]) -> PlacedLabel:
        """Put a label at the best free place near its box: the first that covers no other label, else the one that covers least."""
        best = min(self._candidates(label, box_px), key=lambda corner: self._num_covered(label, corner))
        placed = PlacedLabel(label, *best, colour)
        self.placed.append(placed)
        self._covered[placed.y : placed.y + label.height, placed.x : placed.x + label.width] = True
        return placed

    def _num_covered(self, label: Label, corner: tuple[int, int]) -> int:
        x, y = corner
        return int(np.count_nonzero(self._covered[y : y + label.height, x : x + label.width]))

    def _candidates(self, label: Label, box_px: PxBox) -> Iterator[tuple[int, int]]:
        """List places in order of preference, each moved inside the picture. A box that its label would hide is labelled outside first."""
        x1, y1, x2, y2 = box_px
        left, right, above, below = x1, x2 - label.width + 1, y1 - label.height, y2 + 1
        inside = [(left, y1), (right, y1), (left, y2 - label.height + 1), (right, y2 - label.height + 1)]
        outside = [(left, above), (left, below), (right, above), (right, below), (x2 + 1, y1), (x1 - label.width, y1)]
        roomy = x2 - x1 >= label.width and y2 - y1 >= 3 * label.height
        stacked = [(left, y1 + step * label.height) for step in range(1, NUM_STACKED)]
        for x, y in [*inside, *outside, *stacked] if roomy else [*outside, *inside, *stacked]:
            yield min(max(x, 0), self._width - label.width), min(max(y, 0), self._height - label.height)
