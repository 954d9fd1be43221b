"""Draw references on a picture: one colour and one label per phrase, the same bytes for the same input.

    draw_refs(picture, parse(answer)).save("out.png")

Boxes lie where the release draws them (grid / 1000 * size, rounded down). Placing labels is `labels.py`'s work.
"""

import math
import unicodedata
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from qwen_vl.grounding.box import Box, Quad, Ref
from qwen_vl.grounding.labels import MAX_LABEL_CHARS, LabelLayout, PlacedLabel, fit_label

Rgb = tuple[int, int, int]

# Ten clear hues that differ for most colour-blind readers and stand out on white and on black, given the dark rim around each line.
PALETTE: tuple[Rgb, ...] = (
    (255, 89, 94),
    (46, 160, 255),
    (255, 179, 0),
    (52, 199, 89),
    (191, 90, 242),
    (0, 199, 190),
    (255, 120, 30),
    (255, 100, 180),
    (160, 210, 30),
    (130, 130, 255),
)
RIM = (0, 0, 0, 110)  # half transparent black on both sides of a line
MAX_LABELS = 500  # no picture holds more readable ones; an answer may hold thousands
PLATE_OPACITY = 204  # of the black behind a label: 0.8


def preferred_colour(label: str) -> int:
    """Choose a palette index from the label's text alone (its first 200 characters), the same on every machine."""
    return zlib.crc32(unicodedata.normalize("NFC", label[:MAX_LABEL_CHARS]).encode("utf-8", "surrogatepass")) % len(PALETTE)


def assign_colours(labels: Iterable[str]) -> dict[str, Rgb]:
    """Give each label its preferred colour, or the next free one when an earlier label of the picture has it."""
    taken: set[int] = set()
    colours: dict[str, Rgb] = {}
    for label in dict.fromkeys(labels):
        if len(taken) == len(PALETTE):
            taken.clear()  # more labels than colours: begin again
        index = preferred_colour(label)
        while index in taken:
            index = (index + 1) % len(PALETTE)
        taken.add(index)
        colours[label] = PALETTE[index]
    return colours


def line_width_px(width: int, height: int) -> int:
    """Choose the width of box lines for a picture size: about 1/160 of its side, 1 to 12."""
    least = 2 if min(width, height) >= 48 else 1
    return min(max(round(math.sqrt(width * height) / 160), least), 12)


def draw_refs(image: Image.Image, refs: Sequence[Ref], *, font_path: str | Path | None = None) -> Image.Image:
    """Draw every box and quad of `refs`, and each phrase once, at its first box.

    Args:
        image: any mode and size; it is not changed.
        refs: what `parse` returned. A phrase keeps its colour in every picture unless two phrases of one picture would share it.
        font_path: a font of your own, for characters that the bundled one lacks (it covers Latin and simplified Chinese).
    Returns: a new RGB picture of the same size. Lines and labels stay inside it. A label that would make others unreadable is left out.
    Raises: ConfigError if `font_path` is not a font.
    """
    canvas = image.convert("RGB")
    if canvas is image:
        canvas = image.copy()
    colours = assign_colours(ref.label for ref in refs)
    _draw_lines(canvas, refs, colours)
    _draw_labels(canvas, _place_labels(canvas.size, refs, colours, font_path))
    return canvas


def _draw_lines(canvas: Image.Image, refs: Sequence[Ref], colours: dict[str, Rgb]) -> None:
    pen = ImageDraw.Draw(canvas, "RGBA")
    width_px = line_width_px(*canvas.size)
    for ref in refs:
        for box in ref.boxes:
            _draw_box(pen, box, canvas.size, width_px, colours[ref.label])
        for quad in ref.quads:
            _draw_quad(pen, quad, canvas.size, width_px, colours[ref.label])


def _draw_box(pen: ImageDraw.ImageDraw, box: Box, size: tuple[int, int], width_px: int, colour: Rgb) -> None:
    """Draw one box; its line runs inward from the corners, so it stays inside the picture, with a rim of 1 pixel on both sides."""
    x1, y1, x2, y2 = box.sort().clip().to_px(*size)
    pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=RIM)
    inner = (x1 + width_px, y1 + width_px, x2 - width_px, y2 - width_px)
    if inner[0] <= inner[2] and inner[1] <= inner[3]:
        pen.rectangle(inner, outline=RIM)
        pen.rectangle((x1, y1, x2, y2), outline=colour, width=width_px)
    else:
        # Too thin for an outline: a bar or a spot, never thinner than the line.
        left, top = min(x1, max(size[0] - width_px, 0)), min(y1, max(size[1] - width_px, 0))
        pen.rectangle((left, top, max(x2, left + width_px - 1), max(y2, top + width_px - 1)), fill=colour)


def _draw_quad(pen: ImageDraw.ImageDraw, quad: Quad, size: tuple[int, int], width_px: int, colour: Rgb) -> None:
    points = quad.to_px(*size)
    closed = [*points, points[0], points[1]]  # one side twice, so that the last corner is joined as the others
    pen.line(closed, fill=RIM, width=width_px + 2, joint="curve")
    pen.line(closed, fill=colour, width=width_px, joint="curve")


def _place_labels(size: tuple[int, int], refs: Sequence[Ref], colours: dict[str, Rgb], font_path: str | Path | None) -> list[PlacedLabel]:
    layout = LabelLayout(*size)
    named = [ref for ref in refs if ref.label and (ref.boxes or ref.quads)]
    for ref in named[:MAX_LABELS]:
        anchor = ref.boxes[0] if ref.boxes else ref.quads[0].to_box()
        labels = fit_label(ref.label, *size, font_path=font_path)
        layout.place(labels, anchor.sort().clip().to_px(*size), colours[ref.label], line_width_px(*size) + 1)
    return layout.placed


def _brighten(colour: Rgb) -> Rgb:
    """Raise a colour for text on a dark plate: every channel at least 0.2, the largest at least 0.8 of full."""
    scale = max(1.0, 0.8 * 255 / max(colour))
    red, green, blue = (max(round(channel * scale), 51) for channel in colour)
    return red, green, blue


def _draw_labels(canvas: Image.Image, labels: Sequence[PlacedLabel]) -> None:
    pen = ImageDraw.Draw(canvas, "RGBA")
    for placed in labels:
        label = placed.label
        opacity = 255 if placed.covers_label else PLATE_OPACITY
        pen.rectangle((placed.x, placed.y, placed.x + label.width - 1, placed.y + label.height - 1), fill=(0, 0, 0, opacity))
        for number, line in enumerate(label.lines):
            corner = (placed.x + label.padding, placed.y + label.padding + number * label.line_height)
            pen.text(corner, line, font=label.font, fill=_brighten(placed.colour), anchor="la")
