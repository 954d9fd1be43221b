"""Plants. The main colour is that of the crown, the petals or the cap."""

import math

from .canvas import Drawing, Ellipse, arc, curve, polygon, rotated, stroke
from .palette import CREAM, LEAF, Rgb, accent_on, luminance, shade, tint

_TRUNK: Rgb = (104, 76, 58)


def draw_tree(drawing: Drawing, rgb: Rgb, variant: int) -> None:
    """Draw a brown trunk under a crown of round lobes."""
    drawing.paint(_TRUNK, curve((30, 50), (40, 50), (40, 84), (46, 99), (35, 97), (24, 99), (30, 84)))
    drawing.paint(_TRUNK, stroke(3.5, (35, 72), (47, 56)))
    crown: tuple[tuple[int, int, int, int], ...] = (
        (35, 16, 16, 15),
        (17, 27, 14, 13),
        (53, 27, 14, 13),
        (13, 46, 12, 12),
        (57, 46, 12, 12),
        (35, 50, 21, 15),
        (35, 36, 22, 18),
    )
    if variant % 2:
        crown = ((35, 18, 17, 17), (24, 36, 19, 19), (46, 36, 19, 19), (17, 50, 16, 15), (53, 50, 16, 15), (35, 54, 18, 14))
    drawing.paint(rgb, *(Ellipse(*ellipse) for ellipse in crown))
    drawing.detail(tint(rgb, 0.2), Ellipse(27, 16, 8, 5), Ellipse(14, 35, 6, 4.5), Ellipse(44, 32, 8, 5))
    drawing.detail(shade(rgb, 0.12), Ellipse(52, 49, 8, 5), Ellipse(29, 54, 9, 5), Ellipse(28, 35, 5, 3.5))


def draw_flower(drawing: Drawing, rgb: Rgb, variant: int) -> None:
    """Draw six to eight petals on a stem with two leaves."""
    drawing.paint(LEAF, stroke(4.5, (32.5, 44), (33.5, 70), (32, 98)))
    drawing.paint(LEAF, curve((33, 92), (40, 76), (58, 70), (56, 84), (44, 92)), curve((32, 96), (26, 84), (9, 78), (11, 91), (22, 97)))
    count = 6 + variant % 3
    width = {6: 14.5, 7: 13.0, 8: 11.5}[count]
    for k in range(count):
        angle = 360 * k / count - 90
        cx, cy = 32.5 + 17.5 * math.cos(math.radians(angle)), 31 + 17.5 * math.sin(math.radians(angle))
        drawing.paint(rgb, rotated(Ellipse(cx, cy, 14.5, width * 0.72), angle))
    centre = (146, 96, 48) if luminance(rgb) > 150 and rgb[2] < 120 else (250, 206, 70)
    drawing.paint(centre, Ellipse(32.5, 31, 8, 8))


def draw_mushroom(drawing: Drawing, rgb: Rgb, variant: int) -> None:
    """Draw a domed cap with spots on a pale stem."""
    drawing.paint(CREAM, curve((36, 50), (59, 50), (61, 74), (68, 92), (60, 99), (35, 99), (27, 92), (34, 74)))
    drawing.detail((232, 218, 194), curve((36, 60), (59, 60), (60, 68), (47, 70), (35, 68)))
    dome = arc(47.5, 54, 47.5, 53, 180, 360, 20)
    drawing.paint(rgb, polygon(*dome, (92, 60), (72, 64), (47.5, 66), (23, 64), (3, 60)))
    spots = (
        ((48, 20, 10, 8), (22, 38, 7.5, 8), (74, 38, 7.5, 8), (48, 48, 8, 6.5))
        if variant % 2 == 0
        else ((34, 22, 9, 8), (66, 26, 8, 8), (50, 46, 9, 7), (18, 48, 6, 6), (80, 50, 6, 5))
    )
    drawing.detail(accent_on(rgb), *(Ellipse(*spot) for spot in spots))
