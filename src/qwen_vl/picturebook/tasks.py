"""Ask everything about a scene, in English and Chinese: the picture book's lessons.

    for task in make_tasks(make_scene(7)):
        for turn in task.turns:
            print(task.name, turn.question, turn.answer)

A task is a pure function of (scene, round); another round asks other questions in other words. Every question has exactly one right answer.
"""

from collections.abc import Callable
from dataclasses import replace

from .captions import ask_caption, ask_grounded_caption
from .chat import ask_chat
from .compare import compare_tasks
from .dialogue import LANGUAGES, Language, Task, Turn
from .dice import Dice, check_seed
from .referring import ask_describe_box, ask_refer
from .scene import Scene
from .small_talk import small_talk
from .vqa import ask_colour, ask_count, ask_read, ask_what, ask_where, ask_yes_no

__all__ = ["LANGUAGES", "TASK_NAMES", "Language", "Task", "Turn", "compare_tasks", "make_tasks", "small_talk"]

TASK_NAMES = (
    *("what", "colour", "count", "yes_no", "where", "refer", "describe_box", "caption", "grounded_caption", "read", "compare", "chat", "small_talk"),
)

# How often each is asked per language and round. Boxes are the hardest to learn, so they come most often.
_LESSON: tuple[tuple[Callable[[Scene, Language, Dice], Task | None], int], ...] = (
    (ask_what, 1),
    (ask_colour, 2),
    (ask_count, 2),
    (ask_yes_no, 2),
    (ask_where, 1),
    (ask_read, 1),
    (ask_refer, 3),
    (ask_describe_box, 1),
    (ask_caption, 1),
    (ask_grounded_caption, 1),
    (ask_chat, 1),
)


def make_tasks(scene: Scene, round: int = 0) -> list[Task]:
    """Make the tasks of a scene, both languages mixed; no single question is asked twice within a round.

    Raises: ConfigError for a negative round.
    """
    check_seed(round)
    tasks: list[Task] = []
    for number, language in enumerate(LANGUAGES):
        dice = Dice(scene.seed, round, number)
        for build, times in _LESSON:
            for _ in range(times):
                task = build(scene, language, dice)
                if task and not _repeats(task, tasks):
                    tasks.append(_reworded(task, dice))
    return Dice(scene.seed, round).shuffled(tasks)


def _repeats(task: Task, earlier: list[Task]) -> bool:
    """Tell whether a single-turn task asks what was asked before; for the boxes of a phrase also in other words."""
    if len(task.turns) > 1:
        return False
    if task.phrase:
        return any(task.phrase == other.phrase for other in earlier)
    return any(len(other.turns) == 1 and _bare(task) == _bare(other) for other in earlier)


def _bare(task: Task) -> str:
    return task.turns[0].question.rstrip(".?。？")


def _reworded(task: Task, dice: Dice) -> Task:
    """Write the questions as people type them: now and then without the last mark, Chinese ones with a half-width question mark."""
    turns = []
    for turn in task.turns:
        question = turn.question
        if question[-1] in ".。" and dice.chance(0.3):
            question = question[:-1]
        elif question[-1] == "？" and dice.chance(0.3):
            question = question[:-1] + ("?" if dice.chance(0.7) else "")
        turns.append(replace(turn, question=question))
    return replace(task, turns=tuple(turns))
