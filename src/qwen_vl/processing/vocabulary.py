"""The vocabulary file and byte-pair encoding.

A vocabulary file (`qwen.tiktoken`) has one line per token: base64 of its bytes, a space, its rank. Ranks count from 0
in file order, and all 256 single bytes are among them, so that every text can be encoded.

    ranks = read_ranks("checkpoint/qwen.tiktoken")
    BytePairEncoder(ranks).encode("Hello", allowed_special=())
"""

import base64
import binascii
import re
from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import Any

import tiktoken

from qwen_vl.errors import CheckpointError, PromptError
from qwen_vl.prompt.special_tokens import special_token_ids

MAX_TEXT_CHARS = 2**20  # 8192 tokens of the longest kind (128 spaces)

# One \p{N} without a plus: every digit is a token of its own.
SPLIT_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def read_ranks(path: str | Path) -> dict[bytes, int]:
    """Read a vocabulary file with any line ends.

    Raises: CheckpointError naming file and line for a missing, foreign or damaged file.
    """
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise CheckpointError(f"Cannot read the vocabulary {path}: {error.strerror}. Download qwen.tiktoken again (with git-lfs).") from None
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        token, rank = _parse_line(line, f"{path} line {number}")
        if rank != len(ranks) or token in ranks:
            raise CheckpointError(f"{path} line {number}: expected rank {len(ranks)} and a new token, found rank {rank}. Download it again.")
        ranks[token] = rank
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise CheckpointError(f"{path} lacks {len(missing)} of the 256 single bytes, so it is not a whole vocabulary. Download it again.")
    return ranks


def _parse_line(line: bytes, place: str) -> tuple[bytes, int]:
    """Split `base64 rank`; `place` is for the message."""
    token, _, rank = line.strip().partition(b" ")
    try:
        return base64.b64decode(token, validate=True), int(rank)
    except (binascii.Error, ValueError):
        shown = line[:40].decode("ascii", errors="replace")
        raise CheckpointError(f"{place} is not `base64 rank`: {shown!r}. A git-lfs pointer? Download the file itself.") from None


def write_ranks(path: str | Path, ranks: dict[bytes, int]) -> None:
    """Write a vocabulary file with LF line ends."""
    ordered = sorted(ranks.items(), key=lambda item: item[1])
    Path(path).write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ordered))


class BytePairEncoder:
    """Byte-pair encoding of text outside picture spans; survives pickling."""

    def __init__(self, ranks: dict[bytes, int]) -> None:
        self.ranks = ranks
        self.special = special_token_ids(len(ranks))
        self._special_pattern = re.compile("|".join(map(re.escape, self.special)))

    @cached_property
    def encoding(self) -> tiktoken.Encoding:
        """The tiktoken object, made when first needed."""
        return tiktoken.Encoding("qwen", pat_str=SPLIT_PATTERN, mergeable_ranks=self.ranks, special_tokens=self.special)

    @cached_property
    def tokens(self) -> dict[int, bytes | str]:
        """Token of each id: bytes of byte-pair tokens, text of special tokens."""
        return {rank: token for token, rank in self.ranks.items()} | {index: token for token, index in self.special.items()}

    def encode(self, text: str, allowed_special: Collection[str]) -> list[int]:
        """Encode normalised text; special tokens that are not allowed are ordinary text.

        Raises: PromptError for some hundred thousand blanks in a row, on which the splitting expression gives up.
        """
        try:
            return self.encoding.encode(text, allowed_special=set(allowed_special), disallowed_special=())
        except ValueError:
            raise PromptError("The text has a run of blanks too long to be split into words. Remove the blanks.") from None

    def find_special(self, text: str, among: Collection[str]) -> str | None:
        """Return the first special token of the collection that the text holds."""
        return next((match[0] for match in self._special_pattern.finditer(text) if match[0] in among), None)

    def __getstate__(self) -> dict[str, Any]:
        return {"ranks": self.ranks}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["ranks"])  # type: ignore[misc]
