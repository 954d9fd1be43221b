"""Both languages say everything, with the same places to fill in."""

import string
from dataclasses import fields

import pytest

from qwen_vl.serving.errors import ServeError
from qwen_vl.serving.web.texts import EN, TEXTS, ZH, Texts, texts_of

WORDS = [field.name for field in fields(Texts) if field.name != "language"]
SAME_IN_BOTH = {"top_p", "download_json", "download_coco"}


def places(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def as_text(texts: Texts, name: str) -> str:
    value = getattr(texts, name)
    return " ".join(value.values() if isinstance(value, dict) else value) if isinstance(value, tuple | dict) else str(value)


@pytest.mark.parametrize("name", WORDS)
def test_both_languages_say_it(name: str) -> None:
    english, chinese = as_text(EN, name), as_text(ZH, name)
    assert english.strip()
    assert chinese.strip()
    assert name == "errors" or places(english) == places(chinese)
    assert (english == chinese) == (name in SAME_IN_BOTH)


@pytest.mark.parametrize("name", [name for name in WORDS if name not in SAME_IN_BOTH | {"switch_language", "switch_language_hint"}])
def test_each_is_in_its_language(name: str) -> None:
    assert all(ord(char) < 0x3000 for char in as_text(EN, name))
    assert any("\u4e00" <= char <= "\u9fff" for char in as_text(ZH, name))


def test_errors_are_told_in_both_languages() -> None:
    assert set(EN.errors) == set(ZH.errors)
    for code, said in ZH.errors.items():
        assert places(said) == set() and any("\u4e00" <= char <= "\u9fff" for char in said), code
    told = ServeError(400, "invalid_value", "seed='{x}' must be a whole number.")
    assert EN.explain(told) == told.message
    assert "种子" in ZH.explain(told)
    assert ZH.explain(ServeError(500, "internal_error", "no")) == ZH.explain(None) == ZH.internal_error


def test_an_unknown_language_is_english() -> None:
    assert TEXTS == {"en": EN, "zh": ZH}
    assert texts_of("zh") is ZH
    assert texts_of("en") is texts_of("fr") is texts_of(None) is texts_of(["zh"]) is EN
