"""What joins a run's parts: how the model is loaded, which rate each part has, what is written beside the result, and what is refused."""

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from qwen_vl.errors import CheckpointError, ConfigError, DataError, DiskError
from qwen_vl.modeling.model import QWenLMHeadModel
from qwen_vl.training.building import load_model, make_learner, make_optimizers, vision_scale
from qwen_vl.training.finetune import finetune
from qwen_vl.training.parts import choose_parts
from qwen_vl.training.run_record import history_row
from qwen_vl.training.settings import FinetuneSettings, resolve
from tests.tiny import make_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Seven conversations, every other one with a picture."""
    Image.new("RGB", (50, 40), (200, 30, 30)).save(tmp_path / "a.png")
    records = []
    for number in range(7):
        picture = "Picture 1: <img>a.png</img>\n" if number % 2 else ""
        turns = [{"from": "user", "value": f"{picture}What is {'very ' * number}red?"}, {"from": "assistant", "value": "That one. " * (number + 1)}]
        records.append({"id": f"r{number}", "conversations": turns})
    path = tmp_path / "train.json"
    path.write_text(json.dumps(records))
    return path


def settings(checkpoint: Path, data: Path, out: Path, **changes: Any) -> FinetuneSettings:
    base = {"model": str(checkpoint), "data": str(data), "out": str(out), "max_steps": 3, "learning_rate": 1e-3, "device": "cpu", "lora_r": 4}
    return resolve({**base, "per_device_train_batch_size": 2, **changes})


def test_a_full_run_leaves_a_complete_model(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    out, events = tmp_path / "out", []
    given = settings(checkpoint, data, out, eval_data=str(data), eval_strategy="steps", eval_steps=2, save_steps=2, gradient_checkpointing=True)
    summary = finetune(given, report=lambda event, content: events.append((event, content)))
    assert summary is not None and (summary.steps, summary.first_step, summary.output, summary.skipped) == (3, 0, out, 0)
    assert (summary.data["samples"], summary.data["pictures"]) == (7, 3)

    assert [event for event, _ in events[:3]] == ["loading", "data", "parts"]
    modes = {row.part: (row.mode, row.num_trained > 0) for row in events[2][1]}
    assert modes == {"vision": ("frozen", False), **dict.fromkeys(("resampler", "language", "embeddings", "head"), ("trained", True))}
    rows = [content for event, content in events if event == "step"]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3] and [row["step"] for row in rows if "evaluation" in row] == [2, 3]

    tuned, base = QWenLMHeadModel.from_pretrained(out).state_dict(), QWenLMHeadModel.from_pretrained(checkpoint).state_dict()
    changed = {name for name in base if not torch.equal(tuned[name], base[name])}
    assert "lm_head.weight" in changed and not any("visual" in name and "attn_pool" not in name for name in changed)
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (checkpoint, out))
    assert {name: after[name] for name in before} == before and after["use_cache"] and after["dtype"] == "float32"
    assert json.loads((out / "generation_config.json").read_text())["chat_format"] == "chatml"
    assert (out / "qwen.tiktoken").read_bytes() == (checkpoint / "qwen.tiktoken").read_bytes()
    assert sorted(path.name for path in out.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    QWenLMHeadModel.from_pretrained(out / "checkpoint-2")

    saved = json.loads((out / "settings.json").read_text())
    assert saved["settings"]["learning_rate"] == 1e-3 and saved["processes"] == 1 and "torch" in saved["versions"]
    state = json.loads((out / "trainer_state.json").read_text())
    assert state["global_step"] == 3 and [row["step"] for row in state["log_history"] if "learning_rate" in row] == [1, 2, 3]


def test_a_lora_run_leaves_an_adapter(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    summary = finetune(settings(checkpoint, data, tmp_path / "out", method="lora"))
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"], config["lora_alpha"]) == (str(checkpoint), 4, 16)
    assert (tmp_path / "out" / "adapter_model.safetensors").exists() and not (tmp_path / "out" / "config.json").exists()
    assert summary is not None and 0 < summary.num_trained < 20_000


def test_a_base_model_learns_its_embeddings_too(data: Path, tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", generation={"chat_format": "raw"})
    rows: list[Any] = []
    finetune(settings(base, data, tmp_path / "out", method="lora"), report=lambda event, content: rows.extend(content if event == "parts" else []))
    assert {row.part for row in rows if row.mode == "trained"} == {"embeddings", "head"}


def test_kept_features_change_no_loss(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    losses = []
    for name, keeps in (("kept", True), ("anew", False)):
        finetune(settings(checkpoint, data, tmp_path / name, method="lora", cache_features=keeps, lora_dropout=0.0))
        losses.append([json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)  # pictures one at a time, or those of a batch together
    with pytest.raises(ConfigError, match="are trained"):
        finetune(settings(checkpoint, data, tmp_path / "full", cache_features=True))


def test_an_adapter_names_its_base_from_anywhere(checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkpoint.parent)
    finetune(settings(Path(checkpoint.name), data, tmp_path / "out", method="lora", max_steps=1))
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(checkpoint.resolve())


def test_settings_that_change_the_order_of_samples_do_not_change_on_resuming(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    finetune(settings(checkpoint, data, out, method="lora", max_steps=1))
    with pytest.raises(CheckpointError, match="lazy_preprocess was False, is True"):  # then lengths are estimates, by which samples are put together
        finetune(settings(checkpoint, data, out, method="lora", max_steps=2, lazy_preprocess=True), resume="latest")


def test_a_run_does_not_go_on_with_a_model_that_differs_in_one_matrix(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    """As the base does from what was merged of it."""
    out, other = tmp_path / "out", Path(shutil.copytree(checkpoint, tmp_path / "other"))
    finetune(settings(checkpoint, data, out, method="lora", max_steps=1))
    model = QWenLMHeadModel.from_pretrained(other)
    with torch.no_grad():
        model.get_submodule("transformer.h.1.attn.c_attn").weight.add_(1e-2)
    model.save_pretrained(other)
    with pytest.raises(CheckpointError, match="other settings: model was .*--force"):
        finetune(settings(other, data, out, method="lora", max_steps=2), resume="latest")
    moved = Path(shutil.copytree(checkpoint, tmp_path / "moved"))
    assert finetune(settings(moved, data, out, method="lora", max_steps=2), resume="latest")


def test_a_full_disk_at_the_end_leaves_the_checkpoint_alone(checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"

    def fill(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("qwen_vl.training.finetune.flush", fill)
    with pytest.raises(DiskError, match="No space left.*make room, then resume"):
        finetune(settings(checkpoint, data, out, method="lora", max_steps=1))
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint-1", "loss.png", "metrics.jsonl", "settings.json"]


def test_a_finished_model_is_replaced_as_a_whole(checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes on after its end writes a new model: cut in the middle, the folder is none, rather than half of each."""
    out = tmp_path / "out"
    finetune(settings(checkpoint, data, out, max_steps=1))
    replace = Path.replace

    def cut(self: Path, target: Path) -> Path:
        if target == out / "qwen.tiktoken":
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", cut)
    with pytest.raises(KeyboardInterrupt):
        finetune(settings(checkpoint, data, out, max_steps=2), resume="latest")
    assert not (out / "config.json").exists()
    monkeypatch.undo()
    finetune(settings(checkpoint, data, out, max_steps=2), resume="latest")
    QWenLMHeadModel.from_pretrained(out)


def test_data_is_refused_before_the_model_is_loaded(data: Path, tmp_path: Path) -> None:
    data.write_text('[{"conversations": []}]')
    with pytest.raises(DataError, match="Record 1"):
        finetune(settings(tmp_path / "absent", data, tmp_path / "out"))


def test_folders_that_cannot_take_a_run(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not empty. Add --resume"):
        finetune(settings(checkpoint, data, tmp_path))
    with pytest.raises(ConfigError, match="is a file"):
        finetune(settings(checkpoint, data, data))


def test_models_that_do_not_fit_the_method(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no Int4 checkpoint"):
        load_model(settings(checkpoint, data, tmp_path / "out", method="qlora"))
    with pytest.raises(CheckpointError, match="There is no folder"):
        load_model(settings(tmp_path / "absent", data, tmp_path / "out"))


def test_another_picture_size(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    model = load_model(settings(checkpoint, data, tmp_path / "out", image_size=70))
    assert model.get_image_features(torch.zeros(1, 3, 70, 70)).shape == (1, 25, 128)
    assert dict(model.config.visual or {})["image_size"] == 70
    with pytest.raises(ConfigError, match="not a multiple"):
        model.set_resolution(image_size=71)


def test_pictures_of_any_shape(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    model = load_model(settings(checkpoint, data, tmp_path / "out", max_patches=30, method="full"))
    assert model.get_image_features([torch.zeros(3, 28, 70), torch.zeros(3, 70, 84)]).shape == (2, 25, 128)
    assert dict(model.config.visual or {})["max_patches"] == 30
    with pytest.raises(ConfigError, match="max_patches=8 is not a whole number from 9"):
        model.set_resolution(max_patches=8)
    Image.new("RGB", (40, 120), (30, 30, 200)).save(data.parent / "b.png")
    data.write_text(data.read_text().replace("a.png", "b.png", 1))
    finetune(settings(checkpoint, data, tmp_path / "out", max_patches=30, method="full", vision="trained"))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["visual"]["max_patches"] == 30
    with pytest.raises(ConfigError, match="adapters do not hold"):
        load_model(settings(checkpoint, data, tmp_path / "out", max_patches=30, method="lora"))


def test_the_tower_learns_slower_block_by_block(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    names = ("conv1.weight", "ln_pre.bias", "transformer.resblocks.0.ln_1.bias", "transformer.resblocks.47.ln_1.bias", "attn_pool.query", "proj")
    scales = [vision_scale(f"model.transformer.visual.{name}", 48, 0.95) for name in names]
    assert scales == pytest.approx([0.95**49, 0.95**49, 0.95**48, 0.95, 1, 1])
    assert vision_scale("model.transformer.h.0.mlp.w1.weight", 48, 0.95) == 1

    given = settings(checkpoint, data, tmp_path / "out", vision="trained", vision_layer_decay=0.5, weight_decay=0.1)
    model = load_model(given)
    learner = make_learner(given, model, choose_parts(model, "full", is_chat=True, overrides=given.parts))
    (optimizer,) = make_optimizers(learner, given)
    assert {(group["lr_scale"], group["weight_decay"]) for group in optimizer.param_groups} == {
        (scale, decay) for scale in (1, 0.5, 0.25) for decay in (0.1, 0)
    }
    assert sum(len(group["params"]) for group in optimizer.param_groups) == sum(each.requires_grad for each in learner.parameters())


def test_metrics_under_the_names_of_plotting_scripts() -> None:
    assert history_row({"step": 4, "lr": 0.1, "loss": 2.0}, 8) == {"step": 4, "learning_rate": 0.1, "loss": 2.0, "epoch": 0.5}
    assert history_row({"step": 8, "evaluation": {"loss": 1.0}}, 8) == {"step": 8, "eval_loss": 1.0, "epoch": 1.0}
