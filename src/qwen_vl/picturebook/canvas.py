"""A small drawing surface: flat shapes with a soft outline, fitted exactly to a box and antialiased.

A `Drawing` records shapes in any convenient coordinates (y downwards); `render` stretches it so that its visible edge, outline included,
touches the four sides of a box of the picture. The box is enlarged 2 to 4 times, drawn upon and averaged back, so pixels that no shape covers
keep their exact value and nothing can leave the box.

    drawing = Drawing()
    drawing.paint((214, 48, 49), Ellipse(50, 50, 50, 50))
    render(image, drawing, (10, 20, 90, 100))
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw

from .lettering import draw_text
from .palette import Rgb, outline_of

Point = tuple[float, float]
BoxPx = tuple[int, int, int, int]

_SHARP = 14  # degrees; gentler turns of an outline need no rounding


@dataclass(frozen=True, slots=True)
class Ellipse:
    """A filled ellipse about (cx, cy), `rx` to each side and `ry` up and down."""

    cx: float
    cy: float
    rx: float
    ry: float


@dataclass(frozen=True, slots=True)
class Ring:
    """An ellipse with a hole; `width` is measured inwards."""

    cx: float
    cy: float
    rx: float
    ry: float
    width: float


@dataclass(frozen=True, slots=True)
class Polygon:
    """A filled outline through its points in order."""

    points: tuple[Point, ...]
    corners: tuple[Point, ...]  # those of the points where the outline turns sharply, to be rounded


@dataclass(frozen=True, slots=True)
class Stroke:
    """Draw a thick line with round ends and corners."""

    points: tuple[Point, ...]
    width: float


Shape = Ellipse | Ring | Polygon | Stroke


@dataclass(frozen=True, slots=True)
class Layer:
    """Shapes that are seen as one: all their outlines lie behind all their fills."""

    shapes: tuple[Shape, ...]
    fill: Rgb
    outline: Rgb | None


@dataclass(frozen=True, slots=True)
class Lettering:
    """Where a drawing shows its text, and in which colour."""

    x1: float
    y1: float
    x2: float
    y2: float
    fill: Rgb


@dataclass(slots=True)
class Drawing:
    """Layers from back to front."""

    layers: list[Layer] = field(default_factory=list)
    lettering: Lettering | None = None

    def paint(self, fill: Rgb, *shapes: Shape) -> None:
        """Add shapes with one common outline in a shade of their fill."""
        self.layers.append(Layer(shapes, fill, outline_of(fill)))

    def detail(self, fill: Rgb, *shapes: Shape) -> None:
        """Add shapes without outline; they must lie inside painted ones, since they do not count for the fit."""
        self.layers.append(Layer(shapes, fill, None))


def polygon(*points: Point) -> Polygon:
    """Make a closed outline, straight from point to point."""
    count = len(points)
    corners = (b for k, b in enumerate(points) if _turn(points[k - 1], b, points[(k + 1) % count]) > _SHARP)
    return Polygon(points, tuple(corners))


def curve(*points: Point, steps: int = 5) -> Polygon:
    """Round off a closed outline: a Catmull-Rom curve through the points."""
    count = len(points)
    corners = [(points[i - 1], points[i], points[(i + 1) % count], points[(i + 2) % count]) for i in range(count)]
    return polygon(*(_spline(*corner, k / steps) for corner in corners for k in range(steps)))


def arc(cx: float, cy: float, rx: float, ry: float, start: float, stop: float, steps: int = 12) -> tuple[Point, ...]:
    """List points of an ellipse from angle `start` to `stop`, in degrees clockwise from the right."""
    angles = [math.radians(start + (stop - start) * k / steps) for k in range(steps + 1)]
    return tuple((cx + rx * math.cos(a), cy + ry * math.sin(a)) for a in angles)


def rounded(x1: float, y1: float, x2: float, y2: float, radius: float) -> Polygon:
    """Make a rectangle with round corners."""
    corners = ((x2 - radius, y2 - radius, 0), (x1 + radius, y2 - radius, 90), (x1 + radius, y1 + radius, 180), (x2 - radius, y1 + radius, 270))
    return polygon(*(p for cx, cy, start in corners for p in arc(cx, cy, radius, radius, start, start + 90, 4)))


def rotated(shape: Ellipse, degrees: float) -> Polygon:
    """Turn an ellipse clockwise about its centre."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    points = arc(0, 0, shape.rx, shape.ry, 0, 342, 19)
    return polygon(*((shape.cx + x * cos - y * sin, shape.cy + x * sin + y * cos) for x, y in points))


def stroke(width: float, *points: Point) -> Stroke:
    """Make a thick line through points."""
    return Stroke(points, width)


def _turn(a: Point, b: Point, c: Point) -> float:
    """Measure the change of direction at b, in degrees from 0 to 180."""
    turn = math.degrees(math.atan2(c[1] - b[1], c[0] - b[0]) - math.atan2(b[1] - a[1], b[0] - a[0]))
    return abs((turn + 180) % 360 - 180)


def _spline(a: Point, b: Point, c: Point, d: Point, t: float) -> Point:
    return (_spline_1d(a[0], b[0], c[0], d[0], t), _spline_1d(a[1], b[1], c[1], d[1], t))


def _spline_1d(a: float, b: float, c: float, d: float, t: float) -> float:
    return 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t * t + (3 * b - a - 3 * c + d) * t * t * t)


def render(image: Image.Image, drawing: Drawing, box_px: BoxPx, *, flipped: bool = False, text: str | None = None) -> None:
    """Draw onto `image` so that the drawing fills `box_px` (x2, y2 exclusive); `text` is never mirrored."""
    tile, zoom = open_tile(image, box_px)
    pen = _Pen.fitted(drawing, tile, outline_px=_outline_px(box_px) * zoom, flipped=flipped)
    for layer in drawing.layers:
        pen.draw(layer)
    if text and drawing.lettering:
        pen.write(drawing.lettering, text)
    image.paste(tile.reduce(zoom), box_px[:2])


def open_tile(image: Image.Image, box_px: BoxPx) -> tuple[Image.Image, int]:
    """Enlarge a box of the picture by whole pixels, so that averaging it back changes nothing; smaller boxes are enlarged more."""
    width, height = box_px[2] - box_px[0], box_px[3] - box_px[1]
    zoom = 4 if width * height < 64 * 64 else 3 if width * height < 200 * 200 else 2
    return image.crop(box_px).resize((width * zoom, height * zoom), Image.Resampling.NEAREST), zoom


def _outline_px(box_px: BoxPx) -> float:
    size = math.sqrt((box_px[2] - box_px[0]) * (box_px[3] - box_px[1]))
    return min(max(0.013 * size, 0.75), 2.5)


@dataclass(slots=True)
class _Pen:
    """Turns drawing coordinates into pixels of a tile: x_px = x * scale_x + shift_x."""

    draw_context: ImageDraw.ImageDraw
    scale_x: float
    shift_x: float
    scale_y: float
    shift_y: float
    unit: float  # pixels per coordinate unit for the widths of strokes
    outline_px: float

    @classmethod
    def fitted(cls, drawing: Drawing, tile: Image.Image, *, outline_px: float, flipped: bool) -> "_Pen":
        shapes = [shape for layer in drawing.layers if layer.outline for shape in layer.shapes]
        extents = [_extent(shape) for shape in shapes]
        span_x = max(e[2] for e in extents) - min(e[0] for e in extents)
        span_y = max(e[3] for e in extents) - min(e[1] for e in extents)
        unit = math.sqrt(tile.width * tile.height / (span_x * span_y))
        pads = [outline_px + (shape.width * unit / 2 if isinstance(shape, Stroke) else 0) for shape in shapes]
        scale_x, shift_x = _fit_axis([(e[0], e[2], pad) for e, pad in zip(extents, pads, strict=True)], tile.width)
        scale_y, shift_y = _fit_axis([(e[1], e[3], pad) for e, pad in zip(extents, pads, strict=True)], tile.height)
        if flipped:
            scale_x, shift_x = -scale_x, tile.width - shift_x
        return cls(ImageDraw.Draw(tile), scale_x, shift_x, scale_y, shift_y, unit, outline_px)

    def draw(self, layer: Layer) -> None:
        if layer.outline:
            for shape in layer.shapes:
                self._shape(shape, layer.outline, self.outline_px)
        for shape in layer.shapes:
            self._shape(shape, layer.fill, 0)

    def write(self, lettering: Lettering, text: str) -> None:
        (x1, y1), (x2, y2) = self._to_px(((lettering.x1, lettering.y1), (lettering.x2, lettering.y2)))
        draw_text(self.draw_context, text, (min(x1, x2), y1, max(x1, x2), y2), lettering.fill)

    def _shape(self, shape: Shape, fill: Rgb, grow: float) -> None:
        """Draw one shape, `grow` pixels larger on every side."""
        if isinstance(shape, Ellipse):
            self._disc(*self._centre(shape), abs(shape.rx * self.scale_x) + grow, shape.ry * self.scale_y + grow, fill)
        elif isinstance(shape, Ring):
            self._ring(shape, fill, grow)
        elif isinstance(shape, Polygon):
            points = self._to_px(shape.points)
            self.draw_context.polygon(points, fill=fill)
            if grow:
                self._line([*points, points[0]], 2 * grow, fill, shape.corners)
        else:
            self._line(self._to_px(shape.points), max(shape.width * self.unit, 1.5) + 2 * grow, fill, shape.points)

    def _centre(self, shape: Ellipse | Ring) -> Point:
        return (shape.cx * self.scale_x + self.shift_x, shape.cy * self.scale_y + self.shift_y)

    def _to_px(self, points: Iterable[Point]) -> list[Point]:
        # Pillow counts from pixel centres, we from pixel edges: half a pixel.
        scale_x, shift_x, scale_y, shift_y = self.scale_x, self.shift_x - 0.5, self.scale_y, self.shift_y - 0.5
        return [(x * scale_x + shift_x, y * scale_y + shift_y) for x, y in points]

    def _disc(self, cx: float, cy: float, rx: float, ry: float, fill: Rgb) -> None:
        rx, ry = max(rx, 0.5), max(ry, 0.5)
        self.draw_context.ellipse((cx - rx, cy - ry, cx + rx - 1, cy + ry - 1), fill=fill)

    def _ring(self, ring: Ring, fill: Rgb, grow: float) -> None:
        (cx, cy), rx, ry = self._centre(ring), abs(ring.rx * self.scale_x) + grow, ring.ry * self.scale_y + grow
        width = max(round(ring.width * self.unit + 2 * grow), 1)
        self.draw_context.ellipse((cx - rx, cy - ry, cx + rx - 1, cy + ry - 1), outline=fill, width=width)

    def _line(self, points: Sequence[Point], width: float, fill: Rgb, corners: Sequence[Point]) -> None:
        """Draw a thick line through `points`, in pixels, and round it at `corners`, in drawing coordinates."""
        self.draw_context.line(points, fill=fill, width=max(round(width), 1))
        if width > 2:
            for x, y in self._to_px(corners):
                self._disc(x + 0.5, y + 0.5, width / 2, width / 2, fill)


def _extent(shape: Shape) -> tuple[float, float, float, float]:
    if isinstance(shape, Ellipse | Ring):
        return (shape.cx - shape.rx, shape.cy - shape.ry, shape.cx + shape.rx, shape.cy + shape.ry)
    xs, ys = zip(*shape.points, strict=True)
    return (min(xs), min(ys), max(xs), max(ys))


def _fit_axis(spans: list[tuple[float, float, float]], size: int) -> tuple[float, float]:
    """Find scale and shift so that the spans (low, high, padding in pixels) reach from 0 to `size` exactly.

    Which span is outermost depends on the scale, since paddings do not scale: three rounds settle it.
    """
    scale = size / (max(high for _, high, _ in spans) - min(low for low, _, _ in spans))
    for _ in range(3):
        first = min(spans, key=lambda span: span[0] * scale - span[2])
        last = max(spans, key=lambda span: span[1] * scale + span[2])
        scale = max((size - first[2] - last[2]) / (last[1] - first[0]), 1e-3)
    return scale, first[2] - first[0] * scale
