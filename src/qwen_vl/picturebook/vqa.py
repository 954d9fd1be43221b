"""Ask short questions with one short right answer: what, colour, count, yes or no, where, and reading a sign.

Every function returns None where the scene allows no such question without doubt. Margins (`CLEAR_APART`, the sides) keep away from cases on
which people would not agree.
"""

from collections.abc import Callable, Sequence

from .catalog import BACKGROUNDS, COLOURS, HELD_OUT_PAIRS, KIND_BY_NAME, KINDS
from .dialogue import Language, Task, Turn
from .dice import Dice
from .phrases import (
    a,
    background_phrase,
    colour_name,
    coloured,
    from_left,
    is_person,
    kind_name,
    noun_on_side,
    side_phrase,
    the,
)
from .scene import Scene, Thing

CLEAR_APART = 0.12  # of the picture's width, between the centres of things that "left" and "right" tell apart
CLEARLY_LEFT, NOT_LEFT = 0.38, 0.45  # share of the width up to which a centre is on the left, and from which it is not
MIDDLE = (0.44, 0.56)

Build = Callable[[Scene, Language, Dice], Task | None]


def ask(name: str, language: Language, dice: Dice, wordings: Sequence[str], answer: str, **words: str) -> Task:
    """Make a task of one turn, with one of the wordings."""
    return Task(name, language, (Turn(dice.pick(wordings).format(**words), answer),))


def only(things: Sequence[Thing], kind: str | None = None, colour: str | None = None) -> Thing | None:
    """Return the one thing of this kind and colour, or None if there are none or several."""
    found = [thing for thing in things if kind in (None, thing.kind) and colour in (None, thing.colour)]
    return found[0] if len(found) == 1 else None


def side_of(scene: Scene, thing: Thing) -> str | None:
    """Tell where a thing is: "left", "right", "middle", or None where it is in between."""
    share = thing.centre_px[0] / scene.width
    if share < CLEARLY_LEFT:
        return "left"
    if share > 1 - CLEARLY_LEFT:
        return "right"
    return "middle" if MIDDLE[0] <= share <= MIDDLE[1] else None


def only_on_side(scene: Scene, side: str) -> Thing | None:
    """Return the one thing that is on the left (or right) while all others clearly are not."""
    shares = [(thing.centre_px[0] / scene.width, thing) for thing in scene.things]
    near = [(share if side == "left" else 1 - share, thing) for share, thing in shares]
    found = [(share, thing) for share, thing in near if share < NOT_LEFT]
    return found[0][1] if len(found) == 1 and found[0][0] < CLEARLY_LEFT else None


def on_end(scene: Scene, things: Sequence[Thing], side: str) -> Thing | None:
    """Return the leftmost (or rightmost) of several things if the next is clearly apart."""
    ordered = from_left(things) if side == "left" else from_left(things)[::-1]
    if len(ordered) < 2 or abs(ordered[0].centre_px[0] - ordered[1].centre_px[0]) < CLEAR_APART * scene.width:
        return None
    return ordered[0]


def ask_what(scene: Scene, language: Language, dice: Dice) -> Task | None:
    """Ask for a kind: by place, by colour, or for the only thing."""
    options: list[tuple[Thing, Sequence[str], str]] = []
    if len(scene.things) == 1:
        options.append((scene.things[0], _WHAT_ALONE[language], ""))
    for side in ("left", "right"):
        thing = only_on_side(scene, side) if len(scene.things) > 1 else None
        if thing:
            options.append((thing, _WHAT_SIDE[language], side_phrase(side, language)[0 if language == "en" else 1 :]))
    for colour in COLOURS:
        thing = only(scene.things, colour=colour.name)
        if thing and not is_person(thing.kind):
            options.append((thing, _WHAT_COLOUR[language], colour_name(colour.name, language)))
    if not options:
        return None
    thing, wordings, word = dice.pick(options)
    return ask("what", language, dice, wordings, kind_name(thing.kind, language), word=word)


def ask_colour(scene: Scene, language: Language, dice: Dice) -> Task | None:
    """Ask for the colour of a kind that has one colour, or of one thing among several of a kind."""
    options: list[tuple[str, str, bool, bool]] = []  # noun, colour, plural, person
    for kind in sorted({thing.kind for thing in scene.things}):
        same = [thing for thing in scene.things if thing.kind == kind]
        person, noun = is_person(kind), kind_name(kind, language, plural=len(same) > 1)
        if len({thing.colour for thing in same}) == 1:
            options.append((the(noun, language), same[0].colour, len(same) > 1, person))
            continue
        for side in ("left", "right"):
            thing = on_end(scene, same, side)
            if thing:
                options.append((the(noun_on_side(kind_name(kind, language), side, language), language), thing.colour, False, person))
    if not options:
        return None
    noun, colour, plural, person = dice.pick(options)
    wordings = (_COLOUR_PERSON if person else _COLOUR)[language]
    be, do = ("are", "do") if plural else ("is", "does")
    return ask("colour", language, dice, wordings, colour_name(colour, language), it=noun, be=be, do=do)


def ask_count(scene: Scene, language: Language, dice: Dice) -> Task | None:
    """Ask how many there are of a kind (0 now and then), of a kind in one colour, or of all things."""
    counts = {kind: sum(thing.kind == kind for thing in scene.things) for kind in sorted({thing.kind for thing in scene.things})}
    several = [kind for kind, count in counts.items() if count > 1]
    draw = dice.between(0, 1)
    if draw < 0.25:
        return ask("count", language, dice, _COUNT_ALL[language], str(len(scene.things)))
    if draw < 0.4:
        kind = dice.pick([kind.name for kind in KINDS if kind.name not in counts])
        return _ask_count_of(kind_name(kind, language, plural=True), kind, 0, language, dice)
    kind = dice.pick(several) if several and draw < 0.85 else dice.pick(list(counts))
    if counts[kind] > 1 and dice.chance(0.3):
        colour = dice.pick([thing.colour for thing in scene.things if thing.kind == kind])
        count = sum(thing.kind == kind and thing.colour == colour for thing in scene.things)
        return _ask_count_of(coloured(kind, colour, language, plural=True), kind, count, language, dice)
    return _ask_count_of(kind_name(kind, language, plural=True), kind, counts[kind], language, dice)


def ask_yes_no(scene: Scene, language: Language, dice: Dice) -> Task | None:
    """Ask whether a kind, a kind in a colour, or a place is there; yes and no are as likely."""
    yes, draw = dice.chance(0.5), dice.between(0, 1)
    if draw < 0.2:
        return _ask_background(scene, language, dice, yes)
    present = sorted({thing.kind for thing in scene.things})
    kind = dice.pick(present) if yes or draw > 0.6 else dice.pick([kind.name for kind in KINDS if kind.name not in present])
    if draw < 0.6:
        return _ask_exists(kind_name(kind, language), yes, language, dice)
    there = [thing.colour for thing in scene.things if thing.kind == kind]
    colour = dice.pick(there) if yes else dice.pick([colour for colour in _askable_colours(kind) if colour not in there])
    if only(scene.things, kind) and dice.chance(0.4):
        wordings = (_IS_COLOUR_PERSON if is_person(kind) else _IS_COLOUR)[language]
        noun = the(kind_name(kind, language), language)
        return ask("yes_no", language, dice, wordings, _be(yes, language), it=noun, colour=colour_name(colour, language))
    return _ask_exists(coloured(kind, colour, language), yes, language, dice)


def ask_where(scene: Scene, language: Language, dice: Dice) -> Task | None:
    """Ask for the side of a thing, for the side of one thing as seen from another, or for the place."""
    alone = [thing for thing in scene.things if only(scene.things, thing.kind)]
    draw = dice.between(0, 1)
    if draw < 0.2 and scene.background != "night":
        return ask("where", language, dice, _WHERE_PLACE[language], background_phrase(scene.background, language))
    pairs = [(x, y) for x in alone for y in alone if abs(x.centre_px[0] - y.centre_px[0]) >= CLEAR_APART * scene.width]
    if draw < 0.55 and pairs:
        thing, other = dice.pick(pairs)
        side = "left" if thing.centre_px[0] < other.centre_px[0] else "right"
        it, other_name = (the(kind_name(each.kind, language), language) for each in (thing, other))
        return ask("where", language, dice, _WHERE_PAIR[language], side_phrase(side, language), it=it, other=other_name)
    sides = [(thing, where) for thing in alone if (where := side_of(scene, thing))]
    if not sides:
        return None
    thing, where = dice.pick(sides)
    return ask("where", language, dice, _WHERE[language], side_phrase(where, language), it=the(kind_name(thing.kind, language), language))


def ask_read(scene: Scene, language: Language, dice: Dice) -> Task | None:
    """Ask what the sign says."""
    texts = [thing.text for thing in scene.things if thing.text]
    return ask("read", language, dice, _READ[language], texts[0]) if len(texts) == 1 else None


def _ask_count_of(noun: str, kind: str, count: int, language: Language, dice: Dice) -> Task:
    return ask("count", language, dice, _COUNT[language], str(count), noun=noun, measure=KIND_BY_NAME[kind].measure)


def _ask_exists(noun: str, yes: bool, language: Language, dice: Dice) -> Task:
    answer = ("yes" if yes else "no") if language == "en" else ("有" if yes else "没有")
    return ask("yes_no", language, dice, _EXISTS[language], answer, noun=a(noun) if language == "en" else noun)


def _ask_background(scene: Scene, language: Language, dice: Dice, yes: bool) -> Task:
    others = [background.name for background in BACKGROUNDS if background.name != scene.background]
    place = background_phrase(scene.background if yes else dice.pick(others), language)
    return ask("yes_no", language, dice, _IS_PLACE[language], _be(yes, language), place=place)


def _askable_colours(kind: str) -> list[str]:
    # A held-out pair is never asked for in vain: the training would learn from the words alone that it does not exist.
    return [colour.name for colour in COLOURS if (kind, colour.name) not in HELD_OUT_PAIRS]


def _be(yes: bool, language: Language) -> str:
    return ("yes" if yes else "no") if language == "en" else ("是" if yes else "不是")


_Wordings = dict[Language, tuple[str, ...]]

_WHAT_ALONE: _Wordings = {
    "en": ("What is in the picture?", "What do you see?", "What thing is this?"),
    "zh": ("图中是什么东西？", "图里是什么东西？", "这是什么东西？"),
}
_WHAT_SIDE: _Wordings = {
    "en": ("What is {word}?", "What is {word} of the picture?", "What can you see {word}?"),
    "zh": ("{word}是什么？", "图中{word}是什么？", "{word}的东西是什么？"),
}
_WHAT_COLOUR: _Wordings = {
    "en": ("What is the {word} thing?", "Which thing is {word}?", "What {word} thing is there?"),
    "zh": ("{word}的是什么？", "{word}的东西是什么？", "什么东西是{word}的？"),
}
_COLOUR: _Wordings = {
    "en": ("What colour {be} {it}?", "What color {be} {it}?", "Which colour {do} {it} have?"),
    "zh": ("{it}是什么颜色的？", "{it}是什么颜色？", "图中{it}是什么颜色的？"),
}
_COLOUR_PERSON: _Wordings = {
    "en": ("What colour {do} {it} wear?", "What color {do} {it} wear?", "Which colour {be} {it} dressed in?"),
    "zh": ("{it}的衣服是什么颜色的？", "{it}的衣服是什么颜色？", "{it}穿什么颜色的衣服？"),
}
_COUNT: _Wordings = {
    "en": ("How many {noun} are there?", "How many {noun} are in the picture?", "How many {noun} can you see?"),
    "zh": ("有几{measure}{noun}？", "图中有几{measure}{noun}？", "图里有多少{measure}{noun}？"),
}
_COUNT_ALL: _Wordings = {
    "en": ("How many things are there?", "How many things are in the picture?", "How many things can you see?"),
    "zh": ("有几样东西？", "图中有几样东西？", "图里一共有多少样东西？"),
}
_EXISTS: _Wordings = {
    "en": ("Is there {noun}?", "Is there {noun} in the picture?", "Can you see {noun}?"),
    "zh": ("有{noun}吗？", "图中有{noun}吗？", "图里有没有{noun}？"),
}
_IS_COLOUR: _Wordings = {
    "en": ("Is {it} {colour}?", "Does {it} look {colour}?"),
    "zh": ("{it}是{colour}的吗？", "图中{it}是{colour}的吗？"),
}
_IS_COLOUR_PERSON: _Wordings = {
    "en": ("Is {it} dressed in {colour}?", "Is {it} in {colour}?"),
    "zh": ("{it}的衣服是{colour}的吗？", "{it}穿的是{colour}衣服吗？"),
}
_IS_PLACE: _Wordings = {
    "en": ("Is this {place}?", "Is the picture {place}?"),
    "zh": ("这是{place}吗？", "图中是{place}吗？"),
}
_WHERE: _Wordings = {
    "en": ("Where is {it}?", "On which side is {it}?", "Where can you see {it}?"),
    "zh": ("{it}在哪里？", "{it}在哪边？", "图中{it}在哪里？"),
}
_WHERE_PAIR: _Wordings = {
    "en": ("Is {it} on the left or on the right of {other}?", "On which side of {other} is {it}?"),
    "zh": ("{it}在{other}的左边还是右边？", "{it}在{other}的哪边？"),
}
_WHERE_PLACE: _Wordings = {
    "en": ("Where is this?", "What place is this?", "Where was this picture made?"),
    "zh": ("这是在哪里？", "这是什么地方？", "图中是在哪里？"),
}
_READ: _Wordings = {
    "en": ("What does the sign say?", "What is written on the sign?", "Read the sign."),
    "zh": ("牌子上写着什么？", "牌子上写的是什么？", "读出牌子上的字。"),
}
