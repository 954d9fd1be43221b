"""How a server starts: how it warms up, how patient it is with its engine, and what it does without."""

import os
import tempfile
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qwen_vl.api import QwenVL
from qwen_vl.serving import run
from qwen_vl.serving.service import Service
from qwen_vl.serving.settings import ServeSettings
from tests.unit.serving.web.scripted import ScriptedModel


class Clock:
    """Time that passes only while the model works."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.mark.parametrize("has_eyes", [True, False])
def test_the_first_answer_which_compiles_is_not_the_measure(monkeypatch: pytest.MonkeyPatch, has_eyes: bool) -> None:
    clock, asked = Clock(), list[tuple[Any, str]]()

    def ask(picture: Any, question: str, **_: Any) -> None:
        asked.append((picture, question))
        clock.now_s += 60.0 if len(asked) == 1 else 0.5

    monkeypatch.setattr(run, "time", clock)
    model = SimpleNamespace(config=SimpleNamespace(visual={} if has_eyes else None))
    vl = SimpleNamespace(engine=SimpleNamespace(expect_many=lambda: None), model=model, ask=ask)
    assert run.warm_up(cast(QwenVL, vl)) == 0.5
    (first, one), (second, other) = asked
    assert one != other  # a cache would make the second answer too quick
    assert first.tobytes() != second.tobytes() if has_eyes else first is second is None


@pytest.mark.parametrize(("said_s", "answer_s", "patience_s"), [(None, 0.1, 10.0), (None, 4.0, 40.0), (2.0, 4.0, 2.0), (600.0, 0.1, 600.0)])
def test_patience_suits_the_machine_unless_somebody_says_how_much(said_s: float | None, answer_s: float, patience_s: float) -> None:
    assert run.with_patience(ServeSettings(watchdog_s=said_s), answer_s).watchdog_s == patience_s


def test_an_application_that_was_not_warmed_up_is_watched_too() -> None:
    assert Service(cast(QwenVL, ScriptedModel()), ServeSettings()).watchdog.limit_s == 10.0


def test_where_no_file_can_be_written_torch_gets_a_folder_that_is_there(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def nowhere() -> str:
        raise FileNotFoundError

    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    run.do_without_files()
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ and not caplog.messages
    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # so that it is as before afterwards
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    run.do_without_files()
    assert os.path.isdir(os.environ["TORCHINDUCTOR_CACHE_DIR"]) and len(caplog.messages) == 1
