"""Drawing the boxes of an answer on the latest picture."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qwen_vl.errors import ImageError, PromptError
from qwen_vl.processing.tokenization import QWenTokenizer

ANSWER = "<ref>the dog</ref><box>(200,200),(800,800)</box>"


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.new("RGB", (200, 100), "gray").save(path)
    return path


def test_boxes_are_read_as_the_release_reads_them(tokenizer: QWenTokenizer, vectors: dict[str, Any]) -> None:
    rows = [row for row in vectors["encode"] if "boxes" in row]
    assert len(rows) == 227
    for row in rows:
        expected = [{key: tuple(value) if key == "box" else value for key, value in box.items()} for box in row["boxes"]]
        assert tokenizer._fetch_all_box_with_ref(row["text"]) == expected


def test_what_the_release_refuses_gives_the_readable_boxes(tokenizer: QWenTokenizer, vectors: dict[str, Any]) -> None:
    for row in vectors["encode"]:
        assert isinstance(tokenizer._fetch_all_box_with_ref(row["text"]), list)
    text = "<ref> a </ref><box>(1,2),(3,4)</box><box>(5,6),(7,8)</box><box>(1.5,2),(3,4)</box><box>(1)</box><ref>b</ref> <box>(9,9),(9,9)</box><box>"
    assert tokenizer._fetch_all_box_with_ref(text) == [{"box": (1, 2, 3, 4), "ref": "a"}, {"box": (5, 6, 7, 8)}, {"box": (9, 9, 9, 9)}]


def test_the_latest_picture_is_found(tokenizer: QWenTokenizer) -> None:
    history = [("<img>a.png</img>", "<img>never.png</img>"), ("<img>b.png</img><img>c.png</img>", "x"), ("no picture", "x")]
    assert tokenizer._fetch_latest_picture("answer", history) == "c.png"
    assert tokenizer._fetch_latest_picture("<img>d.png</img>", history) == "d.png"
    assert tokenizer._fetch_latest_picture("answer") is None
    with pytest.raises(PromptError, match="pair"):
        tokenizer._fetch_latest_picture("answer", ["abc"])


def test_boxes_are_drawn_at_the_pictures_own_size(tokenizer: QWenTokenizer, photo: Path, tmp_path: Path) -> None:
    drawn = tokenizer.draw_bbox_on_latest_picture(ANSWER, [(f"Picture 1: <img>{photo}</img>\nFind the dog", "")])
    assert drawn
    pixels = drawn.get_image()
    assert (pixels.shape, pixels.dtype) == ((100, 200, 3), np.uint8)
    assert (pixels[20:80, 40] != 128).any(axis=-1).all() and (pixels[90:] == 128).all()
    for name in ("out.png", "out.jpg"):
        drawn.save(tmp_path / name)
        with Image.open(tmp_path / name) as saved:
            assert saved.size == (200, 100)


def test_without_picture_or_box_there_is_nothing_to_draw(tokenizer: QWenTokenizer, photo: Path) -> None:
    assert tokenizer.draw_bbox_on_latest_picture(ANSWER) is None
    assert tokenizer.draw_bbox_on_latest_picture("no box", [(f"<img>{photo}</img>", "")]) is None
    assert tokenizer.draw_bbox_on_latest_picture(f"<img>{photo}</img>{ANSWER}<box>(1,2)</box><box>") is not None


def test_pictures_that_are_gone_and_places_that_cannot_be_written_are_named(tokenizer: QWenTokenizer, photo: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="gone.png' does not exist"):
        tokenizer.draw_bbox_on_latest_picture(ANSWER, [("<img>gone.png</img>", "")])
    drawn = tokenizer.draw_bbox_on_latest_picture(f"<img>{photo}</img>{ANSWER}")
    assert drawn is not None
    with pytest.raises(ImageError, match="No such file or directory"):
        drawn.save(tmp_path / "no" / "out.png")
    with pytest.raises(ImageError, match="extension"):
        drawn.save(str(tmp_path / "out.nothing"))
    assert not list(tmp_path.glob("out*"))
