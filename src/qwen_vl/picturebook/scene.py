"""Compose scenes: which things, in which colours, where, on which background.

A scene is a pure function of its seed. Drawing it is `drawing.draw_scene`; asking about it is `tasks.make_tasks`.

    scene = make_scene(7)
    for thing in scene.things:
        print(thing.colour, thing.kind, thing.box_px)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from qwen_vl.errors import ConfigError

from .catalog import BACKGROUNDS, COLOURS, EVALUATION_SEED_START, HELD_OUT_PAIRS, KIND_BY_NAME, KINDS, SIGN_WORDS, Kind
from .dice import Dice, check_seed

BoxPx = tuple[int, int, int, int]

SIZES: tuple[tuple[tuple[int, int], float], ...] = (((448, 448), 0.7), ((512, 384), 0.1), ((384, 512), 0.1), ((640, 448), 0.1))
NUM_THINGS: tuple[tuple[int, float], ...] = ((1, 0.14), (2, 0.27), (3, 0.29), (4, 0.2), (5, 0.1))
MAX_IOU = 0.05
MAX_COVERED = 0.08  # of the smaller of two boxes
GRID = 6  # no two centres share a cell of a GRID x GRID grid
HORIZON = 0.64  # things on the ground usually stand below this share of the height
NUM_VARIANTS = 6
MIN_SIDE_PX = 64
SIGN_CHANCE, REPEAT_CHANCE, SAME_COLOUR_CHANCE, HELD_OUT_CHANCE = 0.25, 0.28, 0.3, 0.1

# Usual longer side of a box, by kind or group, as a share of the picture's shorter side: always from 0.15 to 0.45.
_SIDES: dict[str, tuple[float, float]] = {
    "people": (0.3, 0.445),
    "animals": (0.18, 0.445),
    "plants": (0.16, 0.32),
    "tree": (0.28, 0.445),
    "houses": (0.26, 0.445),
    "vehicles": (0.24, 0.44),
    "toys": (0.155, 0.32),
    "shapes": (0.155, 0.34),
    "sign": (0.24, 0.42),
}
_NOT_INDOORS = frozenset({"tree", "house", "tent", "car", "bus", "boat", "airplane"})
_HARD_TO_SEE = frozenset({("snow", "white"), ("night", "black")})


@dataclass(frozen=True, kw_only=True, slots=True)
class Thing:
    """One drawn thing. `box_px` is x1, y1, x2, y2 in pixels, x2 and y2 exclusive; `text` is what a sign says."""

    kind: str
    colour: str
    box_px: BoxPx
    flipped: bool = False
    variant: int = 0
    text: str | None = None

    @property
    def centre_px(self) -> tuple[float, float]:
        x1, y1, x2, y2 = self.box_px
        return (x1 + x2) / 2, (y1 + y2) / 2

    @property
    def area_px(self) -> int:
        x1, y1, x2, y2 = self.box_px
        return (x2 - x1) * (y2 - y1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How scenes are composed; the defaults are the picture book's own.

    `size` is (width, height) in pixels, None for the usual mixture. A sign's longer side is drawn from `sign_side`, shares of the shorter side of
    the picture.
    """

    size: tuple[int, int] | None = None
    sign_chance: float = SIGN_CHANCE
    sign_side: tuple[float, float] = _SIDES["sign"]

    def __post_init__(self) -> None:
        if self.size is not None and min(self.size) < MIN_SIDE_PX:
            raise ConfigError(f"size={self.size} is too small to draw a scene; use {MIN_SIDE_PX} pixels or more a side")
        if not 0.0 <= self.sign_chance <= 1.0:
            raise ConfigError(f"sign_chance={self.sign_chance} is no chance; use 0 to 1")
        if not 0.02 <= self.sign_side[0] <= self.sign_side[1] <= 0.9:
            raise ConfigError(f"sign_side={self.sign_side} is no range of shares; use for example (0.1, 0.2), from 0.02 to 0.9")


USUAL = Layout()


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """A picture that could be drawn: its size in pixels, its background, and its things from back to front."""

    seed: int
    width: int
    height: int
    background: str
    things: tuple[Thing, ...]


def make_scene(seed: int, layout: Layout = USUAL) -> Scene:
    """Compose the scene of a seed, the same on every machine; another layout composes another scene.

    Seeds below `EVALUATION_SEED_START` never draw a pair of `HELD_OUT_PAIRS`; those from there on draw one for about every tenth thing.

    Raises: ConfigError for a negative seed.
    """
    check_seed(seed)
    dice = Dice(seed)
    usual_size = dice.weighted(SIZES)
    width, height = layout.size or usual_size
    background = dice.pick(BACKGROUNDS).name
    wanted = _choose_things(dice, dice.weighted(NUM_THINGS), background, seed >= EVALUATION_SEED_START, layout.sign_chance)
    wanted.sort(key=lambda thing: -_side_range(thing.kind, layout)[1])  # large ones first: they are the hardest to place
    placed: list[Thing] = []
    for thing in wanted:
        box_px = _find_place(dice, KIND_BY_NAME[thing.kind], _side_range(thing.kind, layout), placed, width, height)
        if box_px is not None:
            placed.append(replace(thing, box_px=box_px))
    things = tuple(sorted(placed, key=lambda thing: (thing.box_px[3], thing.box_px[0])))
    return Scene(seed=seed, width=width, height=height, background=background, things=things)


def demo_scene() -> Scene:
    """Return the picture of the demo conversation: a girl and a dog on a beach."""
    girl = Thing(kind="girl", colour="pink", box_px=(53, 256, 139, 428))
    dog = Thing(kind="dog", colour="brown", box_px=(257, 262, 440, 419))
    return Scene(seed=0, width=448, height=448, background="beach", things=(dog, girl))


def _choose_things(dice: Dice, num_things: int, background: str, held_out: bool, sign_chance: float) -> list[Thing]:
    """Choose kinds, colours and texts; the boxes are still empty."""
    things: list[Thing] = []
    if dice.chance(sign_chance):
        things.append(_unplaced(dice, "sign", _choose_colour(dice, "sign", background), _choose_text(dice)))
    while len(things) < num_things:
        kind, colour = _choose_pair(dice, things, background, held_out)
        things.append(_unplaced(dice, kind, colour))
    return things


def _choose_pair(dice: Dice, things: Sequence[Thing], background: str, held_out: bool) -> tuple[str, str]:
    """Choose a kind and a colour: a rare pair, a kind that is there already (perhaps in the same colour), or anything."""
    if held_out and dice.chance(HELD_OUT_CHANCE):
        return dice.pick([pair for pair in sorted(HELD_OUT_PAIRS) if _fits(pair[0], background)])  # sorted: a set has no fixed order
    earlier = [thing for thing in things if thing.kind != "sign"]
    if earlier and dice.chance(REPEAT_CHANCE):
        model = dice.pick(earlier)
        same = dice.chance(SAME_COLOUR_CHANCE)
        return model.kind, model.colour if same else _choose_colour(dice, model.kind, background)
    kind = dice.pick([kind.name for kind in KINDS if kind.name != "sign" and _fits(kind.name, background)])
    return kind, _choose_colour(dice, kind, background)


def _choose_colour(dice: Dice, kind: str, background: str) -> str:
    names = [colour.name for colour in COLOURS]
    return dice.pick([name for name in names if (kind, name) not in HELD_OUT_PAIRS and (background, name) not in _HARD_TO_SEE])


def _choose_text(dice: Dice) -> str:
    return dice.pick(SIGN_WORDS) if dice.chance(0.7) else str(dice.below(10 ** (1 + dice.below(3))))


def _unplaced(dice: Dice, kind: str, colour: str, text: str | None = None) -> Thing:
    flipped = dice.chance(0.5) and text is None
    return Thing(kind=kind, colour=colour, box_px=(0, 0, 0, 0), flipped=flipped, variant=dice.below(NUM_VARIANTS), text=text)


def _fits(kind: str, background: str) -> bool:
    return background != "room" or kind not in _NOT_INDOORS


def _side_range(kind: str, layout: Layout) -> tuple[float, float]:
    return layout.sign_side if kind == "sign" else _SIDES.get(kind, _SIDES[KIND_BY_NAME[kind].group])


def _find_place(dice: Dice, kind: Kind, sides: tuple[float, float], placed: Sequence[Thing], width: int, height: int) -> BoxPx | None:
    """Try boxes, smaller and smaller, until one keeps clear of the placed things; None when the picture is full."""
    low, high = sides
    for attempt in range(120):
        top = max(low, high - (high - low) * attempt / 90)
        highest_foot = HORIZON if attempt < 80 else 0.5  # a crowded ground reaches up behind the horizon
        box_px = _draw_box(dice, kind, dice.between(low, top), width, height, highest_foot)
        if all(_is_clear(box_px, other.box_px, width, height) for other in placed):
            return box_px
    return None


def _draw_box(dice: Dice, kind: Kind, side: float, width: int, height: int, highest_foot: float) -> BoxPx:
    """Draw a box of the kind's shape (within 12 %; round and square things within 3 %) where the kind lives."""
    stretch = 0.03 if kind.group == "shapes" or kind.name == "ball" else 0.12
    aspect = kind.aspect * dice.between(1 - stretch, 1 + stretch)
    side_px = side * min(width, height)
    box_width = round(side_px * min(1.0, aspect))
    box_height = round(side_px / max(1.0, aspect))
    margin = round(0.02 * min(width, height))
    first, last = margin, height - margin - box_height  # of y1
    if kind.place == "ground":
        first = max(first, round(highest_foot * height) - box_height)
    elif kind.place == "sky":
        last = min(last, round(0.55 * height) - box_height)
    x1 = round(dice.between(margin, width - margin - box_width))
    y1 = round(dice.between(first, last))
    return x1, y1, x1 + box_width, y1 + box_height


def _is_clear(box_px: BoxPx, other: BoxPx, width: int, height: int) -> bool:
    """Tell whether two boxes overlap little enough and have their centres in different cells of the grid."""
    area, other_area = _area(box_px), _area(other)
    shared = _area((max(box_px[0], other[0]), max(box_px[1], other[1]), min(box_px[2], other[2]), min(box_px[3], other[3])))
    if shared > MAX_IOU * (area + other_area - shared) or shared > MAX_COVERED * min(area, other_area):
        return False
    apart_x = abs(box_px[0] + box_px[2] - other[0] - other[2]) / 2
    apart_y = abs(box_px[1] + box_px[3] - other[1] - other[3]) / 2
    return apart_x >= width / GRID or apart_y >= height / GRID


def _area(box_px: BoxPx) -> int:
    return max(0, box_px[2] - box_px[0]) * max(0, box_px[3] - box_px[1])
