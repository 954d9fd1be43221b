"""The six places of the picture book, in muted colours and without anything that could be taken for a thing of the catalog.

image = draw_background("beach", width=448, height=448, seed=7)
"""

from collections.abc import Callable
from functools import lru_cache
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from .canvas import Point, open_tile
from .palette import Rgb, mix

Brush = Callable[[Image.Image, Random], None]


def draw_background(name: str, *, width: int, height: int, seed: int) -> Image.Image:
    """Draw a place; `seed` moves its clouds, hills, stars and planks a little."""
    image = _sky(name, width, height).copy()
    _PLACES[name](image, Random(seed))
    return image


_SKIES: dict[str, tuple[Rgb, Rgb, float]] = {  # top, bottom, where the bottom colour is reached
    "beach": ((190, 222, 238), (214, 234, 242), 0.42),
    "street": ((206, 220, 230), (222, 229, 232), 0.45),
    "park": ((196, 224, 240), (216, 236, 240), 0.5),
    "night": ((34, 42, 82), (72, 82, 124), 0.62),
    "snow": ((196, 210, 226), (222, 230, 238), 0.5),
    "room": ((226, 216, 206), (218, 208, 198), 0.66),
}

_CLOUD: Rgb = (232, 241, 246)  # a step away from the white of things


@lru_cache(maxsize=32)
def _sky(name: str, width: int, height: int) -> Image.Image:
    top, bottom, reach = _SKIES[name]
    amount = np.clip(np.linspace(0, 1 / reach, height), 0, 1)[:, None]
    rows = np.asarray(top) * (1 - amount) + np.asarray(bottom) * amount  # [height, 3]
    return Image.fromarray(np.repeat(rows.round().astype(np.uint8)[:, None], width, axis=1))


def _beach(image: Image.Image, random: Random) -> None:
    horizon = random.uniform(0.36, 0.44)
    shore = horizon + random.uniform(0.13, 0.19)
    _clouds(image, random, _CLOUD, lowest=horizon - 0.16)
    _band(image, horizon, (150, 196, 212))
    for _ in range(7):
        _dash(image, random, (horizon + 0.02, shore - 0.03), (176, 212, 222))
    _ground(image, random, shore - 0.012, (236, 242, 240))
    _ground(image, random, shore, (236, 220, 184))
    for _ in range(26):
        _speck(image, random, shore + 0.06, 1.0, (218, 200, 162))


def _street(image: Image.Image, random: Random) -> None:
    wall = random.uniform(0.46, 0.5)
    _clouds(image, random, _CLOUD, lowest=wall - 0.2)
    _band(image, wall, (202, 196, 188))
    width, height = image.size
    draw_context = ImageDraw.Draw(image)
    step = max(round(0.03 * height), 4)
    top, pavement = round(wall * height), round((wall + 0.09) * height)
    for row, y in enumerate(range(top, pavement, step)):
        draw_context.line((0, y, width, y), fill=(190, 184, 176))
        for x in range(row % 2 * step, width, 2 * step):
            draw_context.line((x, y, x, min(y + step, pavement)), fill=(190, 184, 176))
    road = wall + random.uniform(0.2, 0.26)
    _band(image, wall + 0.09, (216, 213, 206))
    _band(image, road, (186, 184, 182))
    _band(image, road + 0.018, (150, 152, 158))
    y, dash, offset = round((road + random.uniform(0.13, 0.18)) * height), round(0.1 * width), random.randrange(max(width // 5, 1))
    for x in range(offset - 2 * dash, width, 2 * dash):
        draw_context.rectangle((x, y, x + dash, y + max(round(0.012 * height), 1)), fill=(206, 206, 202))


def _park(image: Image.Image, random: Random) -> None:
    horizon = random.uniform(0.42, 0.5)
    _clouds(image, random, _CLOUD, lowest=horizon - 0.16)
    _ground(image, random, horizon, (186, 210, 170), swell=0.05)
    _ground(image, random, horizon + 0.12, (172, 202, 154), swell=0.03)
    for _ in range(24):
        _tuft(image, random, horizon + 0.2, (148, 184, 130))


def _night(image: Image.Image, random: Random) -> None:
    width, height = image.size
    draw_context = ImageDraw.Draw(image)
    for _ in range(45):
        x, y, glow = random.randrange(width), random.randrange(round(0.55 * height)), random.uniform(0.45, 0.95)
        draw_context.point((x, y), fill=mix(image.getpixel((x, y)), (240, 240, 220), glow))  # type: ignore[arg-type]
    _crescent(image, random)
    horizon = random.uniform(0.56, 0.62)
    _ground(image, random, horizon, (70, 84, 104), swell=0.05)
    _ground(image, random, horizon + 0.1, (82, 98, 108), swell=0.03)
    for _ in range(16):
        _tuft(image, random, horizon + 0.18, (70, 86, 96))


def _snow(image: Image.Image, random: Random) -> None:
    horizon = random.uniform(0.44, 0.52)
    _ground(image, random, horizon, (214, 224, 234), swell=0.06)
    _ground(image, random, horizon + 0.12, (228, 235, 241), swell=0.04)
    for _ in range(40):
        _speck(image, random, 0.0, 0.9, (246, 249, 252))
    for _ in range(10):
        _dash(image, random, (horizon + 0.22, 0.97), (214, 224, 234))


def _room(image: Image.Image, random: Random) -> None:
    width, height = image.size
    floor = random.uniform(0.6, 0.68)
    hue = random.choice(((226, 216, 206), (212, 220, 214), (218, 216, 226), (228, 220, 200)))
    draw_context = ImageDraw.Draw(image)
    draw_context.rectangle((0, 0, width, round(floor * height)), fill=hue)
    stripe = max(round(random.uniform(0.05, 0.08) * width), 4)
    for x in range(random.randrange(stripe), width, 2 * stripe):
        draw_context.rectangle((x, 0, x + stripe, round(floor * height)), fill=mix(hue, (255, 255, 255), 0.25))
    _band(image, floor - 0.03, (240, 236, 230))
    _band(image, floor, (204, 178, 148))
    top, plank = round(floor * height), max(round(0.07 * height), 4)
    for y in range(top, height, plank):
        draw_context.line((0, y, width, y), fill=(184, 158, 130), width=max(height // 224, 1))
        for x in range(random.randrange(width // 2 + 1), width, width // 2 + 1):
            draw_context.line((x, y, x, y + plank), fill=(184, 158, 130), width=max(height // 224, 1))


def _band(image: Image.Image, top: float, fill: Rgb) -> None:
    """Fill everything below a straight horizon."""
    image.paste(fill, (0, round(top * image.height), image.width, image.height))


def _ground(image: Image.Image, random: Random, top: float, fill: Rgb, swell: float = 0.012) -> None:
    """Fill everything below a softly waving edge, antialiased."""
    width, height = image.size
    phase, waves = random.uniform(0, 2 * np.pi), random.uniform(0.7, 1.3)
    xs = np.linspace(0, 1, 25)
    ys = top + swell * np.sin(2 * np.pi * waves * xs + phase)
    first, last = int(float(ys.min()) * height) - 1, min(int(float(ys.max()) * height) + 2, height)
    edge = [(float(x) * width, float(y) * height - first) for x, y in zip(xs, ys, strict=True)]
    _patch(image, (0, first, width, last), [[*edge, (width + 1.0, last - first + 1.0), (0.0, last - first + 1.0)]], fill)
    image.paste(fill, (0, last, width, height))


def _patch(image: Image.Image, box_px: tuple[int, int, int, int], outlines: list[list[Point]], fill: Rgb) -> None:
    """Fill polygons, given in pixels from the corner of the box, antialiased."""
    tile, zoom = open_tile(image, box_px)
    draw_context = ImageDraw.Draw(tile)
    for outline in outlines:
        draw_context.polygon([(x * zoom - 0.5, y * zoom - 0.5) for x, y in outline], fill=fill)
    image.paste(tile.reduce(zoom), box_px[:2])


def _clouds(image: Image.Image, random: Random, fill: Rgb, lowest: float) -> None:
    """Draw two or three flat clouds."""
    for _ in range(random.randint(2, 3)):
        cx, cy, size = (
            random.uniform(0.05, 0.95) * image.width,
            random.uniform(0.05, lowest) * image.height,
            random.uniform(0.05, 0.085) * image.width,
        )
        puffs = [(-1.1, 0.1, 0.7, 0.38), (0.0, -0.12, 0.9, 0.55), (1.1, 0.12, 0.75, 0.36), (0.1, 0.25, 1.8, 0.28)]
        x1, y1 = round(cx - 2 * size), round(cy - 0.75 * size)
        box_px = (x1, y1, x1 + round(4 * size), y1 + round(1.4 * size))
        tile, zoom = open_tile(image, box_px)
        draw_context = ImageDraw.Draw(tile)
        for dx, dy, rx, ry in puffs:
            x, y = (2 + dx) * size * zoom, (0.75 + dy) * size * zoom
            draw_context.ellipse((x - rx * size * zoom, y - ry * size * zoom, x + rx * size * zoom, y + ry * size * zoom), fill=fill)
        image.paste(tile.reduce(zoom), box_px[:2])


def _crescent(image: Image.Image, random: Random) -> None:
    """Draw a thin, dim moon."""
    radius = round(0.045 * image.width)
    x, y = round(random.uniform(0.1, 0.85) * image.width), round(random.uniform(0.05, 0.16) * image.height)
    angles = np.linspace(-np.pi / 2, np.pi / 2, 15)
    outer = [(radius + radius * 0.9 * float(np.cos(a)), radius + radius * 0.9 * float(np.sin(a))) for a in angles]
    inner = [(radius + radius * 0.45 * float(np.cos(a)), radius + radius * 0.9 * float(np.sin(a))) for a in angles[::-1]]
    _patch(image, (x, y, x + 2 * radius, y + 2 * radius), [outer + inner], (206, 206, 186))


def _dash(image: Image.Image, random: Random, between: tuple[float, float], fill: Rgb) -> None:
    """Draw a short level line: a ripple or a drift."""
    x, y, length = random.random() * image.width, random.uniform(*between) * image.height, random.uniform(0.03, 0.08) * image.width
    ImageDraw.Draw(image).line((round(x), round(y), round(x + length), round(y)), fill=fill, width=max(image.height // 224, 1))


def _speck(image: Image.Image, random: Random, top: float, bottom: float, fill: Rgb) -> None:
    x, y, size = random.randrange(image.width), round(random.uniform(top, bottom) * image.height), max(image.height // 224, 1)
    image.paste(fill, (x, y, x + size, y + size))


def _tuft(image: Image.Image, random: Random, top: float, fill: Rgb) -> None:
    """Draw three short blades of grass."""
    x, y, size = random.random() * image.width, random.uniform(top, 1.0) * image.height, 0.014 * image.height
    draw_context = ImageDraw.Draw(image)
    for lean in (-0.6, 0.0, 0.6):
        draw_context.line((round(x + 0.4 * lean * size), round(y), round(x + lean * size), round(y - size)), fill=fill)


_PLACES: dict[str, Brush] = {"beach": _beach, "street": _street, "park": _park, "night": _night, "snow": _snow, "room": _room}
