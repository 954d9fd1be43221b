import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops

from qwen_vl.errors import ConfigError, DiskError
from qwen_vl.grounding.box import Box
from qwen_vl.picturebook import export
from qwen_vl.picturebook.catalog import COLOUR_BY_NAME, EVALUATION_SEED_START, KIND_BY_NAME
from qwen_vl.picturebook.drawing import draw_scene
from qwen_vl.picturebook.export import write_book
from qwen_vl.picturebook.scene import Scene, make_scene
from qwen_vl.picturebook.tasks import TASK_NAMES


def read_lines(annotations: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in annotations.read_text(encoding="utf-8").splitlines()]


def test_a_book_holds_each_picture_with_its_objects_and_tasks(tmp_path: Path) -> None:
    out = tmp_path / "new" / "book"
    annotations = write_book(40, 6, out)
    assert annotations == out / "annotations.jsonl"
    lines = read_lines(annotations)
    assert [line["seed"] for line in lines] == list(range(40, 46))
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png")) == [line["picture"] for line in lines]
    for line in lines:
        scene = make_scene(line["seed"])
        with Image.open(out / line["picture"]) as picture:
            assert picture.size == (line["width"], line["height"]) == (scene.width, scene.height)
            assert ImageChops.difference(picture.convert("RGB"), draw_scene(scene)).getbbox() is None
        assert line["background"] == scene.background
        for thing, entry in zip(scene.things, line["objects"], strict=True):
            assert (entry["name"], entry["name_zh"]) == (thing.kind, KIND_BY_NAME[thing.kind].zh)
            assert (entry["colour"], entry["colour_zh"]) == (thing.colour, COLOUR_BY_NAME[thing.colour].zh)
            assert tuple(entry["box_px"]) == thing.box_px
            assert entry.get("text") == thing.text


def test_tasks_name_their_pictures_and_boxes(tmp_path: Path) -> None:
    lines = read_lines(write_book(0, 30, tmp_path / "book"))
    tasks = [(line, task) for line in lines for task in line["tasks"]]
    assert {task["name"] for _, task in tasks} == set(TASK_NAMES)
    for line, task in tasks:
        number = {"compare": 2, "small_talk": 0}.get(task["name"], 1)
        assert len(task["pictures"]) == number and task["language"] in ("en", "zh")
        assert line["picture"] in task["pictures"] or task["name"] == "small_talk"
        scene = make_scene(line["seed"])
        boxes = {Box.from_px(*thing.box_px, scene.width, scene.height).to_tuple() for thing in scene.things}
        for turn in task["turns"]:
            assert turn["question"] and turn["answer"]
            assert {tuple(box) for box in turn["boxes"]} <= boxes
            assert all(f"({x1},{y1}),({x2},{y2})" in turn["answer"] for x1, y1, x2, y2 in turn["boxes"])
        assert task["name"] != "refer" or task["turns"][0]["boxes"] and task["phrase"]


def test_the_same_book_has_the_same_bytes(tmp_path: Path) -> None:
    one, other = (write_book(3, 4, tmp_path / name) for name in ("one", "other"))
    assert one.read_bytes() == other.read_bytes()
    pictures = [sorted((path.parent / "pictures").iterdir()) for path in (one, other)]
    assert [path.read_bytes() for path in pictures[0]] == [path.read_bytes() for path in pictures[1]]
    assert "狗" in "".join(path.read_text(encoding="utf-8") for path in (one, write_book(0, 30, tmp_path / "third")))


def test_progress_counts_pictures(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_book(0, 3, tmp_path / "book", progress=lambda done, count: seen.append((done, count)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_an_existing_folder_is_kept_unless_forced(tmp_path: Path) -> None:
    out = tmp_path / "book"
    first = write_book(0, 3, out).read_bytes()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty.*--force"):
        write_book(5, 1, out)
    assert (out / "annotations.jsonl").read_bytes() == first
    lines = read_lines(write_book(5, 1, out, force=True))
    assert [line["seed"] for line in lines] == [5]
    assert sorted(path.name for path in out.iterdir()) == ["annotations.jsonl", "notes.txt", "pictures"]
    assert [path.name for path in (out / "pictures").iterdir()] == ["000000005.png"]


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    out = tmp_path / "book"
    out.mkdir()
    write_book(0, 1, out)
    assert sorted(path.name for path in out.iterdir()) == ["annotations.jsonl", "pictures"]


@pytest.mark.parametrize("exists", [True, False])
def test_what_a_kill_left_is_swept_and_does_not_block(tmp_path: Path, exists: bool) -> None:
    killed = (
        "import os, sys; from qwen_vl.picturebook import export\nexport.draw_scene = lambda scene: os._exit(9)\nexport.write_book(0, 1, sys.argv[1])"
    )
    out = tmp_path / "book"
    if exists:
        out.mkdir()
    assert subprocess.run([sys.executable, "-c", killed, str(out)], check=False).returncode == 9
    assert len(list(tmp_path.rglob("*"))) > exists
    write_book(0, 1, out)
    assert [path.name for path in tmp_path.iterdir()] == ["book"] and sorted(os.listdir(out)) == ["annotations.jsonl", "pictures"]


@pytest.mark.parametrize("exists", [True, False])
def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool) -> None:
    out = tmp_path / "book"
    before = write_book(0, 2, out).read_bytes() if exists else b""

    def draw_two_then_fail(scene: Scene) -> Image.Image:
        if scene.seed == 12:
            raise OSError(28, "No space left on device")
        return draw_scene(scene)

    monkeypatch.setattr(export, "draw_scene", draw_two_then_fail)
    with pytest.raises(DiskError, match="No space left on device"):
        write_book(10, 5, out, force=True)
    assert [path.name for path in tmp_path.iterdir()] == (["book"] if exists else [])
    if exists:
        assert (out / "annotations.jsonl").read_bytes() == before
        assert sorted(path.name for path in out.iterdir()) == ["annotations.jsonl", "pictures"]


@pytest.mark.parametrize(
    ("seed", "count", "message"),
    [
        (-1, 3, "seed=-1"),
        (0, 0, "count=0"),
        (0, -5, "count=-5"),
        (EVALUATION_SEED_START - 2, 3, "mix training and evaluation"),
    ],
)
def test_a_wrong_range_is_refused(tmp_path: Path, seed: int, count: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        write_book(seed, count, tmp_path / "book")
    assert not list(tmp_path.iterdir())


def test_both_sides_of_the_evaluation_border_are_books(tmp_path: Path) -> None:
    assert len(read_lines(write_book(EVALUATION_SEED_START - 2, 2, tmp_path / "training"))) == 2
    assert len(read_lines(write_book(EVALUATION_SEED_START, 2, tmp_path / "evaluation"))) == 2


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    out = tmp_path / "book"
    out.write_text("a file")
    with pytest.raises(ConfigError, match="book is a file"):
        write_book(0, 1, out, force=True)
    with pytest.raises(ConfigError, match="cannot be written"):
        write_book(0, 1, out / "below")
    assert out.read_text() == "a file"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(ConfigError, match="cannot be written"):
            write_book(0, 1, tmp_path / "book")
    finally:
        tmp_path.chmod(stat.S_IRWXU)


def test_tasks_are_conversations_if_wanted(tmp_path: Path) -> None:
    """In the released form: pictures before the first question, sides that alternate."""
    annotations = write_book(40, 2, tmp_path / "book", conversations=True)
    lines = read_lines(annotations)
    records = [json.loads(line) for line in (tmp_path / "book" / "conversations.jsonl").read_text(encoding="utf-8").splitlines()]
    tasks = [task for line in lines for task in line["tasks"]]
    assert len(records) == len(tasks) == len({record["id"] for record in records})
    for record, task in zip(records, tasks, strict=True):
        said = record["conversations"]
        assert [turn["from"] for turn in said] == ["user", "assistant"] * len(task["turns"])
        assert [turn["value"] for turn in said[1::2]] == [turn["answer"] for turn in task["turns"]]
        shown = "".join(f"Picture {number}: <img>{name}</img>\n" for number, name in enumerate(task["pictures"], start=1))
        assert said[0]["value"] == shown + task["turns"][0]["question"]
    write_book(41, 1, tmp_path / "book", force=True)
    assert not (tmp_path / "book" / "conversations.jsonl").exists()  # of other pictures
