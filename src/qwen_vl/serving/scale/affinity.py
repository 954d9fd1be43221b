"""What the gateway reads in a request: which others it belongs to, and which uploaded pictures it names.

Requests belong together that begin with the same picture, else with the same words. Nothing is checked or changed here: the replica does that,
with the body as it came.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qwen_vl.serving.body import parse
from qwen_vl.serving.errors import ServeError
from qwen_vl.serving.uploads import PREFIX

NO_KEY = ""  # any replica will do


@dataclass(frozen=True, slots=True)
class Subject:
    """What a request is about."""

    key: str = NO_KEY  # what requests of one conversation, or about one picture, have in common
    handles: tuple[str, ...] = ()  # of uploaded pictures, each once


def subject_of(body: bytes) -> Subject:
    """Return what the body of a request is about; of one that the replica will refuse, nothing.

    It is parsed as the replica parses it: two readings of one body could be told different things.
    """
    try:
        contents = list(_contents(parse(body)))
        pictures = list(_pictures(contents))
        first = pictures[0] if pictures else next(iter(contents), None)
        key = NO_KEY if first is None else hashlib.sha256(json.dumps(first, sort_keys=True).encode()).hexdigest()[:32]
    except (ServeError, RecursionError):  # which writing meets a little earlier than reading
        return Subject()
    return Subject(key, tuple(dict.fromkeys(picture for picture in pictures if picture.startswith(PREFIX))))


def _contents(fields: Mapping[str, Any]) -> Iterator[Any]:
    """Yield what users say: the contents of their messages, in both protocols, or a prompt."""
    given = fields.get("input")
    found = (given if isinstance(given, Mapping) else fields).get("messages")
    for message in found if isinstance(found, list) else ():
        if isinstance(message, Mapping) and message.get("role") == "user" and message.get("content"):
            yield message["content"]
    if fields.get("prompt"):
        yield fields["prompt"]


def _pictures(contents: list[Any]) -> Iterator[str]:
    """Yield what names the pictures: data URIs, addresses or handles."""
    for content in contents:
        for part in content if isinstance(content, list) else ():
            if isinstance(part, Mapping):
                named = part.get("image_url") or part.get("image")
                found = named.get("url") if isinstance(named, Mapping) else named
                if isinstance(found, str) and found:
                    yield found
