"""The coordinates of a box as an automaton over bytes, and the tokens of a vocabulary that can spell them.

From one state, `CoordinateTokens.following` gives every token that may come next, whatever bytes were merged into it: `2`, `219` or `),(`.
Between `<box>` and `</box>` stand `(x1,y1),(x2,y2)`: whole numbers from 0 to 999 without leading zeros, x1 < x2 and y1 < y2.

    state = START
    for byte in b"(219,4":
        state = step(BOX_SHAPE, state, byte)
    state.numbers, state.value  # (219,), 4
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from qwen_vl.grounding.box import BOX_MAX

NUMBER = -1  # the place of a number in a shape's pattern
COORDINATE_BYTES = frozenset(b"0123456789(),")
MAX_DIGITS = len(str(BOX_MAX))
_CACHED_STATES = 4096


class Shape(NamedTuple):
    """What is written between a pair of tags."""

    pattern: tuple[int, ...]  # bytes, and NUMBER for each coordinate
    is_ordered: bool  # the third and fourth number are above the first and second

    @property
    def max_bytes(self) -> int:
        """Length of the longest spelling: no vocabulary needs more tokens."""
        return sum(MAX_DIGITS if byte == NUMBER else 1 for byte in self.pattern)

    def bounds(self, numbers: tuple[int, ...]) -> tuple[int, int]:
        """Return the least and the greatest number that may follow these."""
        if not self.is_ordered:
            return 0, BOX_MAX
        return (0, BOX_MAX - 1) if len(numbers) < 2 else (numbers[len(numbers) - 2] + 1, BOX_MAX)


def _pattern(text: str) -> tuple[int, ...]:
    return tuple(NUMBER if byte == ord("n") else byte for byte in text.encode())


BOX_SHAPE = Shape(_pattern("(n,n),(n,n)"), is_ordered=True)
ANY_BOX_SHAPE = Shape(_pattern("(n,n),(n,n)"), is_ordered=False)
QUAD_SHAPE = Shape(_pattern("(n,n),(n,n),(n,n),(n,n)"), is_ordered=False)


class Coordinates(NamedTuple):
    """What has been written since the start tag."""

    place: int = 0  # index into the pattern: of the number that is being written, else of what comes next
    value: int | None = None  # of the number that is being written
    numbers: tuple[int, ...] = ()  # those before it

    def is_complete(self, shape: Shape) -> bool:
        """Whether the end tag may follow, and nothing else."""
        return self.place == len(shape.pattern)


START = Coordinates()


def step(shape: Shape, state: Coordinates, byte: int) -> Coordinates | None:
    """Return the state after one more byte, or None if it cannot be part of a valid spelling."""
    place, value, numbers = state
    if place == len(shape.pattern):
        return None
    if shape.pattern[place] == NUMBER:
        low, high = shape.bounds(numbers)
        if ord("0") <= byte <= ord("9"):
            digit = byte - ord("0")
            longer = digit if value is None else 10 * value + digit
            return Coordinates(place, longer, numbers) if value != 0 and can_become(longer, low, high) else None
        if value is None or not low <= value <= high:
            return None
        place, numbers = place + 1, (*numbers, value)
    return Coordinates(place + 1, None, numbers) if shape.pattern[place] == byte else None


def can_become(value: int, low: int, high: int) -> bool:
    """Whether these digits are, or begin, a number from `low` to `high`; more digits after a 0 would make it a leading zero."""
    if value == 0:
        return low == 0
    return any(value * scale <= high and value * scale + scale - 1 >= low for scale in (1, 10, 100))


@dataclass(slots=True)
class _Node:
    """A place in the tree of tokens: those that end here, and the bytes that lead on."""

    token_ids: list[int] = field(default_factory=list)
    children: dict[int, "_Node"] = field(default_factory=dict)


class CoordinateTokens:
    """The tokens of a vocabulary that consist of digits, brackets and commas only, as a tree by their bytes."""

    def __init__(self, tokens: Iterable[tuple[int, bytes]]) -> None:
        """Args: tokens: (id, bytes) of all tokens that are no special ones."""
        found = ((token_id, token) for token_id, token in tokens if token and COORDINATE_BYTES.issuperset(token))
        self.spelling: Mapping[int, bytes] = dict(sorted(found))
        self._root = _Node()
        for token_id, token in self.spelling.items():
            node = self._root
            for byte in token:
                node = node.children.setdefault(byte, _Node())
            node.token_ids.append(token_id)
        self.following = lru_cache(_CACHED_STATES)(self._following)

    def _following(self, shape: Shape, state: Coordinates) -> dict[int, Coordinates]:
        """Return each token that may follow, with the state after it. Only branches of the tree that fit are visited."""
        found: dict[int, Coordinates] = {}
        pending = [(self._root, state)]
        while pending:
            node, before = pending.pop()
            for byte, child in node.children.items():
                after = step(shape, before, byte)
                if after is not None:
                    found.update(dict.fromkeys(child.token_ids, after))
                    pending.append((child, after))
        return found
