"""Ask for the box of a phrase, and for the name of a box.

`references` lists every phrase of a scene that means certain things without doubt; the margins make "biggest" and "on the left" plain to see.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from qwen_vl.grounding.text import format_box

from .catalog import COLOURS
from .dialogue import Language, Task, Turn, box_of, boxes_of, mark
from .dice import Dice
from .phrases import (
    biggest,
    colour_name,
    coloured,
    every,
    from_left,
    in_picture,
    indefinite,
    is_person,
    kind_name,
    noun_on_side,
    the,
)
from .scene import Scene, Thing
from .vqa import on_end, only, only_on_side

CLEARLY_BIGGER = 1.5  # times the area of the next in size


@dataclass(frozen=True, slots=True)
class Reference:
    """A phrase and all things that it names, from left to right."""

    phrase: str
    things: tuple[Thing, ...]


def references(scene: Scene, language: Language) -> list[Reference]:
    """List the phrases of a scene that name certain things without doubt: by kind, colour, side and size."""
    found = [*_by_thing(scene, language)]
    for kind in sorted({thing.kind for thing in scene.things}):
        found += _by_kind(scene, language, kind, [thing for thing in scene.things if thing.kind == kind])
    return found


def reference_to_kind(scene: Scene, kind: str, language: Language) -> Reference:
    """Name all things of a kind: "the dog" where there is one, else "all dogs"."""
    same = [thing for thing in scene.things if thing.kind == kind]
    return _one_or_all(kind_name(kind, language), kind_name(kind, language, plural=True), same, language)


def ask_refer(scene: Scene, language: Language, dice: Dice, skip: Sequence[str] = ()) -> Task | None:
    """Ask for the boxes of a phrase that is not in `skip`; every thing of the scene has the same chance."""
    options = [reference for reference in references(scene, language) if reference.phrase not in skip]
    if not options:
        return None
    thing = dice.pick(from_left(tuple({thing for reference in options for thing in reference.things})))
    reference = dice.pick([reference for reference in options if thing in reference.things])
    return Task("refer", language, (refer_turn(scene, reference, language, dice),), phrase=reference.phrase)


def refer_turn(scene: Scene, reference: Reference, language: Language, dice: Dice, wording: int | None = None) -> Turn:
    """Ask for the boxes of one reference, in a given wording or a random one."""
    wordings = _REFER_MANY_EN if language == "en" and len(reference.things) > 1 else _REFER[language]
    template = dice.pick(wordings) if wording is None else wordings[wording]
    question = template.format(it=reference.phrase if language == "en" else in_picture(reference.phrase))
    return Turn(question, mark(scene, reference.phrase, reference.things), boxes_of(scene, reference.things))


def ask_describe_box(scene: Scene, language: Language, dice: Dice) -> Task:
    """Ask what is in the box of a thing, as the base models are asked or in a chat's words; the answer is like "a red car"."""
    thing = dice.pick(scene.things)
    question = dice.pick(_DESCRIBE[language]).format(box=format_box(box_of(scene, thing)))
    return Task("describe_box", language, (Turn(question, indefinite(thing.kind, thing.colour, 1, language)),))


def _by_thing(scene: Scene, language: Language) -> list[Reference]:
    """Name things without their kind: "the red thing", "the thing on the left", "the biggest thing"."""
    if len(scene.things) < 2:
        return []
    noun = "thing" if language == "en" else "东西"
    found: list[tuple[str, Thing | None]] = [
        (noun_on_side(noun, "left", language), only_on_side(scene, "left")),
        (noun_on_side(noun, "right", language), only_on_side(scene, "right")),
        (biggest(noun, language), _clearly_biggest(scene.things)),
    ]
    for colour in COLOURS:
        thing = only(scene.things, colour=colour.name)
        shade = colour_name(colour.name, language)
        found.append((f"{shade} {noun}" if language == "en" else f"{shade}的{noun}", thing if thing and not is_person(thing.kind) else None))
    return [Reference(the(phrase, language), (thing,)) for phrase, thing in found if thing]


def _by_kind(scene: Scene, language: Language, kind: str, same: Sequence[Thing]) -> list[Reference]:
    """Name things of one kind: "the car", "all cars", "the red car", "all red cars", "the car on the left", "the biggest car"."""
    noun = kind_name(kind, language)
    found = [reference_to_kind(scene, kind, language)]
    if language == "zh" and len(same) > 1:
        found.append(Reference(noun, tuple(from_left(same))))  # a Chinese noun has no number: 框出图中的狗 means all of them
    for colour in sorted({thing.colour for thing in same}):
        alike = [thing for thing in same if thing.colour == colour]
        found.append(_one_or_all(coloured(kind, colour, language), coloured(kind, colour, language, plural=True), alike, language))
        if language == "zh" and "的" not in coloured(kind, colour, language):  # people also write 红色的汽车
            found.append(_one_or_all(f"{colour_name(colour, language)}的{noun}", f"{colour_name(colour, language)}的{noun}", alike, language))
    if len(same) > 1:
        singles = [(noun_on_side(noun, side, language), on_end(scene, same, side)) for side in ("left", "right")]
        singles += [] if is_person(kind) else [(biggest(noun, language), _clearly_biggest(same))]
        found += [Reference(the(phrase, language), (thing,)) for phrase, thing in singles if thing]
    return found


def _one_or_all(noun: str, plural: str, things: Sequence[Thing], language: Language) -> Reference:
    return Reference(the(noun, language) if len(things) == 1 else every(plural, language), tuple(from_left(things)))


def _clearly_biggest(things: Sequence[Thing]) -> Thing | None:
    first, second = sorted(things, key=lambda thing: -thing.area_px)[:2]
    return first if first.area_px >= CLEARLY_BIGGER * second.area_px else None


_REFER: dict[Language, tuple[str, ...]] = {
    "en": ("Find {it}.", "Where is {it}? Give its box.", "Point out {it}.", "Draw a box around {it}."),
    "zh": ("框出{it}", "找出{it}。", "请框出{it}。", "{it}在哪里？请框出来。"),
}
_REFER_MANY_EN = ("Find {it}.", "Where are {it}? Give their boxes.", "Point out {it}.", "Draw boxes around {it}.")
_DESCRIBE: dict[Language, tuple[str, ...]] = {
    "en": ("<ref>This</ref>{box} is", "What is in {box}?", "What is this in {box}?"),
    "zh": ("<ref>这</ref>{box}是", "{box}里是什么？", "{box}中的东西是什么？"),
}
