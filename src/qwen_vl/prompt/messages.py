"""Messages with typed parts, as today's chat interfaces have them.

    read_messages([{"role": "user", "content": [{"type": "image", "image": "dog.jpg"}, {"type": "text", "text": "What is it?"}]}])

Text parts are text: a picture tag typed in them opens nothing. Pictures come from picture parts of user messages only, and
are numbered through the dialogue as `Picture N: <img>..</img>`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qwen_vl.errors import PromptError
from qwen_vl.prompt.chatml import DEFAULT_SYSTEM
from qwen_vl.prompt.content import Content, PicturePath, Text

ROLES = ("system", "user", "assistant")
PICTURE_KEYS = ("image", "image_url", "url", "path", "base64")
NamePicture = Callable[[Any], str]


@dataclass
class Conversation:
    """A dialogue as chat contexts are built from.

    `query` is None if the last message is the assistant's. `images` are the sources of all pictures, in order.
    """

    system: Content
    history: list[tuple[Content, Content | None]] = field(default_factory=list)
    query: Content | None = None
    images: list[Any] = field(default_factory=list)


def name_by_path(source: Any) -> str:
    """Name a picture by its path or address; pictures given as objects, or not yet given, have no name."""
    return source if isinstance(source, str) else ""


def read_messages(messages: Sequence[Mapping[str, Any]], name_picture: NamePicture = name_by_path) -> Conversation:
    """Turn messages into system text, past turns, current query and picture sources.

    Args:
        messages: an optional system message, then user and assistant messages. Two user messages in a row: the first went unanswered.
        name_picture: gives what stands between `<img>` and `</img>` for a source.
    Raises: PromptError naming the message for unknown roles and parts, an order that makes no dialogue, and empty questions.
    """
    if isinstance(messages, str) or not isinstance(messages, Sequence) or not messages:
        raise PromptError('The messages must be a list such as [{"role": "user", "content": "What is it?"}].')
    conversation = Conversation(Content((Text(DEFAULT_SYSTEM),)))
    for number, message in enumerate(messages, start=1):
        role = _role(message, f"Message {number}")
        content = _read_content(message, role, f"Message {number}", conversation, name_picture)
        _append(conversation, role, content, number)
    if conversation.query is None and not conversation.history:
        raise PromptError("The messages hold no question. Add a message with the role user.")
    return conversation


def _role(message: object, place: str) -> str:
    """Return the message's role."""
    if not isinstance(message, Mapping) or message.get("role") not in ROLES:
        found = message.get("role") if isinstance(message, Mapping) else type(message).__name__
        raise PromptError(f"{place} has the role {str(found)[:40]!r}; it must be a dictionary with the role {', '.join(ROLES)}.")
    return str(message["role"])


def _append(conversation: Conversation, role: str, content: Content, number: int) -> None:
    """Put a message in its place."""
    if role == "system":
        if number != 1:
            raise PromptError(f"Message {number} has the role system, which only the first message may have.")
        conversation.system = content
    elif role == "user":
        if conversation.query is not None:
            conversation.history.append((conversation.query, None))
        conversation.query = content
    elif conversation.query is None:
        raise PromptError(f"Message {number} has the role assistant, but answers no message of the user.")
    else:
        conversation.history.append((conversation.query, content))
        conversation.query = None


def _read_content(message: Mapping[str, Any], role: str, place: str, conversation: Conversation, name_picture: NamePicture) -> Content:
    """Read a message's content: text, or a list of parts."""
    content = message.get("content")
    if isinstance(content, str):
        pieces: tuple[Text | PicturePath, ...] = (Text(content),)
    elif isinstance(content, Sequence) and content and not isinstance(content, bytes):
        pieces = tuple(piece for part in content for piece in _read_part(part, role, place, conversation, name_picture))
    else:
        raise PromptError(f"{place} has no content: it must be text, or a list of parts that is not empty.")
    if role == "user" and not any(isinstance(piece, PicturePath) or piece.value.strip() for piece in pieces):
        raise PromptError(f"{place} is an empty question. Ask something, or show a picture.")
    return Content(tuple(_join_texts(pieces)))


def _join_texts(pieces: Iterable[Text | PicturePath]) -> Iterator[Text | PicturePath]:
    """Make one text of neighbouring ones: encoded apart, the newline after a picture would not merge with one that the question begins with."""
    texts: list[str] = []
    for piece in pieces:
        if isinstance(piece, Text):
            texts.append(piece.value)
            continue
        if texts:
            yield Text("".join(texts))
            texts = []
        yield piece
    if texts:
        yield Text("".join(texts))


def _read_part(part: object, role: str, place: str, conversation: Conversation, name_picture: NamePicture) -> Iterator[Text | PicturePath]:
    """Yield the pieces of a part; a picture is counted and its source kept."""
    if isinstance(part, str):
        part = {"type": "text", "text": part}
    if not isinstance(part, Mapping):
        raise PromptError(f"{place} has a part that is a {type(part).__name__}, not a dictionary with the key type.")
    kind = part.get("type", "text" if "text" in part else "image" if any(key in part for key in PICTURE_KEYS) else None)
    if kind == "text" and isinstance(part.get("text"), str):
        yield Text(part["text"])
    elif kind in ("image", "image_url"):
        if role != "user":
            raise PromptError(f"{place} shows a picture with the role {role}; only users show pictures.")
        source = _source(part)
        conversation.images.append(source)
        yield Text(f"Picture {len(conversation.images)}: ")
        yield PicturePath(name_picture(source))
        yield Text("\n")
    else:
        raise PromptError(
            f"{place} has a part of the type {str(kind)[:40]!r}; known are text (with text) and image (with {', '.join(PICTURE_KEYS)})."
        )


def _source(part: Mapping[str, Any]) -> Any:
    """Return where a picture part says that its picture is; None if the part leaves it open."""
    for key in PICTURE_KEYS:
        value = part.get(key)
        if isinstance(value, Mapping):  # {"image_url": {"url": ..}}
            value = value.get("url")
        if value is not None:
            return value
    return None
