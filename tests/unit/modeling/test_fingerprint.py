"""The name of a model: the same for the same weights, another one after any training."""

from pathlib import Path

import pytest
import torch

from qwen_vl.modeling.fingerprint import SAMPLED, name_model
from qwen_vl.modeling.model import QWenLMHeadModel
from tests.tiny import make_checkpoint
from tests.tuned import load, make_adapter


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny")


def test_rows_in_the_middle_of_a_table_count(folder: Path) -> None:
    model: QWenLMHeadModel = load(folder)
    before = name_model(model, with_adapters=True)
    assert name_model(load(folder), with_adapters=True) == before
    table = model.transformer.wte.weight.data
    table[len(table) // 2 :] += 1e-3
    assert table.numel() > 4 * SAMPLED and name_model(model, with_adapters=True) != before


def test_adapters_count_where_they_are_asked_for(folder: Path, tmp_path: Path) -> None:
    from qwen_vl.training.adapters import load_adapter

    attached = load_adapter(load(folder), make_adapter(folder, tmp_path / "lora")).get_base_model()
    before = [name_model(attached, with_adapters=counted) for counted in (False, True)]
    with torch.no_grad():
        for name, parameter in attached.named_parameters():
            if ".lora_" in name:
                parameter.add_(1)
    after = [name_model(attached, with_adapters=counted) for counted in (False, True)]
    assert after[0] == before[0] and after[1] != before[1]
