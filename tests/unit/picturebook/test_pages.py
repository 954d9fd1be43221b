"""Charts, receipts and pictures that are no drawings: what they show, and that every question has one right answer."""

import hashlib
import json
from dataclasses import asdict

import numpy as np
import pytest

from qwen_vl.errors import ConfigError
from qwen_vl.picturebook.catalog import COLOUR_BY_NAME, EVALUATION_SEED_START
from qwen_vl.picturebook.charts import Chart, chart_page, make_chart
from qwen_vl.picturebook.dialogue import Task
from qwen_vl.picturebook.lettering import Glyph
from qwen_vl.picturebook.pages import Page
from qwen_vl.picturebook.palette import colour_rgb
from qwen_vl.picturebook.pictures import draw, glyphs_of, page_tasks, strange_tasks
from qwen_vl.picturebook.receipts import Receipt, make_receipt, receipt_page
from qwen_vl.picturebook.scene import Layout, make_scene
from qwen_vl.picturebook.strange import STRANGE_ANSWER, TAUGHT, UNTAUGHT, make_strange

SEEDS = [*range(150), *range(EVALUATION_SEED_START, EVALUATION_SEED_START + 50)]
CHARTS, RECEIPTS = [make_chart(seed) for seed in SEEDS], [make_receipt(seed) for seed in SEEDS]
PAGES: list[tuple[Chart | Receipt, Page]] = [*((each, chart_page(each)) for each in CHARTS), *((each, receipt_page(each)) for each in RECEIPTS)]
COLOUR_WORDS = {word: colour.name for colour in COLOUR_BY_NAME.values() for word in (colour.name, colour.zh)}


def test_pages_are_a_function_of_their_seed() -> None:
    composed = repr([sorted(asdict(each).items()) for each, _ in PAGES])
    assert hashlib.sha256(composed.encode()).hexdigest() == "184a79af0bd80894f4a5660620f0f947c549bbb83e54a6f28d1b79073b514f99"
    assert len({repr(page) for _, page in PAGES}) == len(PAGES)
    with pytest.raises(ConfigError, match="whole number"):
        make_chart(-1)
    with pytest.raises(ConfigError, match="whole number"):
        make_receipt(-1)


def test_words_lie_inside_the_page_and_apart() -> None:
    for _, page in PAGES:
        for number, word in enumerate(page.words):
            x1, y1, x2, y2 = word.box_px
            assert 0 <= x1 < x2 <= page.width and 0 <= y1 < y2 <= page.height
            for other in page.words[:number]:
                apart = x2 <= other.box_px[0] or other.box_px[2] <= x1 or y2 <= other.box_px[1] or other.box_px[3] <= y1
                assert apart, (word, other)


def test_letters_are_large_enough_for_a_picture_of_168_pixels() -> None:
    for picture, page in PAGES:
        for glyph in page.glyphs:
            x1, y1, x2, y2 = glyph.box
            assert (y2 - y1) * 168 / page.height > 6.9, (picture, glyph)
            assert 0 <= x1 < x2 <= page.width and 0 <= y1 < y2 <= page.height


def test_ink_is_where_the_letters_are_said_to_be() -> None:
    for picture in (CHARTS[3], RECEIPTS[4], make_scene(11, Layout(sign_chance=1.0, sign_side=(0.5, 0.6)))):
        grey = np.asarray(draw(picture).convert("L"), dtype=float)
        letters = glyphs_of(picture)
        assert letters
        for glyph in letters:
            assert _inside(grey, glyph).std() > 25, glyph  # ink and paper


def _inside(grey: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]", glyph: Glyph) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    x1, y1, x2, y2 = (round(value) for value in glyph.box)
    return grey[y1:y2, x1:x2]


def test_bars_are_as_high_as_their_values() -> None:
    for chart in CHARTS:
        heights = [panel.box_px[3] - panel.box_px[1] for panel in chart_page(chart).panels[:-1]]
        values = [bar.value for bar in chart.bars]
        assert len(heights) == len(values) == len(set(values)) and len({bar.name for bar in chart.bars}) == len({bar.colour for bar in chart.bars})
        top = max(values)
        for height, value in zip(heights, values, strict=True):
            assert abs(height - max(198 * value / top, 8)) <= 0.5, chart  # 198 pixels from the foot to the top
        picture = draw(chart)
        for bar, panel in zip(chart.bars, chart_page(chart).panels, strict=False):
            x1, _, x2, y2 = panel.box_px
            assert picture.getpixel(((x1 + x2) // 2, y2 - 4)) == colour_rgb(bar.colour)


def test_every_answer_about_a_chart_can_be_read_off_it() -> None:
    for chart in CHARTS:
        values = {bar.name: bar.value for bar in chart.bars}
        colours = {bar.name: bar.colour for bar in chart.bars}
        for task in page_tasks(chart, chart.seed % 3):
            assert task.name == "chart"
            question, answer = task.turns[0].question, task.turns[0].answer
            named = [name for name in values if question.startswith((f"{name}是", f"{name}的", f"{name}有")) or f" {name}?" in question]
            if _asks(question, "title", "does the chart show", "标题"):
                assert answer == chart_page(chart).words[0].text
            elif _asks(question, "highest", "the most", "最高", "最多"):
                assert values[answer] == max(values.values())
            elif _asks(question, "lowest", "the least", "最低", "最少"):
                assert values[answer] == min(values.values())
            elif _asks(question, "How many bars", "几个柱子"):
                assert int(answer) == len(values)
            elif _asks(question, "colo", "什么颜色"):
                assert COLOUR_WORDS[answer] == colours[named[0]]
            elif _asks(question, "value", "How many has", "多少"):
                assert int(answer) == values[named[0]]
            else:
                (colour,) = {meaning for word, meaning in COLOUR_WORDS.items() if word in question}
                assert colours[answer] == colour, question


def test_every_answer_about_a_receipt_can_be_read_off_it() -> None:
    for receipt in RECEIPTS:
        prices = {item.name: item.price for item in receipt.items}
        words = [word.text for word in receipt_page(receipt).words]
        assert words[-1] == str(sum(prices.values()))
        for task in page_tasks(receipt, receipt.seed % 3):
            question, answer = task.turns[0].question, task.turns[0].answer
            if task.name == "receipt_json":
                assert json.loads(answer) == {
                    "shop": words[0],
                    "items": [{"name": name, "price": price} for name, price in prices.items()],
                    "total": int(words[-1]),
                }
            elif _asks(question, "shop", "店"):
                assert answer == words[0]
            elif _asks(question, "total", "in all", "总计", "一共多少钱"):
                assert answer == words[-1]
            elif _asks(question, "How many", "几样"):
                assert int(answer) == len(prices)
            elif _asks(question, "most", "dearest", "最贵"):
                assert prices[answer] == max(prices.values()) and len(prices) > 1
            else:
                (named,) = [
                    name for name in prices if question.startswith((f"{name}多", f"{name}的")) or f" {name}?" in question or f" {name} " in question
                ]
                assert int(answer) == prices[named], question


def _asks(question: str, *parts: str) -> bool:
    return any(part in question for part in parts)


def test_strange_pictures_have_one_honest_answer() -> None:
    for seed in range(20):
        tasks: list[Task] = strange_tasks(make_strange(seed), seed)
        assert len(tasks) > 10
        assert {(task.language, task.turns[0].answer) for task in tasks} == set(STRANGE_ANSWER.items())


def test_strange_pictures_of_training_are_of_the_taught_families() -> None:
    assert {make_strange(seed).family for seed in range(200)} == set(TAUGHT)
    assert {make_strange(EVALUATION_SEED_START + seed).family for seed in range(200)} == {*TAUGHT, *UNTAUGHT}
    drawn = [draw(make_strange(EVALUATION_SEED_START + seed)) for seed in range(30)]
    assert len({picture.tobytes() for picture in drawn}) == 30
    assert draw(make_strange(7)).tobytes() == draw(make_strange(7)).tobytes()
