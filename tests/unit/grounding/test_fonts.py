"""The bundled font: what it covers, how large it is, and that nothing outside it is looked up."""

from pathlib import Path

import pytest
from PIL import ImageFont

from qwen_vl.errors import ConfigError
from qwen_vl.grounding.fonts import BUNDLED_FONT_PATH, load_font


def gb2312_hanzi() -> str:
    """The 6763 characters of GB2312, rows 0xB0 to 0xF7."""
    codes = (bytes((high, low)) for high in range(0xB0, 0xF8) for low in range(0xA1, 0xFF))
    return "".join(code.decode("gb2312", errors="ignore") for code in codes)


def ink(font: ImageFont.FreeTypeFont, character: str) -> bytes:
    """The picture of one character."""
    mask = font.getmask(character)
    return bytes(mask) + bytes(str(mask.size), "ascii")


def test_all_characters_have_their_own_shape() -> None:
    font = load_font(16)
    missing = ink(font, "\U0001f9ff")  # no font of this size has it: the empty box
    characters = "".join(map(chr, range(0x21, 0x7F))) + gb2312_hanzi() + "\xa3\xd7\xe9\u3002\uff0c\u201c\u2026"
    assert len(characters) > 6763 + 94
    assert [character for character in characters if ink(font, character) == missing] == []


def test_the_file_is_small_and_carries_its_licence() -> None:
    assert BUNDLED_FONT_PATH.stat().st_size <= 2_000_000
    assert "Apache License" in (BUNDLED_FONT_PATH.parent / "LICENSE-Apache-2.0.txt").read_text(encoding="utf-8")
    assert "WenQuanYi" in (BUNDLED_FONT_PATH.parent / "README.md").read_text(encoding="utf-8")


def test_size_is_in_pixels() -> None:
    assert load_font(20).size == 20
    assert load_font(40).getlength("\u72d7") == 2 * load_font(20).getlength("\u72d7") == 40


def test_own_font_comes_first() -> None:
    assert load_font(12, BUNDLED_FONT_PATH).getname() == load_font(12).getname()


@pytest.mark.parametrize("name", ["missing.ttf", "text.ttf", "."])
def test_a_file_that_is_no_font_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "text.ttf").write_text("not a font", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be used.*TrueType") as caught:
        load_font(12, tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("size_px", [0, -3])
def test_impossible_size_is_refused(size_px: int) -> None:
    with pytest.raises(ConfigError, match=f"size_px={size_px}"):
        load_font(size_px)
