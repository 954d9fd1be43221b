"""A conversation: turns, pictures numbered through the dialogue, each encoded once.

chat = vl.chat()
chat.send("这是什么?", "beach.png").text
chat.send("框出图中的狗").draw().save("dog.png")
"""

import logging
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qwen_vl.api.answer import Answer
from qwen_vl.api.pictures import Picture, load_pictures
from qwen_vl.api.prompts import Question, check_question, encode_chat
from qwen_vl.api.sampling import Sampling
from qwen_vl.api.streaming import AnswerStream
from qwen_vl.api.task import Prompt
from qwen_vl.errors import ConfigError
from qwen_vl.processing.images import ImageSource
from qwen_vl.prompt.chatml import DEFAULT_MAX_WINDOW_SIZE, DEFAULT_SYSTEM

if TYPE_CHECKING:
    from qwen_vl.api.model import QwenVL

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """One question with its pictures' numbers, and the answer to it."""

    question: Question
    answer: Answer


class ChatSession:
    """A conversation with one model. A turn counts only once its answer is complete: an interrupted one leaves no trace.

    Old turns fall out of the prompt when the checkpoint's window (`max_window_size` tokens) is full, as in the release; `num_dropped_turns` says
    how many the last prompt left out, and a warning is logged when that number grows.
    """

    def __init__(self, vl: "QwenVL", system: str = DEFAULT_SYSTEM) -> None:
        if not vl.is_chat:
            raise ConfigError(
                f"{vl.name} is a base checkpoint, not one for conversations (chat_format is not chatml). "
                "Use ask, caption or ground, or load Qwen-VL-Chat."
            )
        self._vl = vl
        self.system = system
        self.turns: list[ChatTurn] = []
        self.pictures: list[Picture] = []
        self.num_dropped_turns = 0

    @property
    def history(self) -> list[tuple[str, str]]:
        """The texts so far, as (question, answer)."""
        return [(turn.question.text, turn.answer.text) for turn in self.turns]

    @property
    def last_answer(self) -> Answer | None:
        """The latest answer, or None before the first."""
        return self.turns[-1].answer if self.turns else None

    def clear(self) -> None:
        """Forget all turns and pictures."""
        self.turns.clear()
        self.pictures.clear()
        self.num_dropped_turns = 0

    def send(self, text: str, images: ImageSource | Sequence[ImageSource] | None = None, **sampling: Any) -> Answer:
        """Ask the next question and return the answer.

        Args:
            text: the question.
            images: one picture, several or None; earlier ones stay in the conversation.
            sampling: see `Sampling`.
        Raises: PromptError, ImageError, ConfigError, CapacityError; the conversation is then as before.
        """
        settings = Sampling.of(**sampling)
        new = self._load(text, images)
        answer = self._vl.writer.write(self._prompt(text, new), settings)
        self._remember(text, new, answer)
        return answer

    def stream(self, text: str, images: ImageSource | Sequence[ImageSource] | None = None, **sampling: Any) -> AnswerStream:
        """Ask the next question and return the answer's pieces as they come; arguments and errors as `send`, raised here and not later."""
        settings = Sampling.of(**sampling)
        new = self._load(text, images)
        return AnswerStream(self._remembering(text, new, self._vl.writer.stream(self._prompt(text, new), settings)))

    def _remembering(self, text: str, new: list[Picture], pieces: Generator[str, None, Answer]) -> Generator[str, None, Answer]:
        answer = yield from pieces
        self._remember(text, new, answer)
        return answer

    def _load(self, text: str, images: ImageSource | Sequence[ImageSource] | None) -> list[Picture]:
        """Return the pictures of a question, which is checked first."""
        check_question(text)
        model, engine = self._vl.model, self._vl.engine
        new = load_pictures(model, engine, images)
        if any(picture.generation != engine.generation for picture in self.pictures):  # the weights have changed: they are seen anew
            self.pictures = load_pictures(model, engine, [picture.image for picture in self.pictures])
        return new

    def _number(self, text: str, new: list[Picture]) -> Question:
        """Return the question as the next turn of the conversation as it is now."""
        first = len(self.pictures) + 1
        return Question(text, tuple(range(first, first + len(new))))

    def _remember(self, text: str, new: list[Picture], answer: Answer) -> None:
        # Numbered anew: since the question was asked, another stream may have ended, or `clear` been called.
        self.turns.append(ChatTurn(self._number(text, new), answer))
        self.pictures = [*self.pictures, *new]

    def _prompt(self, text: str, new: list[Picture]) -> Prompt:
        """Return the prompt, with the pictures of the turns that fit the window."""
        question, pictures = self._number(text, new), [*self.pictures, *new]
        tokenizer = self._vl.tokenizer
        window = getattr(self._vl.model.generation_config, "max_window_size", None) or DEFAULT_MAX_WINDOW_SIZE
        ids = encode_chat(tokenizer, question, [(turn.question, turn.answer.text) for turn in self.turns], self.system, window)
        num_kept = (ids.count(tokenizer.im_start_id) - 3) // 2  # system, question and the opened answer are the other three
        self._warn_of_dropped(len(self.turns) - num_kept)
        kept = [*(turn.question for turn in self.turns[len(self.turns) - num_kept :]), question]
        numbers = [number for each in kept for number in each.picture_numbers]
        return Prompt(ids=ids, pictures=[pictures[number - 1] for number in numbers], shown=pictures)

    def _warn_of_dropped(self, count: int) -> None:
        if count > self.num_dropped_turns:
            logger.warning("the conversation is longer than the model's window: its first %d turns are no longer read", count)
        self.num_dropped_turns = count
