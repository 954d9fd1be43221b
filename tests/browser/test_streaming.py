"""What happens while an answer is written: pieces, boxes as they come, stop, other visitors, and markup in answers; the test writes the answers."""

import time
from pathlib import Path
from typing import Any

import pytest

from qwen_vl.errors import CapacityError
from qwen_vl.serving.web.texts import EN, ZH
from tests.browser.conftest import DEADLINE_MS, OpenPage
from tests.browser.test_page import expect, field, on_both_screens, wait_for_answer
from tests.unit.serving.web.scripted import ScriptedModel, ScriptedStream

pytestmark = pytest.mark.browser


def begin(page: Any, model: ScriptedModel, question: str) -> ScriptedStream:
    """Ask, and wait until the model was asked."""
    before = len(model.streams)
    field(page).fill(question)
    field(page).press("Enter")
    deadline = time.monotonic() + DEADLINE_MS / 1000
    while len(model.streams) == before:
        assert time.monotonic() < deadline
        page.wait_for_timeout(20)  # lets the browser work
    return model.streams[-1]


@on_both_screens
def test_words_and_boxes_appear_as_they_come(
    open_page: OpenPage, scripted: ScriptedModel, scripted_url: str, picture_files: list[Path], viewport: dict[str, int]
) -> None:
    page = open_page(scripted_url, viewport)
    page.locator("#composer input[type=file]").set_input_files(picture_files[:1])
    stream = begin(page, scripted, "Find them.")
    live = page.locator("#live .answer")
    expect(page.locator("#picture img")).to_be_visible()
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    stream.write("I see ")
    expect(live).to_have_text("I see")
    stream.write("<ref>a dog</ref>")
    expect(live).to_have_text("I see a dog")
    expect(page.locator("#boxes .box")).to_have_count(0)
    stream.write("<box>(100,100),(400")
    expect(live).to_have_text("I see a dog")
    stream.write(",500)</box>")
    expect(page.locator("#boxes .box")).to_have_count(1)
    stream.write(" and <ref>a girl</ref><box>(500,100),(900,500)</box>")
    expect(page.locator("#boxes .box")).to_have_count(2)
    assert page.locator("#live [data-busy]").count() == 1  # it is still being written
    stream.end()
    wait_for_answer(page, 1)
    expect(page.locator(".answer")).to_have_text("I see a dog and a girl")


def test_a_box_and_its_line_are_one_and_a_phrase_is_all_of_its_boxes(
    open_page: OpenPage, scripted: ScriptedModel, scripted_url: str, picture_files: list[Path]
) -> None:
    page = open_page(scripted_url)
    page.locator("#composer input[type=file]").set_input_files(picture_files[:1])
    stream = begin(page, scripted, "Find all boats.")
    stream.write(
        "<ref>all boats</ref><box>(100,100),(300,300)</box><box>(500,500),(900,900)</box> and <ref>a dog</ref><box>(600,100),(800,300)</box>"
    )
    stream.end()
    wait_for_answer(page, 1)
    boxes, rows, phrases = page.locator("#boxes .box"), page.locator("table.boxes tbody tr"), page.locator("mark.phrase")
    lit = [page.locator(f"{each}.is-lit") for each in ("#boxes .box", "table.boxes tbody tr", "mark.phrase")]
    rows.nth(1).hover()
    for found in lit:
        expect(found).to_have_count(1)
    expect(lit[0].locator(".tip")).to_have_text("(500, 500) – (900, 900)")
    expect(lit[2]).to_have_text("all boats")
    boxes.filter(has_text="(100, 100) – (300, 300)").hover()
    expect(lit[1]).to_contain_text("(100, 100) – (300, 300)")
    for found in lit:
        expect(found).to_have_count(1)
    phrases.first.hover()
    for found, count in zip(lit, (2, 2, 1), strict=True):
        expect(found).to_have_count(count)
    page.mouse.move(5, 5)
    for found in lit:
        expect(found).to_have_count(0)


def test_failures_of_the_model_are_told_in_the_pages_language(open_page: OpenPage, scripted: ScriptedModel, scripted_url: str) -> None:
    page = open_page(scripted_url, locale="zh-CN")
    begin(page, scripted, "你好？").end(CapacityError("no memory at /home/somebody"))
    expect(page.locator(".failure")).to_have_text(f"{ZH.error} {ZH.errors['out_of_memory']}")
    page.get_by_role("button", name="English").click()
    expect(page.locator(".failure")).to_have_text(f"{EN.error} {EN.errors['out_of_memory']}")


def test_stop_keeps_what_was_written_and_leaves_others_alone(open_page: OpenPage, scripted: ScriptedModel, scripted_url: str) -> None:
    mine, other = open_page(scripted_url), open_page(scripted_url)
    my_stream = begin(mine, scripted, "Mine?")
    other_stream = begin(other, scripted, "Other?")
    for stream in (my_stream, other_stream):
        stream.write("Some words")
    expect(mine.locator("#live .answer")).to_have_text("Some words")
    mine.keyboard.press("Escape")
    wait_for_answer(mine, 1)
    expect(mine.locator(".remark")).to_have_text("Stopped")
    expect(mine.locator(".answer")).to_have_text("Some words")
    assert my_stream.is_closed
    assert not other_stream.is_closed
    other_stream.write(", and more")
    expect(other.locator("#live .answer")).to_have_text("Some words, and more")
    other_stream.end()
    wait_for_answer(other, 1)
    # What was stopped is part of the conversation, and the next question works.
    begin(mine, scripted, "Go on").end()
    wait_for_answer(mine, 2)
    assert [message["role"] for message in scripted.asked[-1][0]] == ["user", "assistant", "user"]


def test_the_stop_button_and_a_new_chat_end_an_answer(open_page: OpenPage, scripted: ScriptedModel, scripted_url: str) -> None:
    page = open_page(scripted_url)
    stream = begin(page, scripted, "One?")
    page.get_by_role("button", name="Stop").click()
    wait_for_answer(page, 1)
    assert stream.is_closed
    stream = begin(page, scripted, "Two?")
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".welcome")).to_be_visible()
    expect(page.locator("#live [data-busy]")).to_have_count(0)
    assert stream.is_closed
    begin(page, scripted, "Three?").end()
    wait_for_answer(page, 1)


def test_closing_the_page_frees_the_engine(open_page: OpenPage, scripted: ScriptedModel, scripted_url: str) -> None:
    page, witness = open_page(scripted_url), open_page(scripted_url)
    stream = begin(page, scripted, "One?")
    page.close()
    deadline = time.monotonic() + DEADLINE_MS / 1000
    while not stream.is_closed:
        assert time.monotonic() < deadline
        witness.wait_for_timeout(50)


def test_markup_in_questions_and_answers_is_shown_as_text(
    open_page: OpenPage, scripted: ScriptedModel, scripted_url: str, picture_files: list[Path]
) -> None:
    attack = '<img src="http://example.org/a.png" onerror="alert(1)"><script>alert(2)</script>![x](http://example.org/b.png){{value}}${alert(3)}'
    page = open_page(scripted_url)
    page.locator("#composer input[type=file]").set_input_files(picture_files[:1])
    stream = begin(page, scripted, attack)
    for _ in range(2):  # as it is written, and when it is whole
        stream.write(f"{attack}<ref>{attack}</ref><box>(100,100),(400,500)</box>")
        expect(page.locator("#boxes .box").first).to_be_visible()
    expect(page.locator("#live .answer")).to_contain_text("{{value}}${alert(3)}")
    stream.end()
    wait_for_answer(page, 1)
    expect(page.locator(".question")).to_have_text(attack)
    expect(page.locator(".answer")).to_contain_text(attack)
    expect(page.locator("table.boxes tbody")).to_contain_text("<script>alert(2)</script>")
    assert page.locator(":is(.answer, .question, #boxes, #list) :is(img, script)").count() == 0


def test_a_failure_is_told_and_can_be_tried_again(open_page: OpenPage, scripted: ScriptedModel, scripted_url: str) -> None:
    page = open_page(scripted_url)
    stream = begin(page, scripted, "One?")
    stream.write("Half")
    expect(page.locator("#live .answer")).to_have_text("Half")
    stream.end(RuntimeError("/home/somebody 0xdeadbeef"))
    expect(page.locator(".failure")).to_have_text("That did not work. Something went wrong here. Please try again.")
    expect(page.locator(".answer")).to_have_text("Half")
    page.get_by_role("button", name="Regenerate").click()
    deadline = time.monotonic() + DEADLINE_MS / 1000
    while len(scripted.streams) < 2:
        assert time.monotonic() < deadline
        page.wait_for_timeout(20)
    scripted.streams[-1].write("Whole")
    scripted.streams[-1].end()
    expect(page.locator(".answer")).to_have_text("Whole")
    expect(page.locator(".failure")).to_have_count(0)


def test_a_long_answer_scrolls_with_its_end(open_page: OpenPage, scripted: ScriptedModel, scripted_url: str) -> None:
    page = open_page(scripted_url)
    stream = begin(page, scripted, "Tell me a story.")
    stream.write("\n".join(f"line {number}" for number in range(200)))
    expect(page.locator("#live .answer")).to_contain_text("line 199")
    page.wait_for_function(
        """() => {
            const shown = document.querySelector('#conversation');
            return shown.scrollTop > 0 && shown.scrollTop + shown.clientHeight > shown.scrollHeight - 90;
        }"""
    )
    expect(page.locator("#composer textarea")).to_be_in_viewport()
    stream.end()
    wait_for_answer(page, 1)
