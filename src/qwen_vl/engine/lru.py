"""Tensors by key, the least recently used of them dropped when a bound in bytes is reached."""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheStatistics:
    """What a cache holds and what it was good for. Hits and misses count what its owner looks up: pictures, or tokens of prompts."""

    num_hits: int
    num_misses: int
    num_evicted: int
    num_entries: int
    num_bytes: int
    max_bytes: int


class TensorLRU(Generic[Key]):
    """A dictionary of tensors of at most `max_bytes` in all. Each tensor must own its memory: a view would keep more alive than is counted."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.num_bytes, self.num_evicted = max_bytes, 0, 0
        self._entries: OrderedDict[Key, Tensor] = OrderedDict()  # the least recently used first

    def __contains__(self, key: Key) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key) -> Tensor | None:
        """Return a tensor and note that it was used, or None."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key]

    def make_room(self, num_bytes: int) -> list[Tensor]:
        """Drop tensors until so many bytes more fit, or nothing is left, and return those that were dropped."""
        dropped = []
        while self._entries and self.num_bytes + num_bytes > self.max_bytes:
            dropped.append(self._entries.popitem(last=False)[1])
            self.num_bytes -= dropped[-1].nbytes
        self.num_evicted += len(dropped)
        return dropped

    def put(self, key: Key, tensor: Tensor) -> None:
        """Keep a tensor, dropping others until it fits; one that is larger than the bound is not kept."""
        if key in self._entries or tensor.nbytes > self.max_bytes:
            return
        self.make_room(tensor.nbytes)
        self._entries[key] = tensor
        self.num_bytes += tensor.nbytes

    def clear(self) -> None:
        """Drop all."""
        self._entries.clear()
        self.num_bytes = 0

    def statistics(self, num_hits: int, num_misses: int) -> CacheStatistics:
        return CacheStatistics(
            num_hits=num_hits,
            num_misses=num_misses,
            num_evicted=self.num_evicted,
            num_entries=len(self),
            num_bytes=self.num_bytes,
            max_bytes=self.max_bytes,
        )
