"""ChatML: the conversation format of the chat checkpoints, and how history is trimmed to the window.

Each role, newline and content is encoded on its own, so that nothing that a user types can merge with, or be read as,
the format's own tokens. The format is code and not a template, for the same reason.

    raw_text, ids = build_chat(encode, "And the dog?", [("What is it?", "A beach.")], special=ChatTokens(151644, 151645))
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen_vl.errors import PromptError
from qwen_vl.prompt.content import Content
from qwen_vl.prompt.special_tokens import IM_END, IM_START

DEFAULT_SYSTEM = "You are a helpful assistant."
DEFAULT_MAX_WINDOW_SIZE = 6144  # tokens

Said = str | Content
Encode = Callable[[Any], list[int]]
Turn = Sequence[Said | None]  # (query, reply); the reply of a turn that was cut off is None


@dataclass(frozen=True, slots=True)
class ChatTokens:
    """Ids of the tokens that open and close a message."""

    im_start: int
    im_end: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a conversation as text and as token ids."""

    text: str
    ids: list[int]

    def __add__(self, other: "Segment") -> "Segment":
        return Segment(self.text + other.text, self.ids + other.ids)


class ChatWriter:
    """Writes the pieces of a conversation.

    Args:
        encode: turns what the user said (text, and Content where that is used) into ids, honouring the image-family tokens only.
        special: ids of the format's own tokens.
        encode_plain: the same for what the user did not say (system, replies), where pictures cannot be named; `encode` when left out.
    """

    def __init__(self, encode: Encode, special: ChatTokens, encode_plain: Encode | None = None) -> None:
        self.encode = encode
        self.encode_plain = encode_plain or encode
        self.special = special
        self.newline = Segment("\n", encode("\n"))

    def message(self, role: str, content: Said) -> Segment:
        """Write one closed message."""
        encode = self.encode if role == "user" else self.encode_plain
        body = Segment(f"{role}\n{content}", self.encode(role) + self.newline.ids + encode(content))
        return Segment(IM_START, [self.special.im_start]) + body + Segment(IM_END, [self.special.im_end])

    def turn(self, turn: Turn) -> Segment:
        """Write a past turn, beginning with the newline that parts it from what stands before."""
        query, reply = check_turn(turn)
        segment = self.newline + self.message("user", query) + self.newline
        return segment if reply is None else segment + self.message("assistant", reply)

    def query(self, query: Said) -> Segment:
        """Write the current query."""
        return self.newline + self.message("user", query)

    def opening(self) -> Segment:
        """Write the beginning of the reply."""
        return self.newline + Segment(f"{IM_START}assistant\n", [self.special.im_start, *self.encode("assistant"), *self.newline.ids])


def keep_in_window(writer: ChatWriter, history: Iterable[Turn], system: Said, max_window_size: int) -> list[Segment]:
    """Return the system block and the newest turns that fit the window, in order.

    Turns are taken newest first, until one does not fit; the current query is not counted (FACTS 6.2).
    """
    block = writer.message("system", check_said("system text", system))
    if isinstance(history, str | Mapping) or not isinstance(history, Iterable):
        raise PromptError(f"The history must be a list of pairs (query, reply), not {type(history).__name__}.")
    kept: list[Segment] = []
    size = len(block.ids)
    for turn in reversed(list(history)):
        segment = writer.turn(turn)
        size += len(segment.ids)
        if size >= max_window_size:
            break
        kept.append(segment)
    return [block, *reversed(kept)]


def build_chat(
    encode: Encode,
    query: Said,
    history: Iterable[Turn] | None = None,
    system: Said = DEFAULT_SYSTEM,
    max_window_size: int = DEFAULT_MAX_WINDOW_SIZE,
    *,
    special: ChatTokens,
    encode_plain: Encode | None = None,
) -> tuple[str, list[int]]:
    """Return the conversation up to the reply as (text, token ids).

    Raises: PromptError for a query, system text or turn of the wrong type.
    Source: FACTS 6.1 and 6.2.
    """
    writer = ChatWriter(encode, special, encode_plain)
    current = writer.query(check_said("query", query)) + writer.opening()
    return join([*keep_in_window(writer, history or (), system, max_window_size), current])


def join(segments: Iterable[Segment]) -> tuple[str, list[int]]:
    """Return the segments' text and ids, one after the other."""
    listed = list(segments)
    return "".join(segment.text for segment in listed), [token for segment in listed for token in segment.ids]


def check_said(name: str, value: object) -> Said:
    """Return the value if it is text or content. Raises: PromptError naming what it is otherwise."""
    if not isinstance(value, str | Content):
        raise PromptError(f"The {name} must be text, not {type(value).__name__}.")
    return value


def check_turn(turn: object) -> tuple[Said, Said | None]:
    """Return a turn of the history as (query, reply). Raises: PromptError for anything but a pair."""
    if isinstance(turn, str) or not isinstance(turn, Sequence) or len(turn) != 2:
        raise PromptError(f"A turn of the history must be a pair (query, reply), not {type(turn).__name__} {str(turn)[:80]!r}.")
    query, reply = turn
    return check_said("query of a past turn", query), None if reply is None else check_said("reply of a past turn", reply)
