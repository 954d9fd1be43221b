"""Boxes and quads: conversions there and back, clipping, sorting, overlap."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_vl.errors import ShapeError
from qwen_vl.grounding.box import Box, Quad, Ref, iou
from tests.unit.grounding.strategies import BOXES, QUADS, SIZES

WHOLE = st.integers(-3000, 3000)


@given(BOXES)
def test_fractions_return_the_same_box(box: Box) -> None:
    assert Box.from_fractions(*box.to_fractions()) == box


@given(BOXES, SIZES, SIZES)
def test_unrounded_pixels_return_the_same_box(box: Box, width: int, height: int) -> None:
    x1, y1, x2, y2 = box.to_fractions()
    assert Box.from_px(x1 * width, y1 * height, x2 * width, y2 * height, width, height) == box


@given(st.data(), st.integers(1, 1000), st.integers(1, 1000))
def test_whole_pixels_return_to_one_pixel(data: st.DataObject, width: int, height: int) -> None:
    x1, x2 = sorted(data.draw(st.tuples(st.integers(0, width), st.integers(0, width))))
    y1, y2 = sorted(data.draw(st.tuples(st.integers(0, height), st.integers(0, height))))
    returned = Box.from_px(x1, y1, x2, y2, width, height).to_px(width, height)
    assert max(abs(a - b) for a, b in zip(returned, (x1, y1, x2, y2), strict=True)) <= 1


@given(BOXES, SIZES, SIZES)
def test_drawing_pixels_are_the_release_formula(box: Box, width: int, height: int) -> None:
    expected = (int(box.x1 / 1000 * width), int(box.y1 / 1000 * height), int(box.x2 / 1000 * width), int(box.y2 / 1000 * height))
    assert box.to_px(width, height) == expected


def test_drawing_divides_by_1000_and_scoring_by_999() -> None:
    box = Box(0, 500, 999, 999)
    assert box.to_px(2000, 1000) == (0, 500, 1998, 999)
    assert box.to_px_scoring(2000, 1000) == (0.0, 500 / 999 * 1000, 2000.0, 1000.0)


def test_from_px_orders_corners_and_clips_to_the_picture() -> None:
    assert Box.from_px(120, 90, -20, 30, width=100, height=100) == Box(0, 300, 999, 900)


@given(WHOLE, WHOLE, WHOLE, WHOLE)
def test_clip_and_sort_make_a_proper_box(x1: int, y1: int, x2: int, y2: int) -> None:
    box = Box(x1, y1, x2, y2).clip().sort()
    assert 0 <= box.x1 <= box.x2 <= 999
    assert 0 <= box.y1 <= box.y2 <= 999
    assert box == Box(x1, y1, x2, y2).sort().clip()


def test_clip_moves_1000_to_999_and_keeps_the_rest() -> None:
    assert Box(1000, -5, 1, 998).clip() == Box(999, 0, 1, 998)


def test_area_and_iou_by_hand() -> None:
    first, second = Box(0, 0, 10, 10), Box(5, 0, 15, 10)
    assert first.area == 100
    assert first.iou(second) == pytest.approx(50 / 150)
    assert first.iou(Box(10, 0, 20, 10)) == 0.0  # they only touch
    assert Box(5, 5, 5, 5).iou(Box(5, 5, 5, 5)) == 0.0  # nothing in, nothing shared
    assert Box(9, 9, 1, 1).area == 0
    assert iou((0.0, 0.0, 1.5, 1.0), (0.5, 0.0, 1.5, 1.0)) == pytest.approx(1 / 1.5)


@given(BOXES, BOXES)
def test_iou_is_symmetric_and_bounded(first: Box, second: Box) -> None:
    assert first.iou(second) == second.iou(first)
    assert 0.0 <= first.iou(second) <= 1.0
    assert first.iou(first) == (1.0 if first.area else 0.0)


@given(QUADS, SIZES, SIZES)
def test_quad_box_holds_all_points(quad: Quad, width: int, height: int) -> None:
    box = quad.to_box()
    assert all(box.x1 <= x <= box.x2 and box.y1 <= y <= box.y2 for x, y in quad.points)
    assert box.to_px(width, height)[:2] == tuple(map(min, *quad.to_px(width, height)))


def test_label_is_one_line_of_the_text() -> None:
    assert Ref(" the\n  red dog ").label == "the red dog"


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 5)])
def test_impossible_size_is_refused_by_value(size: tuple[int, int]) -> None:
    for convert in (Box(0, 0, 1, 1).to_px, Box(0, 0, 1, 1).to_px_scoring, Quad(((0, 0),) * 4).to_px):
        with pytest.raises(ShapeError, match=f"width={size[0]}, height={size[1]}"):
            convert(*size)
    with pytest.raises(ShapeError, match="picture size"):
        Box.from_px(0, 0, 1, 1, *size)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(number: float) -> None:
    with pytest.raises(ShapeError, match="not a finite number"):
        Box.from_px(0, number, 1, 1, 10, 10)
