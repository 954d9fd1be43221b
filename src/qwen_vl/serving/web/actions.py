"""What the page's events do. Each handler answers one visitor, whose conversation the server keeps.

Handlers trust nothing that the browser says: an event's data may be anything. All that change a conversation run in the event loop, one at a time.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

import gradio

from qwen_vl.api import QwenVL
from qwen_vl.errors import QwenVLError
from qwen_vl.serving.errors import ServeError
from qwen_vl.serving.service import Service
from qwen_vl.serving.web import bubbles, stage
from qwen_vl.serving.web.answering import trim_question, write_answer
from qwen_vl.serving.web.conversation import MAX_PICTURES, MAX_QUESTION_CHARS, MAX_TURNS, Conversation
from qwen_vl.serving.web.downloads import make_download
from qwen_vl.serving.web.examples import Example
from qwen_vl.serving.web.pictures import Decode, ShownPicture, read_picture
from qwen_vl.serving.web.sessions import Sessions
from qwen_vl.serving.web.settings import Defaults, to_sampling
from qwen_vl.serving.web.texts import Texts, texts_of

STOP_ATTEMPTS = 100  # twentieths of a second
VIEWS = ("history", "live", "picture", "boxes", "list", "notice", "status")  # what the handlers return, in this order


class Refused(Exception):
    """Something that cannot be asked; the visitor reads why."""


class Actions:
    """The handlers of one page."""

    def __init__(self, service: Service, examples: list[Example], decode: Decode, sessions: Sessions) -> None:
        self.service, self.examples, self.decode, self.sessions = service, examples, decode, sessions
        self.defaults = Defaults.of(service.vl)
        self.model_name = model_name(service.vl)

    # -- asking

    async def ask(
        self,
        temperature: object,
        top_p: object,
        max_new_tokens: object,
        boxes: object,
        confidence: object,
        seed: object,
        as_release: object,
        event: gradio.EventData,
        request: gradio.Request,
    ) -> AsyncIterator[list[Any]]:
        """Ask a question, again or anew, and stream the answer. The event says what: a question, an example, or to ask again."""
        conversation, asked = self._conversation(request), data_of(event)
        if asked.get("language") in ("en", "zh"):  # a conversation that was forgotten goes on in the page's language
            conversation.language = asked["language"]
        texts = texts_of(conversation.language)
        if not await self._is_free(conversation):
            yield views(notice=bubbles.notice_html(texts.busy, texts))
            return
        sampling = to_sampling(self.defaults, temperature, top_p, max_new_tokens, boxes, confidence, seed)
        try:
            conversation.is_stopping = False
            with self.service.admit():  # before the pictures are read
                await self._begin(conversation, asked, bool(as_release), texts)
                yield self._all_views(conversation)
                async with aclosing(write_answer(self.service, conversation, sampling)) as growing:
                    async for turn in growing:
                        if not turn.has_ended and conversation.turns:  # else it was cleared meanwhile
                            yield self._growing_views(conversation)
            yield self._all_views(conversation)
        except (Refused, ServeError) as refusal:  # nothing was asked
            notice = bubbles.notice_html(texts.explain(refusal) if isinstance(refusal, ServeError) else str(refusal), texts)
            yield views(notice=notice) if conversation.turns else self._all_views(conversation, notice)
        finally:
            conversation.busy.release()

    async def _is_free(self, conversation: Conversation) -> bool:
        """Take the conversation's lock, waiting for an answer that was told to stop. Returns: whether that worked."""
        for _ in range(STOP_ATTEMPTS):
            if conversation.busy.acquire(blocking=False):
                return True
            if not conversation.is_stopping:
                return False
            await asyncio.sleep(0.05)
        return False

    async def _begin(self, conversation: Conversation, asked: Mapping[str, Any], as_release: bool, texts: Texts) -> None:
        """Add the turn that is asked for. Raises: Refused."""
        index, example = asked.get("turn"), asked.get("example")
        if (asked.get("again") is True or index is not None) and not conversation.turns:
            raise Refused(texts.gone)
        if asked.get("again") is True:
            again = conversation.rewind(len(conversation.turns) - 1)
            conversation.begin(again.question, again.pictures, again.asked)
            return
        if type(example) is int and 0 <= example < len(self.examples):
            question, pictures = self.examples[example].question(conversation.language), self.examples[example].pictures
        else:
            question, pictures = self._check_question(asked.get("question"), texts), await self._read_pictures(asked.get("pictures"), texts)
        if conversation.is_stopping:  # while the pictures were decoded
            raise Refused(texts.stopped)
        if type(index) is int and 0 <= index < len(conversation.turns):  # an earlier question, edited: its pictures stay, but those taken away
            kept = asked.get("kept")
            stay = (picture for place, picture in enumerate(conversation.turns[index].pictures) if not isinstance(kept, list) or place in kept)
            pictures = (*stay, *pictures)
        else:
            index = len(conversation.turns)
        if index >= MAX_TURNS:
            raise Refused(texts.too_many_turns.format(limit=MAX_TURNS))
        if len(list(conversation.pictures_until(index))) + len(pictures) > MAX_PICTURES:
            raise Refused(texts.too_many_pictures.format(limit=MAX_PICTURES))
        del conversation.turns[index:]
        conversation.begin(question, pictures, trim_question(question) if as_release else "")

    def _check_question(self, question: object, texts: Texts) -> str:
        """Return the question without blanks at its ends. Raises: Refused if there is none, or if it is too long."""
        if not isinstance(question, str) or not question.strip():
            raise Refused(texts.no_question)
        if len(question) > MAX_QUESTION_CHARS:
            raise Refused(texts.question_too_long.format(limit=MAX_QUESTION_CHARS))
        return question.strip()

    async def _read_pictures(self, sent: object, texts: Texts) -> tuple[ShownPicture, ...]:
        """Decode what the browser sent. Raises: Refused naming the picture that cannot be read."""
        if not isinstance(sent, list):
            return ()
        if len(sent) > MAX_PICTURES:
            raise Refused(texts.too_many_pictures.format(limit=MAX_PICTURES))
        pictures = []
        for each in sent:
            name, data = (each.get("name"), each.get("data")) if isinstance(each, dict) else (None, None)
            name = name if isinstance(name, str) else ""
            try:
                pictures.append(await asyncio.to_thread(read_picture, name, data if isinstance(data, str) else "", self.decode))
            except (QwenVLError, ServeError):
                raise Refused(texts.picture_not_read.format(name=name[:80] or texts.picture.format(number=len(pictures) + 1))) from None
        return tuple(pictures)

    # -- everything else

    async def stop(self, request: gradio.Request) -> None:
        """Stop this visitor's answer; what has been written stays."""
        self._conversation(request).stop()

    async def clear(self, request: gradio.Request) -> list[Any]:
        """Forget the conversation."""
        conversation = self._conversation(request)
        conversation.clear()
        return self._all_views(conversation)

    async def look(self, event: gradio.EventData, request: gradio.Request) -> list[Any]:
        """Show another picture, or the boxes of another answer."""
        conversation, asked = self._conversation(request), data_of(event)
        turn, picture = asked.get("turn"), asked.get("picture")
        if type(turn) is int and 0 <= turn < len(conversation.turns):
            conversation.view(turn, picture if type(picture) is int else None)
        texts = texts_of(conversation.language)
        layers = {"picture": stage.picture_html(conversation, texts), "boxes": stage.boxes_html(conversation, texts)}
        return views(**layers, list=stage.list_html(conversation, texts))

    def download(self, event: gradio.EventData, request: gradio.Request) -> Any:
        """Hand the browser a file of the answer that is looked at; nothing if there is none."""
        try:
            return make_download(self._conversation(request), str(data_of(event).get("kind")))
        except QwenVLError:
            return gradio.skip()

    async def set_language(self, event: gradio.EventData, request: gradio.Request) -> tuple[Texts, list[Any]]:
        """Say everything in another language. Returns: its texts, and the views in them."""
        conversation = self._conversation(request)
        conversation.language = "zh" if data_of(event).get("language") == "zh" else "en"
        return texts_of(conversation.language), self._all_views(conversation)

    async def leave(self, request: gradio.Request) -> None:
        """Forget a visitor who has closed the page."""
        self.sessions.drop(str(request.session_hash))

    def _conversation(self, request: gradio.Request) -> Conversation:
        return self.sessions.get(str(request.session_hash))

    def welcome(self, texts: Texts) -> str:
        """What an empty conversation shows."""
        return bubbles.welcome_html(self.examples, self.model_name, self.service.vl.name == "nano", texts)

    def no_picture(self, texts: Texts) -> str:
        """What stands in the picture's place before there is one."""
        return stage.picture_html(Conversation(), texts)

    def _growing_views(self, conversation: Conversation) -> list[Any]:
        """What changes while an answer is written."""
        texts = texts_of(conversation.language)
        layers = {"boxes": stage.boxes_html(conversation, texts), "list": stage.list_html(conversation, texts)}
        return views(live=bubbles.live_html(conversation, texts), **layers)

    def _all_views(self, conversation: Conversation, notice: str = "") -> list[Any]:
        texts = texts_of(conversation.language)
        return views(
            history=bubbles.history_html(conversation, texts) if conversation.turns else self.welcome(texts),
            live=bubbles.live_html(conversation, texts),
            picture=stage.picture_html(conversation, texts),
            boxes=stage.boxes_html(conversation, texts),
            list=stage.list_html(conversation, texts),
            notice=notice,
            status=bubbles.status_text(conversation.turns[-1], texts) if conversation.turns else "",
        )


def model_name(vl: QwenVL) -> str:
    """Return what to call the checkpoint: of a folder the last part, as its place is nobody's business."""
    return vl.name.rstrip("/\\").replace("\\", "/").rpartition("/")[2] or vl.name


def views(**changed: str) -> list[Any]:
    """Return an output for each of `VIEWS`; what is not named stays as it is."""
    return [changed.get(name, gradio.skip()) for name in VIEWS]


def data_of(event: gradio.EventData) -> Mapping[str, Any]:
    """Return what the page's script sent with an event; nothing if it is no object."""
    data = event._data
    return data if isinstance(data, dict) else {}
