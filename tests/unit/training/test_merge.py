"""Merging: the merged folder answers as the base with its adapter, is complete, and is there whole or not at all."""

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch

from qwen_vl.api import QwenVL
from qwen_vl.checkpoint_facts import check_folder
from qwen_vl.errors import CheckpointError, ConfigError, DiskError
from qwen_vl.modeling.model import QWenLMHeadModel
from qwen_vl.training.adapters import load_adapter
from qwen_vl.training.merge import merge_adapter
from tests.tiny import make_checkpoint
from tests.tuned import assert_same_outputs, load, make_adapter, make_int4_checkpoint


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(base, tmp_path_factory.mktemp("adapter") / "lora", is_chat=False, parts={"resampler": "adapters"})


@pytest.fixture(scope="module")
def int4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_int4_checkpoint(tmp_path_factory.mktemp("base") / "int4")


def assert_complete(folder: Path, base: Path) -> None:
    """Raise: AssertionError unless the folder is a dense model with all that the base has besides its weights."""
    facts = check_folder(folder)
    assert not facts.is_quantized and facts.tensors
    for name in ("generation_config.json", "tokenizer_config.json", "qwen.tiktoken"):
        assert (folder / name).read_bytes() == (base / name).read_bytes()


def test_the_merged_model_is_the_base_with_its_adapter(base: Path, adapter: Path, tmp_path: Path) -> None:
    out = merge_adapter(adapter, tmp_path / "deep" / "merged")
    assert_complete(out, base)
    assert_same_outputs(load(out), load_adapter(load(base), adapter))


def test_an_int4_base_is_dequantised(int4: Path, tmp_path: Path) -> None:
    adapter = make_adapter(int4, tmp_path / "adapter")
    out = merge_adapter(adapter, tmp_path / "merged", dtype="float32")
    assert_complete(out, int4)
    assert_same_outputs(load(out), load_adapter(load(int4), adapter))
    assert "quantization_config" not in json.loads((out / "config.json").read_text())


@pytest.mark.parametrize("dtype", ["bfloat16", "fp16", "float32"])
def test_the_dtype_is_the_files_and_the_config_s(base: Path, adapter: Path, tmp_path: Path, dtype: str) -> None:
    out = merge_adapter(adapter, tmp_path / "merged", dtype=dtype)
    stored = {"bfloat16": "BF16", "fp16": "F16", "float32": "F32"}[dtype]
    assert {tensor.dtype for tensor in check_folder(out).tensors.values()} == {stored}
    config = json.loads((out / "config.json").read_text())
    assert (config["fp32"], config["bf16"], config["fp16"]) == (dtype == "float32", False, False)  # the tiny config asks for float32


def test_without_a_dtype_it_is_the_base_s(base: Path, adapter: Path, tmp_path: Path) -> None:
    load(base).bfloat16().save_pretrained(tmp_path / "base")
    for name in ("generation_config.json", "tokenizer_config.json", "qwen.tiktoken"):
        shutil.copy(base / name, tmp_path / "base")
    out = merge_adapter(adapter, tmp_path / "merged", tmp_path / "base")
    assert {tensor.dtype for tensor in check_folder(out).tensors.values()} == {"BF16"}


def test_nano_answers_the_same(tmp_path: Path) -> None:
    """On the bundled checkpoint, about a picture: logits close, greedy answers identical."""
    nano = Path(__file__).parents[3] / "src" / "qwen_vl" / "assets" / "nano"
    adapter = make_adapter(nano, tmp_path / "adapter", rank=4, alpha=32)
    out = merge_adapter(adapter, tmp_path / "merged", nano, dtype="float32")
    assert_complete(out, nano)
    attached = load_adapter(QWenLMHeadModel.from_pretrained(nano, dtype=torch.float32), adapter).eval()
    assert_same_outputs(load(out), attached, share=1e-4)
    merged, original = QwenVL.load(out, device="cpu"), QwenVL.load(nano, device="cpu")
    picture = nano.parent / "demo" / "beach.png"
    questions = ["What is in this picture?", "这是什么?", "Is there a dog?"]
    answers = [merged.ask(picture, question, max_new_tokens=30).text for question in questions]
    plain = [original.ask(picture, question, max_new_tokens=30).text for question in questions]
    unmerged = QwenVL(attached.get_base_model(), original.tokenizer)
    assert answers == [unmerged.ask(picture, question, max_new_tokens=30).text for question in questions]
    assert answers != plain


def test_nothing_is_overwritten_without_force(base: Path, adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    out.mkdir()
    (out / "config.json").write_text("{}")
    (out / "model.bin").write_text("x")
    with pytest.raises(ConfigError, match="--force"):
        merge_adapter(adapter, out)
    assert (out / "model.bin").exists()
    merge_adapter(adapter, out, is_forced=True)
    assert_complete(out, base)
    assert not (out / "model.bin").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


@pytest.mark.parametrize("held", ["notes.txt", "checkpoint-5/config.json"])
def test_even_with_force_only_a_model_folder_is_replaced(adapter: Path, tmp_path: Path, held: str) -> None:
    out = tmp_path / "home"
    (out / held).parent.mkdir(parents=True)
    (out / held).write_text("x")
    if held != "notes.txt":
        (out / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="more than a model folder"):
        merge_adapter(adapter, out, is_forced=True)
    assert (out / held).read_text() == "x"


def test_a_run_is_not_replaced_by_what_is_merged_from_its_checkpoint(base: Path, adapter: Path, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(adapter, tmp_path / "run" / "checkpoint-5"))
    with pytest.raises(ConfigError, match="holds the base model or the adapter"):
        merge_adapter(checkpoint, tmp_path / "run", is_forced=True)
    assert checkpoint.is_dir()


def test_a_file_of_the_base_that_cannot_be_read_is_no_fault_of_the_new_folder(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Path.read_bytes

    def fail(self: Path) -> bytes:
        if self.name == "generation_config.json":
            raise OSError(errno.EIO, "Input/output error", str(self))
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(CheckpointError, match=r"generation_config\.json cannot be read: Input/output error"):
        merge_adapter(adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_what_a_kill_hid_is_not_replaced_without_force(adapter: Path, tmp_path: Path) -> None:
    hidden = tmp_path / ".merged.old"
    hidden.mkdir()
    (hidden / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="--force"):
        merge_adapter(adapter, tmp_path / "merged")
    assert (tmp_path / "merged" / "config.json").exists()


@pytest.mark.parametrize("place", ["base", "adapter"])
def test_what_it_is_made_of_is_never_replaced(base: Path, adapter: Path, place: str) -> None:
    with pytest.raises(ConfigError, match="Name another folder"):
        merge_adapter(adapter, {"base": base, "adapter": adapter}[place], is_forced=True)


def test_a_full_disk_leaves_what_was_there(base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = merge_adapter(adapter, tmp_path / "merged")
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def fail(self: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(DiskError, match="No space left"):
        merge_adapter(adapter, out, is_forced=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_a_sum_that_overflows_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    model = load(base)
    with torch.no_grad():
        model.get_submodule("transformer.ln_f").weight.fill_(1e6)
    model.save_pretrained(tmp_path / "base")
    shutil.copy(base / "qwen.tiktoken", tmp_path / "base")
    with pytest.raises(CheckpointError, match="not finite in torch.float16"):
        merge_adapter(adapter, tmp_path / "merged", tmp_path / "base", dtype="float16")
    assert not (tmp_path / "merged").exists()


def test_a_base_that_is_gone_is_asked_for(adapter: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    path = moved / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "/gone/away"}))
    with pytest.raises(CheckpointError, match="'/gone/away'.*--model"):
        merge_adapter(moved, tmp_path / "merged")


def test_an_adapter_of_another_base_leaves_nothing(adapter: Path, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "other", config={"num_hidden_layers": 1})
    with pytest.raises(CheckpointError, match="made for another one"):
        merge_adapter(adapter, tmp_path / "merged", other)
    assert not (tmp_path / "merged").exists()


def test_an_unknown_dtype_is_refused(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'int8'"):
        merge_adapter(adapter, tmp_path / "merged", dtype="int8")
