"""People: children with large heads and bare legs, grown-ups slim and tall. The main colour is that of their clothes."""

from .canvas import Drawing, Ellipse, Stroke, arc, curve, polygon, rounded, stroke
from .palette import BLUSH, CREAM, INK, Rgb, shade

# Skin and hair go together by variant.
_LOOKS: tuple[tuple[Rgb, Rgb], ...] = (
    ((250, 216, 188), (92, 58, 40)),
    ((244, 204, 170), (44, 38, 42)),
    ((252, 222, 198), (222, 180, 96)),
    ((176, 120, 86), (52, 40, 38)),
)
_SHOE: Rgb = (84, 66, 62)


def draw_girl(drawing: Drawing, rgb: Rgb, variant: int) -> None:
    """Draw two bunches of hair with bows, a flared dress, bare legs."""
    skin, hair = _LOOKS[variant % 4]
    drawing.paint(hair, Ellipse(6, 25, 6, 10), Ellipse(44, 25, 6, 10))
    _legs(drawing, skin, (19, 31), 78)
    drawing.paint(skin, stroke(5.5, (15, 45), (4, 58)), stroke(5.5, (35, 45), (46, 58)))
    drawing.paint(
        rgb,
        curve((18, 35), (32, 35), (36, 44), (40, 62), (47, 82), (25, 85), (3, 82), (10, 62), (14, 44)),
        Ellipse(14, 43, 6, 5),
        Ellipse(36, 43, 6, 5),
    )
    drawing.detail(shade(rgb, 0.25), stroke(2.2, (13.5, 56), (25, 58), (36.5, 56)))
    _child_head(drawing, skin)
    drawing.paint(hair, curve((11, 22), (11, 11), (17, 5), (25, 3), (33, 5), (39, 11), (39, 22), (34, 15), (27, 13), (16, 15)))
    drawing.paint(rgb, Ellipse(10, 15, 4, 3.5), Ellipse(40, 15, 4, 3.5))


def draw_boy(drawing: Drawing, rgb: Rgb, variant: int) -> None:
    """Draw tousled hair, shirt and shorts, one hand waving."""
    skin, hair = _LOOKS[variant % 4]
    _legs(drawing, skin, (18.5, 31.5), 76)
    drawing.paint(skin, stroke(5.5, (10, 52), (4, 62)), stroke(5.5, (41, 40), (47, 30)))
    drawing.paint(shade(rgb, 0.13), polygon((13, 60), (37, 60), (38, 81), (27, 81), (25, 72), (23, 81), (12, 81)))
    drawing.paint(rgb, rounded(13, 35, 37, 67, 6), stroke(9, (16, 41), (9, 51)), stroke(9, (34, 42), (41, 39)))
    drawing.paint(skin, Ellipse(10.5, 22, 3, 4), Ellipse(39.5, 22, 3, 4))
    _child_head(drawing, skin)
    drawing.paint(
        hair,
        polygon(
            (11, 20),
            (10, 10),
            (14, 10),
            (15, 4),
            (20, 6),
            (24, 1),
            (28, 6),
            (34, 3),
            (35, 9),
            (40, 10),
            (39, 20),
            (34, 14),
            (29, 16),
            (24, 13),
            (18, 16),
            (15, 14),
        ),
    )


def draw_woman(drawing: Drawing, rgb: Rgb, variant: int) -> None:
    """Draw long hair and a long dress."""
    skin, hair = _LOOKS[(variant + 1) % 4]
    drawing.paint(hair, curve((12, 12), (22.5, 1), (33, 12), (35, 28), (34, 36), (22.5, 38), (11, 36), (10, 28)))
    drawing.paint(skin, stroke(4, (18, 86), (18, 95)), stroke(4, (27, 86), (27, 95)))
    drawing.paint(_SHOE, Ellipse(16.5, 97.5, 4.5, 2.5), Ellipse(28.5, 97.5, 4.5, 2.5))
    drawing.paint(skin, stroke(4.5, (12, 30), (7, 44), (5, 54)), stroke(4.5, (33, 30), (38, 44), (40, 54)))
    drawing.paint(skin, stroke(5, (22.5, 18), (22.5, 26)))
    drawing.paint(
        rgb,
        curve(
            (16, 25),
            (22.5, 28),
            (29, 25),
            (34, 29),
            (31, 38),
            (29, 46),
            (36, 66),
            (43, 88),
            (22.5, 91),
            (2, 88),
            (9, 66),
            (16, 46),
            (14, 38),
            (11, 29),
        ),
        stroke(6, (13, 30), (10, 38)),
        stroke(6, (32, 30), (35, 38)),
    )
    drawing.detail(shade(rgb, 0.3), stroke(2.4, (16, 46), (29, 46)))
    _adult_head(drawing, skin)
    drawing.paint(hair, curve((13.5, 14), (14, 6), (22.5, 2.5), (31, 6), (31.5, 14), (28, 9), (20, 7.5)))


def draw_man(drawing: Drawing, rgb: Rgb, variant: int) -> None:
    """Draw a beard, a suit and a tie."""
    skin, hair = _LOOKS[(variant + 2) % 4]
    drawing.paint(_SHOE, Ellipse(14, 97, 6.5, 3), Ellipse(31, 97, 6.5, 3))
    drawing.paint(skin, Ellipse(4.5, 58, 3, 3.5), Ellipse(40.5, 58, 3, 3.5))
    drawing.paint(shade(rgb, 0.13), polygon((12, 54), (33, 54), (34, 95), (25, 95), (22.5, 66), (20, 95), (11, 95)))
    drawing.paint(skin, stroke(6, (22.5, 18), (22.5, 26)))
    drawing.paint(rgb, rounded(9.5, 23, 35.5, 60, 5), stroke(7, (11, 28), (6, 42), (4.5, 54)), stroke(7, (34, 28), (39, 42), (40.5, 54)))
    drawing.detail(CREAM, polygon((18, 23), (27, 23), (22.5, 35)))
    drawing.detail(INK, polygon((22.5, 24.5), (24, 27), (22.5, 36), (21, 27)))
    drawing.detail(shade(rgb, 0.3), stroke(1, (22.5, 36), (22.5, 59)))
    _adult_head(drawing, skin)
    drawing.detail(hair, curve((14, 13), (17, 15), (22.5, 14.5), (28, 15), (31, 13), (30, 19), (22.5, 22), (15, 19)))
    drawing.detail((214, 120, 112), stroke(1.2, (20.5, 17), (24.5, 17)))
    drawing.paint(hair, curve((13.5, 10), (15, 4), (22.5, 1.5), (30, 4), (31.5, 10), (27, 6.5), (18, 6.5)))


def _legs(drawing: Drawing, skin: Rgb, xs: tuple[float, float], top: float) -> None:
    for x in xs:
        drawing.paint(skin, stroke(6, (x, top), (x, 93)))
    for x, outwards in zip(xs, (-1.5, 1.5), strict=True):
        drawing.paint(_SHOE, Ellipse(x + outwards, 96, 5.8, 4))


def _child_head(drawing: Drawing, skin: Rgb) -> None:
    drawing.paint(skin, Ellipse(25, 21, 14, 14))
    drawing.detail(BLUSH, Ellipse(16.5, 26.5, 2.4, 1.8), Ellipse(33.5, 26.5, 2.4, 1.8))
    drawing.detail(INK, Ellipse(19.5, 22, 1.8, 2.3), Ellipse(30.5, 22, 1.8, 2.3))
    drawing.detail((176, 64, 60), Stroke(arc(25, 26.5, 4, 3.2, 160, 20, 6), 1.5))


def _adult_head(drawing: Drawing, skin: Rgb) -> None:
    drawing.paint(skin, Ellipse(22.5, 12, 9, 10))
    drawing.detail(INK, Ellipse(19, 12, 1.1, 1.5), Ellipse(26, 12, 1.1, 1.5))
    drawing.detail((176, 64, 60), Stroke(arc(22.5, 16, 2.8, 2, 160, 20, 6), 1.3))
