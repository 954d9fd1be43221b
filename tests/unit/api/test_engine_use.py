"""What the api asks of its engine: bounds that reach it, and one look at the weights for each question."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from PIL import Image

from qwen_vl.api import QwenVL
from qwen_vl.api.likelihood import begin_choice
from qwen_vl.api.pictures import load_pictures
from qwen_vl.engine import engine as engine_module
from qwen_vl.errors import ConfigError

MIB = 2**20


def test_bounds_reach_the_engine(chat_folder: Path) -> None:
    vl = QwenVL.load(chat_folder, device="cpu", max_batch=3, prefix_bytes=5 * MIB, feature_bytes=0)
    settings = vl.engine.settings
    assert (settings.max_batch, settings.prefix_bytes, settings.feature_bytes) == (3, 5 * MIB, 0)
    statistics = vl.engine.statistics()
    assert (statistics.prefixes.max_bytes, statistics.features.max_bytes) == (5 * MIB, 0)
    assert settings.kv_bytes >= vl.engine.slots.position_bytes * vl.model.config.max_position_embeddings, "what is left out suits the model"


@pytest.mark.parametrize(
    ("bounds", "words"),
    [({"prefix_byte": 1}, "did you mean 'prefix_bytes'"), ({"zzz": 1}, "there are"), ({"feature_bytes": -1}, "must not be negative")],
)
def test_wrong_bounds_are_refused_before_anything_is_loaded(bounds: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        QwenVL.load("no such folder", device="cpu", **bounds)


QUESTIONS: dict[str, Callable[[QwenVL, Image.Image], Any]] = {
    "ask": lambda vl, red: vl.ask(red, "what?"),
    "without a picture": lambda vl, red: vl.ask(None, "what?"),
    "stream": lambda vl, red: list(vl.stream(red, "what?")),
    "ground": lambda vl, red: vl.ground(red, "the dog"),
    "begin": lambda vl, red: vl.begin([{"role": "user", "content": "what?"}]).answer,
    "begin_text": lambda vl, red: vl.begin_text("what").answer,
    "choice": lambda vl, red: begin_choice(vl, [1, 2], [], [[3, 4], [5, 6]]),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_weights_are_looked_at_once_for_each_question(vl: QwenVL, red: Image.Image, name: str) -> None:
    with mock.patch.object(engine_module, "stamp_of_weights", wraps=engine_module.stamp_of_weights) as look:
        QUESTIONS[name](vl, red)
    assert look.call_count == 1


def test_a_second_turn_notices_changed_weights(chat_folder: Path, red: Image.Image) -> None:
    """Though it brings no picture, and its beginning was known."""
    vl, fresh = QwenVL.load(chat_folder, device="cpu"), QwenVL.load(chat_folder, device="cpu")
    chats = [vl.chat(), fresh.chat()]
    for chat in chats:
        chat.send("what?")
    for each in (vl, fresh):
        with torch.no_grad():
            each.model.get_parameter("transformer.h.0.attn.c_proj.weight").mul_(-3)
    fresh.engine.forget()
    assert chats[0].send("and?").text == chats[1].send("and?").text
    assert vl.engine.statistics().prefixes.num_hits == 0


def test_a_conversations_pictures_are_seen_anew_once_the_tower_has_changed(chat_folder: Path, red: Image.Image) -> None:
    vl, fresh = QwenVL.load(chat_folder, device="cpu"), QwenVL.load(chat_folder, device="cpu")
    chat, expected = vl.chat(), fresh.chat()
    chat.send("what?", red)
    expected.send("what?", red)
    for each in (vl, fresh):
        with torch.no_grad():
            each.model.get_parameter("transformer.visual.proj").mul_(-3)
    fresh.engine.forget()
    expected.pictures = load_pictures(fresh.model, fresh.engine, red)
    assert chat.send("and?").text == expected.send("and?").text
    assert torch.equal(chat.pictures[0].features, expected.pictures[0].features)
    assert vl.engine.statistics().prefixes.num_hits == 0


@pytest.mark.parametrize(("count", "is_prepared"), [(2, False), (8, True)])
def test_a_batch_of_many_prepares_the_engine(vl: QwenVL, count: int, is_prepared: bool) -> None:
    with mock.patch.object(vl.engine, "expect_many") as prepare:
        vl.batch([(None, f"what {number}?") for number in range(count)], max_new_tokens=2)
    assert prepare.called == is_prepared
