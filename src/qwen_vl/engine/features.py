"""What the vision tower made of pictures, kept by the pictures' content; those that several threads ask for at one time go through it together.

features = FeatureCache(max_bytes, model.get_image_features).fetch([key], [pixel_values])
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from torch import Tensor

from .lru import CacheStatistics, TensorLRU

logger = logging.getLogger(__name__)

ENCODE_AT_ONCE = 8  # pictures, a power of two: more make a pass no quicker and need more memory

Encode = Callable[[list[Tensor]], Tensor]  # from pixel values of some pictures to features [num_pictures, image_slots, dim]


@dataclass(frozen=True, slots=True)
class Coming:
    """A picture that waits for the vision tower, or is in it."""

    key: str
    pixel_values: Tensor
    generation: int
    features: Future[Tensor] = field(default_factory=Future)


class FeatureCache:
    """Features [image_slots, dim] by content key. Threads may share it: one of them encodes at a time, for all that wait.

    A picture that is being encoded is waited for, not encoded again.
    """

    def __init__(self, max_bytes: int, encode: Encode) -> None:
        self._entries: TensorLRU[str] = TensorLRU(max_bytes)
        self._encode = encode
        self._coming: dict[str, Coming] = {}
        self._queue: deque[Coming] = deque()
        self._lock = threading.Lock()
        self._tower = threading.Lock()  # whoever holds it encodes
        self._num_hits = self._num_misses = self._generation = 0
        self.num_passes = 0  # of the tower that have ended, whatever came of them

    def fetch(self, keys: Sequence[str], pictures: Sequence[Tensor]) -> list[Tensor]:
        """Return the features of each picture, those that are not known from the vision tower.

        Args: pictures: pixel values for each key. Raises: what the tower raises for one of these pictures, whatever becomes of others' pictures.
        """
        found: dict[str, Tensor | Coming] = {}
        mine: list[Coming] = []
        with self._lock:
            for key, pixel_values in zip(keys, pictures, strict=True):
                places = (found.get, self._entries.get, self._coming.get)
                known = next((value for get in places if (value := get(key)) is not None), None)
                if known is None:
                    known = Coming(key, pixel_values, self._generation)
                    self._coming[key] = known
                    self._queue.append(known)
                    mine.append(known)
                    self._num_misses += 1
                else:
                    self._num_hits += 1
                found[key] = known
        while not all(each.features.done() for each in mine):
            with self._tower:
                self._encode_some()
        return [each.features.result() if isinstance(each, Coming) else each for each in (found[key] for key in keys)]

    def _encode_some(self) -> None:
        """Encode the first of those that wait; if they cannot be encoded together, each alone."""
        with self._lock:
            # Powers of two: for each number of rows oneDNN keeps programs of several megabytes.
            size = 1 << min(len(self._queue), ENCODE_AT_ONCE).bit_length() >> 1
            batch = [self._queue.popleft() for _ in range(size)]
        try:
            if len(batch) > 1 and not self._encode_together(batch):
                for each in batch:
                    self._encode_alone(each)
            elif len(batch) == 1:
                self._encode_alone(batch[0])
        except BaseException as error:  # Ctrl-C: nobody may wait for ever
            for each in batch:
                if not each.features.done():
                    self._end(each, error)
            raise

    def _encode_together(self, batch: list[Coming]) -> bool:
        try:
            encoded = self._pass(batch)
        except Exception as error:  # noqa: BLE001  a tower raises anything, and for one picture of several; each is tried alone next, and what fails then is kept
            logger.warning("%d pictures could not be encoded together, %s: each is encoded alone", len(batch), type(error).__name__)
            return False
        for each, features in zip(batch, encoded, strict=True):
            self._end(each, features.clone())  # a part of a batch would keep the whole batch alive
        return True

    def _encode_alone(self, each: Coming) -> None:
        try:
            self._end(each, self._pass([each])[0].clone())
        except Exception as error:  # noqa: BLE001  a tower raises anything; the future carries it to all threads that wait for this picture
            self._end(each, error)

    def _pass(self, batch: list[Coming]) -> Tensor:
        try:
            return self._encode([each.pixel_values for each in batch])
        finally:
            self.num_passes += 1

    def _end(self, each: Coming, outcome: Tensor | BaseException) -> None:
        """Hand over what has come of a picture, and keep it."""
        with self._lock:
            if self._coming.get(each.key) is each:
                del self._coming[each.key]
            if isinstance(outcome, Tensor) and each.generation == self._generation:
                self._entries.put(each.key, outcome)
        if isinstance(outcome, Tensor):
            each.features.set_result(outcome)
        else:
            each.features.set_exception(outcome)

    def clear(self) -> None:
        """Forget all, also what is being encoded now: the weights have changed."""
        with self._lock:
            self._generation += 1
            self._entries.clear()
            self._coming.clear()

    def statistics(self) -> CacheStatistics:
        """Return what is held; hits and misses are pictures."""
        with self._lock:
            return self._entries.statistics(self._num_hits, self._num_misses)
