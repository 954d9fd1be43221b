"""Plain shapes: one flat colour, nothing inside."""

import math

from .canvas import Drawing, Ellipse, polygon
from .palette import Rgb


def draw_circle(drawing: Drawing, rgb: Rgb, variant: int) -> None:
    """Draw a disc."""
    drawing.paint(rgb, Ellipse(50, 50, 50, 50))


def draw_square(drawing: Drawing, rgb: Rgb, variant: int) -> None:
    """Draw a square."""
    drawing.paint(rgb, polygon((0, 0), (100, 0), (100, 100), (0, 100)))


def draw_triangle(drawing: Drawing, rgb: Rgb, variant: int) -> None:
    """Draw a triangle, point up."""
    drawing.paint(rgb, polygon((55, 0), (110, 100), (0, 100)))


def draw_star(drawing: Drawing, rgb: Rgb, variant: int) -> None:
    """Draw five points, a little plumper than the geometric star so that its colour shows when it is small."""
    points = [(math.radians(36 * k - 90), 50.0 if k % 2 == 0 else 23.0) for k in range(10)]
    drawing.paint(rgb, polygon(*((radius * math.cos(angle), radius * math.sin(angle)) for angle, radius in points)))
