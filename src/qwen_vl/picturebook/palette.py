"""Colour arithmetic of the picture book and the colours that things have in common."""

from .catalog import COLOUR_BY_NAME

Rgb = tuple[int, int, int]

INK: Rgb = (46, 42, 50)  # pupils, mouths, tyres
CREAM: Rgb = (250, 243, 228)
GLASS: Rgb = (196, 226, 240)
STEEL: Rgb = (150, 154, 164)
WOOD: Rgb = (112, 78, 54)
LEAF: Rgb = (52, 122, 60)
BLUSH: Rgb = (240, 150, 150)
WHITE: Rgb = (252, 252, 252)


def mix(a: Rgb, b: Rgb, amount: float) -> Rgb:
    """Blend from `a` (amount 0) to `b` (amount 1)."""
    return (_blend(a[0], b[0], amount), _blend(a[1], b[1], amount), _blend(a[2], b[2], amount))


def shade(rgb: Rgb, amount: float = 0.14) -> Rgb:
    """Darken a little; near black, lighten instead, so that the part stays visible."""
    return mix(rgb, (120, 120, 132), amount) if luminance(rgb) < 60 else mix(rgb, (20, 16, 30), amount)


def tint(rgb: Rgb, amount: float = 0.4) -> Rgb:
    """Lighten towards white; white itself turns a light grey."""
    return mix(rgb, (190, 194, 204), 0.6 * amount) if luminance(rgb) > 235 else mix(rgb, WHITE, amount)


def outline_of(rgb: Rgb) -> Rgb:
    """Choose the outline of a fill: darker, but lighter for near black so that it shows at night."""
    return (118, 118, 132) if luminance(rgb) < 60 else mix(rgb, (30, 26, 44), 0.45)


def ink_on(rgb: Rgb) -> Rgb:
    """Choose white or near black, whichever is easier to read on `rgb`."""
    return WHITE if luminance(rgb) < 140 else (34, 32, 40)


def accent_on(rgb: Rgb) -> Rgb:
    """Choose the colour of a pattern that leaves no doubt about the main colour."""
    return WHITE if luminance(rgb) < 170 else shade(rgb, 0.32) if luminance(rgb) > 235 else mix(rgb, WHITE, 0.8)


def luminance(rgb: Rgb) -> float:
    """Weigh the channels as the eye does (ITU-R BT.601), 0 to 255."""
    return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]


def colour_rgb(name: str) -> Rgb:
    """Look up a colour of the catalog."""
    return COLOUR_BY_NAME[name].rgb


def _blend(a: int, b: int, amount: float) -> int:
    return round(a + (b - a) * amount)
