"""From questions and pictures to token ids: which words each kind of checkpoint is asked with, and where the pictures go.

Pictures travel as objects. Their place in the text is a span that only this module writes, under a made-up name (`picture-1`); whatever the
user types, `<img>path</img>` too, stays plain text and opens nothing. Of the special tokens only those of boxes, quads and references are read
in user text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from qwen_vl.errors import PromptError
from qwen_vl.processing.tokenization import QWenTokenizer
from qwen_vl.prompt.content import Content, PicturePath, Text, split_pictures
from qwen_vl.prompt.list_format import format_picture

LANGUAGES = ("en", "zh")
_CAPTION = {"en": "Generate the caption in English:", "zh": "Generate the caption in Chinese:"}
_GROUNDED_CAPTION = {"en": "Generate the caption in English with grounding:", "zh": "Generate the caption in Chinese with grounding:"}
_CJK = re.compile(r"[\u3400-\u9fff]")


@dataclass(frozen=True, slots=True)
class Question:
    """What the user says in one turn, and the numbers of the pictures shown with it (counted through the dialogue from 1)."""

    text: str
    picture_numbers: tuple[int, ...] = ()

    @property
    def content(self) -> Content:
        """The whole content of the user's message: the pictures, announced as the chat checkpoints know it, then the text."""
        spans = "".join(format_picture(number, picture_name(number), space_after_picture=True) for number in self.picture_numbers)
        *announced, newline = split_pictures(spans).pieces or (Text(""),)
        return Content((*announced, Text(f"{newline}{self.text}")))  # in one piece, as the last newline may merge with the question's first


def picture_name(number: int) -> str:
    """Return the name that stands in the span of a picture."""
    return f"picture-{number}"


def check_question(text: object) -> str:
    """Return the question. Raises: PromptError if it is not text or says nothing."""
    if not isinstance(text, str):
        raise PromptError(f"The question must be text, not {type(text).__name__}.")
    if not text.strip():
        raise PromptError('The question is empty. Write what you want to know, for example "What is in this picture?".')
    return text


def encode_chat(
    tokenizer: QWenTokenizer,
    question: Question,
    history: Sequence[tuple[Question, str]],
    system: str,
    max_window_size: int,
) -> list[int]:
    """Return the ids of a conversation up to the reply (FACTS 6.1, 6.2): the oldest turns are left out if the window is full."""
    return tokenizer.build_chat_context(question.content, [(past.content, reply) for past, reply in history], system, max_window_size)[1]


def encode_raw(tokenizer: QWenTokenizer, text: str, num_pictures: int) -> list[int]:
    """Encode a prompt of the base checkpoints: the pictures without announcement, then the text (FACTS 8.4)."""
    pictures = (PicturePath(picture_name(number)) for number in range(1, num_pictures + 1))
    return tokenizer.chat_writer().encode(Content((*pictures, Text(text))))


def raw_question(text: str) -> str:
    """Word a question for a base checkpoint. Source: FACTS 8.4."""
    return f"{text} Answer:"


def caption_prompt(language: str, grounded: bool) -> str:
    """Return the request for a caption. Raises: PromptError for a language other than en and zh."""
    if language not in LANGUAGES:
        raise PromptError(f"Captions are written in {' or '.join(LANGUAGES)}, not {language!r}.")
    return (_GROUNDED_CAPTION if grounded else _CAPTION)[language]


def ground_prompt(phrase: str) -> str:
    """Return the request for the boxes of a phrase, in the phrase's own language."""
    return f"框出图中的{phrase}" if _CJK.search(phrase) else f"Find {phrase}."


def raw_ground_prompt(phrase: str) -> str:
    """Return the base checkpoints' form of the request, which the boxes follow directly. Source: FACTS 8.4."""
    return f"<ref>{phrase}</ref>"
