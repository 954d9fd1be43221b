"""The bundled checkpoint, as a newcomer meets it: the commands of `make demo`, offline."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from qwen_vl.api import QwenVL
from qwen_vl.api.loading import BUNDLED
from scripts.score_demo import compose
from tests.timing import assert_within

PICTURE = BUNDLED.parent / "demo" / "beach.png"
PROGRAM = [sys.executable, "-c", "import sys; from qwen_vl.cli import main; sys.exit(main())"]


@pytest.fixture(scope="module")
def nano() -> QwenVL:
    return QwenVL.load(device="cpu")


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, with the hub out of reach."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, check=False, cwd=folder, env=environment)


def test_the_demo_picture_is_the_picture_books() -> None:
    from qwen_vl.picturebook.drawing import draw_scene
    from qwen_vl.picturebook.scene import demo_scene

    assert compose(0) == demo_scene(), "it is the first of forty, not one that was chosen"
    with Image.open(PICTURE) as picture:
        assert picture.convert("RGB").tobytes() == draw_scene(demo_scene()).tobytes()


def test_the_demo_conversation(nano: QwenVL) -> None:
    from qwen_vl.picturebook.dialogue import box_of
    from qwen_vl.picturebook.scene import demo_scene

    scene = demo_scene()
    dog = next(thing for thing in scene.things if thing.kind == "dog")
    chat = nano.chat()
    first = chat.send("这是什么?", PICTURE).text
    assert "女孩" in first and "狗" in first and "沙滩" in first
    (ref,) = chat.send("框出图中的狗").boxes
    assert len(ref.boxes) == 1 and ref.boxes[0].iou(box_of(scene, dog)) >= 0.5


def test_one_picture_in_english(nano: QwenVL) -> None:
    answer = nano.ask(PICTURE, "What is in this picture?").text
    assert "girl" in answer and "dog" in answer


def test_the_command_draws_the_box(tmp_path: Path) -> None:
    result = run("ground", str(PICTURE), "狗", "--draw", "demo.png", "--json", folder=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["boxes"][0]["boxes_px"]
    with Image.open(tmp_path / "demo.png") as drawn, Image.open(PICTURE) as picture:
        assert drawn.size == picture.size and drawn.convert("RGB").tobytes() != picture.convert("RGB").tobytes()


def test_info_describes_it() -> None:
    result = run("info", "--json", folder=Path.cwd())
    record = json.loads(result.stdout)
    assert record["is_supported"] and record["chat_format"] == "chatml"
    assert record["weight_files_bytes"] <= 32 * 2**20


@pytest.mark.slow
def test_a_cold_answer_takes_less_than_six_seconds(tmp_path: Path) -> None:
    def ask() -> None:
        assert run("ask", str(PICTURE), "这是什么?", folder=tmp_path).returncode == 0

    assert_within(6, ask)
