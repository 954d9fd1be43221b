"""Boxes against references: accuracy at an overlap of one half, and average precision where the model said how sure it was.

    box = first_box("(413,139),(501,253)</box>")          # (413.0, 139.0, 501.0, 253.0)
    box_iou(box, (400, 90, 447, 250), width=898, height=738)

The benchmark divides by 999, where drawing divides by 1000: each as the release does it.
"""

from collections.abc import Iterable, Sequence

from qwen_vl.grounding.box import iou, to_px_scoring

MIN_IOU = 0.5
MAX_NUMBER = 1e6  # no coordinate; a box that reaches so far overlaps with none
Corners = tuple[float, float, float, float]


def first_box(answer: str) -> Corners | None:
    r"""Return the numbers of the first two bracketed groups joined by a comma, or None if they are not twice two numbers of at most a million.

    Finds what the pattern `\((.*?)\),\((.*?)\)` finds first, in linear time: a match lies on one line, its first group begins at the line's first
    bracket, and where that start leads to no match no later one does.
    """
    for line in answer.split("\n"):
        start = line.find("(")
        middle = line.find("),(", start + 1) if start >= 0 else -1
        end = line.find(")", middle + 3) if middle >= 0 else -1
        if end >= 0:
            return _read_corners(line[start + 1 : middle].split(","), line[middle + 3 : end].split(","))
    return None


def _read_corners(first: Sequence[str], second: Sequence[str]) -> Corners | None:
    if len(first) != 2 or len(second) != 2:
        return None
    try:
        x1, y1, x2, y2 = map(float, (*first, *second))
    except ValueError:
        return None
    return (x1, y1, x2, y2) if all(abs(number) <= MAX_NUMBER for number in (x1, y1, x2, y2)) else None


def box_iou(box: Sequence[float] | None, reference: Sequence[float], width: float, height: float) -> float:
    """Return the overlap of a box on the grid with a reference in pixels; 0.0 without a box or with inverted corners."""
    if box is None:
        return 0.0
    return iou(to_px_scoring(box, width, height), reference)


def average_precision(found: Iterable[tuple[float, bool]], num_targets: int) -> float:
    """Return the area below the curve of precision over recall, 0.0 to 1.0, precision taken as the best at that recall or beyond.

    Args:
        found: (confidence, whether it is right) of each answer; equally sure ones count together, so that their order does not matter.
        num_targets: things that could be found.
    Source: PASCAL VOC 2010, all points.
    """
    if num_targets < 1:
        return 0.0
    curve: list[tuple[float, float]] = []  # (recall, precision) after each level of confidence
    num_answers = num_right = 0
    by_level: dict[float, list[bool]] = {}
    for confidence, is_right in found:
        by_level.setdefault(confidence, []).append(is_right)
    for level in sorted(by_level, reverse=True):
        num_answers += len(by_level[level])
        num_right += sum(by_level[level])
        curve.append((num_right / num_targets, num_right / num_answers))
    area = best = 0.0
    for index in range(len(curve) - 1, -1, -1):
        recall, precision = curve[index]
        best = max(best, precision)
        area += (recall - (curve[index - 1][0] if index else 0.0)) * best
    return area
