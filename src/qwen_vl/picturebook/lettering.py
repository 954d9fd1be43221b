"""Text on signs: as large as its board allows, in the bundled font so that pictures are the same everywhere."""

from functools import lru_cache

from PIL import ImageDraw, ImageFont

from ..grounding.fonts import load_font
from .palette import Rgb

_MEASURE_PX = 64


def draw_text(draw_context: ImageDraw.ImageDraw, text: str, box: tuple[float, float, float, float], fill: Rgb) -> None:
    """Write `text` in the middle of a box (x1, y1, x2, y2 in pixels), as large as fits."""
    x1, y1, x2, y2 = box
    left, top, right, bottom = _measure(text, _MEASURE_PX)
    size_px = _MEASURE_PX * min((x2 - x1) / (right - left), (y2 - y1) / (bottom - top))
    size_px = max(int(size_px) // 2 * 2, 4)  # few sizes, so that the cache of fonts serves them
    left, top, right, bottom = _measure(text, size_px)
    position = (x1 + (x2 - x1 - right - left) / 2, y1 + (y2 - y1 - bottom - top) / 2)
    draw_context.text(position, text, font=_font(size_px), fill=fill)


@lru_cache(maxsize=256)
def _font(size_px: int) -> ImageFont.FreeTypeFont:
    return load_font(size_px)


@lru_cache(maxsize=4096)
def _measure(text: str, size_px: int) -> tuple[float, float, float, float]:
    return _font(size_px).getbbox(text)
