"""Buildings and the sign. The main colour is that of the walls, the cloth or the board."""

from .canvas import Drawing, Ellipse, Lettering, polygon, rounded, stroke
from .palette import CREAM, GLASS, WOOD, Rgb, ink_on, mix, shade

_ROOFS: tuple[Rgb, ...] = ((104, 108, 124), (126, 104, 100))


def draw_house(drawing: Drawing, rgb: Rgb, variant: int) -> None:
    """Draw gabled or hipped roof, chimney, a door and two windows."""
    roof = _ROOFS[variant % 2]
    drawing.paint(shade(rgb, 0.2), polygon((76, 4), (88, 4), (88, 36), (76, 36)))
    drawing.paint(rgb, polygon((9, 38), (96, 38), (96, 99), (9, 99)))
    drawing.paint(roof, polygon((20, 8), (85, 8), (104, 42), (1, 42)) if variant % 4 > 1 else polygon((52.5, 1), (104, 42), (1, 42)))
    drawing.paint(WOOD, rounded(43, 62, 62, 99, 4))
    drawing.detail((240, 206, 110), Ellipse(58, 81, 1.8, 1.8))
    for x in (17, 69):
        drawing.paint(CREAM, polygon((x, 54), (x + 19, 54), (x + 19, 75), (x, 75)))
        drawing.detail(
            GLASS, *(polygon((x + a, 54 + b), (x + a + 7, 54 + b), (x + a + 7, 62 + b), (x + a, 62 + b)) for a in (2, 10) for b in (2, 11))
        )


def draw_tent(drawing: Drawing, rgb: Rgb, variant: int) -> None:
    """Draw a ridge tent, open in front."""
    drawing.paint(WOOD, stroke(2.4, (40, 14), (36, 2)), stroke(2.4, (38, 14), (43, 2)))
    drawing.paint(rgb, polygon((40, 8), (104, 12), (134, 98), (80, 98)))
    if variant % 2:
        drawing.detail(shade(rgb, 0.2), polygon((66, 11), (76, 11.5), (111, 97), (100, 97)))
    front = shade(rgb, 0.12)
    drawing.paint(front, polygon((40, 8), (80, 98), (1, 98)))
    drawing.paint((66, 58, 66), polygon((40, 32), (58, 98), (23, 98)))
    drawing.paint(front, polygon((40, 30), (34, 66), (15, 98), (27, 98), (38, 70)), polygon((40, 30), (46, 66), (66, 98), (54, 98), (42, 70)))


def draw_sign(drawing: Drawing, rgb: Rgb, variant: int) -> None:
    """Draw a board on one or two posts."""
    posts = (65.0,) if variant % 2 == 0 else (28.0, 102.0)
    for x in posts:
        drawing.paint((142, 116, 92), polygon((x - 4.5, 60), (x + 4.5, 60), (x + 4.5, 99), (x - 4.5, 99)))
    drawing.paint(rgb, rounded(1, 1, 129, 74, 8))
    ink = ink_on(rgb)
    frame = mix(rgb, ink, 0.55)
    drawing.detail(
        frame, stroke(1.8, (9, 6), (121, 6)), stroke(1.8, (9, 69), (121, 69)), stroke(1.8, (6, 9), (6, 66)), stroke(1.8, (124, 9), (124, 66))
    )
    drawing.lettering = Lettering(11, 13, 119, 62, ink)
