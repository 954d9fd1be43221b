"""Hold questions and answers about scenes: `Turn`, `Task`, and the boxes in them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qwen_vl.grounding.box import Box, Ref
from qwen_vl.grounding.text import format_ref

from .scene import Scene, Thing

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and its only right answer; `boxes` are those that the answer holds, in its order."""

    question: str
    answer: str
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True, slots=True)
class Task:
    """One short dialogue about `num_pictures` pictures (0: text alone).

    `phrase` is the text inside `<ref>` of a refer task: the release's base models are asked `<ref>phrase</ref>` and answer with the box alone.
    """

    name: str
    language: Language
    turns: tuple[Turn, ...]
    phrase: str = ""
    num_pictures: int = 1


def box_of(scene: Scene, thing: Thing) -> Box:
    """Return a thing's box on the 0..999 grid."""
    return Box.from_px(*thing.box_px, scene.width, scene.height)


def boxes_of(scene: Scene, things: Sequence[Thing]) -> tuple[Box, ...]:
    """Return the boxes of several things, in their order."""
    return tuple(box_of(scene, thing) for thing in things)


def mark(scene: Scene, phrase: str, things: Sequence[Thing]) -> str:
    """Write a phrase with the boxes of its things, as the model does: `<ref>the dog</ref><box>(x1,y1),(x2,y2)</box>`."""
    return format_ref(Ref(phrase, boxes_of(scene, things)))
