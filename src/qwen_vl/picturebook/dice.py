"""Draw random choices that are the same on every machine and every version of Python.

Only `random.Random.random` is promised to stay as it is between versions, so every choice here is made of it alone.
"""

import random
from collections.abc import Sequence
from typing import TypeVar

from qwen_vl.errors import ConfigError

T = TypeVar("T")


class Dice:
    """A seeded source of choices: `Dice(7).pick(words)` is the same word everywhere.

    Args:
        *seeds: whole numbers from 0; other numbers give an independent stream.
    Raises: ConfigError for a seed that is negative or no whole number.
    """

    def __init__(self, *seeds: int) -> None:
        for seed in seeds:
            check_seed(seed)
        self._random = random.Random(":".join(map(str, seeds)))  # a text seed goes through SHA-512: near seeds are unrelated

    def chance(self, probability: float) -> bool:
        """Tell whether an event of this probability happens."""
        return self._random.random() < probability

    def below(self, stop: int) -> int:
        """Draw a whole number of 0 .. stop - 1."""
        return int(self._random.random() * stop)

    def between(self, low: float, high: float) -> float:
        """Draw a number of the interval low .. high."""
        return low + (high - low) * self._random.random()

    def pick(self, items: Sequence[T]) -> T:
        """Draw one of the items."""
        return items[self.below(len(items))]

    def weighted(self, items: Sequence[tuple[T, float]]) -> T:
        """Draw one item of (item, weight) pairs, in proportion to its weight."""
        rest = self._random.random() * sum(weight for _, weight in items)
        for item, weight in items:
            rest -= weight
            if rest < 0:
                return item
        return items[-1][0]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """Return the items in a random order."""
        result = list(items)
        for last in range(len(result) - 1, 0, -1):
            other = self.below(last + 1)
            result[last], result[other] = result[other], result[last]
        return result


def check_seed(seed: int) -> None:
    """Refuse what cannot be a seed. Raises: ConfigError naming the value."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigError(f"seed={seed!r} is not a whole number from 0 on; give for example seed=7")
