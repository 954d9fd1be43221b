"""Keys and values of beginnings of prompts, kept in blocks of positions for later requests that begin alike.

A block is known by a digest of all that its keys and values depend on: the NTK level, every token up to its end, and the content of the pictures
there instead of what their spans say. A digest contains that of the block before, so that equal digests mean equal beginnings.
"""

import array
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .kv_cache import BLOCKS_AT_ONCE
from .lru import CacheStatistics, TensorLRU

Read = Callable[[int, int], Tensor]  # from the first and the end of some positions to [num_layers, 2, num_heads, stop - start, head_dim]

PICTURE_SLOT = -1  # stands for a slot's token id, which is a byte of a path


@dataclass(frozen=True, slots=True)
class Span:
    """The slots of one picture in a prompt: positions from `start` up to `stop`, and the picture's content key."""

    start: int
    stop: int
    key: str


def digest_blocks(ids: Sequence[int], spans: Sequence[Span], level: int, block_tokens: int, salt: str = "") -> list[bytes]:
    """Return the digest of every whole block.

    Args:
        ids: tokens whose keys and values are known, or wanted.
        spans: pictures among them, in order.
        salt: requests with different ones share nothing.
    """
    plain = array.array("q", ids)
    for span in spans:
        for position in range(span.start, min(span.stop, len(plain))):
            plain[position] = PICTURE_SLOT
    digest, digests = hashlib.sha256(f"{level} {salt}".encode("utf-8", "surrogatepass")).digest(), []
    for start in range(0, len(plain) - block_tokens + 1, block_tokens):
        state = hashlib.sha256(digest + plain[start : start + block_tokens].tobytes())
        for span in spans:
            if span.start < start + block_tokens and span.stop > start:
                state.update(hashlib.sha256(span.key.encode("utf-8", "surrogatepass")).digest())
        digest = state.digest()
        digests.append(digest)
    return digests


class PrefixCache:
    """Blocks [num_layers, 2, num_heads, block_tokens, head_dim] by digest, at most `max_bytes` in all."""

    def __init__(self, max_bytes: int, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self._blocks: TensorLRU[bytes] = TensorLRU(max_bytes)
        self._num_hits = self._num_misses = 0  # tokens

    @property
    def is_on(self) -> bool:
        return self._blocks.max_bytes > 0

    def match(self, digests: Sequence[bytes], num_tokens: int) -> list[Tensor]:
        """Return the first blocks that are known, to be read before the next `store`. Args: num_tokens: of the prompt, for the statistics."""
        known = self.num_known(digests)
        # From the last to the first, here and in `store`: a block is of no use without those before it, so they must be dropped later.
        blocks = [self._blocks.get(digest) for digest in reversed(digests[:known])]
        self._num_hits += known * self.block_tokens
        self._num_misses += num_tokens - known * self.block_tokens
        return [block for block in reversed(blocks) if block is not None]

    def num_known(self, digests: Sequence[bytes]) -> int:
        """Return how many blocks are known, from the first up to the first that is not."""
        return next((index for index, digest in enumerate(digests) if digest not in self._blocks), len(digests))

    def store(self, digests: Sequence[bytes], read: Read, position_bytes: int) -> None:
        """Keep what is not known yet of a request's beginning, as many blocks of it as there is room for.

        Args:
            digests: of all its blocks.
            read: gives the states of its positions; asked for a few blocks at a time, as a copy of all of them could be as large as the cache.
            position_bytes: of one position.
        """
        stop = min(len(digests), self._blocks.max_bytes // (self.block_tokens * position_bytes))
        for first in reversed(range(self.num_known(digests), stop, BLOCKS_AT_ONCE)):
            last = min(first + BLOCKS_AT_ONCE, stop)
            blocks = read(first * self.block_tokens, last * self.block_tokens).split(self.block_tokens, dim=3)
            for digest, block in reversed(list(zip(digests[first:last], blocks, strict=True))):
                self._keep(digest, block)

    def _keep(self, digest: bytes, block: Tensor) -> None:
        if digest not in self._blocks:
            # The memory of a block that goes is used again: given back, it would leave holes that glibc's aligned allocation finds too small.
            dropped = self._blocks.make_room(block.nbytes)
            same = next((each for each in dropped if each.shape == block.shape and each.dtype == block.dtype), None)
            self._blocks.put(digest, block.clone(memory_format=torch.contiguous_format) if same is None else same.copy_(block))

    def clear(self) -> None:
        """Forget all: the weights have changed."""
        self._blocks.clear()

    def statistics(self) -> CacheStatistics:
        """Return what is held; hits and misses are tokens of prompts."""
        return self._blocks.statistics(self._num_hits, self._num_misses)
