"""Describe scenes in one sentence, with and without boxes.

The wording of the question decides the form of the answer, so that each question has one right answer.
"""

from collections.abc import Callable

from .dialogue import Language, Task, Turn, boxes_of, mark
from .dice import Dice
from .phrases import Group, background_phrase, groups, listing
from .scene import Scene

# Question -> form of the answer. `{things}` is the list, `{place}` the background; "There is" becomes "There are" where it must.
Forms = dict[Language, tuple[tuple[str, str], ...]]

CAPTION_PROMPT: dict[Language, str] = {"en": "Generate the caption in English:", "zh": "Generate the caption in Chinese:"}
GROUNDED_PROMPT: dict[Language, str] = {
    "en": "Generate the caption in English with grounding:",
    "zh": "Generate the caption in Chinese with grounding:",
}

_CAPTION: Forms = {
    "en": (
        (CAPTION_PROMPT["en"], "{things} {place}"),
        ("Describe the picture.", "There {be} {things} {place}."),
        ("Describe the image in English:", "{things} {place}"),
        ("What can you see in the picture?", "I can see {things} {place}."),
    ),
    "zh": (
        (CAPTION_PROMPT["zh"], "{things}，{place}"),
        ("描述这张图片。", "图中有{things}，{place}。"),
        ("请描述一下这张图。", "图中有{things}，{place}。"),
        ("你看到了什么？", "我看到{things}，{place}。"),
    ),
}
_GROUNDED: Forms = {
    "en": (
        (GROUNDED_PROMPT["en"], "{things} {place}"),
        ("Describe the picture with boxes.", "There {be} {things} {place}."),
        ("What can you see in the picture? Give the boxes.", "I can see {things} {place}."),
    ),
    "zh": (
        (GROUNDED_PROMPT["zh"], "{things}，{place}"),
        ("描述这张图片，并框出每样东西。", "图中有{things}，{place}。"),
        ("你看到了什么？请框出来。", "我看到{things}，{place}。"),
    ),
}
_WHAT_IS_THIS: Forms = {
    "en": (
        ("What is this?", "This is {things} {place}."),
        ("What is in this picture?", "There {be} {things} {place}."),
        ("What does the picture show?", "This is {things} {place}."),
    ),
    "zh": (
        ("这是什么?", "图中是{things}，{place}。"),
        ("图里有什么？", "图中有{things}，{place}。"),
        ("这张图是什么？", "图中是{things}，{place}。"),
    ),
}


def ask_caption(scene: Scene, language: Language, dice: Dice) -> Task:
    """Ask for a sentence that lists all things, with colours, and the place."""
    return Task("caption", language, (_turn(scene, language, *dice.pick(_CAPTION[language]), with_colours=True),))


def ask_grounded_caption(scene: Scene, language: Language, dice: Dice) -> Task:
    """Ask for the same sentence with the box of every thing."""
    question, form = dice.pick(_GROUNDED[language])
    turn = _turn(scene, language, question, form, with_colours=True, wrap=lambda text, group: mark(scene, text, group))
    things = [thing for group in groups(scene, with_colours=True) for thing in group]
    return Task("grounded_caption", language, (Turn(turn.question, turn.answer, boxes_of(scene, things)),))


def what_is_this(scene: Scene, language: Language, dice: Dice | None = None) -> Turn:
    """Open a chat: "What is this?" -> "This is a girl and a dog on the beach."; without dice in exactly these words."""
    forms = _WHAT_IS_THIS[language]
    return _turn(scene, language, *(dice.pick(forms) if dice else forms[0]), with_colours=False)


def _turn(scene: Scene, language: Language, question: str, form: str, with_colours: bool, wrap: Callable[[str, Group], str] | None = None) -> Turn:
    be = "is" if len(groups(scene, with_colours)[0]) == 1 else "are"
    things = listing(scene, language, with_colours, wrap)
    return Turn(question, form.format(things=things, place=background_phrase(scene.background, language), be=be))
