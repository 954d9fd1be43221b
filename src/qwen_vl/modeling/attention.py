"""Attention through transformers' attention interface, so that eager, sdpa and flash are one call."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


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


def attend(
    module: nn.Module, implementation: str, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Attend with the named implementation; shapes as in `eager_attention`. Weights are None unless it is "eager"."""
    function = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
    output, weights = function(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    return output, weights
