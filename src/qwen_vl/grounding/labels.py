"""Fit label text into a picture and find a place for it: inside the picture, close to its box, over as little other text as possible.

layout = LabelLayout(640, 480)
layout.place(fit_label("the dog", 640, 480), (100, 80, 300, 400), (255, 0, 0))
layout.placed  # [PlacedLabel(..)], or [] in a picture too small for text
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFont

from qwen_vl.grounding.fonts import load_font

MIN_FONT_PX = 10  # smaller Chinese characters are blots
MAX_LABEL_CHARS = 200
MAX_LINES = 3
ELLIPSIS = "\u2026"
MAX_SHARE_HIDDEN = 1 / 8  # of a label's size: one that would hide more than this of others is left out

Point = tuple[int, int]
PxBox = tuple[int, int, int, int]
Rgb = tuple[int, int, int]


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
    colour: Rgb
    covers_label: bool  # its plate must be opaque: two texts over each other are unreadable


def font_size_px(width: int, height: int) -> int:
    """Choose the label size for a picture: 1/34 of its side, at least 14, less on pictures too low for that."""
    wanted = max(int(math.sqrt(width * height) / 34), 14)
    return max(min(wanted, height // 6, width // 6), MIN_FONT_PX)


def fit_label(text: str, width: int, height: int, font_path: str | Path | None = None) -> tuple[Label, ...]:
    """Break a one-line text to fit a picture.

    Returns: the label in full, in at most three lines and a third of the picture's height, and then, if that is not already short, on one
    line of about a quarter of the picture's width for crowded places; the rest of the text is cut with an ellipsis. Empty if the picture is
    too small for text.
    """
    size_px = font_size_px(width, height)
    font = load_font(size_px, font_path)
    shown = _printable(text)
    max_lines = max(min(MAX_LINES, height // 3 // _line_height(font)), 1)
    full = _make_label(shown, font, (min(width, max(width // 2, 12 * size_px)), height), max_lines)
    short = _make_label(shown, font, (min(width, max(width // 4, 4 * size_px)), height), 1)
    return tuple(dict.fromkeys(label for label in (full, short) if label is not None))


def _line_height(font: ImageFont.FreeTypeFont) -> int:
    ascent, descent = font.getmetrics()
    return ascent + descent


def _make_label(text: str, font: ImageFont.FreeTypeFont, max_size: tuple[int, int], max_lines: int) -> Label | None:
    padding = max(int(font.size) // 6, 1)
    line_height = _line_height(font)
    lines = _break_lines(text, font, max_size[0] - 2 * padding, max_lines)
    height = line_height * len(lines) + 2 * padding
    if not lines or height > max_size[1]:
        return None
    return Label(lines, font, padding, line_height, max(_width(font, line) for line in lines) + 2 * padding, height)


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

    def place(self, labels: Sequence[Label], box_px: PxBox, colour: Rgb, inset_px: int = 0) -> None:
        """Put one of `labels`, forms of one text from long to short, near its box.

        The longest form that finds a place at the box, free of other labels, goes there; then places around the box are tried in the same
        way. If none is free, the shortest goes where it hides least, or is left out where that would make another label unreadable.
        `inset_px` keeps a label inside its box off the box's line.
        """
        placed = self._choose(labels, box_px, colour, inset_px)
        if placed is not None:
            self.placed.append(placed)
            self._pixels(placed.label, (placed.x, placed.y))[:] = True

    def _choose(self, labels: Sequence[Label], box_px: PxBox, colour: Rgb, inset_px: int) -> PlacedLabel | None:
        shortest = None
        for list_places in (partial(_places_at, inset_px=inset_px), _places_around):
            for label in labels:
                corners = [self._move_inside(label, corner) for corner in list_places(label, box_px)]
                corner = min(corners, key=partial(self._hidden, label, box_px))
                num_hidden, _ = self._hidden(label, box_px, corner)
                shortest = PlacedLabel(label, *corner, colour, covers_label=num_hidden > 0)
                if not num_hidden:
                    return shortest
        return shortest if shortest and num_hidden <= MAX_SHARE_HIDDEN * shortest.label.width * shortest.label.height else None

    def _move_inside(self, label: Label, corner: Point) -> Point:
        return min(max(corner[0], 0), self._width - label.width), min(max(corner[1], 0), self._height - label.height)

    def _pixels(self, label: Label, corner: Point) -> NDArray[np.bool_]:
        """View the marks of the pixels that a label covers at a place: [label.height, label.width]."""
        return self._covered[corner[1] : corner[1] + label.height, corner[0] : corner[0] + label.width]

    def _hidden(self, label: Label, box_px: PxBox, corner: Point) -> tuple[int, int]:
        """Count the pixels of other labels that a label would hide at a place, and those of its own box unless that is roomy."""
        x, y = corner
        others = int(np.count_nonzero(self._pixels(label, corner)))
        if _is_roomy(label, box_px):
            return others, 0
        shared_width = min(x + label.width, box_px[2] + 1) - max(x, box_px[0])
        shared_height = min(y + label.height, box_px[3] + 1) - max(y, box_px[1])
        return others, max(shared_width, 0) * max(shared_height, 0)


def _places_at(label: Label, box_px: PxBox, inset_px: int) -> list[Point]:
    """List the places that touch a box, best first: inside it, or outside when the label would hide the box."""
    x1, y1, x2, y2 = box_px
    left, right, above, below = x1, x2 - label.width + 1, y1 - label.height, y2 + 1
    top, bottom = y1 + inset_px, y2 - inset_px - label.height + 1
    inside = [(x, y) for y in (top, bottom) for x in (left + inset_px, right - inset_px)]
    outside = [(left, above), (left, below), (right, above), (right, below), (x2 + 1, y1), (x1 - label.width, y1)]
    return [*inside, *outside] if _is_roomy(label, box_px) else [*outside, *inside]


def _places_around(label: Label, box_px: PxBox) -> list[Point]:
    """List places up to five label heights and one label width away from a box's top left corner, nearest first."""
    steps = sorted(((right, down) for down in range(-5, 6) for right in range(-2, 3)), key=lambda step: (abs(step[0]) + abs(step[1]), step))
    return [(box_px[0] + right * label.width // 2, box_px[1] + down * label.height) for right, down in steps]


def _is_roomy(label: Label, box_px: PxBox) -> bool:
    """Tell whether a box keeps most of its inside when its label lies in it."""
    x1, y1, x2, y2 = box_px
    return x2 - x1 >= label.width + label.padding and y2 - y1 >= 3 * label.height
