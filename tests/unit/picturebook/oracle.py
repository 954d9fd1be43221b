"""Answer the picture book's questions by reading them: a second, independent way from scene and question to the answer.

It shares only the catalogue and the scene with the code under test. Whatever it cannot read, or finds to have two answers, is an error.
"""

import re
from collections.abc import Callable

from qwen_vl.picturebook.catalog import BACKGROUNDS, COLOURS, KINDS
from qwen_vl.picturebook.scene import Scene, Thing

ZH_COLOURS = {colour.zh: colour.name for colour in COLOURS}
ZH_KINDS = {kind.zh: kind.name for kind in KINDS}
EN_KINDS = {name: kind.name for kind in KINDS for name in (kind.name, kind.plural)}
PEOPLE = {"girl", "boy", "woman", "man"}
PLACES = {phrase: place.name for place in BACKGROUNDS for phrase in (place.phrase, place.zh_phrase)}
YES_NO = {("en", True): "yes", ("en", False): "no"}


class Unclear(AssertionError):
    """The question has no answer, or more than one, or cannot be read."""


def x_share(scene: Scene, thing: Thing) -> float:
    return (thing.box_px[0] + thing.box_px[2]) / 2 / scene.width


def match(scene: Scene, noun: str) -> list[Thing]:
    """Return all things that a noun with or without colour names: "red car", "girls in red", "thing", "红色的狗"."""
    kind, colour = read_noun(noun)
    return [thing for thing in scene.things if kind in (None, thing.kind) and colour in (None, thing.colour)]


def read_noun(noun: str) -> tuple[str | None, str | None]:
    if found := re.fullmatch(r"(?:(?P<c>\w+) )?(?P<k>\w+)(?: in (?P<d>\w+))?", noun, flags=re.ASCII):
        word, colour = found["k"], found["c"] or found["d"]
        kind = None if word == "thing" else EN_KINDS[word]
        assert colour is None or colour in ZH_COLOURS.values(), noun
        if colour and kind:
            assert (kind in PEOPLE) == (found["d"] is not None), f"a person is in a colour, a thing has one: {noun}"
        return kind, colour
    found = re.fullmatch(r"(?:穿(?P<d>.色)衣服的|(?P<c>.色)的?)?(?P<k>.+)", noun)
    assert found, noun
    kind = None if found["k"] == "东西" else ZH_KINDS[found["k"]]
    shade = found["c"] or found["d"]
    if shade and kind:
        assert (kind in PEOPLE) == (found["d"] is not None), f"people wear a colour: {noun}"
    return kind, ZH_COLOURS[shade] if shade else None


def refer(scene: Scene, phrase: str) -> list[Thing]:
    """Return what a definite phrase names, from left to right; raise if it is not plain which."""
    phrase = re.sub(r"^the ", "", phrase)
    if found := re.fullmatch(r"all (.+)|所有的(.+)", phrase):
        return sorted(match(scene, found[1] or found[2]), key=lambda thing: x_share(scene, thing))
    if found := re.fullmatch(r"biggest (.+)|最大的(.+)", phrase):
        return [biggest(match(scene, found[1] or found[2]))]
    if found := re.fullmatch(r"(?P<e>.+) on the (?P<s>left|right)|(?P<t>[左右])边的(?P<z>.+)", phrase):
        side = found["s"] or {"左": "left", "右": "right"}[found["t"]]
        return [outermost(scene, match(scene, found["e"] or found["z"]), side)]
    return sorted(match(scene, phrase), key=lambda thing: x_share(scene, thing))


def refer_one(scene: Scene, phrase: str) -> Thing:
    found = refer(scene, phrase)
    if len(found) != 1:
        raise Unclear(f"{phrase!r} names {len(found)} things")
    return found[0]


def biggest(things: list[Thing]) -> Thing:
    def area(thing: Thing) -> int:
        x1, y1, x2, y2 = thing.box_px
        return (x2 - x1) * (y2 - y1)

    ordered = sorted(things, key=area, reverse=True)
    if len(ordered) < 2 or area(ordered[0]) < 1.4 * area(ordered[1]):
        raise Unclear("no thing is clearly the biggest")
    return ordered[0]


def outermost(scene: Scene, things: list[Thing], side: str) -> Thing:
    ordered = sorted(things, key=lambda thing: x_share(scene, thing), reverse=side == "right")
    if len(ordered) < 2 or abs(x_share(scene, ordered[0]) - x_share(scene, ordered[1])) < 0.06:
        raise Unclear(f"no thing is clearly the {side}most")
    return ordered[0]


def kind_word(thing: Thing, language: str) -> str:
    return next(kind.name if language == "en" else kind.zh for kind in KINDS if kind.name == thing.kind)


def colour_word(colours: set[str], language: str) -> str:
    if len(colours) != 1:
        raise Unclear(f"colours {colours}")
    return next(colour.name if language == "en" else colour.zh for colour in COLOURS if colour.name in colours)


def side_word(scene: Scene, thing: Thing, language: str) -> str:
    share = x_share(scene, thing)
    if 0.4 < share < 0.43 or 0.57 < share < 0.6:
        raise Unclear(f"a thing at {share} is neither at a side nor in the middle")
    number = 0 if share < 0.4 else 2 if share > 0.6 else 1
    return (("on the left", "在左边"), ("in the middle", "在中间"), ("on the right", "在右边"))[number][language == "zh"]


def relative_word(scene: Scene, one: str, other: str, language: str) -> str:
    gap = x_share(scene, refer_one(scene, one)) - x_share(scene, refer_one(scene, other))
    if abs(gap) < 0.1:
        raise Unclear("neither left nor right")
    return (("on the left", "在左边") if gap < 0 else ("on the right", "在右边"))[language == "zh"]


def place_word(scene: Scene, language: str) -> str:
    return next(place.phrase if language == "en" else place.zh_phrase for place in BACKGROUNDS if place.name == scene.background)


def yes(language: str, truth: bool, exists: bool) -> str:
    if language == "en":
        return "yes" if truth else "no"
    return ("有" if truth else "没有") if exists else ("是" if truth else "不是")


def only_text(scene: Scene) -> str:
    (text,) = [thing.text for thing in scene.things if thing.text is not None]
    return text


def only_kind(scene: Scene, language: str) -> str:
    (thing,) = scene.things
    return kind_word(thing, language)


A = r"(?:an|a) "
N = r"([\w ]+?)"
Rule = tuple[str, Callable[..., str]]

RULES: dict[tuple[str, str], list[Rule]] = {
    ("what", "en"): [
        ("What is in the picture|What do you see|What thing is this", lambda s: only_kind(s, "en")),
        ("What (?:is|can you see) on the (left|right)(?: of the picture)?", lambda s, side: kind_word(outermost(s, list(s.things), side), "en")),
        (
            r"What is the (\w+) thing|Which thing is (\w+)|What (\w+) thing is there",
            lambda s, *c: kind_word(refer_one(s, f"the {_some(c)} thing"), "en"),
        ),
    ],
    ("what", "zh"): [
        ("(?:图中是|图里是|这是)什么东西", lambda s: only_kind(s, "zh")),
        (r"(?:图中)?([左右])边(?:的东西)?是什么", lambda s, side: kind_word(refer_one(s, f"{side}边的东西"), "zh")),
        ("(.色)的(?:东西)?是什么|什么东西是(.色)的", lambda s, *c: kind_word(refer_one(s, f"{_some(c)}的东西"), "zh")),
    ],
    ("colour", "en"): [
        (rf"What colou?r (?:is|does) the {N}(?: wear)?", lambda s, n: colour_word({refer_one(s, n).colour}, "en")),
        (rf"What colou?r (?:are|do) the {N}(?: wear)?", lambda s, n: colour_word(_several(match(s, n)), "en")),
        (rf"Which colour (?:does the|is the) {N} (?:have|dressed in)", lambda s, n: colour_word({refer_one(s, n).colour}, "en")),
        (rf"Which colour (?:do the|are the) {N} (?:have|dressed in)", lambda s, n: colour_word(_several(match(s, n)), "en")),
    ],
    ("colour", "zh"): [
        ("(?:图中)?(.+?)(?:的衣服是|穿|是)什么颜色的?(?:衣服)?", lambda s, n: colour_word({thing.colour for thing in refer(s, n)}, "zh")),
    ],
    ("count", "en"): [
        ("How many things (?:are there|are in the picture|can you see)", lambda s: str(len(s.things))),
        (rf"How many {N} (?:are there|are in the picture|can you see)", lambda s, n: str(len(match(s, n)))),
    ],
    ("count", "zh"): [
        ("(?:图[中里](?:一共)?)?有(?:几|多少)样东西", lambda s: str(len(s.things))),
        ("(?:图[中里])?有(?:几|多少)([只个条棵朵座顶辆艘架把颗块])(.+)", lambda s, m, n: str(_count_with_measure(s, m, n))),
    ],
    ("yes_no", "en"): [
        (rf"(?:Is there|Can you see) {A}{N}(?: in the picture)?", lambda s, n: yes("en", bool(match(s, n)), True)),
        (r"Is (?:this|the picture) ((?:on|in|at) [\w ]+)", lambda s, place: yes("en", PLACES[place] == s.background, False)),
        (r"(?:Is|Does) the (\w+) (?:look |dressed in |in )?(\w+)(?: or not)?", lambda s, n, c: yes("en", refer_one(s, n).colour == c, False)),
    ],
    ("yes_no", "zh"): [
        ("(?:图中)?有(.+)吗|图里有没有(.+)", lambda s, *n: yes("zh", bool(match(s, _some(n))), True)),
        ("(?:这|图中)是(在.+)吗", lambda s, place: yes("zh", PLACES[place] == s.background, False)),
        ("(?:图中)?(.+?)(?:的衣服是|穿的是|是)(.色)(?:的|衣服)吗", lambda s, n, c: yes("zh", refer_one(s, n).colour == ZH_COLOURS[c], False)),
    ],
    ("where", "en"): [
        ("Where is this|What place is this|Where was this picture made", lambda s: place_word(s, "en")),
        (rf"Is the {N} on the left or on the right of the {N}", lambda s, a, b: relative_word(s, a, b, "en")),
        (rf"On which side of the {N} is the {N}", lambda s, b, a: relative_word(s, a, b, "en")),
        (rf"(?:Where is|On which side is|Where can you see) the {N}", lambda s, n: side_word(s, refer_one(s, n), "en")),
    ],
    ("where", "zh"): [
        ("这是在哪里|这是什么地方|图中是在哪里", lambda s: place_word(s, "zh")),
        ("(.+)在(.+)的(?:左边还是右边|哪边)", lambda s, a, b: relative_word(s, a, b, "zh")),
        ("(?:图中)?(.+)在哪[里边]", lambda s, n: side_word(s, refer_one(s, n), "zh")),
    ],
    ("read", "en"): [("What does the sign say|What is written on the sign|Read the sign", only_text)],
    ("read", "zh"): [("牌子上写着什么|牌子上写的是什么|读出牌子上的字", only_text)],
}


def answer(scene: Scene, name: str, language: str, question: str) -> str:
    """Answer a question of a task; raise if no rule reads it."""
    bare = re.sub(r"[.?。？]$", "", question)
    for pattern, rule in RULES[name, language]:
        if found := re.fullmatch(pattern, bare):
            return rule(scene, *found.groups())
    raise Unclear(f"cannot read {question!r}")


def _some(groups: tuple[str | None, ...]) -> str:
    return next(group for group in groups if group)


def _several(things: list[Thing]) -> set[str]:
    assert len(things) > 1, "a plural for one thing"
    return {thing.colour for thing in things}


def _count_with_measure(scene: Scene, measure: str, noun: str) -> int:
    kind, _ = read_noun(noun)
    assert next(each.measure for each in KINDS if each.name == kind) == measure, noun
    return len(match(scene, noun))
