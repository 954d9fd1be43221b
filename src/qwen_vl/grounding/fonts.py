"""Load the font that labels and picture-book signs are drawn with.

One bundled font covers ASCII, Latin-1 and GB2312, so that pictures are the same on every machine; a user's own font path comes first.

    font = load_font(24)
    draw.text((0, 0), "a dog 一只狗", font=font, fill="white")
"""

from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

from qwen_vl.errors import ConfigError

BUNDLED_FONT_PATH = Path(__file__).resolve().parent.parent / "assets" / "fonts" / "label-sans.ttf"


def load_font(size_px: int, font_path: str | Path | None = None) -> ImageFont.FreeTypeFont:
    """Load a font at a size in pixels: the one at `font_path`, or else the bundled one.

    The same arguments give the same object; treat it as read-only.
    Raises: ConfigError if the size is not positive or the file is not a readable font.
    """
    if size_px < 1:
        raise ConfigError(f"size_px={size_px} is not a font size; use 1 or more")
    return _load(int(size_px), str(BUNDLED_FONT_PATH if font_path is None else font_path))


@lru_cache(maxsize=64)
def _load(size_px: int, path: str) -> ImageFont.FreeTypeFont:
    try:
        # Basic layout: complex layout depends on an optional library and would move glyphs from machine to machine.
        return ImageFont.truetype(path, size_px, layout_engine=ImageFont.Layout.BASIC)
    except (OSError, ValueError) as error:
        raise ConfigError(f"font file {path} cannot be used: {error}. Give a TrueType or OpenType file, or none for the bundled font") from error
