"""A dense layer that takes the faster of PyTorch's two float32 matrix products on a CPU.

On x86 PyTorch multiplies float32 matrices with MKL, which leaves AVX-512 unused on processors that are not Intel's: a product with one row then reads
its weight at 16 of the 43 GB/s that the memory gave. oneDNN, which every such PyTorch contains as well, reads the same weight, as it is stored, at 35
to 40. Both add in float32; sums differ by rounding only, as they do between batch sizes. A call of oneDNN takes 10 us longer, which one row of a
small weight does not earn back (256 x 768, one row: 34 us against MKL's 14), so such products stay with MKL.

For each number of rows and each shape of a weight oneDNN writes a program of its own, of 0.6 MB, and keeps the last thousand of them. Prompts come in
all lengths, so rows are rounded up to few numbers (`padded_rows`); without that a server grew by a third of a gigabyte in its first hundred requests.

`torch.backends.mkldnn.enabled = False` turns it off.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .half_weight import HalfWeight

# Of instructions: the set for which oneDNN was seen to be faster. The operator is the one that compiled models call.
HAS_FAST_ONEDNN = (
    torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.backends.cpu.get_cpu_capability() == "AVX512"
)
SMALL_WEIGHT = 2**18  # numbers: up to here one row is MKL's


class Linear(nn.Linear):
    """`torch.nn.Linear` with the product of `multiply` where no gradient is wanted, or with an exact 16-bit copy of the weight if one is kept."""

    _half: HalfWeight | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Args: input [..., in_features]. Returns: [..., out_features]."""
        if self.training:  # whatever recomputes a forward pass for its gradient must find the same numbers
            return super().forward(input)
        weight, bias = self.weight, self.bias
        if self._half is not None and is_plain(input, weight):
            if self._half.is_of(weight, bias):
                return self._half.multiply(input)
            self.drop_half()
        return multiply(input, weight, bias)

    def keep_half(self) -> int:
        """Keep an exact 16-bit copy of the weight beside it and return its bytes; 0 if there is none.

        Once the weight has changed, the copy is dropped instead of being used.
        """
        if self._half is None or not self._half.is_of(self.weight, self.bias):
            self._half = HalfWeight.of(self.weight, self.bias)
        return self._half.num_bytes if self._half is not None else 0

    @property
    def has_half(self) -> bool:
        """Whether such a copy is kept."""
        return self._half is not None

    def drop_half(self) -> None:
        """Give the copy's memory back."""
        self._half = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Linear":
        self.drop_half()
        super()._apply(fn, recurse)
        return self


def multiply(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `input @ weight.T + bias`. Args: input [..., in]; weight [out, in]; bias [out]. Returns: [..., out]."""
    if not (HAS_FAST_ONEDNN and is_plain(input, weight) and torch.backends.mkldnn.enabled):
        return nn.functional.linear(input, weight, bias)
    rows = math.prod(input.shape[:-1])
    if rows == 1 and weight.numel() <= SMALL_WEIGHT:
        return nn.functional.linear(input, weight, bias)
    if (padding := padded_rows(rows) - rows) == 0:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
        return product
    padded = nn.functional.pad(input.reshape(rows, -1), (0, 0, 0, padding))  # [rows + padding, in]
    product = torch.ops.mkldnn._linear_pointwise(padded, weight, bias, "none", [], "")
    return product[:rows].view(*input.shape[:-1], -1)


def padded_rows(rows: int) -> int:
    """Return the next of the numbers of rows that are multiplied: up to 16 all, then eight to each doubling, so at most an eighth is in vain."""
    step = 1 << max(rows.bit_length() - 4, 0)
    return -(-rows // step) * step


def is_plain(input: Tensor, weight: Tensor) -> bool:
    """Tell whether a product is one of float32 tensors on the CPU, without gradient, and nothing else."""
    return (
        input.dtype is torch.float32
        and weight.dtype is torch.float32
        and input.is_cpu
        and weight.is_cpu
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()  # Inductor knows the operator for constant weights only
        and type(weight) in (nn.Parameter, Tensor)  # and no sharded or otherwise special one
        and not torch.is_autocast_enabled("cpu")
    )
