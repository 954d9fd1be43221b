"""The page as a visitor uses it, with the bundled model: upload, ask, boxes, regenerate, edit, clear, languages, downloads; wide and narrow."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from qwen_vl.grounding.export import from_coco
from qwen_vl.picturebook.scene import demo_scene
from qwen_vl.serving.web.texts import EN, ZH
from tests.browser.conftest import DEADLINE_MS, NARROW, WIDE, OpenPage

expect_of = pytest.importorskip("playwright.sync_api").expect
pytestmark = pytest.mark.browser
on_both_screens = pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["wide", "narrow"])


def expect(subject: Any) -> Any:
    """Expect something soon, however slow the machine."""
    expect_of.set_options(timeout=DEADLINE_MS)
    return expect_of(subject)


def field(page: Any) -> Any:
    return page.locator("#composer textarea")


def ask(page: Any, question: str, num_turns: int) -> None:
    """Ask, and wait for the whole answer of the given turn."""
    field(page).fill(question)
    field(page).press("Enter")
    wait_for_answer(page, num_turns)


def wait_for_answer(page: Any, num_turns: int) -> None:
    expect(page.locator(".turn")).to_have_count(num_turns)
    expect(page.locator(".turn").last.locator("[data-action=again]")).to_be_visible()
    expect(page.locator("#live [data-busy]")).to_have_count(0)


@on_both_screens
def test_upload_ask_box_regenerate_edit_clear(open_page: OpenPage, nano_url: str, picture_files: list[Path], viewport: dict[str, int]) -> None:
    page = open_page(nano_url, viewport)
    expect(page.locator(".welcome h2")).to_be_visible()
    page.locator("#composer input[type=file]").set_input_files(picture_files)
    expect(page.locator(".chips li")).to_have_count(2)
    page.locator(".chips li").last.get_by_role("button").click()
    expect(page.locator(".chips li")).to_have_count(1)

    ask(page, "Find the dog.", 1)
    expect(page.locator(".chips li")).to_have_count(0)
    expect(page.locator(".turn .shot img")).to_have_count(1)
    expect(page.locator(".answer mark.phrase")).to_have_text("the dog")
    expect(page.locator("#picture img")).to_be_visible()
    box = page.locator("#boxes .box")
    expect(box).to_have_count(1)
    expect(box).to_be_visible()
    # The frame lies around the dog, where the scene has it.
    frame, drawn = page.locator("#picture .frame").bounding_box(), box.bounding_box()
    place = [(drawn["x"] - frame["x"]) / frame["width"], (drawn["y"] - frame["y"]) / frame["height"]]
    size = [drawn["width"] / frame["width"], drawn["height"] / frame["height"]]
    scene = demo_scene()
    left, top, right, bottom = next(thing.box_px for thing in scene.things if thing.kind == "dog")
    expected = [left / scene.width, top / scene.height, (right - left) / scene.width, (bottom - top) / scene.height]
    assert [*place, *size] == pytest.approx(expected, abs=0.03)
    expect(page.locator("table.boxes tbody tr")).to_have_count(1)

    # A phrase, its box and its line light up together.
    page.locator(".answer mark.phrase").hover()
    expect(page.locator("#boxes .box.is-lit .tip")).to_be_visible()
    expect(page.locator("table.boxes tr.is-lit")).to_have_count(1)

    page.get_by_role("button", name="Regenerate").click()
    wait_for_answer(page, 1)
    expect(page.locator("#boxes .box")).to_have_count(1)

    ask(page, "What colour is it?", 2)  # about the same picture
    page.locator(".turn").first.hover()
    page.locator(".turn").first.get_by_role("button", name="Edit").click()
    expect(field(page)).to_have_value("Find the dog.")
    expect(page.locator(".chips li")).to_have_count(1)  # the question's picture, which can be taken away
    ask(page, "Find the girl.", 1)
    expect(page.locator(".question")).to_have_text("Find the girl.")
    expect(page.locator(".turn .shot img")).to_have_count(1)  # the picture stays
    expect(page.locator(".answer mark.phrase")).to_contain_text("girl")

    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".welcome")).to_be_visible()
    expect(page.locator(".turn")).to_have_count(0)
    expect(page.locator("#boxes .box")).to_have_count(0)
    width = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert width[0] <= width[1], "nothing sticks out at the side"


def test_examples_and_several_pictures(open_page: OpenPage, nano_url: str) -> None:
    page = open_page(nano_url)
    expect(page.locator(".card")).to_have_count(6)
    page.locator(".card").nth(4).click()
    wait_for_answer(page, 1)
    expect(page.locator(".shot")).to_have_count(2)
    expect(page.locator("#picture figcaption")).to_contain_text("Picture 2")
    page.locator(".shot").first.click()
    expect(page.locator("#picture figcaption")).to_contain_text("Picture 1")


def test_paste_and_drop(open_page: OpenPage, nano_url: str, picture_files: list[Path]) -> None:
    """Several pictures at once, each way."""
    page = open_page(nano_url)
    content = base64.b64encode(picture_files[0].read_bytes()).decode()
    make = """(kind, content) => {
        const transfer = new DataTransfer();
        const bytes = Uint8Array.from(atob(content), (char) => char.charCodeAt(0));
        for (const number of [1, 2]) transfer.items.add(new File([bytes], `${kind}-${number}.png`, { type: 'image/png' }));
        transfer.items.add(new File(['words'], 'notes.txt', { type: 'text/plain' }));
        return transfer;
    }"""
    names = "(images) => images.map((image) => image.alt)"
    page.evaluate(
        f"""(content) => {{
            const clipboardData = ({make})('pasted', content);
            document.body.dispatchEvent(new ClipboardEvent('paste', {{ clipboardData, bubbles: true, cancelable: true }}));
        }}""",
        content,
    )
    expect(page.locator(".chips li")).to_have_count(2)
    page.evaluate(
        f"""(content) => {{
            const dataTransfer = ({make})('dropped', content);
            for (const type of ['dragenter', 'dragover', 'drop'])
                document.querySelector('#look').dispatchEvent(new DragEvent(type, {{ dataTransfer, bubbles: true, cancelable: true }}));
        }}""",
        content,
    )
    expect(page.locator(".chips li")).to_have_count(4)
    assert page.locator(".chips img").evaluate_all(names) == ["pasted-1.png", "pasted-2.png", "dropped-1.png", "dropped-2.png"]
    expect(page.locator("body.is-dropping")).to_have_count(0)
    ask(page, "What is in this picture?", 1)
    expect(page.locator(".shot")).to_have_count(4)


def test_an_edited_question_can_lose_its_pictures_and_get_others(open_page: OpenPage, nano_url: str, picture_files: list[Path]) -> None:
    page = open_page(nano_url)
    page.locator("#composer input[type=file]").set_input_files(picture_files)
    ask(page, "What is this?", 1)
    expect(page.locator("#picture figcaption")).to_contain_text("boats.jpg")
    page.locator(".turn").hover()
    page.get_by_role("button", name="Edit").click()
    expect(page.locator(".chips li")).to_have_count(2)
    page.get_by_role("button", name="Remove Picture 2").click()
    ask(page, "Find the dog.", 1)
    expect(page.locator(".shot")).to_have_count(1)
    expect(page.locator("#picture figcaption")).to_contain_text("beach.png")
    page.locator(".turn").hover()
    page.get_by_role("button", name="Edit").click()
    page.get_by_role("button", name="Remove Picture 1").click()
    page.locator("#composer input[type=file]").set_input_files(picture_files[1:])
    ask(page, "And here?", 1)
    expect(page.locator(".shot")).to_have_count(1)
    expect(page.locator("#picture figcaption")).to_contain_text("boats.jpg")


def test_editing_is_there_without_a_pointer(browser: Any, nano_url: str) -> None:
    """A tablet: a wide screen that nothing hovers over."""
    context = browser.new_context(viewport=WIDE, has_touch=True, is_mobile=True)
    try:
        page = context.new_page()
        page.goto(nano_url)
        page.wait_for_selector("body.is-ready")
        assert page.evaluate("matchMedia('(hover: none)').matches")
        page.locator(".card").first.tap()
        wait_for_answer(page, 1)
        assert page.locator("[data-action=edit]").evaluate("(button) => getComputedStyle(button).opacity") == "1"
    finally:
        context.close()


@on_both_screens
def test_whose_model_it_is_stands_there_in_both_languages(open_page: OpenPage, nano_url: str, viewport: dict[str, int]) -> None:
    page = open_page(nano_url, viewport)
    for switch in ("中文", "English"):
        for texts in (EN, ZH):
            names = {"chat": "Qwen-VL-Chat", "base": "Qwen-VL", "licence": texts.licence}
            note = page.get_by_text(texts.note.format(**names), exact=True)
            expect(note).to_be_in_viewport(ratio=1)
            links = note.get_by_role("link").evaluate_all("(links) => links.map((link) => link.href)")
            assert [link.rpartition("/")[2] for link in links] == ["Qwen-VL-Chat", "Qwen-VL", "LICENSE"]
        page.get_by_role("button", name=switch).click()
        expect(page.locator("html")).to_have_attribute("lang", "zh-CN" if switch == "中文" else "en")


def test_the_list_of_boxes_is_seen_on_a_narrow_screen(open_page: OpenPage, nano_url: str) -> None:
    page = open_page(nano_url, NARROW)
    page.locator(".card").nth(2).click()
    wait_for_answer(page, 1)
    rows = page.locator("table.boxes tbody tr")
    assert rows.count() > 1
    for row in rows.all():
        expect(row).to_be_in_viewport(ratio=1)
    expect(page.locator("#picture img")).to_be_in_viewport(ratio=1)
    expect(page.locator(".downloads")).to_be_in_viewport(ratio=1)


@on_both_screens
def test_both_languages(open_page: OpenPage, nano_url: str, viewport: dict[str, int]) -> None:
    page = open_page(nano_url, viewport)
    field(page).fill("a draft")
    page.get_by_role("button", name="中文").click()
    expect(page.locator(".welcome h2")).to_have_text("想看点什么？")
    expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
    expect(field(page)).to_have_value("a draft")
    expect(field(page)).to_have_attribute("placeholder", "问点什么，例如：框出图中的狗")
    page.locator(".card").first.click()
    wait_for_answer(page, 1)
    expect(page.locator("#boxes .box .tag b")).to_have_text("狗")
    page.get_by_role("button", name="设置").click()
    expect(page.locator("#settings")).to_contain_text("温度")
    page.keyboard.press("Escape")
    expect(page.locator("#settings")).to_be_hidden()
    page.get_by_role("button", name="English").click()
    expect(page.get_by_role("button", name="Regenerate")).to_be_visible()
    expect(page.locator("#boxes .box .tag b")).to_have_text("狗")  # what was said stays as it was


def test_a_chinese_browser_gets_the_chinese_page(open_page: OpenPage, nano_url: str) -> None:
    page = open_page(nano_url, NARROW, locale="zh-CN")
    expect(page.locator(".welcome h2")).to_have_text("想看点什么？")


def test_settings_reach_the_model(open_page: OpenPage, nano_url: str) -> None:
    page = open_page(nano_url)
    page.locator("#head [data-action=settings]").click()
    page.get_by_label("number input for Longest answer").fill("16")
    page.get_by_label("number input for Longest answer").press("Tab")
    page.get_by_label("Tell the confidence of each box").uncheck()
    page.keyboard.press("Escape")
    page.locator(".card").nth(1).click()
    wait_for_answer(page, 1)
    expect(page.locator(".remark")).to_have_text("Cut off at the longest length allowed")

    page.locator("#head [data-action=settings]").click()
    page.get_by_label("Seed").fill("many")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Regenerate").click()
    expect(page.locator(".failure")).to_contain_text("seed='many' must be a whole number")


@on_both_screens
def test_downloads(open_page: OpenPage, nano_url: str, tmp_path: Path, viewport: dict[str, int]) -> None:
    page = open_page(nano_url, viewport)
    page.locator(".card").first.click()
    wait_for_answer(page, 1)
    saved: dict[str, bytes] = {}
    for kind in ("picture", "json", "coco", "coco"):  # the same file can be saved again
        with page.expect_download() as download:
            page.locator(f"[data-kind={kind}]").click()
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
        saved[path.name] = path.read_bytes()
    assert set(saved) == {"beach-boxes.png", "beach-boxes.json", "beach-coco.json"}
    assert saved["beach-boxes.png"].startswith(b"\x89PNG")
    document = json.loads(saved["beach-boxes.json"])
    assert document["boxes"][0]["text"] == "the dog"
    assert 0 < document["boxes"][0]["scores"][0]["confidence"] <= 1
    (picture,) = from_coco(json.loads(saved["beach-coco.json"]))
    assert [box.to_tuple() for box in picture.refs[0].boxes] == [tuple(box) for box in document["boxes"][0]["boxes"]]


@on_both_screens
def test_by_keyboard_alone(open_page: OpenPage, nano_url: str, viewport: dict[str, int]) -> None:
    page = open_page(nano_url, viewport)
    field(page).focus()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    expect(field(page)).to_have_value("one\ntwo")
    field(page).fill("")
    # Every control can be reached and says what it is.
    page.locator("#head [data-action=language]").focus()
    names = []
    for _ in range(12):
        names.append(
            page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.innerText.trim() || document.activeElement.id")
        )
        assert (
            page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
            or page.evaluate("document.activeElement.tagName") == "TEXTAREA"
        )
        page.keyboard.press("Tab")
    assert all(names)
    assert {"中文", "Light or dark", "Settings", "Try the example: Find the dog.", "Add pictures", "Your question"} <= set(names)
    page.locator(".card").first.focus()
    page.keyboard.press("Enter")
    wait_for_answer(page, 1)
    page.locator("mark.phrase").focus()
    expect(page.locator("#boxes .box.is-lit")).to_have_count(1)
    unnamed = page.evaluate(
        """[...document.querySelectorAll('button, textarea, img')]
            .filter((each) => !(each.innerText || each.ariaLabel || each.title || each.alt || each.closest('.card'))).length"""
    )
    assert unnamed == 0


def test_light_and_dark(open_page: OpenPage, nano_url: str) -> None:
    page = open_page(nano_url, scheme="dark")
    expect(page.locator("body.dark")).to_have_count(1)
    page.get_by_role("button", name="Light or dark").click()
    expect(page.locator("body.dark")).to_have_count(0)
    page.reload()
    page.wait_for_selector("body.is-ready")
    expect(page.locator("body.dark")).to_have_count(0)


# Texts that are hard to read: WCAG 2.2, success criterion 1.4.3. A colour may be written in any way; a canvas makes numbers of it.
FAINT = """() => {
    const pen = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
    const rgba = (colour) => {
        pen.clearRect(0, 0, 1, 1);
        pen.fillStyle = colour;
        pen.fillRect(0, 0, 1, 1);
        return [...pen.getImageData(0, 0, 1, 1).data].map((value) => value / 255);
    };
    const over = (above, below, share = 1) => [0, 1, 2].map((at) => above[at] * above[3] * share + below[at] * (1 - above[3] * share));
    const light = (rgb) => {
        const [r, g, b] = rgb.map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const lineage = (element) => element ? [...lineage(element.parentElement), element] : [];
    const told = [];
    const look = (element, colour, words, share = 1) => {
        let below = [1, 1, 1];
        for (const each of lineage(element)) {
            const style = getComputedStyle(each);
            below = over(rgba(style.backgroundColor), below);
            share *= Number(style.opacity);
        }
        const [low, high] = [light(over(rgba(colour), below, share)), light(below)].sort((a, b) => a - b);
        const contrast = (high + 0.05) / (low + 0.05), style = getComputedStyle(element), size = parseFloat(style.fontSize);
        const needed = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700) ? 3 : 4.5;
        told.push({ words: words.trim().slice(0, 40), contrast, needed, colour, below: below.map((value) => Math.round(value * 255)) });
    };
    for (const element of document.querySelectorAll('body *')) {
        const isHidden = element.closest('.for-readers, #status, style, script');
        if (isHidden || !element.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
        const words = [...element.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE).map((node) => node.data).join('');
        if (words.trim()) look(element, getComputedStyle(element).color, words);
        if (element.placeholder) {
            const style = getComputedStyle(element, '::placeholder');
            look(element, style.color, element.placeholder, Number(style.opacity));
        }
        const isField = element.matches('textarea, input:not([type=file], [type=range], [type=checkbox])');
        if (isField && element.value) look(element, getComputedStyle(element).color, element.value);
    }
    return [told.length, told.filter(({ contrast, needed }) => contrast < needed)];
}"""


def assert_readable(page: Any) -> None:
    page.mouse.move(5, 5)
    page.wait_for_timeout(500)  # colours change smoothly
    num_texts, faint = page.evaluate(FAINT)
    assert num_texts > 20
    assert faint == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_texts_have_contrast(open_page: OpenPage, nano_url: str, tmp_path: Path, scheme: str) -> None:
    """An empty page; an answer with boxes; a notice; the settings, and a failure."""
    (tmp_path / "fake.png").write_bytes(b"no picture")
    page = open_page(nano_url, scheme=scheme)
    assert_readable(page)
    page.locator(".card").nth(1).click()
    wait_for_answer(page, 1)
    assert_readable(page)
    page.locator("#composer input[type=file]").set_input_files([tmp_path / "fake.png"])
    field(page).fill("What is it?")
    field(page).press("Enter")
    expect(page.locator(".notice")).to_be_visible()
    assert_readable(page)
    page.locator("#head [data-action=settings]").click()
    page.get_by_label("Seed").fill("many")
    assert_readable(page)
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Regenerate").click()
    expect(page.locator(".failure")).to_be_visible()
    assert_readable(page)


def test_a_file_that_is_no_picture_is_refused_and_the_question_comes_back(open_page: OpenPage, nano_url: str, tmp_path: Path) -> None:
    (tmp_path / "fake.png").write_bytes(b"no picture")
    page = open_page(nano_url)
    page.locator("#composer input[type=file]").set_input_files([tmp_path / "fake.png"])
    expect(page.locator(".chips li")).to_have_count(1)
    field(page).fill("What is it?")
    field(page).press("Enter")
    expect(page.locator(".notice")).to_contain_text("fake.png is not a picture that can be read")
    expect(field(page)).to_have_value("What is it?")
    expect(page.locator(".chips li")).to_have_count(1)
    page.locator(".chips button").click()
    ask(page, "Hello", 1)
    expect(page.locator(".notice")).to_have_count(0)
