"""The exam about shape and size: the same pictures for both, counted right, and a page that says what the record says."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest
import torch

from qwen_vl.api import QwenVL
from qwen_vl.evaluation import picturebook_shapes as shapes
from qwen_vl.evaluation.picturebook import Question

ROOT = Path(__file__).parents[3]


def test_each_layout_is_what_it_says() -> None:
    for name, ratio in (("3:1", 3.0), ("1:3", 1 / 3)):
        scenes, questions = shapes.write_shapes(name, 12)
        assert {scene.width / scene.height for scene in scenes} == {ratio}
        assert {question.task for question in questions} >= {"what", "colour", "count", "refer"}
        assert all(len(question.scenes) == 1 for question in questions)
    scenes, questions = shapes.write_shapes("small signs", 12)
    signs = [thing for scene in scenes for thing in scene.things if thing.text]
    assert len(signs) >= 11 and {question.task for question in questions} == {"read"}
    for scene in scenes:
        for thing in scene.things:
            if thing.text:
                x1, _, x2, _ = thing.box_px
                assert x2 - x1 <= 0.17 * min(scene.width, scene.height)


def test_both_are_asked_the_same_and_counted_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """One checkpoint knows everything; the other is wrong about every picture of an odd number."""
    asked: dict[str, list[Question]] = {"all": [], "half": []}

    def ask_all(vl: Any, questions: list[Question], *_: Any, **__: Any) -> list[str]:
        asked[vl] += questions
        return [question.answer if vl == "all" or question.scenes[0] % 2 == 0 else "-" for question in questions]

    monkeypatch.setattr(shapes, "ask_all", ask_all)
    monkeypatch.setattr(shapes, "encode_pictures", lambda *_: torch.zeros(0))
    rows = shapes.compare_shapes(cast(QwenVL, "all"), cast(QwenVL, "half"), 20)
    assert asked["all"] == asked["half"] and asked["all"]
    assert {row.layout for row in rows} == set(shapes.LAYOUTS)
    for row in rows:
        assert row.ours == 1.0 and 0.2 < row.theirs < 0.8
        assert row.difference.low <= row.ours - row.theirs <= row.difference.high
        if row.topic == shapes.ALL:
            assert row.difference.low > 0, "twenty pictures, half of them different"
    for layout in ("3:1", "1:3", "usual"):
        parts = [row for row in rows if row.layout == layout]
        assert parts[0].topic == shapes.ALL and parts[0].num_questions == sum(row.num_questions for row in parts[1:])


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("score_shapes", ROOT / "scripts" / "score_shapes.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_says_what_the_record_says(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = [tmp_path / page.name for page in script.PAGES]
    texts = [page.read_text(encoding="utf-8") for page in script.PAGES]
    for copy, text in zip(copies, texts, strict=True):
        copy.write_text(text, encoding="utf-8")
    monkeypatch.setattr(script, "PAGES", copies)
    script.write_page()
    assert [copy.read_text(encoding="utf-8") for copy in copies] == texts


def test_a_table(script: ModuleType) -> None:
    row = {"layout": "3:1", "topic": "read", "ours": 0.8, "theirs": 0.5, "difference": {"low": 0.25, "high": 0.35}, "num_questions": 40}
    assert "| 3:1 | read (40) | 80.0% | 50.0% | +30.0 (+25.0 to +35.0) |" in script.render({"command": "x", "rows": [row]})
