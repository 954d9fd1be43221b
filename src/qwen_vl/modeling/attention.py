"""Attention through transformers' attention interface, so that eager, sdpa and flash are one call."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

PART_NUMBERS = 2**20  # of keys that are brought to float32 at once: 4 MiB, which stay in the cache


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """The new positions of one prompt, where several prompts that follow each other in one sequence are read in one pass."""

    queries: slice  # where they stand in the sequence
    row: int  # of the keys and values
    num_keys: int  # so many of the row's positions are its own, the new ones the last of them
    mask: Tensor | None  # which keys each query sees [1, 1, queries, num_keys]; None: the implementation's own rule for a prompt


def causal_mask(implementation: str, num_known: int, num_new: int, device: torch.device) -> Tensor | None:
    """Return the mask of a `Segment` whose first `num_known` positions were read before; None where the implementation needs none."""
    if implementation not in ("sdpa", "eager") or (implementation == "sdpa" and (num_known == 0 or num_new == 1)):
        return None
    return torch.ones(num_new, num_known + num_new, dtype=torch.bool, device=device).tril(num_known)[None, None]


def eager_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float, dropout: float = 0.0, **_: Any
) -> tuple[Tensor, Tensor]:
    """Attend with plain matrix products: the readable reference for the other implementations.

    Args:
        query, key, value: [batch, num_heads, seq, head_dim] (keys and values may be longer than queries).
        attention_mask: None, or additive or boolean [batch, 1, query_seq, key_seq].
    Returns: output [batch, query_seq, num_heads, head_dim] and weights [batch, num_heads, query_seq, key_seq].
    """
    scores = (query @ key.transpose(-2, -1) * scaling).float()  # [batch, num_heads, query_seq, key_seq]
    if attention_mask is not None:
        hidden = ~attention_mask if attention_mask.dtype == torch.bool else attention_mask < 0
        # A finite minimum instead of adding: an added minimum overflows to -inf in fp16 and poisons rows that are padding.
        scores = scores.masked_fill(hidden, torch.finfo(torch.float32).min)
    weights = scores.softmax(dim=-1).to(query.dtype)
    output = nn.functional.dropout(weights, p=dropout, training=module.training) @ value
    return output.transpose(1, 2).contiguous(), weights


def attend_with_one_query(query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float) -> Tensor:
    """Attend with one query a row, in float32, some positions at a time; shapes as in `eager_attention`.

    For 16 bits on a CPU, where PyTorch's kernel takes two to four times as long for a single query.
    """
    batch, num_heads, _, dim = query.shape
    part = max(64, PART_NUMBERS // (batch * num_heads * dim))
    precise = query.float() * scaling
    scores = torch.cat([precise @ keys.float().transpose(-2, -1) for keys in key.split(part, dim=2)], dim=-1)  # [batch, num_heads, 1, key_seq]
    if attention_mask is not None:
        is_rule = attention_mask.dtype == torch.bool
        scores = scores.masked_fill(~attention_mask, float("-inf")) if is_rule else scores + attention_mask
    weights = scores.softmax(dim=-1)
    parts = [some @ values.float() for some, values in zip(weights.split(part, dim=-1), value.split(part, dim=2), strict=True)]
    return sum(parts[1:], parts[0]).to(query.dtype).transpose(1, 2)


def attend(
    module: nn.Module,
    implementation: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    segments: Sequence[Segment] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend with the named implementation; shapes as in `eager_attention`. Weights are None unless it is "eager".

    Args: segments: of a query sequence [1, num_heads, seq, head_dim] that holds several prompts, each of which sees its own row of keys and values
        [rows, num_heads, length, head_dim] and nothing else. No weights are returned then, and `attention_mask` is not looked at.
    The flash kernels read no boolean mask of four axes: what has one is left to "sdpa".
    """
    if attention_mask is not None and attention_mask.ndim == 4 and attention_mask.dtype == torch.bool and implementation.startswith("flash"):
        implementation = "sdpa"
    is_one_in_16_bits = query.shape[2] == 1 and query.device.type == "cpu" and query.dtype.itemsize == 2 and not kwargs.get("dropout")
    if implementation == "sdpa" and segments is None and is_one_in_16_bits:
        return attend_with_one_query(query, key, value, attention_mask, scaling), None
    function = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
    if segments is None:
        output, weights = function(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        return output, weights
    parts = []
    for each in segments:
        states = (query[:, :, each.queries], *(one[each.row : each.row + 1, :, : each.num_keys] for one in (key, value)))
        mask = None if each.mask is None else each.mask.to(query.device)
        parts.append(function(module, *states, mask, scaling=scaling, **kwargs)[0])
    return torch.cat(parts, dim=1), None  # [1, seq, num_heads, head_dim]
