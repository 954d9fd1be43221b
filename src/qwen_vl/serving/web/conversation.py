"""One visitor's conversation, as the server keeps it: turns, pictures, what is looked at, and the answer that is being written.

The browser never says what was asked or answered before; it only names turns by their number.
"""

import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from qwen_vl.grounding import Ref, count_unparsed, parse
from qwen_vl.grounding.confidence import BoxScore
from qwen_vl.serving.errors import ServeError
from qwen_vl.serving.web.pictures import ShownPicture
from qwen_vl.serving.web.texts import Language

State = Literal["writing", "done", "cut_off", "stopped", "failed"]

MAX_TURNS = 100
MAX_PICTURES = 16
MAX_QUESTION_CHARS = 16_384


@dataclass(slots=True)
class Turn:
    """A question, the pictures shown with it, and what has been written of its answer."""

    question: str
    pictures: tuple[ShownPicture, ...] = ()
    asked: str = ""  # what the model reads in place of the question, if it is not the same
    text: str = ""  # of the answer, tags included
    scores: tuple[BoxScore, ...] = ()  # of the boxes in the text, in order; known at the end
    state: State = "writing"
    error: ServeError | None = None  # if it failed
    num_left_out: int = 0  # earlier turns that the model did not read, because its context was full

    @property
    def refs(self) -> list[Ref]:
        """The phrases and boxes that the text holds so far."""
        return parse(self.text)

    @property
    def num_unread(self) -> int:
        """Boxes that cannot be read; of an answer that is still written the last one may just be unfinished."""
        return 0 if self.state == "writing" else count_unparsed(self.text)

    @property
    def has_ended(self) -> bool:
        return self.state != "writing"


@dataclass(slots=True)
class Conversation:
    """What one visitor has said and seen."""

    language: Language = "en"
    turns: list[Turn] = field(default_factory=list)
    viewed_turn: int | None = None  # whose boxes are shown; None: the latest
    viewed_picture: int | None = None  # counted through the conversation from 0; None: the latest as of that turn
    halt: Callable[[], None] | None = None  # ends the answer that is being written, from any thread
    is_stopping: bool = False
    busy: threading.Lock = field(default_factory=threading.Lock)  # held while an answer is written
    salt: str = field(default_factory=lambda: secrets.token_hex(8))  # nobody else's requests share what the engine keeps of this one's prompts

    @property
    def pictures(self) -> list[ShownPicture]:
        """All pictures, oldest first."""
        return list(self.pictures_until(len(self.turns)))

    def pictures_until(self, num_turns: int) -> Iterator[ShownPicture]:
        """Yield the pictures of the first turns."""
        for turn in self.turns[:num_turns]:
            yield from turn.pictures

    @property
    def num_bytes(self) -> int:
        """What its pictures take in memory."""
        return sum(picture.num_bytes for picture in self.pictures)

    def begin(self, question: str, pictures: tuple[ShownPicture, ...], asked: str = "") -> Turn:
        """Add a turn, and look at it. Args: asked: what the model reads in place of the question, if it is not the same."""
        turn = Turn(question, pictures, asked)
        self.turns.append(turn)
        self.view()
        return turn

    def rewind(self, index: int) -> Turn:
        """Drop the turn with this index and all after it, and return it. Raises: IndexError if there is none."""
        if not 0 <= index < len(self.turns):
            raise IndexError(index)
        turn = self.turns[index]
        del self.turns[index:]
        self.view()
        return turn

    def stop(self) -> None:
        """Stop the answer that is being written, if one is; from any thread."""
        self.is_stopping = True
        if self.halt is not None:
            self.halt()

    def clear(self) -> None:
        """Forget everything that was said, and stop the answer that is being written."""
        self.stop()
        self.turns = []
        self.view()

    def view(self, turn: int | None = None, picture: int | None = None) -> None:
        """Look at the boxes of a turn, or at a picture of it; nothing named: at the latest."""
        self.viewed_turn, self.viewed_picture = turn, picture

    def viewed(self) -> tuple[int, ShownPicture | None, bool]:
        """Return the index of the turn that is looked at, the picture, and whether the turn's boxes are about it. Index -1: no turn."""
        index = len(self.turns) - 1 if self.viewed_turn is None else min(self.viewed_turn, len(self.turns) - 1)
        known = list(self.pictures_until(index + 1))
        if not known:
            return index, None, False
        latest = len(known) - 1
        number = latest if self.viewed_picture is None else min(max(self.viewed_picture, 0), latest)
        return index, known[number], number == latest

    def messages(self, first: int = 0) -> list[dict[str, Any]]:
        """Return the conversation in content parts, from one turn on: what the model wrote is given back word for word, pictures are objects."""
        messages: list[dict[str, Any]] = []
        for turn in self.turns[first:]:
            shown = [{"type": "image", "image": picture.image} for picture in turn.pictures]
            messages.append({"role": "user", "content": [*shown, {"type": "text", "text": turn.asked or turn.question}]})
            if turn.has_ended and turn.text:
                messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.text}]})
        return messages

    def single_message(self) -> list[dict[str, Any]]:
        """Return the last question alone, with its pictures or else the latest one: what a checkpoint that does not converse can be asked."""
        shown = self.turns[-1].pictures or tuple(self.pictures[-1:])
        parts = [{"type": "image", "image": picture.image} for picture in shown]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": self.turns[-1].asked or self.turns[-1].question}]}]
