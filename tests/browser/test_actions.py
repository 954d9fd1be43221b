"""What the page's handlers refuse, and how they keep visitors apart. No browser needed, but Gradio is."""

import asyncio
import base64
import io
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from PIL import Image

from qwen_vl.api import QwenVL
from qwen_vl.errors import ImageError
from qwen_vl.processing.decoding import decode_picture
from qwen_vl.serving.service import Service
from qwen_vl.serving.settings import ServeSettings
from qwen_vl.serving.web import actions as web_actions
from qwen_vl.serving.web.examples import draw_examples
from qwen_vl.serving.web.sessions import Sessions
from qwen_vl.serving.web.texts import EN, ZH, Texts
from tests.unit.serving.web.scripted import ScriptedModel

pytest.importorskip("gradio")
pytestmark = pytest.mark.browser

DEADLINE_S = 60
CONTROLS = (0, 1, 64, "off", True, "", False)


def data_uri(colour: str = "red") -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), colour).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


class Visitor:
    """Calls the handlers as the page's script does."""

    def __init__(self, actions: web_actions.Actions, key: str) -> None:
        self.actions, self.request = actions, cast(Any, SimpleNamespace(session_hash=key))

    @property
    def conversation(self) -> Any:
        return self.actions.sessions.get(self.request.session_hash)

    def begin(self, **data: Any) -> AsyncIterator[list[Any]]:
        return self.actions.ask(*CONTROLS, cast(Any, SimpleNamespace(_data=data)), self.request)

    async def ask(self, **data: Any) -> str:
        """Ask, with a model that ends at once, and return the last notice."""
        notice = ""
        cast(ScriptedModel, self.actions.service.vl).is_quick = True
        async for shown in self.begin(**data):
            view = dict(zip(web_actions.VIEWS, shown, strict=True))
            notice = view["notice"] if isinstance(view["notice"], str) else notice
        return notice


@pytest.fixture
def actions() -> web_actions.Actions:
    return make_actions()


def make_actions(**settings: Any) -> web_actions.Actions:
    service = Service(cast(QwenVL, ScriptedModel()), ServeSettings(**settings))
    return web_actions.Actions(service, draw_examples(), lambda content: decode_picture(content, "it"), Sessions())


def run(work: Any) -> Any:
    return asyncio.run(asyncio.wait_for(work, DEADLINE_S))


def test_questions_and_pictures_are_bounded(actions: web_actions.Actions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_actions, "MAX_PICTURES", 2)
    monkeypatch.setattr(web_actions, "MAX_TURNS", 3)
    monkeypatch.setattr(web_actions, "MAX_QUESTION_CHARS", 10)
    visitor, picture = Visitor(actions, "a"), {"name": "a.png", "data": data_uri()}

    async def main() -> None:
        assert EN.no_question in await visitor.ask(question=" \n")
        assert EN.question_too_long.format(limit=10) in await visitor.ask(question="x" * 11)
        assert EN.too_many_pictures.format(limit=2) in await visitor.ask(question="?", pictures=[picture] * 3)
        assert visitor.conversation.turns == []
        assert await visitor.ask(question="?", pictures=[picture] * 2) == ""
        assert EN.too_many_pictures.format(limit=2) in await visitor.ask(question="?", pictures=[picture])
        assert await visitor.ask(question="2") == await visitor.ask(question="3") == ""
        assert EN.too_many_turns.format(limit=3) in await visitor.ask(question="4")
        assert [turn.question for turn in visitor.conversation.turns] == ["?", "2", "3"]
        assert await visitor.ask(question="two", turn=1) == ""  # editing is not one more
        assert [turn.question for turn in visitor.conversation.turns] == ["?", "two"]
        assert EN.too_many_pictures.format(limit=2) in await visitor.ask(question="?", turn=0, pictures=[picture])
        assert len(visitor.conversation.turns) == 2  # what is refused changes nothing

    run(main())


def test_an_edited_question_keeps_the_pictures_that_are_named(actions: web_actions.Actions) -> None:
    visitor = Visitor(actions, "a")
    pictures = [{"name": f"{colour}.png", "data": data_uri(colour)} for colour in ("red", "green", "blue")]

    async def shown(**data: Any) -> list[str]:
        assert await visitor.ask(question="?", turn=0, **data) == ""
        return [picture.name for picture in visitor.conversation.turns[0].pictures]

    async def main() -> None:
        assert await visitor.ask(question="?", pictures=pictures) == ""
        assert await shown() == await shown(kept="x") == await shown(kept=[0, 1, 2]) == ["red.png", "green.png", "blue.png"]
        assert await shown(kept=[2, 0, -1, 99, "1", None, {}]) == ["red.png", "blue.png"]
        assert await shown(kept=[1], pictures=pictures[1:2]) == ["blue.png", "green.png"]
        assert await shown(kept=[]) == []

    run(main())


def test_a_conversation_that_is_gone_is_told_in_the_pages_language(actions: web_actions.Actions) -> None:
    visitor = Visitor(actions, "a")
    assert ZH.gone in run(visitor.ask(again=True, language="zh"))
    assert ZH.gone in run(visitor.ask(question="?", turn=0, language="zh"))
    assert run(visitor.ask(question="?", language=["zh"])) == ""


def test_an_unreadable_picture_is_named(actions: web_actions.Actions) -> None:
    visitor = Visitor(actions, "a")
    pictures = [{"name": "good.png", "data": data_uri()}, {"name": "<b>bad</b>.png", "data": "data:image/png;base64,AAAA"}]
    notice = run(visitor.ask(question="?", pictures=pictures))
    assert "&lt;b&gt;bad&lt;/b&gt;.png" in notice
    assert visitor.conversation.turns == []


def test_one_answer_at_a_time_for_each_visitor(actions: web_actions.Actions) -> None:
    first, second = Visitor(actions, "a"), Visitor(actions, "b")

    async def main() -> None:
        writing = first.begin(question="slow")
        await anext(writing)
        reading = asyncio.ensure_future(collect(writing))
        while not cast(ScriptedModel, first.actions.service.vl).streams:
            await asyncio.sleep(0.005)
        assert EN.busy in await first.ask(question="impatient")
        assert await second.ask(question="other") == ""
        await first.actions.clear(first.request)
        assert [turn.question for turn in second.conversation.turns] == ["other"]
        assert await first.ask(question="after clearing") == ""  # waits until the stopped answer has ended
        await reading
        assert [turn.question for turn in first.conversation.turns] == ["after clearing"]

    run(main())


async def collect(views: AsyncIterator[list[Any]]) -> list[list[Any]]:
    return [each async for each in views]


@pytest.mark.parametrize("texts", [EN, ZH])
def test_one_question_too_many_is_told_to_come_again(texts: Texts) -> None:
    actions = make_actions(max_running=1, max_choices=1, max_waiting=0)
    first, second = Visitor(actions, "a"), Visitor(actions, "b")

    async def main() -> None:
        writing = asyncio.ensure_future(collect(first.begin(question="slow")))
        model = cast(ScriptedModel, actions.service.vl)
        while not model.streams:
            await asyncio.sleep(0.005)
        assert texts.errors["overloaded"] in await second.ask(question="?", language=texts.language, pictures=[{"name": "a", "data": "unread"}])
        assert second.conversation.turns == []
        model.streams[0].end()
        await writing
        assert await second.ask(question="?") == ""

    run(main())


def test_a_server_that_stops_lets_answers_end_and_takes_no_question() -> None:
    actions = make_actions(grace_s=DEADLINE_S)
    first, second = Visitor(actions, "a"), Visitor(actions, "b")

    async def main() -> None:
        writing = asyncio.ensure_future(collect(first.begin(question="slow")))
        model = cast(ScriptedModel, actions.service.vl)
        while not model.streams:
            await asyncio.sleep(0.005)
        draining = asyncio.ensure_future(actions.service.drain())
        await asyncio.sleep(0.05)
        assert not draining.done()  # the page's answer is one in flight
        assert EN.errors["shutting_down"] in await second.ask(question="?")
        model.streams[0].write("Whole")
        model.streams[0].end()
        await writing
        await draining
        assert (first.conversation.turns[0].state, first.conversation.turns[0].text) == ("done", "Whole")

    run(main())


def test_an_answer_that_outlasts_the_grace_time_is_cut() -> None:
    actions = make_actions(grace_s=0.05)
    visitor = Visitor(actions, "a")

    async def main() -> None:
        writing = asyncio.ensure_future(collect(visitor.begin(question="slow")))
        while not cast(ScriptedModel, actions.service.vl).streams:
            await asyncio.sleep(0.005)
        await actions.service.drain()
        shown = dict(zip(web_actions.VIEWS, (await writing)[-1], strict=True))
        assert EN.errors["shutting_down"] in shown["history"]

    run(main())


def test_stopping_while_a_picture_is_decoded_asks_nothing(actions: web_actions.Actions) -> None:
    visitor = Visitor(actions, "a")

    def decode(content: bytes) -> Image.Image:
        visitor.conversation.stop()
        return Image.new("RGB", (9, 9))

    actions.decode = decode
    assert EN.stopped in run(visitor.ask(question="?", pictures=[{"name": "a.png", "data": data_uri()}]))
    assert cast(ScriptedModel, actions.service.vl).asked == []


def test_a_decoder_that_refuses_is_no_failure_of_the_page(actions: web_actions.Actions) -> None:
    def refuse(content: bytes) -> Image.Image:
        raise ImageError("/secret/path is damaged")

    actions.decode = refuse
    notice = run(Visitor(actions, "a").ask(question="?", pictures=[{"name": "a.png", "data": data_uri()}]))
    assert "a.png" in notice
    assert "secret" not in notice


def test_leaving_forgets(actions: web_actions.Actions) -> None:
    visitor = Visitor(actions, "a")
    run(visitor.ask(question="?"))
    before = visitor.conversation
    run(actions.leave(visitor.request))
    assert visitor.conversation is not before
    assert before.is_stopping


def test_the_folder_of_a_checkpoint_is_not_told() -> None:
    for name, shown in (("/home/somebody/models/7b/", "7b"), ("C:\\models\\7b", "7b"), ("Qwen/Qwen-VL-Chat", "Qwen-VL-Chat"), ("nano", "nano")):
        assert web_actions.model_name(cast(QwenVL, SimpleNamespace(name=name))) == shown
