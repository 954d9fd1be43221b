"""Pages: pictures of a few large words and coloured rectangles, which charts and receipts are drawn as.

    image = draw_page(Page(width=448, height=448, paper=WHITE, panels=(), words=(Word("TEA", (20, 20, 200, 90)),)))

Where every letter stands is known (`Page.glyphs`), so that a tower can be taught to read.
"""

from dataclasses import dataclass

from PIL import Image, ImageDraw

from .canvas import BoxPx, open_tile
from .lettering import Glyph, draw_text, place_glyphs
from .palette import Rgb, outline_of

PAGE_SIZE = (448, 448)  # width, height in pixels: a letter is at least 11 pixels high in a model's picture of 168 x 168
INK: Rgb = (34, 32, 40)
PAPERS: tuple[Rgb, ...] = ((252, 252, 250), (250, 245, 232), (236, 243, 248), (244, 240, 246))
OUTLINE_PX = 3


@dataclass(frozen=True, slots=True)
class Word:
    """A text and the box that it fills as far as its shape allows (x1, y1, x2, y2 in pixels)."""

    text: str
    box_px: BoxPx
    ink: Rgb = INK


@dataclass(frozen=True, slots=True)
class Panel:
    """A filled rectangle: the bar of a chart, or a rule of a receipt."""

    fill: Rgb
    box_px: BoxPx
    is_outlined: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Sheet:
    """What a chart and a receipt have in common: the seed that it was composed from, and which of PAPERS it is drawn on."""

    seed: int
    paper: int

    @property
    def width(self) -> int:
        return PAGE_SIZE[0]

    @property
    def height(self) -> int:
        return PAGE_SIZE[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """What is drawn; panels lie under words. Words are in the order in which they are read."""

    width: int
    height: int
    paper: Rgb
    panels: tuple[Panel, ...]
    words: tuple[Word, ...]

    @property
    def glyphs(self) -> list[Glyph]:
        """The letters and where they stand."""
        return [glyph for word in self.words for glyph in place_glyphs(word.text, word.box_px)]


def draw_page(page: Page) -> Image.Image:
    """Draw a page as an RGB picture."""
    image = Image.new("RGB", (page.width, page.height), page.paper)
    draw_context = ImageDraw.Draw(image)
    for panel in page.panels:
        x1, y1, x2, y2 = panel.box_px
        outline = outline_of(panel.fill) if panel.is_outlined else None
        draw_context.rectangle((x1, y1, x2 - 1, y2 - 1), fill=panel.fill, outline=outline, width=OUTLINE_PX if outline else 0)
    for word in page.words:
        tile, zoom = open_tile(image, word.box_px)
        draw_text(ImageDraw.Draw(tile), word.text, (0.0, 0.0, float(tile.width), float(tile.height)), word.ink)
        image.paste(tile.reduce(zoom), word.box_px[:2])
    return image
