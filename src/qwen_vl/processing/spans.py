"""Picture spans in token ids: `<img>`, a fixed number of slots, `</img>`.

The slots hold the UTF-8 bytes of the picture's path as the integers 0..255, then padding (FACTS 4.1). They are raw
bytes and not byte-pair tokens, so spans are recognised before ids are decoded.

    layout = SpanLayout(start=151857, end=151858, pad=151859, slots=256)
    layout.write("a.png")               # 258 ids
    layout.read(ids, *layout.find(ids)[0])  # "a.png"
"""

from collections.abc import Sequence
from dataclasses import dataclass

from qwen_vl.errors import PromptError


@dataclass(frozen=True, slots=True)
class SpanLayout:
    """Ids of the three picture tokens and the number of slots between the first two."""

    start: int
    end: int
    pad: int
    slots: int

    @property
    def max_path_bytes(self) -> int:
        """Longest path that the released model reads back: it never looks at the last slot, and needs a pad."""
        return self.slots - 2

    def write(self, path: str) -> list[int]:
        """Return the ids of a span. Raises: PromptError if the path does not fit or is not text."""
        try:
            content = path.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise PromptError(f"The picture path {path[:60]!r} is not valid text. Pass the picture through the processor instead.") from None
        if len(content) > self.max_path_bytes:
            raise PromptError(
                f"The picture path {path[:60]!r}... has {len(content)} bytes; at most {self.max_path_bytes} fit between <img> and </img>. "
                "Pass the picture through the processor (images=...), or use a shorter path."
            )
        return [self.start, *content, *[self.pad] * (self.slots - len(content)), self.end]

    def find(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        """Return (index of `<img>`, index of `</img>`) of each span; a stray `</img>` is passed over.

        Raises: PromptError for an unclosed span or one with another number of slots.
        """
        spans = []
        position = 0
        while (start := _index(ids, self.start, position)) >= 0:
            end = _index(ids, self.end, start)
            if end < 0:
                raise PromptError(f"Unclosed image token: the <img> at position {start} has no </img>. Was the prompt cut through a picture?")
            if end - start - 1 != self.slots:
                raise PromptError(f"The picture span at positions {start}..{end} has {end - start - 1} slots, not {self.slots}.")
            spans.append((start, end))
            position = end + 1
        return spans

    def read(self, ids: Sequence[int], start: int, end: int) -> str:
        """Return the path of the span between the two positions. Raises: PromptError if the slots hold no path."""
        content = self.path_bytes(ids, start, end)
        if content is None:
            raise PromptError(f"The picture span at positions {start}..{end} holds no path: its slots must be bytes (ids 0..255), then padding.")
        return content.decode("utf-8", "surrogateescape")

    def path_bytes(self, ids: Sequence[int], start: int, end: int) -> bytes | None:
        """Return the bytes in the slots up to the first pad, or None if these are not slots of a span."""
        stop = start + 1
        while stop < end and 0 <= ids[stop] < 256:
            stop += 1
        is_span = ids[stop] == self.pad if stop < end else end - start - 1 == self.slots
        return bytes(ids[start + 1 : stop]) if is_span else None


def _index(ids: Sequence[int], token: int, position: int) -> int:
    """Return the first index of the token from `position` on, or -1."""
    try:
        return ids.index(token, position)
    except ValueError:
        return -1
