"""Exchange formats: there and back, across formats, what other tools write, and what cannot be read."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_vl.errors import ConfigError
from qwen_vl.grounding.box import Box, Quad, Ref
from qwen_vl.grounding.export import GroundedPicture, from_coco, from_jsonl, from_yolo, merge_labels, to_coco, to_jsonl, to_yolo
from qwen_vl.grounding.text import format_ref, parse
from tests.unit.grounding.strategies import pictures

Pictures = list[GroundedPicture]
PICTURES = st.tuples(pictures("a.jpg"), pictures("images/sub/b.png"), pictures("\u6d77 \u6ee9.webp")).map(list)
QUAD = Quad(((100, 100), (500, 150), (480, 300), (90, 260)))
BEACH = GroundedPicture("beach.jpg", 1024, 683, (Ref(" her dog", (Box(219, 424, 576, 896),)), Ref("sign", (Box(1, 2, 3, 4),), (QUAD,))))


def merged(samples: Pictures) -> Pictures:
    """What COCO and YOLO can keep."""
    return [GroundedPicture(p.file_name, p.width, p.height, merge_labels(p.refs)) for p in samples]


def through_coco(samples: Pictures) -> Pictures:
    """Write, store as JSON text, read."""
    return from_coco(json.loads(json.dumps(to_coco(samples))))


def through_yolo(samples: Pictures) -> Pictures:
    """Write and read."""
    return from_yolo(to_yolo(samples), {p.file_name: (p.width, p.height) for p in samples})


def through_jsonl(samples: Pictures) -> Pictures:
    """Write and read."""
    return from_jsonl(to_jsonl(samples))


def through_text(samples: Pictures) -> Pictures:
    """Write as the model's text and read."""
    return [GroundedPicture(p.file_name, p.width, p.height, tuple(parse("\n".join(map(format_ref, p.refs))))) for p in samples]


ROUTES = {"coco": through_coco, "yolo": through_yolo, "jsonl": through_jsonl, "text": through_text}


@given(PICTURES)
def test_json_lines_keep_everything(samples: Pictures) -> None:
    assert through_jsonl(samples) == samples
    assert to_jsonl(samples).count("\n") == len(samples)


@pytest.mark.parametrize("second", ROUTES)
@pytest.mark.parametrize("first", ROUTES)
def test_every_pair_of_formats_returns_the_same_places(first: str, second: str) -> None:
    check_pair(ROUTES[first], ROUTES[second])


@given(PICTURES)
def check_pair(first: Callable[[Pictures], Pictures], second: Callable[[Pictures], Pictures], samples: Pictures) -> None:
    assert merged(second(first(samples))) == merged(samples)


@given(PICTURES)
def test_coco_and_yolo_keep_the_merged_refs(samples: Pictures) -> None:
    assert through_coco(samples) == merged(samples)
    assert through_yolo(samples) == merged(samples)


def test_coco_document_by_hand() -> None:
    document = to_coco([BEACH])
    assert document["images"] == [{"id": 1, "file_name": "beach.jpg", "width": 1024, "height": 683}]
    assert document["categories"] == [{"id": 1, "name": "her dog"}, {"id": 2, "name": "sign"}]
    dog, sign, quad = document["annotations"]
    assert dog["bbox"] == pytest.approx([224.256, 289.592, 365.568, 322.376])
    assert dog["area"] == pytest.approx(365.568 * 322.376)
    assert (dog["id"], dog["image_id"], dog["category_id"], dog["iscrowd"]) == (1, 1, 1, 0)
    assert sign["category_id"] == quad["category_id"] == 2
    assert quad["segmentation"] == [pytest.approx([102.4, 68.3, 512.0, 102.45, 491.52, 204.9, 92.16, 177.58])]
    assert quad["quad"] == [[100, 100], [500, 150], [480, 300], [90, 260]]


def test_coco_of_another_tool_is_read() -> None:
    document = {
        "info": {"year": 2017},
        "images": [
            {"id": 397133, "file_name": "000000397133.jpg", "width": 640, "height": 427, "license": 4},
            {"id": 5, "file_name": "b.jpg", "width": 9, "height": 9},
        ],
        "annotations": [
            {
                "id": 82445,
                "image_id": 397133,
                "category_id": 44,
                "bbox": [217.62, 240.54, 38.99, 57.75],
                "segmentation": [[1, 2, 3, 4, 5, 6]],
                "iscrowd": 0,
            },
            {"id": 82446, "image_id": 397133, "category_id": 44, "bbox": [0, 0, 640, 427], "segmentation": {"counts": "x", "size": [1, 1]}},
        ],
        "categories": [{"id": 44, "name": "bottle", "supercategory": "kitchen"}],
    }
    expected = Ref("bottle", (Box(340, 563, 401, 699), Box(0, 0, 999, 999)))
    assert from_coco(document) == [GroundedPicture("000000397133.jpg", 640, 427, (expected,)), GroundedPicture("b.jpg", 9, 9)]


def test_yolo_files_by_hand() -> None:
    assert to_yolo([BEACH]) == {
        "classes.txt": "her dog\nsign\n",
        "labels/beach.txt": "0 0.397500 0.660000 0.357000 0.472000\n1 0.002000 0.003000 0.002000 0.002000\n"
        "1 0.100000 0.100000 0.500000 0.150000 0.480000 0.300000 0.090000 0.260000\n",
    }
    assert list(to_yolo([GroundedPicture("images/train/a.jpg", 5, 5)])) == ["classes.txt", "labels/train/a.txt"]


def test_yolo_of_another_tool_is_read() -> None:
    files = {"classes.txt": "cat\r\ndog", "labels/a.txt": "1  0.5 0.5 1.0 1.0\n\n0 .25 .25 .1 .1"}
    expected = (Ref("dog", (Box(0, 0, 999, 999),)), Ref("cat", (Box(200, 200, 300, 300),)))
    assert from_yolo(files, {"a.jpg": (10, 20), "b.jpg": (3, 4)}) == [GroundedPicture("a.jpg", 10, 20, expected), GroundedPicture("b.jpg", 3, 4)]


def test_jsonl_line_by_hand() -> None:
    line = {"image": "\u72d7.jpg", "width": 4, "height": 3, "refs": [{"text": " \u72d7", "boxes": [[1, 2, 3, 4]], "quads": []}]}
    text = to_jsonl([GroundedPicture("\u72d7.jpg", 4, 3, (Ref(" \u72d7", (Box(1, 2, 3, 4),)),))])
    assert json.loads(text) == line
    assert "\u72d7" in text  # readable, not escaped


def broken_coco(**changes: Any) -> dict[str, Any]:
    """A document with one part replaced."""
    return {**to_coco([BEACH]), **changes}


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({}, "categories"),
        (broken_coco(categories=[]), "1"),
        (broken_coco(images=[]), "1"),
        (broken_coco(images=[{"id": 1, "file_name": "a", "width": 0, "height": 5}]), "width=0"),
        (broken_coco(images=[{"id": 1, "file_name": "a", "width": "x", "height": 5}]), "cannot be read"),
        (broken_coco(annotations=[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3]}]), "cannot be read"),
        (broken_coco(annotations=[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, float("nan")]}]), "finite"),
        (broken_coco(annotations=[{"image_id": 1, "category_id": 1}]), "bbox"),
        (broken_coco(annotations=[{"image_id": 1, "category_id": 1, "quad": [[1, 2]]}]), "cannot be read"),
        (broken_coco(annotations=[5]), "cannot be read"),
        (broken_coco(annotations=5), "cannot be read"),
    ],
    ids=range(11),
)
def test_unreadable_coco_is_refused_by_name(document: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        from_coco(document)


@pytest.mark.parametrize(
    "line",
    [
        "x 0 0 1 1",
        "0 0 0 1",
        "2 0 0 1 1",
        "-1 0 0 1 1",
        "0 a 0 1 1",
        "0 nan 0 1 1",
        "0 inf 0 1 1",
        "0 1 2 3 4 5 6 7 nan",
        "0 1 2 3 4 5 6 7 inf",
        "0 1 2 3 4 5",
    ],
)
def test_unreadable_yolo_line_is_named(line: str) -> None:
    files = {"classes.txt": "cat\ndog\n", "labels/a.txt": "0 0.5 0.5 1 1\n" + line}
    with pytest.raises(ConfigError, match=r"labels/a\.txt line 2"):
        from_yolo(files, {"a.jpg": (10, 10)})


def test_incomplete_yolo_data_sets_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"classes\.txt"):
        from_yolo({"labels/a.txt": ""}, {"a.jpg": (1, 1)})
    with pytest.raises(ConfigError, match=r"labels/b\.txt belongs to no picture"):
        from_yolo({"classes.txt": "", "labels/b.txt": ""}, {"a.jpg": (1, 1)})
    with pytest.raises(ConfigError, match=r"share the label file labels/a\.txt"):
        to_yolo([GroundedPicture("a.jpg", 1, 1), GroundedPicture("a.png", 1, 1)])


@pytest.mark.parametrize("name", ["../a.jpg", "/etc/a.jpg", "", "images/../../a.jpg", "."])
def test_yolo_names_cannot_lead_out_of_the_data_set(name: str) -> None:
    with pytest.raises(ConfigError, match="not a path inside"):
        to_yolo([GroundedPicture(name, 1, 1)])


GOOD = {"image": "a", "width": 5, "height": 5, "refs": []}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "not a grounded picture"),
        ("[]", "not a grounded picture"),
        ("5", "not a grounded picture"),
        ("[" * 10**5, "not a grounded picture"),
        (json.dumps({"image": "a"}), "width"),
        (json.dumps({**GOOD, "height": 0}), "height=0"),
        (json.dumps({**GOOD, "refs": [5]}), "not a grounded picture"),
        (json.dumps({**GOOD, "refs": [{"boxes": []}]}), "text"),
        (json.dumps({**GOOD, "refs": [{"text": "", "boxes": [[1, 2, 3]]}]}), "4 whole numbers"),
        (json.dumps({**GOOD, "refs": [{"text": "", "boxes": [[1, 2, 3, 1000]]}]}), "not pixels"),
        (json.dumps({**GOOD, "refs": [{"text": "", "boxes": [[1, 2, 3, 4.5]]}]}), "4 whole numbers"),
        (json.dumps({**GOOD, "refs": [{"text": "", "boxes": [[1, 2, 3, True]]}]}), "4 whole numbers"),
        (json.dumps({**GOOD, "refs": [{"text": "", "boxes": 7}]}), "not a grounded picture"),
        (json.dumps({**GOOD, "refs": [{"text": "", "quads": [[[1, 2], [3, 4]]]}]}), "not a grounded picture"),
    ],
    ids=range(14),
)
def test_unreadable_json_line_is_named(line: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=f"line 3.*{problem}"):
        from_jsonl(to_jsonl([BEACH]) + "\n" + line)


def test_a_picture_has_pixels() -> None:
    with pytest.raises(ConfigError, match="width=0, height=5"):
        GroundedPicture("a.jpg", 0, 5)
