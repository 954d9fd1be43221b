"""What is saved is loaded bit for bit: whole, in shards, and from the released `.bin` shards; in every precision."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from qwen_vl.errors import ConfigError
from qwen_vl.modeling.configuration import QWenConfig
from qwen_vl.modeling.model import QWenLMHeadModel
from tests.invariants import assert_same_weights, assert_saved_equals_loaded, full_logits
from tests.tiny import make_checkpoint
from tests.unit.modeling.conftest import MakePrompt

OLD_TENSORS = {"transformer.h.0.attn.masked_bias": torch.tensor(-1e4), "transformer.h.1.attn.rotary_emb.inv_freq": torch.ones(16)}


def write_bin_shards(model: QWenLMHeadModel, folder: Path, num_shards: int) -> None:
    """Write the released layout: numbered `.bin` files, tensors of one layer in different ones, an index; with tensors of old checkpoints."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()} | OLD_TENSORS
    shards: list[dict[str, torch.Tensor]] = [{} for _ in range(num_shards)]
    for index, (name, tensor) in enumerate(state.items()):
        shards[index % num_shards][name] = tensor
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"pytorch_model-{number:05}-of-{num_shards:05}.bin"
        torch.save(shard, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": weight_map}))
    model.config.save_pretrained(folder)


def test_saved_whole(tiny_model: QWenLMHeadModel, make_prompt: MakePrompt, tmp_path: Path) -> None:
    assert_saved_equals_loaded(tiny_model, tmp_path, make_prompt("a * b * c"))
    assert (tmp_path / "model.safetensors").is_file()


def test_saved_in_shards(tiny_model: QWenLMHeadModel, make_prompt: MakePrompt, tmp_path: Path) -> None:
    assert_saved_equals_loaded(tiny_model, tmp_path, make_prompt("a * b * c"), max_shard_size="600KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2


@pytest.mark.parametrize("num_shards", [1, 10])
def test_bin_shards_are_read(tiny_model: QWenLMHeadModel, make_prompt: MakePrompt, tmp_path: Path, num_shards: int) -> None:
    write_bin_shards(tiny_model, tmp_path, num_shards)
    model = QWenLMHeadModel.from_pretrained(tmp_path)
    assert_same_weights(model, tiny_model)
    prompt = make_prompt("a * b")
    assert torch.equal(full_logits(model.eval(), prompt), full_logits(tiny_model, prompt))


def test_a_saved_folder_names_no_code(tiny_model: QWenLMHeadModel, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert "auto_map" not in config
    assert (config["model_type"], config["architectures"]) == ("qwen", ["QWenLMHeadModel"])


def test_the_loaded_table_is_not_trained(tiny_folder: Path) -> None:
    model = QWenLMHeadModel.from_pretrained(tiny_folder)
    fixed = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert fixed == ["transformer.visual.attn_pool.pos_embed"]


@pytest.mark.parametrize(("flag", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)])
def test_precision_flags(tiny_folder: Path, make_prompt: MakePrompt, flag: str, dtype: torch.dtype) -> None:
    """The whole model is converted, the tower included; only the rotary table stays float32. The config of the folder says fp32."""
    model = QWenLMHeadModel.from_pretrained(tiny_folder, **{flag: True}).eval()
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert model.transformer.rotary.inv_freq.dtype == torch.float32
    logits = full_logits(model, make_prompt("a * b"))
    assert logits.dtype == dtype and bool(logits.isfinite().all())


def test_a_cast_model_keeps_its_frequencies(tiny_folder: Path, make_prompt: MakePrompt) -> None:
    cast = QWenLMHeadModel.from_pretrained(tiny_folder).to(torch.bfloat16).eval()
    loaded = QWenLMHeadModel.from_pretrained(tiny_folder, dtype=torch.bfloat16).eval()
    assert torch.equal(cast.transformer.rotary.inv_freq, loaded.transformer.rotary.frequencies())
    prompt = make_prompt("a * b")
    assert torch.equal(full_logits(cast, prompt), full_logits(loaded, prompt))


def test_the_released_configs_choose_by_device(tmp_path: Path) -> None:
    """All flags false, as in the bf16 releases: float32 on a CPU, whatever dtype is stored."""
    folder = make_checkpoint(tmp_path / "released", config={"fp32": False, "torch_dtype": "bfloat16"})
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.float32
    assert AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", bf16=True).dtype == torch.bfloat16
    assert AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype == torch.bfloat16
    assert AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16).dtype == torch.float16


def test_two_flags_are_refused(tiny_folder: Path) -> None:
    with pytest.raises(ConfigError, match='Only one of "bf16", "fp16", "fp32" can be true'):
        QWenLMHeadModel.from_pretrained(tiny_folder, bf16=True, fp16=True)
    with pytest.raises(ConfigError, match='Only one of "bf16", "fp16", "fp32" can be true'):
        QWenConfig(bf16=True, fp32=True)


def test_a_flag_in_the_call_replaces_the_folders(tmp_path: Path) -> None:
    """The first public base config said bf16, which fp16=True must not run into."""
    folder = make_checkpoint(tmp_path / "base", config={"fp32": False, "bf16": True})
    assert QWenLMHeadModel.from_pretrained(folder).dtype == torch.bfloat16
    assert QWenLMHeadModel.from_pretrained(folder, fp16=True).dtype == torch.float16
