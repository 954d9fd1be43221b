"""Boxes, quads and references on the model's coordinate grid, and their conversion to pixels and fractions.

The grid runs from 0 to 999 on both axes, whatever the picture's size. Two conversions to pixels exist, each where the release used it:
drawing divides by 1000 (`to_px`), the grounding benchmark divides by 999 (`to_px_scoring`).

    box = Box.from_px(12, 30, 200, 180, width=448, height=336)
    box.to_px(448, 336)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qwen_vl.errors import ShapeError

BOX_GRID = 1000  # coordinates are 0 .. BOX_GRID - 1
BOX_MAX = BOX_GRID - 1

Point = tuple[int, int]


def iou(first: Sequence[float], second: Sequence[float]) -> float:
    """Measure the intersection over union of two (x1, y1, x2, y2) with ordered corners; 0.0 when both are empty.

    Corners are taken as continuous coordinates: a box from 10 to 20 is 10 wide.
    """
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0) * max(height, 0)
    union = _area(first) + _area(second) - shared
    return float(shared / union) if union > 0 else 0.0


def _area(corners: Sequence[float]) -> float:
    return max(corners[2] - corners[0], 0) * max(corners[3] - corners[1], 0)


def to_px_scoring(corners: Sequence[float], width: float, height: float) -> tuple[float, float, float, float]:
    """Convert grid coordinates, whole or not, to pixels as the grounding benchmark does: x / 999 * width, unrounded, so that 999 is the far edge."""
    x1, y1, x2, y2 = corners
    return x1 / BOX_MAX * width, y1 / BOX_MAX * height, x2 / BOX_MAX * width, y2 / BOX_MAX * height


def clip_to_grid(value: int) -> int:
    """Limit one coordinate to 0 .. 999; 1000, which a model writes for the far edge, becomes 999."""
    return min(max(value, 0), BOX_MAX)


def _fraction_to_grid(fraction: float) -> int:
    if not math.isfinite(fraction):
        raise ShapeError(f"coordinate {fraction} is not a finite number")
    return clip_to_grid(round(fraction * BOX_GRID))


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise ShapeError(f"width={width}, height={height} is not a picture size; both must be 1 or more")


@dataclass(frozen=True, slots=True)
class Box:
    """Two corners on the grid, top left and bottom right. `clip` and `sort` make any four whole numbers a proper box."""

    x1: int
    y1: int
    x2: int
    y2: int

    @classmethod
    def from_px(cls, x1: float, y1: float, x2: float, y2: float, width: int, height: int) -> "Box":
        """Place a pixel box of a `width` x `height` picture on the grid: nearest grid line, corners ordered, clipped to the picture.

        Inverse of `to_px` to one pixel for pictures up to 1000 pixels wide and high, exact for unrounded pixels.
        Raises: ShapeError if the size is not positive or a number is not finite.
        """
        _check_size(width, height)
        return cls.from_fractions(x1 / width, y1 / height, x2 / width, y2 / height)

    @classmethod
    def from_fractions(cls, x1: float, y1: float, x2: float, y2: float) -> "Box":
        """Place a box given as fractions of width and height on the grid; the exact inverse of `to_fractions`."""
        return cls(_fraction_to_grid(x1), _fraction_to_grid(y1), _fraction_to_grid(x2), _fraction_to_grid(y2)).sort()

    def to_tuple(self) -> tuple[int, int, int, int]:
        """List the coordinates in the order x1, y1, x2, y2."""
        return self.x1, self.y1, self.x2, self.y2

    def to_fractions(self) -> tuple[float, float, float, float]:
        """Divide by 1000: fractions of the picture's width and height."""
        return self.x1 / BOX_GRID, self.y1 / BOX_GRID, self.x2 / BOX_GRID, self.y2 / BOX_GRID

    def to_px(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Convert to whole pixels as drawing does: int(x / 1000 * width)."""
        _check_size(width, height)
        x1, y1, x2, y2 = self.to_fractions()
        return int(x1 * width), int(y1 * height), int(x2 * width), int(y2 * height)

    def to_px_scoring(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Convert to pixels as the grounding benchmark does; see the function of this name."""
        _check_size(width, height)
        return to_px_scoring(self.to_tuple(), width, height)

    def clip(self) -> "Box":
        """Limit every coordinate to the grid."""
        return Box(clip_to_grid(self.x1), clip_to_grid(self.y1), clip_to_grid(self.x2), clip_to_grid(self.y2))

    def sort(self) -> "Box":
        """Order the corners: x1 <= x2 and y1 <= y2."""
        return Box(min(self.x1, self.x2), min(self.y1, self.y2), max(self.x1, self.x2), max(self.y1, self.y2))

    @property
    def area(self) -> int:
        """Area in grid cells; 0 when the corners are not ordered."""
        return int(_area(self.to_tuple()))

    def iou(self, other: "Box") -> float:
        """Measure the overlap with another box, 0.0 to 1.0."""
        return iou(self.to_tuple(), other.to_tuple())


@dataclass(frozen=True, slots=True)
class Quad:
    """Four corners on the grid, clockwise from the top left, for text and other slanted things."""

    points: tuple[Point, Point, Point, Point]

    def to_px(self, width: int, height: int) -> tuple[Point, Point, Point, Point]:
        """Convert to whole pixels as drawing does: int(x / 1000 * width)."""
        _check_size(width, height)
        first, second, third, fourth = ((int(x / BOX_GRID * width), int(y / BOX_GRID * height)) for x, y in self.points)
        return first, second, third, fourth

    def to_box(self) -> Box:
        """Give the smallest upright box around the four corners."""
        xs, ys = zip(*self.points, strict=True)
        return Box(min(xs), min(ys), max(xs), max(ys))


@dataclass(frozen=True, slots=True)
class Ref:
    """A phrase and the places that it names; `text` is "" for boxes without a phrase.

    `text` is kept as the model wrote it, often with a leading space; `label` is what to show.
    """

    text: str
    boxes: tuple[Box, ...] = ()
    quads: tuple[Quad, ...] = ()

    @property
    def label(self) -> str:
        """The phrase on one line: no space at the ends, single spaces inside."""
        return " ".join(self.text.split())
