"""Write a picture book to a folder: PNG pictures and one JSON line per picture.

    write_book(seed=0, count=100, out=Path("book"))

gives `book/pictures/000000000.png`, ... named by seed, and `book/annotations.jsonl`. A line holds `picture`, `width`, `height`, `seed`, `background`
(and `background_zh`), `objects` (`name`, `name_zh`, `colour`, `colour_zh`, `box_px`, and `text` for a sign) and `tasks` (`name`, `language`,
`phrase`, `pictures`, `turns`; each turn has `question`, `answer` and `boxes` on the 0..999 grid). Comparisons name two pictures, small talk none.
With `conversations=True` the tasks stand in `book/conversations.jsonl` as well, one JSON line each in the released form that fine-tuning and
quantization read.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qwen_vl.errors import ConfigError, cannot_write
from qwen_vl.whole import whole_folder

from .catalog import BACKGROUND_BY_NAME, COLOUR_BY_NAME, EVALUATION_SEED_START, KIND_BY_NAME
from .dice import check_seed
from .drawing import draw_scene
from .scene import Scene, Thing, make_scene
from .tasks import Task, compare_tasks, make_tasks, small_talk

ANNOTATIONS = "annotations.jsonl"
CONVERSATIONS = "conversations.jsonl"
PICTURES = "pictures"
NEW = ".new"  # in a folder that is there, the book until it is whole


def write_book(
    seed: int,
    count: int,
    out: str | os.PathLike[str],
    *,
    conversations: bool = False,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Draw the scenes of `count` seeds from `seed` on and write them with their tasks; nothing is left behind when that fails.

    Args:
        conversations: write the tasks as conversations too.
        out: the folder, which must be new or empty; with `force` a book in it is replaced (other files in it stay).
        progress: called with (pictures done, count) after each picture.
    Returns: the path of `annotations.jsonl`.
    Raises: ConfigError for a wrong seed, count or folder, or when the folder cannot be written; DiskError.
    """
    _check_range(seed, count)
    folder = Path(out)
    try:
        return _write(seed, count, folder, conversations, force, progress or (lambda done, total: None))
    except OSError as error:
        raise cannot_write(folder, error, "Choose another folder, or make room.") from error


def picture_name(seed: int) -> str:
    """Name the picture file of a seed, as written in the annotations."""
    return f"{PICTURES}/{seed:09d}.png"


def describe_scene(scene: Scene, earlier: Scene | None = None) -> dict[str, Any]:
    """Make one line of the annotations; `earlier` is the picture that the comparisons begin with."""
    name = picture_name(scene.seed)
    tasks = [_describe_task(task, [name]) for task in make_tasks(scene)]
    if earlier:
        tasks += [_describe_task(task, [picture_name(earlier.seed), name]) for task in compare_tasks(earlier, scene)]
    tasks += [_describe_task(task, []) for task in small_talk(scene.seed)]
    return {
        "picture": name,
        "width": scene.width,
        "height": scene.height,
        "seed": scene.seed,
        "background": scene.background,
        "background_zh": BACKGROUND_BY_NAME[scene.background].zh,
        "objects": [_describe_thing(thing) for thing in scene.things],
        "tasks": tasks,
    }


def _describe_thing(thing: Thing) -> dict[str, Any]:
    kind, colour = KIND_BY_NAME[thing.kind], COLOUR_BY_NAME[thing.colour]
    text = {"text": thing.text} if thing.text is not None else {}
    return {"name": kind.name, "name_zh": kind.zh, "colour": colour.name, "colour_zh": colour.zh, "box_px": list(thing.box_px), **text}


def _describe_task(task: Task, pictures: list[str]) -> dict[str, Any]:
    turns = [{"question": turn.question, "answer": turn.answer, "boxes": [list(box.to_tuple()) for box in turn.boxes]} for turn in task.turns]
    return {"name": task.name, "language": task.language, "phrase": task.phrase, "pictures": pictures, "turns": turns}


def _check_range(seed: int, count: int) -> None:
    check_seed(seed)
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ConfigError(f"count={count!r} is not a number of pictures; give 1 or more")
    if seed < EVALUATION_SEED_START < seed + count:
        raise ConfigError(f"seeds {seed} to {seed + count - 1} mix training and evaluation; keep them below {EVALUATION_SEED_START}, or start there")


def _write(seed: int, count: int, folder: Path, conversations: bool, force: bool, progress: Callable[[int, int], None]) -> Path:
    """Write to a folder of another name first; only a whole book gets the name that was asked for."""
    exists = folder.exists()
    if exists and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; give a folder for the picture book")
    # Hidden files are no book: they are the system's, or what a kill left.
    if exists and not force and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise ConfigError(f"{folder} is not empty; choose another folder, or give force=True (--force) to replace the picture book in it")
    book = folder / NEW if exists else folder  # a folder that is there may hold other files, which stay
    with whole_folder(book) as work:
        _write_scenes(seed, count, work, progress)
        if conversations:
            _write_conversations(work)
    if exists:
        _replace_book(book, folder)
    return folder / ANNOTATIONS


def _write_scenes(seed: int, count: int, folder: Path, progress: Callable[[int, int], None]) -> None:
    (folder / PICTURES).mkdir(parents=True)
    earlier = None
    with (folder / ANNOTATIONS).open("w", encoding="utf-8", newline="\n") as lines:
        for number in range(count):
            scene = make_scene(seed + number)
            draw_scene(scene).save(folder / picture_name(scene.seed), format="PNG")
            lines.write(json.dumps(describe_scene(scene, earlier), ensure_ascii=False) + "\n")
            earlier = scene
            progress(number + 1, count)


def _write_conversations(folder: Path) -> None:
    """Write the tasks of a book that is there as conversations."""
    with (folder / ANNOTATIONS).open(encoding="utf-8") as scenes, (folder / CONVERSATIONS).open("w", encoding="utf-8", newline="\n") as lines:
        for scene in map(json.loads, scenes):
            for number, task in enumerate(scene["tasks"]):
                lines.write(json.dumps(to_conversation(task, f"{scene['seed']}-{number}"), ensure_ascii=False) + "\n")


def to_conversation(task: Mapping[str, Any], id: str) -> dict[str, Any]:
    """Return a task of the annotations in the released form of training data (FACTS 7.1); pictures stand before the first question."""
    pictures = "".join(f"Picture {number}: <img>{name}</img>\n" for number, name in enumerate(task["pictures"], start=1))
    said = [text for turn in task["turns"] for text in (turn["question"], turn["answer"])]
    said[0] = pictures + said[0]
    return {"id": id, "conversations": [{"from": ("user", "assistant")[place % 2], "value": text} for place, text in enumerate(said)]}


def _replace_book(book: Path, folder: Path) -> None:
    """Move a finished book into an existing folder. The annotations go first and come last: with them the book is whole."""
    for name in (ANNOTATIONS, CONVERSATIONS):
        (folder / name).unlink(missing_ok=True)
    if (folder / PICTURES).exists():
        shutil.rmtree(folder / PICTURES)
    for name in (PICTURES, CONVERSATIONS, ANNOTATIONS):
        if (book / name).exists():
            (book / name).rename(folder / name)
    book.rmdir()
