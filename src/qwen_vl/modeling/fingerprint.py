"""Tell models apart without reading all of their weights: runs that go on must be of the same one."""

import hashlib
import json

import torch

from .model import QWenLMHeadModel

SAMPLED = 64  # numbers of each tensor


@torch.no_grad()
def name_model(model: QWenLMHeadModel, *, with_adapters: bool) -> str:
    """Return a digest of sizes and of some numbers of every tensor, spread over it.

    Of every one, as a model with an adapter merged into it differs from its base in a few matrices alone; spread over it, as training of some
    tokens changes rows in the middle of a table.

    Args: with_adapters: count the adapters that are attached, too.
    """
    digest = hashlib.sha256(json.dumps([model.config.hidden_size, model.config.num_hidden_layers, model.config.vocab_size]).encode())
    for name, tensor in model.state_dict().items():
        if with_adapters or ".lora_" not in name:
            values = tensor.flatten()[:: max(1, tensor.numel() // SAMPLED)].cpu().contiguous()
            digest.update(name.encode() + values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
