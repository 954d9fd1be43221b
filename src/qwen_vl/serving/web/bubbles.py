"""The conversation as HTML: what was said, the answer that is being written, and the frame around both. Everything that is not ours is escaped."""

import secrets

from qwen_vl.serving.web.answers import answer_html, plain_text
from qwen_vl.serving.web.conversation import Conversation, Turn
from qwen_vl.serving.web.examples import Example
from qwen_vl.serving.web.markup import Markup, escape, icon, icon_button, join, tag
from qwen_vl.serving.web.texts import TEXTS, Texts

LICENCE = "https://github.com/QwenLM/Qwen-VL/blob/master/LICENSE"  # of the released weights


def history_html(conversation: Conversation, texts: Texts) -> Markup:
    """Write all turns; of one that is still being written only the question, its answer is `live_html`."""
    turns = conversation.turns
    return join(*(_turn_html(turn, index, index == len(turns) - 1, texts, _first_number(turns, index)) for index, turn in enumerate(turns)))


def live_html(conversation: Conversation, texts: Texts) -> Markup:
    """Write the answer that is being written; nothing if none is."""
    if not conversation.turns or conversation.turns[-1].has_ended:
        return Markup("")
    index = len(conversation.turns) - 1
    text = answer_html(conversation.turns[-1].text, index, texts.unnamed_box)
    dots = tag("span", tag("i"), tag("i"), tag("i"), class_="dots", role="img", aria_label=texts.writing)
    return tag("div", tag("div", text, dots, class_="answer"), class_="said by-model", data_busy=True)


def _first_number(turns: list[Turn], index: int) -> int:
    """Return the number of the first picture of a turn; pictures are counted through the conversation from 1."""
    return 1 + sum(len(turn.pictures) for turn in turns[:index])


def _turn_html(turn: Turn, index: int, is_last: bool, texts: Texts, first_number: int) -> Markup:
    question = join(
        tag("h3", texts.you, class_="for-readers"),
        tag("div", *_shots(turn, index, texts, first_number), class_="shots") if turn.pictures else None,
        tag(
            "div",
            icon_button("edit", texts.edit, "edit", data_turn=index, data_question=turn.question),
            tag("div", turn.question, class_="question"),
            class_="asked",
        ),
    )
    answer = _ended_html(turn, index, is_last, texts) if turn.has_ended else None
    return tag("article", tag("div", question, class_="said by-user"), answer, class_="turn", data_turn=index)


def _shots(turn: Turn, index: int, texts: Texts, first_number: int) -> list[Markup]:
    """Write the turn's pictures, each a button that shows it large."""
    shots = []
    for place, picture in enumerate(turn.pictures):
        number = first_number + place
        image = tag("img", src=picture.thumb, alt=texts.picture.format(number=number))
        label = texts.show_picture.format(number=number)
        data = {"data_turn": index, "data_picture": number - 1}
        shots.append(tag("button", image, type="button", class_="shot", title=label, aria_label=label, data_action="view", **data))
    return shots


def _ended_html(turn: Turn, index: int, is_last: bool, texts: Texts) -> Markup:
    remark = {"stopped": texts.stopped, "cut_off": texts.cut_off}.get(turn.state)
    return tag(
        "div",
        tag("h3", texts.model, class_="for-readers"),
        tag("div", answer_html(turn.text, index, texts.unnamed_box), class_="answer") if turn.text else None,
        tag("p", f"{texts.error} {texts.explain(turn.error)}", class_="failure", role="alert") if turn.state == "failed" else None,
        tag("p", remark, class_="remark") if remark else None,
        tag("p", texts.left_out.format(count=turn.num_left_out), class_="remark") if turn.num_left_out else None,
        tag("div", *_answer_tools(turn, index, is_last, texts), class_="tools"),
        class_="said by-model",
    )


def _answer_tools(turn: Turn, index: int, is_last: bool, texts: Texts) -> list[Markup]:
    tools = []
    num_boxes = sum(len(ref.boxes) + len(ref.quads) for ref in turn.refs)
    if num_boxes:
        count = texts.one_box if num_boxes == 1 else texts.num_boxes.format(count=num_boxes)
        tools.append(icon_button("boxes", texts.show_boxes, "view", count, data_turn=index))
    if turn.text:
        tools.append(icon_button("copy", texts.copy, "copy", data_text=plain_text(turn.text), data_done=texts.copied))
    if is_last:
        tools.append(icon_button("again", texts.regenerate, "again"))
    return tools


def welcome_html(examples: list[Example], model_name: str, is_nano: bool, texts: Texts) -> Markup:
    """Write what an empty conversation shows: what the page is for, and examples to click."""
    cards = [
        tag(
            "button",
            tag("span", *(tag("img", src=picture.thumb, alt="") for picture in example.pictures), class_="card-pictures"),
            tag("span", example.question(texts.language), class_="card-question"),
            type="button",
            class_="card",
            aria_label=texts.example.format(question=example.question(texts.language)),
            data_action="example",
            data_example=number,
        )
        for number, example in enumerate(examples)
    ]
    return tag(
        "section",
        tag("h2", texts.welcome),
        tag("p", texts.welcome_hint),
        tag("div", *cards, class_="cards", role="group", aria_label=texts.examples),
        tag("p", texts.welcome_model.format(model=model_name), " ", texts.nano_hint if is_nano else None, class_="quiet"),
        class_="welcome",
    )


def notice_html(message: str, texts: Texts) -> Markup:
    """Write what went wrong before anything was asked; the page gives the question back to edit."""
    if not message:
        return Markup("")
    # The number makes each one new to the browser, even if it says what the last one said.
    number = secrets.token_hex(4)
    return tag("div", tag("span", message), icon_button("close", texts.close, "close-notice"), class_="notice", role="alert", data_number=number)


def status_text(turn: Turn, texts: Texts) -> Markup:
    """Say to screen readers what has happened: only whole answers, not each word as it comes."""
    if turn.state == "writing":
        return tag("span", texts.writing)
    if turn.state == "failed":
        return tag("span", f"{texts.error} {texts.explain(turn.error)}")
    return tag("span", texts.answered.format(text=plain_text(turn.text) or texts.stopped))


def header_html(model_name: str, texts: Texts) -> Markup:
    """Write the page's head: its name, the model, and the buttons of the whole page."""
    return tag(
        "header",
        tag("span", icon("boxes"), class_="logo"),
        tag("div", tag("h1", "Qwen-VL"), tag("span", texts.tagline, class_="tagline"), class_="name"),
        tag("span", model_name, class_="model-name", title=model_name),
        tag(
            "nav",
            icon_button("new", texts.new_chat, "clear", texts.new_chat),
            tag(
                "button",
                texts.switch_language,
                type="button",
                class_="icon-button language",
                title=texts.switch_language_hint,
                lang="zh-CN" if texts.language == "en" else "en",
                data_action="language",
                data_language="zh" if texts.language == "en" else "en",
            ),
            icon_button("theme", texts.switch_theme, "theme"),
            icon_button("settings", texts.settings, "settings", aria_expanded="false", aria_controls="settings"),
        ),
        data_page_language="zh-CN" if texts.language == "zh" else "en",
        data_conversation=texts.conversation,
        data_look=texts.stage,
        data_settings=texts.settings,
        class_="page-head",
    )


def composer_html(texts: Texts) -> Markup:
    """Write the place where questions are written; the page's script keeps its state."""
    return tag(
        "form",
        tag("div", tag("span", texts.editing), icon_button("close", texts.cancel, "cancel-edit"), class_="editing"),
        tag("p", class_="warning", role="alert"),
        tag("ul", class_="chips", aria_label=texts.pictures_to_send, data_remove=texts.remove_picture),
        tag(
            "div",
            icon_button("plus", texts.upload, "upload"),
            tag("input", type="file", accept="image/*", multiple=True, tabindex="-1", aria_hidden="true", class_="for-readers"),
            tag("textarea", rows="1", placeholder=texts.placeholder, aria_label=texts.question_label, autocomplete="off", enterkeyhint="send"),
            icon_button("send", texts.send, "send", class_="round send"),
            icon_button("stop", texts.stop, "stop", class_="round stop"),
            class_="line",
        ),
        class_="composer",
        data_drop=texts.drop_here,
        data_too_large=texts.picture_too_large,
    )


def footer_html(texts: Texts) -> Markup:
    """Write the lines below the composer."""
    notes = (tag("p", _note(each), lang="zh-CN" if each.language == "zh" else "en") for each in TEXTS.values())
    return tag("footer", tag("p", texts.keys, class_="keys"), *notes, class_="foot")


def _note(texts: Texts) -> Markup:
    """Say whose model it is and under which licence; the page says so in both languages, whichever it speaks."""
    hub = "https://modelscope.cn/models/qwen" if texts.language == "zh" else "https://huggingface.co/Qwen"
    links = {"chat": (f"{hub}/Qwen-VL-Chat", "Qwen-VL-Chat"), "base": (f"{hub}/Qwen-VL", "Qwen-VL"), "licence": (LICENCE, texts.licence)}
    return Markup(escape(texts.note).format(**{name: _link(*link) for name, link in links.items()}))


def _link(address: str, name: str) -> Markup:
    """Write a link to another site, which is told nothing of this page."""
    return tag("a", name, href=address, target="_blank", rel="noreferrer noopener")


def about_html(texts: Texts) -> Markup:
    """Write who made the model, with links to follow (nothing is fetched from them)."""
    links = {
        "ModelScope: Qwen-VL": "https://modelscope.cn/models/qwen/Qwen-VL/summary",
        "ModelScope: Qwen-VL-Chat": "https://modelscope.cn/models/qwen/Qwen-VL-Chat/summary",
        "Hugging Face: Qwen-VL": "https://huggingface.co/Qwen/Qwen-VL",
        "Hugging Face: Qwen-VL-Chat": "https://huggingface.co/Qwen/Qwen-VL-Chat",
        "GitHub": "https://github.com/QwenLM/Qwen-VL",
        "arXiv:2308.12966": "https://arxiv.org/abs/2308.12966",
    }
    items = (tag("li", _link(address, name)) for name, address in links.items())
    return tag("section", tag("h3", texts.about), tag("p", texts.about_text), tag("ul", *items), class_="about")


def settings_head_html(texts: Texts) -> Markup:
    """Write the head of the settings."""
    return tag("div", tag("h2", texts.settings), icon_button("close", texts.close, "settings"), class_="settings-head")
