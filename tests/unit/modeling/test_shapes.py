"""The full configuration, without memory: exactly the tensors, shapes and totals of the released checkpoints."""

from math import prod

import pytest
import torch

from qwen_vl.modeling.configuration import QWenConfig
from qwen_vl.modeling.model import QWenLMHeadModel

VISUAL = {
    "heads": 16,
    "image_size": 448,
    "image_start_id": 151857,
    "layers": 48,
    "mlp_ratio": 4.9231,
    "output_dim": 4096,
    "patch_size": 14,
    "width": 1664,
}
LANGUAGE_LAYER = {
    "ln_1.weight": (4096,),
    "attn.c_attn.weight": (12288, 4096),
    "attn.c_attn.bias": (12288,),
    "attn.c_proj.weight": (4096, 4096),
    "ln_2.weight": (4096,),
    "mlp.w1.weight": (11008, 4096),
    "mlp.w2.weight": (11008, 4096),
    "mlp.c_proj.weight": (4096, 11008),
}
LANGUAGE = {"transformer.wte.weight": (151936, 4096), "transformer.ln_f.weight": (4096,), "lm_head.weight": (151936, 4096)}
VISION_BLOCK = {
    "ln_1.weight": (1664,),
    "ln_1.bias": (1664,),
    "attn.in_proj.weight": (4992, 1664),
    "attn.in_proj.bias": (4992,),
    "attn.out_proj.weight": (1664, 1664),
    "attn.out_proj.bias": (1664,),
    "ln_2.weight": (1664,),
    "ln_2.bias": (1664,),
    "mlp.c_fc.weight": (8192, 1664),
    "mlp.c_fc.bias": (8192,),
    "mlp.c_proj.weight": (1664, 8192),
    "mlp.c_proj.bias": (1664,),
}
STEM = {"conv1.weight": (1664, 3, 14, 14), "positional_embedding": (256, 1664), "ln_pre.weight": (1664,), "ln_pre.bias": (1664,)}
AFTER = {"ln_post.weight": (4096,), "ln_post.bias": (4096,), "proj": (4096, 4096)}
RESAMPLER = {
    "pos_embed": (256, 4096),
    "query": (256, 4096),
    "kv_proj.weight": (4096, 1664),
    "attn.in_proj_weight": (12288, 4096),
    "attn.in_proj_bias": (12288,),
    "attn.out_proj.weight": (4096, 4096),
    "attn.out_proj.bias": (4096,),
    "ln_q.weight": (4096,),
    "ln_q.bias": (4096,),
    "ln_kv.weight": (4096,),
    "ln_kv.bias": (4096,),
}
Shapes = dict[str, tuple[int, ...]]


def below(prefix: str, shapes: Shapes) -> Shapes:
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


def repeated(prefix: str, count: int, shapes: Shapes) -> Shapes:
    return {name: shape for index in range(count) for name, shape in below(f"{prefix}.{index}", shapes).items()}


LANGUAGE_MODEL = LANGUAGE | repeated("transformer.h", 32, LANGUAGE_LAYER)
TOWER = below("transformer.visual", STEM) | repeated("transformer.visual.transformer.resblocks", 48, VISION_BLOCK)
ATTN_POOL = below("transformer.visual.attn_pool", RESAMPLER)
PROJECTION = below("transformer.visual", AFTER)


@pytest.fixture(scope="module")
def full_model() -> QWenLMHeadModel:
    with torch.device("meta"):
        return QWenLMHeadModel(QWenConfig(visual=dict(VISUAL)))


def num_parameters(shapes: Shapes) -> int:
    return sum(map(prod, shapes.values()))


def test_the_full_model_has_the_released_tensors(full_model: QWenLMHeadModel) -> None:
    found = {name: tuple(tensor.shape) for name, tensor in full_model.state_dict().items()}
    assert found == LANGUAGE_MODEL | TOWER | ATTN_POOL | PROJECTION
    assert len(found) == 853


def test_the_totals_are_the_released_ones(full_model: QWenLMHeadModel) -> None:
    assert num_parameters(LANGUAGE_MODEL) == 7_721_324_544
    assert num_parameters(TOWER) == 1_842_770_688
    assert num_parameters(ATTN_POOL) == 76_054_528
    assert num_parameters(PROJECTION) == 16_785_408
    total = sum(parameter.numel() for parameter in full_model.parameters())
    assert total == 9_656_935_168
    assert 2 * total == 19_313_870_336, "metadata.total_size of the released index, two bytes for each"


def test_the_class_defaults_are_the_released_fields() -> None:
    config = QWenConfig(visual=dict(VISUAL))
    assert (config.image_slots, config.image_start_id, config.mlp_dim) == (256, 151857, 11008)
    assert "n_queries" in config.visual  # type: ignore[operator]


def test_only_the_sine_table_is_not_trained(full_model: QWenLMHeadModel) -> None:
    fixed = [name for name, parameter in full_model.named_parameters() if not parameter.requires_grad]
    assert fixed == ["transformer.visual.attn_pool.pos_embed"]


def test_a_text_model_has_the_language_model_alone() -> None:
    with torch.device("meta"):
        model = QWenLMHeadModel(QWenConfig())
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == LANGUAGE_MODEL
