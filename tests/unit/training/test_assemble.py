"""A fresh model from OpenCLIP's tower and a text-only Qwen: same numbers in tower and language model, released initialisation between them."""

import errno
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForCausalLM, AutoProcessor, AutoTokenizer

from qwen_vl.checkpoint_facts import check_folder
from qwen_vl.errors import CheckpointError, ConfigError, DiskError
from qwen_vl.modeling import stored
from qwen_vl.modeling.model import QWenLMHeadModel
from qwen_vl.modeling.positions import resize_position_table, sine_position_table
from qwen_vl.training import assemble as assembling
from qwen_vl.training.assemble import assemble
from qwen_vl.training.openclip import find_mlp_ratio, interleave_heads
from tests.openclip import HEADS, LAYERS, MLP, PATCH, WIDTH, make_language, make_tower, save_vision, state_of
from tests.tiny import make_checkpoint

IMAGE_SIZE = 16 * PATCH  # the stored position table fits


class Sources(NamedTuple):
    vision: Path
    language: Path


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    folder = tmp_path_factory.mktemp("sources")
    return Sources(save_vision(folder / "clip", state_of(make_tower(), is_whole=True)), make_language(folder / "qwen"))


@pytest.fixture(scope="module")
def fresh(sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fresh") / "deep" / "model"
    return assemble(*sources, out, image_size=IMAGE_SIZE, dtype=torch.float32)


def block_outputs(model: QWenLMHeadModel, pixel_values: Tensor) -> list[Tensor]:
    outputs: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda *found: outputs.append(found[-1])) for block in model.transformer.visual.transformer.resblocks]
    with torch.no_grad():
        model.transformer.visual.encode_patches(pixel_values)
    for hook in hooks:
        hook.remove()
    return outputs


@pytest.mark.parametrize(("is_whole", "name"), [(True, "open_clip_pytorch_model.bin"), (False, "tower.safetensors"), (False, "tower.pt")])
def test_every_block_gives_what_openclips_gives(tmp_path: Path, sources: Sources, is_whole: bool, name: str) -> None:
    tower = make_tower()
    file = save_vision(tmp_path / "clip", state_of(tower, is_whole=is_whole), name)
    model = QWenLMHeadModel.from_pretrained(assemble(file, sources.language, tmp_path / "out", image_size=IMAGE_SIZE, dtype=torch.float32))
    pixel_values = torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = tower.block_outputs(pixel_values)
    found = block_outputs(model, pixel_values)
    assert len(found) == len(expected) == LAYERS
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)  # fp32, another order of sums


def test_the_language_model_is_untouched(sources: Sources, fresh: Path) -> None:
    text = AutoModelForCausalLM.from_pretrained(sources.language).eval()
    model = AutoModelForCausalLM.from_pretrained(fresh).eval()
    language = {name: tensor for name, tensor in model.state_dict().items() if "visual" not in name}
    assert language.keys() == text.state_dict().keys()
    assert all(torch.equal(tensor, text.state_dict()[name]) for name, tensor in language.items())
    ids = torch.arange(7)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, text(ids).logits)


def test_the_folder_is_a_released_base_model(fresh: Path) -> None:
    assert check_folder(fresh).kind == "Qwen-VL"
    config, generation = (json.loads((fresh / name).read_text()) for name in ("config.json", "generation_config.json"))
    assert config["visual"] == {
        "heads": HEADS,
        "image_size": IMAGE_SIZE,
        "image_start_id": 854,
        "layers": LAYERS,
        "mlp_ratio": 1.7,
        "n_queries": 256,
        "output_dim": 128,
        "patch_size": PATCH,
        "width": WIDTH,
    }
    assert (config["seq_length"], config["use_dynamic_ntk"], config["use_logn_attn"], config["dtype"]) == (512, True, True, "float32")
    assert (generation["chat_format"], generation["eos_token_id"], generation["pad_token_id"]) == ("raw", 640, 640)
    tokenizer = AutoTokenizer.from_pretrained(fresh)
    assert (tokenizer.image_slots, tokenizer.img_start_id, tokenizer.model_max_length) == (256, 854, 8192)
    assert AutoImageProcessor.from_pretrained(fresh).image_size == IMAGE_SIZE
    assert not list(fresh.parent.glob(".*"))  # the temporary folder is gone
    model = AutoModelForCausalLM.from_pretrained(fresh).eval()
    inputs = AutoProcessor.from_pretrained(fresh)(text="<img></img>what?", images=torch.zeros(3, 9, 9, dtype=torch.uint8).permute(1, 2, 0).numpy())
    with torch.no_grad():
        assert model(**inputs).logits.isfinite().all()


def test_the_resampler_is_initialised_as_released(fresh: Path) -> None:
    tensors = load_file(fresh / "model.safetensors")
    pool = {name.partition("attn_pool.")[2]: tensor for name, tensor in tensors.items() if "attn_pool" in name}
    assert torch.equal(pool["pos_embed"], sine_position_table(256, 128))
    for name, std in (("query", 0.02), ("kv_proj.weight", 0.2), ("attn.out_proj.weight", 0.2)):  # the tiny config's initializer_range is 0.2
        assert float(pool[name].std()) == pytest.approx(std, rel=0.1)
    assert float(pool["query"].abs().max()) <= 2.0  # truncated at two units, as torch's default
    bound = (6 / (128 + 3 * 128)) ** 0.5
    assert 0.95 * bound < float(pool["attn.in_proj_weight"].abs().max()) <= bound
    assert not pool["attn.in_proj_bias"].any() and not pool["attn.out_proj.bias"].any()
    assert bool((pool["ln_q.weight"] == 1).all()) and bool((pool["ln_kv.weight"] == 1).all())
    assert float(tensors["transformer.visual.proj"].std()) == pytest.approx(128**-0.5, rel=0.05)


def test_the_seed_decides(tmp_path: Path, sources: Sources, fresh: Path) -> None:
    state = torch.get_rng_state()
    again = load_file(assemble(*sources, tmp_path / "again", image_size=IMAGE_SIZE, dtype=torch.float32) / "model.safetensors")
    other = load_file(assemble(*sources, tmp_path / "other", image_size=IMAGE_SIZE, dtype=torch.float32, seed=1) / "model.safetensors")
    first = load_file(fresh / "model.safetensors")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    differing = {name for name, tensor in first.items() if not torch.equal(tensor, other[name])}
    assert {name.removeprefix("transformer.visual.") for name in differing} == {
        *("attn_pool.query", "attn_pool.kv_proj.weight", "attn_pool.attn.in_proj_weight", "attn_pool.attn.out_proj.weight", "proj")
    }


@pytest.mark.parametrize("side", [6, 24])
def test_a_position_table_of_another_size_is_resized(tmp_path: Path, sources: Sources, side: int) -> None:
    tower = make_tower(side=side)
    out = assemble(save_vision(tmp_path / "clip", state_of(tower)), sources.language, tmp_path / "out", image_size=IMAGE_SIZE, dtype=torch.float32)
    table = load_file(out / "model.safetensors")["transformer.visual.positional_embedding"]
    assert torch.equal(table, resize_position_table(tower.positional_embedding.detach()[1:], 256))


def test_shards_hold_the_same_and_less_precise_weights(tmp_path: Path, sources: Sources, fresh: Path) -> None:
    out = assemble(*sources, tmp_path / "out", image_size=IMAGE_SIZE, max_shard_bytes=150_000)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = sorted(out.glob("*.safetensors"))
    assert len(files) > 3 and files[-1].name == f"model-{len(files):05}-of-{len(files):05}.safetensors"
    tensors: dict[str, Tensor] = {}
    for file in files:
        shard = load_file(file)
        assert sum(tensor.nbytes for tensor in shard.values()) <= 150_000 or len(shard) == 1
        assert all(index["weight_map"][name] == file.name for name in shard)
        tensors |= shard
    whole = load_file(fresh / "model.safetensors")
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert list(index["weight_map"])[0] == "transformer.wte.weight"
    assert tensors.keys() == whole.keys() and all(torch.equal(tensor, whole[name].bfloat16()) for name, tensor in tensors.items())
    assert QWenLMHeadModel.from_pretrained(out).config.dtype == torch.float32  # on a CPU, as for a released folder


def test_pickled_language_models_and_early_configs_are_read(tmp_path: Path, sources: Sources, fresh: Path) -> None:
    folder = Path(shutil.copytree(sources.language, tmp_path / "early"))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    extra = {"transformer.h.0.attn.masked_bias": torch.tensor(-1e4), "transformer.h.1.attn.rotary_emb.inv_freq": torch.zeros(16)}
    torch.save(tensors | extra, folder / "pytorch_model.bin")
    early: dict[str, Any] = {
        "model_type": "qwen",
        "n_head": 4,
        "n_embd": 128,
        "n_layer": 2,
        "n_positions": 2048,
        "ffn_hidden_size": 192,
        "layer_norm_epsilon": 1e-5,
    }
    early |= {"seq_length": 2048, "initializer_range": 0.2, "activation": "swiglu", "auto_map": {"AutoConfig": "x.Y"}}
    (folder / "config.json").write_text(json.dumps(early))
    out = assemble(sources.vision, folder, tmp_path / "out", image_size=IMAGE_SIZE, dtype=torch.float32)
    whole = load_file(fresh / "model.safetensors")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in load_file(out / "model.safetensors").items())
    config = json.loads((out / "config.json").read_text())
    assert (config["num_attention_heads"], config["layer_norm_epsilon"], config["max_position_embeddings"]) == (4, 1e-5, 2048)
    assert not config.keys() & {"n_head", "activation", "auto_map"}


Change = Callable[[dict[str, Tensor]], Any]
BLOCK = "transformer.resblocks.1."
BAD_TOWERS: dict[str, tuple[Change, str]] = {
    "another layout": (lambda state: [state.pop(name) for name in list(state) if name != "proj"], "no vision tower of OpenCLIP.*begins with proj"),
    "missing": (lambda state: state.pop(f"{BLOCK}attn.in_proj_bias"), "lacks transformer.resblocks.1.attn.in_proj_bias"),
    "missing block": (lambda state: [state.pop(name) for name in list(state) if ".resblocks.0." in name], "lacks transformer.resblocks.0"),
    "layer scale": (lambda state: state.update({f"{BLOCK}ls_1.gamma": torch.ones(WIDTH)}), "no such tower has: transformer.resblocks.1.ls_1.gamma"),
    "wrong shape": (lambda state: state.update({f"{BLOCK}ln_1.bias": torch.ones(3)}), r"resblocks.1.ln_1.bias is \[3\] instead of \[40\]"),
    "no square": (lambda state: state.update(positional_embedding=torch.zeros(12, WIDTH)), "12 rows, not one and a square number"),
    "whole numbers": (lambda state: state.update({f"{BLOCK}ln_1.bias": torch.ones(WIDTH, dtype=torch.int8)}), "ln_1.bias is torch.int8"),
    "flat": (lambda state: state.update({"conv1.weight": torch.zeros(WIDTH)}), "conv1.weight or mlp.c_fc.weight has the wrong number"),
}


@pytest.mark.parametrize("case", BAD_TOWERS)
def test_towers_that_do_not_fit_are_refused_by_name(tmp_path: Path, sources: Sources, case: str) -> None:
    change, message = BAD_TOWERS[case]
    state = state_of(make_tower())
    change(state)
    with pytest.raises(CheckpointError, match=message):
        assemble(save_vision(tmp_path / "clip", state), sources.language, tmp_path / "out", image_size=IMAGE_SIZE)
    assert not (tmp_path / "out").exists()


def test_the_number_of_heads_must_be_known(tmp_path: Path, sources: Sources) -> None:
    file = save_vision(tmp_path / "clip", state_of(make_tower()), heads=None)
    with pytest.raises(ConfigError, match="no published tower has the width 40. Give --vision-heads"):
        assemble(file, sources.language, tmp_path / "out", image_size=IMAGE_SIZE)
    with pytest.raises(ConfigError, match="7 attention heads do not divide the width 40"):
        assemble(file, sources.language, tmp_path / "out", image_size=IMAGE_SIZE, num_heads=7)
    out = assemble(file.parent, sources.language, tmp_path / "out", image_size=IMAGE_SIZE, num_heads=HEADS)
    assert json.loads((out / "config.json").read_text())["visual"]["heads"] == HEADS


def test_other_inputs_that_cannot_work_are_refused(tmp_path: Path, sources: Sources) -> None:
    def refused(kind: type[Exception], message: str, **changes: Any) -> None:
        arguments = {"vision": sources.vision, "language": sources.language, "out": tmp_path / "out", "image_size": IMAGE_SIZE, **changes}
        with pytest.raises(kind, match=message):
            assemble(**arguments)
        assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))

    refused(CheckpointError, "There is no", vision=tmp_path / "nothing")
    refused(CheckpointError, "holds none of open_clip_model.safetensors", vision=sources.language.parent)
    refused(CheckpointError, "There is no folder", language=tmp_path / "nothing")
    refused(CheckpointError, "is no text-only Qwen in 16 or 32 bits: its config.json has 'visual'", language=make_checkpoint(tmp_path / "vl"))
    refused(ConfigError, "image_size=65 is not a multiple of visual.patch_size=4", image_size=65)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    refused(ConfigError, "not an empty folder", out=tmp_path / "full")
    refused(CheckpointError, "864 tokens|too few for its vocabulary", language=make_language(tmp_path / "small", vocab_size=856))
    for name, message in (("qwen.tiktoken", "no tokenizer file"), ("config.json", "no config.json")):
        folder = Path(shutil.copytree(sources.language, tmp_path / f"without-{name}"))
        (folder / name).unlink()
        refused(CheckpointError, message, language=folder)
    (sources.vision.parent / "quick").mkdir()
    file = Path(shutil.copy(sources.vision, sources.vision.parent / "quick"))
    (file.parent / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"quick_gelu": True, "vision_cfg": {}}}))
    refused(CheckpointError, "QuickGELU", vision=file)


def test_code_in_a_weight_file_does_not_run(tmp_path: Path, sources: Sources) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"conv1.weight": Trap()}, tmp_path / "trap.bin")
    with pytest.raises(CheckpointError, match="pickle with code in it"):
        assemble(tmp_path / "trap.bin", sources.language, tmp_path / "out")
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_leaves_nothing(tmp_path: Path, sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(stream: Any, tensors: Any, dtype: Any) -> None:
        stream.write(b"x")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(DiskError, match="No space left"):
        patch.setattr(stored, "_write_safetensors", fill)
        assemble(*sources, tmp_path / "out", image_size=IMAGE_SIZE)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(assembling.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 1000))  # type: ignore[attr-defined]
    with pytest.raises(DiskError, match=r"needs 0.00 GB, and the disk has 0.00 GB left"):
        assemble(*sources, tmp_path / "out", image_size=IMAGE_SIZE)


def test_one_tensor_at_a_time_is_in_memory(tmp_path: Path) -> None:
    alive, most = 0, 0

    def read() -> Tensor:
        nonlocal alive, most
        tensor = torch.ones(3)
        alive += 1
        most = max(most, alive)

        def forget() -> None:
            nonlocal alive
            alive -= 1

        weakref.finalize(tensor, forget)
        return tensor

    stored.write_shards(tmp_path, [(str(number), stored.LazyTensor((3,), "F32", read)) for number in range(9)], torch.float32)
    assert most <= 2
    assert torch.equal(load_file(tmp_path / "model.safetensors")["8"], torch.ones(3))


def test_old_and_nested_files_of_torch_are_read(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.arange(3.0)}}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    tensors = stored.open_tensors([tmp_path / "old.bin"])
    assert torch.equal(tensors["a"].read(), torch.arange(3.0)) and tensors["a"].facts.num_bytes == 12
    torch.save([torch.zeros(1)], tmp_path / "list.bin")
    with pytest.raises(CheckpointError, match="something else than named tensors"):
        stored.open_tensors([tmp_path / "list.bin"])


def test_the_released_layout_of_heads() -> None:
    rows = interleave_heads(torch.arange(3 * 1664), 16)  # where each row of the fused projection comes from
    head = 5  # FACTS 13.3: query rows 1560..1663, key rows 1664..1767, value rows 1768..1871
    for first, block in ((1560, 0), (1664, 1), (1768, 2)):
        assert rows[first : first + 104].tolist() == list(range(1664 * block + 104 * head, 1664 * block + 104 * (head + 1)))


def test_mlp_ratios() -> None:
    assert find_mlp_ratio(1664, 8192) == 4.9231
    assert find_mlp_ratio(WIDTH, MLP) == 1.7
    for width, mlp in ((1408, 6144), (1280, 5120), (7, 19), (1000, 333)):
        assert int(width * find_mlp_ratio(width, mlp)) == mlp
