"""Toys and small things that one can hold. The main colour covers most of each."""

import math

from .canvas import Drawing, Ellipse, Ring, Stroke, arc, curve, polygon, rotated, stroke
from .palette import STEEL, WOOD, Rgb, accent_on, outline_of, shade, tint


def draw_ball(drawing: Drawing, rgb: Rgb, variant: int) -> None:
    """Draw curved bands and a gleam, which tell it from a plain circle."""
    drawing.paint(rgb, Ellipse(50, 50, 50, 50))
    band = accent_on(rgb)
    if variant % 2 == 0:
        drawing.detail(band, Stroke(arc(-12, 50, 44, 52, -48, 48, 8), 8), Stroke(arc(112, 50, 44, 52, 132, 228, 8), 8), stroke(8, (6, 50), (94, 50)))
    else:
        drawing.detail(band, Stroke(arc(50, 112, 52, 44, 222, 318, 8), 8), Stroke(arc(50, -12, 52, 44, 42, 138, 8), 8), stroke(8, (50, 6), (50, 94)))
    drawing.detail(tint(rgb, 0.75), Ellipse(17, 36, 4, 6) if variant % 2 == 0 else Ellipse(36, 17, 6, 4))


def draw_kite(drawing: Drawing, rgb: Rgb, variant: int) -> None:
    """Draw a diamond of four panels, with bows on its tail."""
    tail = ((37, 70), (33, 78), (42, 85), (35, 92), (40, 98)) if variant % 2 == 0 else ((37, 70), (42, 78), (33, 85), (41, 92), (36, 98))
    drawing.paint(STEEL, Stroke(tail, 1.4))
    drawing.paint(rgb, *(polygon((x - 7, y - 3.5), (x - 7, y + 3.5), (x + 7, y - 3.5), (x + 7, y + 3.5)) for x, y in (tail[2], tail[4])))
    drawing.paint(rgb, polygon((37.5, 1), (74, 28), (37.5, 72), (1, 28)))
    drawing.detail(tint(rgb, 0.35), polygon((37.5, 2), (37.5, 28), (3, 28)), polygon((37.5, 28), (72, 28), (37.5, 70)))
    drawing.detail(outline_of(rgb), stroke(1.5, (37.5, 2), (37.5, 71)), stroke(1.5, (2, 28), (73, 28)))


def draw_balloon(drawing: Drawing, rgb: Rgb, variant: int) -> None:
    """Draw an egg with a knot and a short string."""
    sway = 3 if variant % 2 == 0 else -3
    drawing.paint(STEEL, stroke(1.2, *((30 + sway * math.sin(k * math.pi / 5), 73 + 2.6 * k) for k in range(11))))
    drawing.paint(shade(rgb, 0.15), polygon((30, 66), (36, 75), (24, 75)))
    drawing.paint(rgb, curve((30, 1), (48, 8), (59, 28), (52, 52), (30, 70), (8, 52), (1, 28), (12, 8)))
    drawing.detail(tint(rgb, 0.7), rotated(Ellipse(18, 20, 5, 9), 28))


def draw_umbrella(drawing: Drawing, rgb: Rgb, variant: int) -> None:
    """Draw an open umbrella with a hooked handle."""
    drawing.paint(WOOD, stroke(3.6, (52.5, 4), *arc(60, 88, 7.5, 9, 180, 0, 8)))
    dome = arc(52.5, 52, 51.5, 46, 180, 360, 20)
    scallops = tuple(p for x in (91.2, 65.4, 39.6, 13.8) for p in arc(x, 52, 12.9, 7, 360, 180, 6))
    drawing.paint(rgb, polygon(*dome, *scallops))
    if variant % 2:
        drawing.detail(tint(rgb, 0.4), curve((52.5, 8), (70, 22), (77, 44), (65, 45), (53, 48), (40, 45), (28, 44), (35, 22)))
    rib = outline_of(rgb)
    drawing.detail(rib, stroke(1.5, (52.5, 7), (36, 22), (27, 50)), stroke(1.5, (52.5, 7), (52.5, 50)), stroke(1.5, (52.5, 7), (69, 22), (78, 50)))


def draw_hat(drawing: Drawing, rgb: Rgb, variant: int) -> None:
    """Draw a sun hat with a ribbon."""
    drawing.paint(rgb, Ellipse(75, 76, 74, 23))
    drawing.detail(shade(rgb, 0.16), Ellipse(75, 71, 48, 14))
    crown = ((34, 70), (38, 30), (56, 6), (75, 1), (94, 6), (112, 30), (116, 70), (96, 80), (75, 82), (54, 80))
    drawing.paint(
        rgb,
        curve(*crown)
        if variant % 2 == 0
        else curve((34, 70), (40, 26), (50, 4), (75, 9), (100, 4), (110, 26), (116, 70), (96, 80), (75, 82), (54, 80)),
    )
    drawing.detail(accent_on(rgb), polygon(*arc(75, 54, 39, 11, 180, 0, 10), *arc(75, 68, 41, 12, 0, 180, 10)))


def draw_cup(drawing: Drawing, rgb: Rgb, variant: int) -> None:
    """Draw a mug of cocoa, handle on the right."""
    drawing.paint(rgb, Ring(76, 50, 23, 25, 9.5))
    drawing.paint(rgb, curve((1, 14), (38, 14), (75, 14), (74, 50), (70, 84), (60, 96), (38, 98), (16, 96), (6, 84), (2, 50)))
    drawing.paint(tint(rgb, 0.35), Ellipse(38, 14, 37, 12))
    drawing.detail((108, 70, 50), Ellipse(38, 15.5, 30, 8))
    band = accent_on(rgb)
    if variant % 2 == 0:
        drawing.detail(band, Stroke(arc(38, 44, 34.5, 12, 168, 12, 10), 5))
    else:
        drawing.detail(band, *(Ellipse(x, y, 5, 5) for x, y in ((18, 54), (38, 60), (58, 54))))
