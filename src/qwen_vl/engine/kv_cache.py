"""Keys and values of all requests in flight, each in a row of its own.

The active requests sit in rows 0 to batch-1, so that a decode step works on a view of them: nothing is copied or joined for it. Memory grows in
steps up to a bound and is reused.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from qwen_vl.errors import CapacityError
from qwen_vl.modeling.model import QWenLMHeadModel

LENGTH_STEP = 128  # positions
BLOCKS_AT_ONCE = 16  # joined to be written to a row: more would be a second copy of a long beginning


class SlotCache:
    """Per layer, keys and values [num_rows, num_heads, length, head_dim] for at most `max_bytes` in all."""

    def __init__(self, model: QWenLMHeadModel, max_bytes: int) -> None:
        config = model.config
        self.num_heads, self.head_dim, self.dtype, self.max_bytes = config.num_attention_heads, config.kv_channels, model.dtype, max_bytes
        self.devices = [next(block.parameters()).device for block in model.transformer.h]
        self.num_rows = self.length = 0
        self.ends: list[int] = []  # of each row: all positions from here on are zeros
        self.version = 0  # of the tensors: it grows when they are replaced
        self.keys = [self._zeros(0, 0, device) for device in self.devices]
        self.values = [self._zeros(0, 0, device) for device in self.devices]

    def _zeros(self, num_rows: int, length: int, device: torch.device) -> Tensor:
        # Zeros: what is hidden from a row by the mask counts zero times, and zero times what is not a number is not a number.
        return torch.zeros(num_rows, self.num_heads, length, self.head_dim, dtype=self.dtype, device=device)

    @property
    def position_bytes(self) -> int:
        """Bytes of one position of one row, in all layers."""
        return 2 * len(self.devices) * self.num_heads * self.head_dim * self.dtype.itemsize

    @property
    def num_bytes(self) -> int:
        return self.num_rows * self.length * self.position_bytes

    def fits(self, num_rows: int, length: int) -> bool:
        """Tell whether so many rows of so many positions are within the bound."""
        return num_rows * length * self.position_bytes <= self.max_bytes

    def reserve(self, num_rows: int, length: int, used: Sequence[int]) -> None:
        """Make sure of so many rows of so many positions.

        Args: used: positions of each row, from the first on, whose content must stay.
        Raises: CapacityError beyond the bound; torch's own errors when the memory does not suffice, and then all is as before.
        """
        if num_rows <= self.num_rows and length <= self.length:
            return
        if not self.fits(num_rows, length):
            raise CapacityError(f"{num_rows} requests of {length} tokens need more than the {self.max_bytes / 2**20:.0f} MiB allowed for them.")
        self._resize(*self._next_shape(num_rows, length), used)

    def _next_shape(self, num_rows: int, length: int) -> tuple[int, int]:
        """Return the largest of some shapes that hold what is needed, within the bound: a shape that grows seldom."""
        stepped = max(self.length, -(-length // LENGTH_STEP) * LENGTH_STEP)
        doubled = max(self.num_rows, num_rows if num_rows <= self.num_rows else 1 << (num_rows - 1).bit_length())
        shapes = ((doubled, stepped), (num_rows, stepped), (doubled, length), (num_rows, length))
        return next(shape for shape in shapes if self.fits(*shape))

    def _resize(self, num_rows: int, length: int, used: Sequence[int]) -> None:
        if not used:  # first free what there is
            self.release()
        old_shape = self.num_rows, self.length
        self.version += 1
        try:
            for layer, device in enumerate(self.devices):  # layer by layer: at no time are there two of everything
                for states in (self.keys, self.values):
                    new = self._zeros(num_rows, length, device)
                    for row, count in enumerate(used):
                        new[row, :, :count] = states[layer][row, :, :count]
                    states[layer] = new
        except BaseException:
            # Layers that have grown are as good as before, but those that have shrunk decide what there is room for.
            self.num_rows, self.length = min(old_shape[0], num_rows), min(old_shape[1], length)
            self.ends = [min(end, self.length) for end in self.ends[: self.num_rows]]
            raise
        self.num_rows, self.length = num_rows, length
        self.ends = [*used, *[0] * (num_rows - len(used))]

    def release(self) -> None:
        """Give all memory back."""
        self.version += 1
        self.num_rows = self.length = 0
        self.ends = []
        for layer, device in enumerate(self.devices):
            self.keys[layer] = self.values[layer] = self._zeros(0, 0, device)

    def note(self, row: int, stop: int) -> None:
        """Note that positions of a row up to `stop` are about to be written."""
        self.ends[row] = max(self.ends[row], stop)

    def move(self, source: int, target: int, count: int) -> None:
        """Copy the first `count` positions of a row to another row."""
        self.note(target, count)
        for states in (*self.keys, *self.values):
            states[target, :, :count] = states[source, :, :count]

    def wipe(self, row: int, start: int) -> None:
        """Set what was written to a row from a position on to zero: its next owner's neighbours must not meet numbers that overflowed."""
        if start < self.ends[row]:
            for states in (*self.keys, *self.values):
                states[row : row + 1, :, start : self.ends[row]] = 0
            self.ends[row] = start

    def read(self, row: int, start: int, stop: int) -> Tensor:
        """Return a copy of positions of a row: [num_layers, 2, num_heads, stop - start, head_dim]."""
        shape = len(self.devices), 2, self.num_heads, stop - start, self.head_dim
        states = torch.empty(shape, dtype=self.dtype, device=self.devices[0])
        for layer, (key, value) in enumerate(zip(self.keys, self.values, strict=True)):
            states[layer, 0], states[layer, 1] = key[row, :, start:stop], value[row, :, start:stop]
        return states

    def write(self, row: int, blocks: Sequence[Tensor]) -> int:
        """Fill a row from its beginning and return how many positions. Args: blocks, each [num_layers, 2, num_heads, any, head_dim]."""
        stop = 0
        for first in range(0, len(blocks), BLOCKS_AT_ONCE):
            states = torch.cat(list(blocks[first : first + BLOCKS_AT_ONCE]), dim=3)
            start, stop = stop, stop + states.shape[3]
            self.note(row, stop)
            for layer, (key, value) in enumerate(zip(self.keys, self.values, strict=True)):
                key[row, :, start:stop], value[row, :, start:stop] = states[layer, 0], states[layer, 1]
        return stop
