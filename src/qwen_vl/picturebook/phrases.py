"""Say things in English and Chinese: "a red car", "两只狗", "the biggest tree", "a girl in red and two dogs".

Only words: which of them a scene allows is decided in `vqa`, `referring` and `captions`. English is in lower case.
"""

from collections.abc import Callable, Sequence

from .catalog import BACKGROUND_BY_NAME, COLOUR_BY_NAME, KIND_BY_NAME
from .dialogue import Language
from .scene import Scene, Thing

Group = Sequence[Thing]  # things that one phrase names, from left to right
Side = str  # "left", "right" or "middle"

_NUMBERS_EN = ("no", "one", "two", "three", "four", "five")
_NUMBERS_ZH = ("零", "一", "两", "三", "四", "五")  # before a measure word: 两, not 二
_SIDES_ZH = {"left": "左边", "right": "右边", "middle": "中间"}


def is_person(kind: str) -> bool:
    """Tell whether a kind is a person: the colour of people is that of their clothes."""
    return KIND_BY_NAME[kind].group == "people"


def kind_name(kind: str, language: Language, plural: bool = False) -> str:
    """Name a kind: "dog", "dogs", "狗"."""
    entry = KIND_BY_NAME[kind]
    if language == "zh":
        return entry.zh
    return entry.plural if plural else entry.name


def colour_name(colour: str, language: Language) -> str:
    """Name a colour: "red", "红色"."""
    return colour if language == "en" else COLOUR_BY_NAME[colour].zh


def coloured(kind: str, colour: str, language: Language, plural: bool = False) -> str:
    """Name a kind with a colour: "red car", "girls in red", "红色汽车", "红色的狗", "穿红色衣服的女孩"."""
    noun, shade = kind_name(kind, language, plural), colour_name(colour, language)
    if language == "en":
        return f"{noun} in {shade}" if is_person(kind) else f"{shade} {noun}"
    if is_person(kind):
        return f"穿{shade}衣服的{noun}"
    return shade + ("的" if len(noun) == 1 else "") + noun  # one syllable after a two-syllable colour sounds cut off without 的


def a(noun: str) -> str:
    """Put "a" or "an" before an English noun phrase."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def indefinite(kind: str, colour: str | None, count: int, language: Language) -> str:
    """Name some things: "a red car", "two dogs", "一辆红色汽车", "两只狗"."""
    noun = coloured(kind, colour, language, plural=count > 1) if colour else kind_name(kind, language, plural=count > 1)
    if language == "zh":
        return _NUMBERS_ZH[count] + KIND_BY_NAME[kind].measure + noun
    return a(noun) if count == 1 else f"{_NUMBERS_EN[count]} {noun}"


def side_phrase(side: Side, language: Language) -> str:
    """Say where in the picture: "on the left", "in the middle", "在左边"."""
    if language == "zh":
        return "在" + _SIDES_ZH[side]
    return "in the middle" if side == "middle" else f"on the {side}"


def noun_on_side(noun: str, side: Side, language: Language) -> str:
    """Name a thing by its side: "car on the left", "左边的汽车"."""
    return f"{noun} {side_phrase(side, language)}" if language == "en" else f"{_SIDES_ZH[side]}的{noun}"


def biggest(noun: str, language: Language) -> str:
    """Name a thing by its size: "biggest car", "最大的汽车"."""
    return f"biggest {noun}" if language == "en" else f"最大的{noun}"


def the(noun: str, language: Language) -> str:
    """Make a noun phrase definite: "the car"; Chinese has no article."""
    return f"the {noun}" if language == "en" else noun


def every(noun: str, language: Language) -> str:
    """Name all things of a sort: "all dogs", "所有的狗"."""
    return f"all {noun}" if language == "en" else f"所有的{noun}"


def in_picture(phrase: str) -> str:
    """Say in Chinese that a thing is in the picture: 图中的狗, but 图中红色的狗."""
    return f"图中{phrase}" if "的" in phrase else f"图中的{phrase}"


def background_phrase(background: str, language: Language) -> str:
    """Say where the whole scene is: "on the beach", "在沙滩上"."""
    entry = BACKGROUND_BY_NAME[background]
    return entry.phrase if language == "en" else entry.zh_phrase


def join(parts: Sequence[str], language: Language) -> str:
    """Join phrases: "a, b and c", "甲、乙和丙"."""
    if len(parts) == 1:
        return parts[0]
    comma, last = (", ", " and ") if language == "en" else ("、", "和")
    return comma.join(parts[:-1]) + last + parts[-1]


def from_left(things: Sequence[Thing]) -> list[Thing]:
    """Sort things from left to right, those above first where that is equal."""
    return sorted(things, key=lambda thing: (thing.centre_px, thing.box_px))


def groups(scene: Scene, with_colours: bool) -> list[Group]:
    """Gather equal things (kind, and colour where asked), groups and members from left to right."""
    gathered: dict[tuple[str, str], list[Thing]] = {}
    for thing in from_left(scene.things):
        gathered.setdefault((thing.kind, thing.colour if with_colours else ""), []).append(thing)
    return list(gathered.values())


def listing(scene: Scene, language: Language, with_colours: bool, wrap: Callable[[str, Group], str] | None = None) -> str:
    """List all things of a scene: "a girl in red and two dogs"; `wrap` may add boxes to each part."""
    parts = []
    for group in groups(scene, with_colours):
        text = indefinite(group[0].kind, group[0].colour if with_colours else None, len(group), language)
        parts.append(wrap(text, group) if wrap else text)
    return join(parts, language)
