"""Exact 16-bit copies of the decoder's weights, within a bound: a CPU writes a token in about the time that it takes to read all weights once."""

import logging
from collections import deque
from collections.abc import Callable

from qwen_vl.errors import is_out_of_memory
from qwen_vl.modeling.linear import Linear
from qwen_vl.modeling.model import QWenLMHeadModel

from .memory import available_bytes

logger = logging.getLogger(__name__)


class HalfCopies:
    """The copies that the layers of a model keep for an engine.

    Args:
        max_bytes: 0 keeps none; None: what is available when the first is made but for what is reserved, and nobody is told if that is too little.
        reserved: returns the bytes that others may still take.
    """

    def __init__(self, model: QWenLMHeadModel, max_bytes: int | None, reserved: Callable[[], int]) -> None:
        self._model, self._max_bytes, self._reserved, self.num_bytes = model, max_bytes, reserved, 0
        self._level = logging.DEBUG if max_bytes is None else logging.WARNING
        self._bound = 0
        self._left: deque[Linear] | None = None  # not looked at yet; None: it has not begun

    def _layers(self) -> list[Linear]:
        """Return the layers, those inside of adapters' included, as they are now."""
        return [layer for part in (self._model.transformer.h, self._model.lm_head) for layer in part.modules() if type(layer) is Linear]

    def copy_all(self) -> None:
        """Copy what has no copy yet, or has changed since, layer by layer as long as it fits; says in the log if not all could be copied."""
        self._begin()
        while self._left:
            self.copy_next()

    def copy_next(self) -> None:
        """Copy one layer more, so that a request that is being written waits for no more than that."""
        if self._left is None:
            self._begin()
        if not self._left:
            return
        layer = self._left.popleft()
        if self.num_bytes + 2 * layer.weight.numel() <= self._bound:
            try:
                self.num_bytes += layer.keep_half()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                logger.log(self._level, "the memory does not suffice for all 16-bit copies of weights; lower half_bytes")
                self._left.clear()
        if not self._left:
            self._tell()

    def _begin(self) -> None:
        self._bound = max(0, available_bytes() - self._reserved()) if self._max_bytes is None else self._max_bytes
        self._left, self.num_bytes = deque(self._layers() if self._bound else []), 0

    def _tell(self) -> None:
        layers = self._layers()
        num_copied = sum(layer.has_half for layer in layers)
        if num_copied < len(layers):
            logger.log(
                self._level,
                "%d of %d layers have a 16-bit copy: only float32 weights on the CPU whose numbers all fit, as those of a bfloat16 or float16 "
                "checkpoint, can have one, within half_bytes=%d",
                *(num_copied, len(layers), self._bound),
            )

    def refresh(self) -> None:
        """Copy again what has changed, if it has begun."""
        if self._left is not None:
            self.copy_all()

    def drop(self) -> None:
        """Give the memory back."""
        for layer in self._layers() if self._left is not None else []:
            layer.drop_half()
        self._left, self.num_bytes = None, 0
