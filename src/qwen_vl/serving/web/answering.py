"""Let the model write the answer to a conversation's last turn, piece by piece, until it ends or the visitor stops it.

async for turn in write_answer(service, conversation, {"temperature": 0}):
    show(turn)

The answer goes through the server's service, as those of the protocols do: it waits for a place, is watched, and is given the grace time at the end.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen_vl.api import QwenVL, RequestStream
from qwen_vl.errors import ContextLengthError
from qwen_vl.serving.service import Service
from qwen_vl.serving.settings import ServeSettings
from qwen_vl.serving.web.conversation import Conversation, Turn

FRAME_S = 0.04  # between two updates of the page

# Marks that the release's page cuts from the end of a question. Source: FACTS 11.1.
TRAILING_MARKS = frozenset(
    "！？。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)


def trim_question(text: str) -> str:
    """Cut one punctuation mark from the end, if what stands before it is none, as the release's page did."""
    return text[:-1] if len(text) > 1 and text[-1] in TRAILING_MARKS and text[-2] not in TRAILING_MARKS else text


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnRequest:
    """A turn as the service asks it."""

    turn: Turn
    choices: Sequence[list[dict[str, Any]]]  # the conversation from its first turn on, from its second on, ..: the first that fits is asked
    sampling: Mapping[str, Any]
    owner: str

    @property
    def n(self) -> int:
        """A turn has one answer."""
        return 1

    def begin(self, vl: QwenVL, settings: ServeSettings, index: int, on_event: Callable[[], None]) -> RequestStream:
        """Let the engine begin, and note how many turns were left out. Raises: ContextLengthError if nothing fits; what `QwenVL.begin` raises."""
        common = {"on_event": on_event, "box_tags": True, "max_context": settings.max_context, "salt": self.owner, **self.sampling}
        for num_left_out, messages in enumerate(self.choices[:-1]):
            with contextlib.suppress(ContextLengthError):
                stream = vl.begin(messages, **common)
                self.turn.num_left_out = num_left_out
                return stream
        stream = vl.begin(self.choices[-1], **common)
        self.turn.num_left_out = len(self.choices) - 1
        return stream


async def write_answer(service: Service, conversation: Conversation, sampling: Mapping[str, Any]) -> AsyncGenerator[Turn]:
    """Write the last turn's answer and yield the turn whenever there is more of it, the last time when it has ended.

    Whatever goes wrong ends the turn with the state "failed" and is told in its `error`.
    """
    turn, loop, is_new = conversation.turns[-1], asyncio.get_running_loop(), asyncio.Event()
    vl = service.vl
    choices = [conversation.messages(first) for first in range(len(conversation.turns))] if vl.is_chat else [conversation.single_message()]
    request = TurnRequest(turn=turn, choices=choices, sampling=sampling, owner=conversation.salt)
    writing = asyncio.ensure_future(_write(service, request, is_new.set))
    writing.add_done_callback(lambda _: is_new.set())

    def halt() -> None:
        with contextlib.suppress(RuntimeError):  # the server has ended, and its loop with it
            loop.call_soon_threadsafe(writing.cancel)

    conversation.halt = halt
    if conversation.is_stopping:  # since the question was taken
        writing.cancel()
    try:
        while not writing.done():
            await is_new.wait()
            is_new.clear()
            if not writing.done():
                yield turn
                await asyncio.sleep(FRAME_S)
    finally:
        conversation.halt = None
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        if turn.state == "writing":  # the visitor has stopped it, or left
            turn.state = "stopped"
    yield turn


async def _write(service: Service, request: TurnRequest, notify: Callable[[], None]) -> None:
    """Let the turn grow until its answer has ended or failed; to stop it, cancel this."""
    turn = request.turn
    try:
        async with await service.open(request) as generation:
            async for delta in generation:
                turn.text += delta.text
                if delta.text:
                    notify()
            answer = generation.answer
    except Exception as error:  # noqa: BLE001  the visitor is told, in words without secrets, and the service's log where it was if it was a bug
        turn.state, turn.error = "failed", service.explain(error)
    else:
        turn.text, turn.scores = answer.text, answer.box_scores or ()
        turn.state = "done" if answer.finish_reason == "stop" else "cut_off"
