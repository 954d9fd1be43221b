"""Animals, facing right. The main colour is that of the coat, feathers, scales or wings."""

from .canvas import Drawing, Ellipse, Stroke, arc, curve, polygon, rotated, stroke
from .palette import INK, WHITE, Rgb, accent_on, luminance, outline_of, shade, tint

_BEAK: Rgb = (244, 176, 60)
_PINK_NOSE: Rgb = (232, 130, 140)


def draw_dog(drawing: Drawing, rgb: Rgb, variant: int) -> None:
    """Draw a profile: long muzzle, hanging ear, tail up."""
    far = shade(rgb, 0.2)
    drawing.paint(far, stroke(11, (34, 66), (35, 93)), stroke(11, (80, 66), (82, 93)))
    drawing.paint(
        rgb,
        stroke(8, (16, 48), (6, 38), (5, 22)),
        Ellipse(52, 56, 42, 20),
        stroke(12, (21, 64), (20, 94)),
        stroke(12, (71, 66), (70, 94)),
        stroke(26, (80, 52), (92, 32)),
        Ellipse(93, 25, 19, 18),
        Ellipse(109, 33, 15, 10.5),
    )
    drawing.detail(tint(rgb, 0.45), Ellipse(110, 36, 10, 5.5))
    drawing.detail(INK, Ellipse(121, 28, 4.5, 4), stroke(1.8, (99, 37), (104, 42), (112, 43), (119, 39)))
    _eye(drawing, 100, 20, 3.8)
    drawing.paint(shade(rgb, 0.24), curve((78, 10), (88, 11), (92, 24), (89, 42), (81, 48), (73, 40), (73, 22)))
    if variant % 2:
        drawing.detail(tint(rgb, 0.45), Ellipse(46, 50, 15, 9))


def draw_cat(drawing: Drawing, rgb: Rgb, variant: int) -> None:
    """Draw pointed ears, round face with whiskers, long tail."""
    drawing.paint(shade(rgb, 0.2), stroke(9, (34, 70), (35, 94)), stroke(9, (68, 70), (69, 94)))
    drawing.paint(
        rgb,
        stroke(8, (20, 60), (9, 52), (5, 40), (8, 27), (13, 18), (11, 7)),
        Ellipse(48, 64, 35, 18),
        stroke(10, (22, 70), (21, 95)),
        stroke(10, (58, 72), (58, 95)),
    )
    stripes = [stroke(3.6, (x, 48), (x + 2, 60)) for x in (32, 44, 56)]
    drawing.detail(shade(rgb, 0.35), *(stripes if variant % 2 == 0 else stripes[:2]))
    drawing.paint(rgb, Ellipse(82, 38, 24, 20), polygon((60, 32), (60, 2), (80, 20)), polygon((104, 32), (104, 2), (84, 20)))
    drawing.detail(tint(rgb, 0.5), polygon((64, 21), (63.5, 9), (73, 19)), polygon((100, 21), (100.5, 9), (91, 19)))
    _eye(drawing, 73, 35, 4.6)
    _eye(drawing, 92, 35, 4.6)
    drawing.detail(_PINK_NOSE, polygon((79.5, 42.5), (85.5, 42.5), (82.5, 46.5)))
    whiskers = outline_of(rgb)
    drawing.detail(whiskers, stroke(1.5, (76, 50), (79.5, 50.5), (82.5, 47), (85.5, 50.5), (89, 50)))
    drawing.detail(
        whiskers, *(Stroke(points, 1.2) for points in (((72, 45), (61, 42)), ((72, 48), (62, 50)), ((93, 45), (104, 42)), ((93, 48), (103, 50))))
    )


def draw_rabbit(drawing: Drawing, rgb: Rgb, variant: int) -> None:
    """Draw it sitting upright, long ears."""
    tilt = 8 + 4 * (variant % 2)
    drawing.paint(tint(rgb, 0.6), Ellipse(66, 84, 8, 8))
    drawing.paint(rgb, Ellipse(37, 74, 27, 23))
    drawing.detail(tint(rgb, 0.45), Ellipse(37, 77, 16, 16))
    drawing.paint(rgb, Ellipse(21, 95, 16, 5.5), Ellipse(53, 95, 16, 5.5))
    drawing.paint(rgb, rotated(Ellipse(26, 20, 7.5, 21), -tilt), rotated(Ellipse(48, 20, 7.5, 21), tilt), Ellipse(37, 48, 22, 17.5))
    drawing.detail(
        (244, 178, 190) if luminance(rgb) > 60 else (150, 110, 122), rotated(Ellipse(26, 21, 3.6, 14), -tilt), rotated(Ellipse(48, 21, 3.6, 14), tilt)
    )
    _eye(drawing, 28, 45, 3.8)
    _eye(drawing, 46, 45, 3.8)
    drawing.detail(WHITE, polygon((34, 56), (40, 56), (39.5, 62), (34.5, 62)))
    drawing.detail(_PINK_NOSE, Ellipse(37, 52.5, 3.6, 2.6))
    drawing.paint(rgb, Ellipse(27, 70, 5, 7.5), Ellipse(47, 70, 5, 7.5))


def draw_bird(drawing: Drawing, rgb: Rgb, variant: int) -> None:
    """Draw it in flight: wing up, short beak, fan of a tail."""
    lift = 4 * (variant % 2)
    drawing.paint(shade(rgb, 0.16), curve((76, 52), (72, 26), (84, 6 + lift), (94, 8 + lift), (98, 30), (94, 48)))
    drawing.paint(_BEAK, polygon((114, 44), (131, 53), (114, 59)))
    drawing.paint(rgb, polygon((40, 60), (1, 52), (8, 66), (0, 78), (14, 80), (46, 80)), Ellipse(66, 68, 38, 25), Ellipse(98, 50, 20, 19))
    drawing.detail(tint(rgb, 0.5), curve((50, 86), (66, 72), (96, 62), (101, 72), (84, 88), (66, 92)))
    _eye(drawing, 104, 46, 4.6)
    drawing.paint(shade(rgb, 0.12), curve((56, 68), (34, 40), (26, 10 + lift), (40, 3 + lift), (58, 16), (76, 40), (80, 60), (70, 70)))
    drawing.detail(outline_of(rgb), stroke(1.8, (44, 28), (60, 52)), stroke(1.8, (56, 28), (68, 48)))


def draw_fish(drawing: Drawing, rgb: Rgb, variant: int) -> None:
    """Draw tail fan, fins above and below, scales."""
    fin = shade(rgb, 0.18)
    drawing.paint(fin, curve((62, 26), (70, 4), (92, 1), (118, 18), (112, 26)), curve((76, 80), (72, 98), (90, 96), (104, 80)))
    drawing.paint(
        rgb,
        curve((44, 52), (24, 34), (5, 14), (2, 30), (14, 52), (2, 74), (5, 90), (24, 70)),
        curve((34, 52), (62, 24), (98, 16), (136, 28), (158, 52), (136, 78), (98, 88), (62, 78)),
    )
    drawing.detail(tint(rgb, 0.45), curve((76, 76), (100, 70), (136, 70), (124, 79), (98, 84)))
    for x in (62, 80, 98) if variant % 2 else (66, 86):
        drawing.detail(outline_of(rgb), Stroke(arc(x, 50, 8, 15, -70, 70, 6), 2.2))
    drawing.detail(outline_of(rgb), Stroke(arc(110, 52, 10, 26, -62, 62, 7), 2.4), stroke(2.4, (143, 64), (149, 60), (155, 58)))
    drawing.paint(fin, curve((92, 52), (74, 58), (72, 68), (88, 66)))
    _eye(drawing, 136, 44, 7)


def draw_butterfly(drawing: Drawing, rgb: Rgb, variant: int) -> None:
    """Draw four wings, spread, seen from above."""
    right_upper = ((58, 50), (66, 24), (90, 3), (112, 6), (114, 28), (102, 48), (80, 56))
    right_lower = ((58, 54), (80, 55), (101, 62), (103, 82), (88, 98), (72, 90))
    wings = [curve(*points) for side in (right_upper, right_lower) for points in (side, tuple((115 - x, y) for x, y in side))]
    drawing.paint(rgb, *wings[2:])
    drawing.paint(rgb, *wings[:2])
    spots = (
        ((94, 22, 9, 9), (84, 42, 5, 5), (86, 78, 8, 8)) if variant % 2 == 0 else ((95, 20, 7, 7), (100, 36, 5, 5), (82, 30, 5, 7), (88, 78, 6, 10))
    )
    for x, y, rx, ry in spots:
        drawing.detail(accent_on(rgb), Ellipse(x, y, rx, ry), Ellipse(115 - x, y, rx, ry))
    drawing.paint((74, 62, 60), stroke(1.6, (56, 30), (50, 16), (44, 10)), stroke(1.6, (59, 30), (65, 16), (71, 10)))
    drawing.paint((74, 62, 60), stroke(7, (57.5, 34), (57.5, 82)), Ellipse(57.5, 31, 6, 6))


def _eye(drawing: Drawing, x: float, y: float, radius: float) -> None:
    drawing.paint(WHITE, Ellipse(x, y, radius, radius))
    drawing.detail(INK, Ellipse(x + 0.2 * radius, y, 0.68 * radius, 0.74 * radius))
    drawing.detail(WHITE, Ellipse(x + 0.4 * radius, y - 0.35 * radius, 0.24 * radius, 0.24 * radius))
