"""Ask about two pictures at once. Pictures are called first and second, in the order in which they are given."""

from .catalog import KINDS
from .dialogue import LANGUAGES, Language, Task, Turn
from .dice import Dice
from .phrases import a, background_phrase, kind_name, listing
from .scene import Scene


def compare_tasks(first: Scene, second: Scene, round: int = 0) -> list[Task]:
    """Ask which picture has a thing, which is in a place, which has more things, whether both have one, and what is different.

    The same for the same scenes and round; another round asks other questions.
    """
    tasks = []
    for number, language in enumerate(LANGUAGES):
        dice = Dice(first.seed, second.seed, round, number)
        built = (build(first, second, language, dice) for build in (_which_has, _which_place, _which_more, _both_have, _difference))
        tasks += [Task("compare", language, (turn,), num_pictures=2) for turn in built if turn]
    return Dice(first.seed, second.seed, round).shuffled(tasks)


def _which_has(first: Scene, second: Scene, language: Language, dice: Dice) -> Turn | None:
    ours, theirs = _kinds(first), _kinds(second)
    options = sorted(ours ^ theirs)
    if not options:
        return None
    kind = dice.pick(options)
    noun = kind_name(kind, language)
    question = dice.pick(_WHICH_HAS[language]).format(noun=a(noun) if language == "en" else noun)
    return Turn(question, _NAMES[language][0 if kind in ours else 1])


def _which_place(first: Scene, second: Scene, language: Language, dice: Dice) -> Turn | None:
    if first.background == second.background:
        return None
    number = dice.below(2)
    place = background_phrase((first, second)[number].background, language)
    return Turn(dice.pick(_WHICH_PLACE[language]).format(place=place), _NAMES[language][number])


def _which_more(first: Scene, second: Scene, language: Language, dice: Dice) -> Turn | None:
    counts = len(first.things), len(second.things)
    if counts[0] == counts[1]:
        return None
    return Turn(dice.pick(_WHICH_MORE[language]), _NAMES[language][0 if counts[0] > counts[1] else 1])


def _both_have(first: Scene, second: Scene, language: Language, dice: Dice) -> Turn | None:
    """Ask whether both have a kind or are in one place; seldom where only "no" is true, so that yes and no are about as frequent."""
    shared, either = _kinds(first) & _kinds(second), _kinds(first) | _kinds(second)
    same_place = first.background == second.background
    if not (shared or same_place) and dice.chance(0.6):
        return None
    if (shared or same_place) and dice.chance(0.75):
        if same_place and not (shared and dice.chance(0.5)):
            return _ask_both_place(first.background, True, language)
        return _ask_both(dice.pick(sorted(shared)), True, language, dice)
    if dice.chance(0.5) and not same_place:
        return _ask_both_place(dice.pick((first, second)).background, False, language)
    options = sorted(either - shared) or sorted({kind.name for kind in KINDS} - either)
    return _ask_both(dice.pick(options), False, language, dice)


def _ask_both(kind: str, yes: bool, language: Language, dice: Dice) -> Turn:
    noun = kind_name(kind, language)
    question = dice.pick(_BOTH_HAVE[language]).format(noun=a(noun) if language == "en" else noun)
    return Turn(question, ("yes" if yes else "no") if language == "en" else ("有" if yes else "没有"))


def _ask_both_place(background: str, yes: bool, language: Language) -> Turn:
    question = _BOTH_PLACE[language].format(place=background_phrase(background, language))
    return Turn(question, ("yes" if yes else "no") if language == "en" else ("是" if yes else "不是"))


def _difference(first: Scene, second: Scene, language: Language, dice: Dice) -> Turn:
    parts = [listing(scene, language, with_colours=False) for scene in (first, second)]
    places = [background_phrase(scene.background, language) for scene in (first, second)]
    if language == "en":
        answer = f"The first picture shows {parts[0]} {places[0]}, the second shows {parts[1]} {places[1]}."
    else:
        answer = f"第一张图是{parts[0]}，{places[0]}；第二张图是{parts[1]}，{places[1]}。"
    return Turn(dice.pick(_DIFFERENCE[language]), answer)


def _kinds(scene: Scene) -> set[str]:
    return {thing.kind for thing in scene.things}


_Wordings = dict[Language, tuple[str, ...]]

_NAMES: _Wordings = {"en": ("the first", "the second"), "zh": ("第一张", "第二张")}
_WHICH_HAS: _Wordings = {
    "en": ("Which picture has {noun}?", "In which picture is there {noun}?", "In which picture can you see {noun}?"),
    "zh": ("哪张图有{noun}？", "哪张图片里有{noun}？", "在哪张图中能看到{noun}？"),
}
_WHICH_PLACE: _Wordings = {"en": ("Which picture is {place}?", "Which one is {place}?"), "zh": ("哪张图是{place}？", "哪张图片是{place}的？")}
_WHICH_MORE: _Wordings = {
    "en": ("Which picture has more things?", "Which one shows more things?"),
    "zh": ("哪张图的东西多？", "哪张图片里的东西更多？"),
}
_BOTH_HAVE: _Wordings = {
    "en": ("Do both pictures have {noun}?", "Is there {noun} in both pictures?"),
    "zh": ("两张图都有{noun}吗？", "两张图片里都有{noun}吗？"),
}
_BOTH_PLACE: dict[Language, str] = {"en": "Are both pictures {place}?", "zh": "两张图都是{place}吗？"}
_DIFFERENCE: _Wordings = {
    "en": ("What is different?", "What is the difference between the two pictures?", "Compare the two pictures."),
    "zh": ("有什么不同？", "这两张图有什么不同？", "比较一下这两张图。"),
}
