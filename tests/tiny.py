"""A tiny checkpoint in the released layout: random weights from a fixed seed, every size different, small pictures, few slots.

It answers nonsense, the same every time, in milliseconds; what is tested with it is everything around the model.
"""

import json
import shutil
from pathlib import Path
from typing import Any

FIXTURES = Path(__file__).parent / "fixtures"
IMAGE_SLOTS = 25
IMAGE_SIZE = 42
FIRST_SPECIAL_ID = 640  # the fixture's vocabulary has this many ranks

CONFIG: dict[str, Any] = {
    "architectures": ["QWenLMHeadModel"],
    "model_type": "qwen",
    "vocab_size": 864,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "kv_channels": 32,
    "intermediate_size": 192,
    "initializer_range": 0.2,
    "max_position_embeddings": 1024,
    "seq_length": 512,
    "fp32": True,
    "visual": {
        "heads": 2,
        "image_size": IMAGE_SIZE,
        "image_start_id": 854,
        "layers": 1,
        "mlp_ratio": 3.0,
        "n_queries": IMAGE_SLOTS,
        "output_dim": 128,
        "patch_size": 14,
        "width": 48,
    },
}
GENERATION: dict[str, Any] = {
    "chat_format": "chatml",
    "eos_token_id": FIRST_SPECIAL_ID,
    "pad_token_id": FIRST_SPECIAL_ID,
    "max_window_size": 256,
    "max_new_tokens": 12,
    "do_sample": False,
}


def make_checkpoint(folder: Path, *, config: dict[str, Any] | None = None, generation: dict[str, Any] | None = None) -> Path:
    """Write the checkpoint into a new folder and return it; `config` and `generation` replace single fields."""
    import torch

    from qwen_vl.modeling.configuration import QWenConfig
    from qwen_vl.modeling.model import QWenLMHeadModel

    merged = {name: value for name, value in {**CONFIG, **(config or {})}.items() if value is not None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = QWenLMHeadModel(QWenConfig(**merged))
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(merged))
    (folder / "generation_config.json").write_text(json.dumps({**GENERATION, **(generation or {})}))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "QWenTokenizer", "model_max_length": 1024, "image_slots": IMAGE_SLOTS})
    )
    shutil.copy(FIXTURES / "tiny-448" / "qwen.tiktoken", folder)
    return folder
