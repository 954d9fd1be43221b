"""The picture book's whole exam: short questions and boxes, captions with boxes, letters, two pictures, conversations, and what was never seen.

    rows = run_whole_exam(QwenVL.load(), ExamSize(num_scenes=500))
    for row in rows:
        print(row.part, row.topic, row.language, row.value, row.interval)

Every part is asked about pictures that no training draws. A row is the share of its questions that were right, or an F1, with the interval in which
it lies for 95 of 100 draws of pictures.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from qwen_vl.api import QwenVL
from qwen_vl.evaluation.distortions import DISTORTIONS
from qwen_vl.evaluation.metrics.grounding import MIN_IOU
from qwen_vl.evaluation.picturebook import BOX_TASKS, Question, ask_all, encode_pictures, is_same, mark, write_exam
from qwen_vl.evaluation.statistics import Groups, Interval, bootstrap
from qwen_vl.grounding.box import Box, iou
from qwen_vl.grounding.text import parse
from qwen_vl.picturebook.catalog import COLOUR_BY_NAME, COLOURS, EVALUATION_SEED_START, HELD_OUT_PAIRS, KINDS
from qwen_vl.picturebook.charts import Chart, make_chart
from qwen_vl.picturebook.chat import three_turns
from qwen_vl.picturebook.dialogue import LANGUAGES, Language, Turn, box_of
from qwen_vl.picturebook.dice import Dice
from qwen_vl.picturebook.phrases import indefinite, kind_name
from qwen_vl.picturebook.pictures import Picture, page_tasks, strange_tasks
from qwen_vl.picturebook.receipts import Receipt, make_receipt
from qwen_vl.picturebook.scene import Scene, Thing, make_scene
from qwen_vl.picturebook.strange import STRANGE_ANSWER, UNTAUGHT, make_strange
from qwen_vl.picturebook.tasks import make_tasks
from qwen_vl.picturebook.vqa import only

STRICT_IOU = 0.75
SHORT_ANSWER = 12  # characters: "the second"; all longer ones list the things of both pictures
LONG_ANSWER = 200  # tokens: a caption with five boxes has about 100, a receipt as JSON about 120
CHAT_SEED, STRANGE_SEED = 600_000_000, 700_000_000  # apart from the scenes of the exam, counted from the first seed
PARTS = ("scenes", "captions", "pages", "chats", "strange", "robust")
ROW_PARTS = ("scenes", "pairs", *PARTS[1:])  # what is asked about scenes fills two parts of the table
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExamSize:
    """How many pictures each part shows: scenes, as many again to compare with, half as many charts and receipts, a fifth in the other parts."""

    num_scenes: int = 500
    first_seed: int = EVALUATION_SEED_START

    @property
    def num_few(self) -> int:
        return max(1, self.num_scenes // 5)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of the exam's table. `value` is a share of 1; `num_questions` counts questions, for an F1 pictures."""

    part: str
    topic: str
    language: str  # "" for both together
    value: float
    interval: Interval
    num_questions: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Marked:
    """What one question added to a row: `gained` of `possible`, about the picture `group`."""

    part: str
    topic: str
    language: str
    group: int
    gained: float
    possible: float = 1.0


def run_whole_exam(vl: QwenVL, size: ExamSize, parts: Sequence[str] = PARTS, batch_size: int = 64, progress: Progress | None = None) -> list[Row]:
    """Ask the parts' questions greedily and return the rows, in the order of the parts.

    Args: progress: called within each part with (questions done, questions).
    """
    asker = Asker(vl, batch_size, progress)
    marks = {
        "scenes": mark_scenes,
        "captions": mark_captions,
        "pages": mark_pages,
        "chats": mark_chats,
        "strange": mark_strange,
        "robust": mark_distorted,
    }
    return [row for part in parts for row in to_rows(marks[part](asker, size))]


def to_rows(marked: Iterable[Marked]) -> list[Row]:
    """Sum marks up, with intervals from drawing whole pictures again."""
    gathered: dict[tuple[str, str, str], list[Marked]] = {}
    for each in marked:
        gathered.setdefault((each.part, each.topic, each.language), []).append(each)
    rows = []
    for (part, topic, language), marks in sorted(gathered.items(), key=lambda item: (ROW_PARTS.index(item[0][0]), item[0])):
        gained: dict[int, float] = {}
        possible: dict[int, float] = {}
        for each in marks:
            gained[each.group] = gained.get(each.group, 0.0) + each.gained
            possible[each.group] = possible.get(each.group, 0.0) + each.possible
        groups = Groups(np.array(list(gained.values())), np.array(list(possible.values())))
        interval = bootstrap(groups, bounds=(0.0, 1.0))
        rows.append(Row(part=part, topic=topic, language=language, value=groups.mean, interval=interval, num_questions=len(marks)))
    return rows


@dataclass(frozen=True, slots=True)
class Asker:
    """A model that answers questions about pictures, many together."""

    vl: QwenVL
    batch_size: int = 64
    progress: Progress | None = None

    def ask(
        self, pictures: Sequence[Picture], questions: Sequence[Question], *, distortion: str = "as drawn", max_new_tokens: int = 120
    ) -> list[str]:
        """Return the answers, in the order of the questions."""
        features = encode_pictures(self.vl, pictures, self.batch_size, DISTORTIONS[distortion].change)
        order = sorted(range(len(questions)), key=lambda index: (questions[index].task, len(questions[index].scenes)))
        ordered = [questions[index] for index in order]
        answers = ask_all(self.vl, ordered, features, self.batch_size, max_new_tokens, self.progress)
        return [answer for _, answer in sorted(zip(order, answers, strict=True))]


def mark_scenes(asker: Asker, size: ExamSize) -> Iterator[Marked]:
    """Ask about scenes and pairs of scenes: short answers, boxes, things in colours that training never showed, and needless refusals."""
    scenes, questions = write_exam(size.num_scenes, size.first_seed)
    for question, answer in zip(questions, asker.ask(scenes, questions), strict=True):
        group, language = question.scenes[0], question.language
        is_right, is_readable, _ = mark(question, answer)
        yield Marked(part="scenes", topic=question.task, language=language, group=group, gained=is_right)
        if question.task in BOX_TASKS:
            yield Marked(part="scenes", topic=f"{question.task}, unreadable", language=language, group=group, gained=not is_readable)
            is_close = mark(question, answer, STRICT_IOU)[0]
            yield Marked(part="scenes", topic=f"{question.task}, IoU {STRICT_IOU}", language=language, group=group, gained=is_close)
        if question.task == "compare":
            kind = "short answer" if len(question.answer) <= SHORT_ANSWER else "whole difference"
            yield Marked(part="scenes", topic=f"compare, {kind}", language=language, group=group, gained=is_right)
        if (seen := pair_of(question, scenes[group])) is not None:
            yield Marked(part="pairs", topic=f"{question.task}, {seen} pair", language="", group=group, gained=is_right)
        yield Marked(
            part="strange", topic="drawings refused", language="", group=group, gained=is_same(answer, STRANGE_ANSWER[language_of(question)])
        )


def pair_of(question: Question, scene: Scene) -> str | None:
    """Tell whether a colour or refer question is about things whose pair of kind and colour training showed: "seen", "unseen", or None if mixed."""
    if question.task == "refer":
        boxes = set(question.boxes)
        things = [thing for thing in scene.things if box_of(scene, thing) in boxes]
    elif question.task == "colour":
        things = _named_in(question, scene)
    else:
        return None
    held_out = {(thing.kind, thing.colour) in HELD_OUT_PAIRS for thing in things}
    return None if len(held_out) != 1 else "unseen" if True in held_out else "seen"


def _named_in(question: Question, scene: Scene) -> list[Thing]:
    """Return the things of the answer's colour of the kind that a colour question names.

    English names are whole words, since "What" holds "hat"; of Chinese ones the longest counts, since 气球 holds 球.
    """
    language = language_of(question)
    names = {name: thing.kind for thing in scene.things for name in (kind_name(thing.kind, language), kind_name(thing.kind, language, plural=True))}
    words = set(re.findall(r"\w+", question.text)) if language == "en" else ()
    named = max((name for name in names if (name in words if language == "en" else name in question.text)), key=len, default=None)
    colour = next(colour.name for colour in COLOURS if question.answer in (colour.name, colour.zh))
    return [thing for thing in scene.things if named is not None and thing.kind == names[named] and thing.colour == colour]


def mark_captions(asker: Asker, size: ExamSize) -> Iterator[Marked]:
    """Ask for captions with boxes; a thing counts as found by a box with an IoU of at least 0.5 under its right name and colour (F1)."""
    scenes = [make_scene(size.first_seed + index) for index in range(size.num_scenes)]
    questions = [
        Question(task=task.name, language=task.language, scenes=(index,), text=task.turns[0].question, answer=task.turns[0].answer)
        for index, scene in enumerate(scenes)
        for task in make_tasks(scene)
        if task.name == "grounded_caption"
    ]
    for question, answer in zip(questions, asker.ask(scenes, questions, max_new_tokens=LONG_ANSWER), strict=True):
        scene = scenes[question.scenes[0]]
        wanted = [((thing.kind, thing.colour), box_of(scene, thing)) for thing in scene.things]
        found = named_boxes(answer, language_of(question))
        num_right = count_matches(wanted, found)
        yield Marked(
            part="captions",
            topic="F1 of things with boxes",
            language=question.language,
            group=question.scenes[0],
            gained=2.0 * num_right,
            possible=float(len(wanted) + len(found)),
        )


Named = tuple[tuple[str, str] | None, Box]  # kind and colour, or None for a name that is none of the picture book's


def named_boxes(answer: str, language: Language) -> list[Named]:
    """Return each box of a caption with the kind and colour that its phrase names."""
    return [(NAMES[language].get(ref.text.strip().lower()), box) for ref in parse(answer) for box in ref.boxes]


def count_matches(wanted: Sequence[Named], found: Sequence[Named]) -> int:
    """Count the pairs of equal name with an IoU of at least 0.5, best overlaps first; no box is used twice."""
    overlaps = sorted(
        (
            (-iou(one.to_tuple(), other.to_tuple()), first, second)
            for first, (name, one) in enumerate(wanted)
            for second, (other_name, other) in enumerate(found)
            if name == other_name
        )
    )
    taken: set[tuple[str, int]] = set()
    num_pairs = 0
    for negative, first, second in overlaps:
        if -negative >= MIN_IOU and ("wanted", first) not in taken and ("found", second) not in taken:
            taken |= {("wanted", first), ("found", second)}
            num_pairs += 1
    return num_pairs


NAMES: dict[Language, dict[str, tuple[str, str]]] = {
    language: {
        indefinite(kind.name, colour.name, count, language): (kind.name, colour.name) for kind in KINDS for colour in COLOURS for count in range(1, 6)
    }
    for language in LANGUAGES
}


def mark_pages(asker: Asker, size: ExamSize) -> Iterator[Marked]:
    """Ask about charts and receipts, half as many of each as there are scenes."""
    seeds = range(size.first_seed, size.first_seed + max(1, size.num_scenes // 2))
    pages: list[Chart | Receipt] = [*map(make_chart, seeds), *map(make_receipt, seeds)]
    for is_long in (False, True):
        questions = [
            Question(task=task.name, language=task.language, scenes=(index,), text=task.turns[0].question, answer=task.turns[0].answer)
            for index, page in enumerate(pages)
            for task in page_tasks(page)
            if (task.name == "receipt_json") == is_long
        ]
        for question, answer in zip(questions, asker.ask(pages, questions, max_new_tokens=LONG_ANSWER if is_long else 24), strict=True):
            group, right = question.scenes[0], is_same(answer, question.answer)
            yield Marked(part="pages", topic=question.task, language=question.language, group=group, gained=right)


def mark_chats(asker: Asker, size: ExamSize) -> Iterator[Marked]:
    """Hold conversations of three turns about one thing, which only the first question names; each turn sees the model's own answers.

    The referent is kept where both the second answer, its colour, and the third, its box, are right.
    """
    scenes = [scene for scene in (make_scene(size.first_seed + CHAT_SEED + index) for index in range(size.num_few)) if _alone(scene)]
    chats = [(index, language, _chat_about(scene, language)) for index, scene in enumerate(scenes) for language in LANGUAGES]
    histories: list[tuple[tuple[str, str], ...]] = [()] * len(chats)
    right: list[list[bool]] = [[] for _ in chats]
    for number, task in enumerate(("yes_no", "colour", "refer")):
        questions = [
            Question(task=task, language=language, scenes=(index,), text=turn.question, answer=turn.answer, boxes=turn.boxes, history=history)
            for (index, language, turns), history in zip(chats, histories, strict=True)
            for turn in (turns[number],)
        ]
        answers = asker.ask(scenes, questions)
        histories = [(*history, (question.text, answer)) for history, question, answer in zip(histories, questions, answers, strict=True)]
        for place, (question, answer) in enumerate(zip(questions, answers, strict=True)):
            right[place].append(mark(question, answer)[0])
    for (index, language, _), is_right in zip(chats, right, strict=True):
        yield Marked(part="chats", topic="three turns keep their thing", language=language, group=index, gained=is_right[1] and is_right[2])


def mark_strange(asker: Asker, size: ExamSize) -> Iterator[Marked]:
    """Ask about pictures that are no drawings; right is to say so. Families that training never drew have a row of their own."""
    pictures = [make_strange(size.first_seed + STRANGE_SEED + index) for index in range(size.num_few)]
    questions = [
        Question(task=task.name, language=task.language, scenes=(index,), text=task.turns[0].question, answer=task.turns[0].answer)
        for index, picture in enumerate(pictures)
        for task in strange_tasks(picture)[:6]
    ]
    for question, answer in zip(questions, asker.ask(pictures, questions), strict=True):
        kind = "untaught" if pictures[question.scenes[0]].family in UNTAUGHT else "taught"
        yield Marked(
            part="strange",
            topic=f"no drawing, {kind} kind, said so",
            language=question.language,
            group=question.scenes[0],
            gained=is_same(answer, question.answer),
        )


def mark_distorted(asker: Asker, size: ExamSize) -> Iterator[Marked]:
    """Ask the same questions about the same pictures as drawn and distorted: short answers and boxes. Colours are not asked of grey pictures."""
    scenes, questions = write_exam(size.num_few, size.first_seed)
    questions = [question for question in questions if len(question.scenes) == 1 and question.task != "read"]
    for name, distortion in DISTORTIONS.items():
        asked = [
            replace(
                question,
                boxes=tuple(distortion.move(box, (scenes[question.scenes[0]].width, scenes[question.scenes[0]].height)) for box in question.boxes),
            )
            for question in questions
            if distortion.keeps_colours or not _names_a_colour(question)
        ]
        for question, answer in zip(asked, asker.ask(scenes, asked, distortion=name), strict=True):
            kind = "boxes, IoU 0.5" if question.task in BOX_TASKS else "short answers"
            yield Marked(part="robust", topic=f"{name}: {kind}", language="", group=question.scenes[0], gained=mark(question, answer)[0])


def _names_a_colour(question: Question) -> bool:
    text = f"{question.text} {question.answer}"
    return any(name in text or zh in text or zh[0] in text for name, zh in ((each.name, each.zh) for each in COLOUR_BY_NAME.values()))


def language_of(question: Question) -> Language:
    """Return the language of a question, one of the picture book's two."""
    return cast(Language, question.language)


def _chat_about(scene: Scene, language: Language) -> tuple[Turn, ...]:
    dice = Dice(scene.seed, LANGUAGES.index(language))
    return three_turns(scene, dice.pick(_alone(scene)), language, dice)


def _alone(scene: Scene) -> list[Thing]:
    return [thing for thing in scene.things if only(scene.things, thing.kind)]
