"""Vehicles, heading right. The main colour is that of the body, the frame or the hull."""

from .canvas import Drawing, Ellipse, Ring, curve, polygon, rounded, stroke
from .palette import GLASS, INK, STEEL, WOOD, Rgb, luminance, outline_of, shade, tint

_LAMP: Rgb = (255, 236, 160)
_REAR_LAMP: Rgb = (206, 70, 66)


def draw_car(drawing: Drawing, rgb: Rgb, variant: int) -> None:
    """Draw a rounded saloon."""
    roof = 2 if variant % 2 else 8
    drawing.paint(
        rgb,
        curve(
            (2, 78),
            (2, 54),
            (12, 45),
            (36, 42),
            (56, roof + 8),
            (72, roof),
            (108, roof),
            (126, roof + 8),
            (148, 42),
            (176, 47),
            (188, 58),
            (188, 78),
            (150, 84),
            (40, 84),
        ),
    )
    drawing.paint(GLASS, polygon((50, 42), (64, roof + 10), (86, roof + 9), (86, 42)), polygon((94, 42), (94, roof + 9), (116, roof + 10), (136, 42)))
    drawing.detail(outline_of(rgb), stroke(1.8, (90, 44), (90, 76)), stroke(3, (97, 52), (106, 52)))
    drawing.detail(_LAMP, Ellipse(181, 60, 5, 5.5))
    drawing.detail(_REAR_LAMP, Ellipse(7, 60, 4, 5.5))
    for x in (45, 145):
        _wheel(drawing, x, 80, 19)


def draw_bus(drawing: Drawing, rgb: Rgb, variant: int) -> None:
    """Draw a long box with a row of windows and a glass door."""
    drawing.paint(rgb, rounded(1, 1, 179, 86, 11))
    for x in (10, 38, 66, 94):
        drawing.paint(GLASS, rounded(x, 14, x + 23, 42, 3))
    drawing.paint(GLASS, rounded(152, 14, 174, 46, 4))
    drawing.paint(tint(rgb, 0.55), rounded(124, 14, 146, 80, 3))
    drawing.detail(GLASS, rounded(127, 18, 134, 74, 1), rounded(136, 18, 143, 74, 1))
    drawing.detail(tint(rgb, 0.55) if variant % 2 == 0 else shade(rgb, 0.3), polygon((4, 53), (118, 53), (118, 59), (4, 59)))
    drawing.detail(_LAMP, Ellipse(172, 70, 5, 5))
    for x in (40, 104):
        _wheel(drawing, x, 84, 15)


def draw_bicycle(drawing: Drawing, rgb: Rgb, variant: int) -> None:
    """Draw two wheels and a thick frame."""
    for x in (30, 120):
        drawing.paint(
            STEEL,
            stroke(0.7, (x - 20, 70), (x + 20, 70)),
            stroke(0.7, (x, 50), (x, 90)),
            stroke(0.7, (x - 14, 56), (x + 14, 84)),
            stroke(0.7, (x + 14, 56), (x - 14, 84)),
        )
        drawing.paint(rgb, Ring(x, 70, 29, 29, 6))
    rear, pedals, seat, head = (30, 70), (68, 72), (56, 28), (104, 28)
    drawing.paint(rgb, stroke(6, rear, pedals, head, seat, rear), stroke(6, pedals, (54, 20)), stroke(6, (120, 70), (100, 10)))
    drawing.paint(INK, stroke(6, (44, 17), (64, 17)))
    drawing.paint(INK, stroke(4, (100, 10), (108, 4), (116, 6)) if variant % 2 == 0 else stroke(4, (92, 6), (100, 9), (114, 5)))
    drawing.paint(STEEL, Ellipse(*pedals, 6, 6))


def draw_boat(drawing: Drawing, rgb: Rgb, variant: int) -> None:
    """Draw a sailing boat; the larger sail has the colour of the hull."""
    drawing.paint(WOOD, stroke(4, (58, 74), (58, 3)))
    drawing.paint(rgb, curve((62, 8), (84, 26), (100, 48), (108, 64), (84, 65), (62, 65), (62, 36), steps=4))
    drawing.paint((222, 226, 232) if luminance(rgb) > 235 else (250, 248, 240), polygon((53, 14), (53, 64), (18, 64)))
    if variant % 2:
        drawing.paint(rgb, polygon((58, 2), (74, 6), (58, 11)))
    drawing.paint(rgb, curve((1, 72), (30, 74), (62, 74), (94, 74), (124, 70), (118, 84), (104, 98), (62, 99), (22, 98), (8, 86)))
    drawing.detail(tint(rgb, 0.6), stroke(3.4, (12, 82), (62, 83), (112, 81)))


def draw_airplane(drawing: Drawing, rgb: Rgb, variant: int) -> None:
    """Draw a slim body with wings, tail fin and round windows."""
    dark = shade(rgb, 0.18)
    drawing.paint(dark, polygon((102, 40), (76, 4), (92, 4), (134, 38)))
    drawing.paint(
        rgb,
        polygon((10, 44), (2, 4), (20, 2), (50, 40)),
        curve((6, 44), (40, 34), (100, 31), (156, 33), (182, 44), (188, 54), (180, 64), (140, 70), (80, 69), (34, 62), (10, 52)),
    )
    drawing.paint(dark, polygon((22, 48), (4, 64), (16, 64), (46, 52)))
    drawing.detail(GLASS, *(Ellipse(x, 46, 4.2, 4.6) for x in (54, 70, 86, 102, 118, 134)))
    drawing.paint(GLASS, polygon((158, 37), (172, 40), (179, 47), (160, 48)))
    drawing.paint(dark, polygon((88, 58), (46, 98), (66, 98), (132, 60)))
    if variant % 2:
        drawing.detail(tint(rgb, 0.6), stroke(3.4, (34, 56), (76, 62)))


def _wheel(drawing: Drawing, x: float, y: float, radius: float) -> None:
    drawing.paint(INK, Ellipse(x, y, radius, radius))
    drawing.detail((196, 200, 208), Ellipse(x, y, 0.52 * radius, 0.52 * radius))
    drawing.detail(STEEL, Ellipse(x, y, 0.2 * radius, 0.2 * radius))
