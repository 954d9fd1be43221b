"""Whole runs of a tiny recipe: every objective, resumed = uninterrupted, and what may not be resumed."""

import errno
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from qwen_vl.errors import CheckpointError, ConfigError, DiskError, DivergedError, LockError
from qwen_vl.lock import hold_folder
from qwen_vl.modeling.model import QWenLMHeadModel
from qwen_vl.processing.tokenization import QWenTokenizer
from qwen_vl.training.metrics import Row, read_metrics
from qwen_vl.training.picturebook import fresh, run, stage
from qwen_vl.training.picturebook.fresh import make_model, make_tokenizer
from qwen_vl.training.picturebook.recipe import read_recipe
from qwen_vl.training.picturebook.run import export_latest, train
from qwen_vl.training.picturebook.stage import batch_losses

RECIPE = """
name = "tiny"
seed = 3

[model]
hidden_size = 128
num_layers = 1
num_heads = 2
mlp_dim = 32
seq_length = 512
image_size = 40
patch_size = 10
num_queries = 4
vision_width = 16
vision_layers = 1
vision_heads = 2
vision_mlp_ratio = 2.0
num_ranks = 300
vocabulary_scenes = 5

[[stage]]
name = "tower"
objective = "labels"
train = ["visual", "resampler", "heads"]
steps = 3
batch = 2
learning_rate = 1e-3

[[stage]]
name = "language"
objective = "symbols"
train = ["language", "symbols"]
steps = 3
batch = 2
learning_rate = 1e-3
max_tokens = 250

[[stage]]
name = "imitate"
objective = "imitate"
train = ["visual", "resampler", "heads"]
label_weight = 0.1
steps = 2
batch = 2
learning_rate = 1e-3

[[stage]]
name = "answers"
objective = "answers"
train = ["visual", "resampler", "language", "heads"]
label_weight = 0.1
steps = 4
batch = 2
learning_rate = 1e-3
max_tokens = 250
"""


class Stopped(Exception):
    """Stands for a kill."""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(run, "NUM_WORKERS", 0)
    monkeypatch.setattr(run, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(run, "LOG_STEPS", 1)
    monkeypatch.setattr(run, "CURVES", False)
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def test_a_resumed_run_ends_in_the_same_weights(recipe: Path, tmp_path: Path) -> None:
    whole = train(recipe, tmp_path / "whole")

    def stop(stage: str, row: Row) -> None:
        if (stage, row["step"]) in {("language", 2), ("answers", 3)}:
            raise Stopped

    for _ in range(2):
        with pytest.raises(Stopped):
            train(recipe, tmp_path / "cut", report=stop)
        # The step whose report raised was not saved: it runs again. Only its stop is taken away.
        if not (tmp_path / "cut" / "stages" / "answers").exists():
            train(recipe, tmp_path / "cut", only="language")
    resumed = train(recipe, tmp_path / "cut")
    first, second = (load_file(folder / "model.safetensors") for folder in (whole, resumed))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_the_finished_model_loads_and_chats(recipe: Path, tmp_path: Path) -> None:
    folder = train(recipe, tmp_path / "run")
    model, tokenizer = QWenLMHeadModel.from_pretrained(folder), QWenTokenizer.from_pretrained(folder)
    assert model.dtype == torch.float32
    reply, history = model.chat(tokenizer, "你好", None, max_new_tokens=3)
    assert isinstance(reply, str) and len(history) == 1
    for name, steps in {"tower": 3, "language": 3, "imitate": 2, "answers": 4}.items():
        rows = read_metrics(tmp_path / "run" / "stages" / name / "metrics.jsonl")
        assert [row["step"] for row in rows] == list(range(1, steps + 1))
        assert all(math.isfinite(row["loss"]) for row in rows)


def test_a_run_is_exported_while_it_goes_on(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no checkpoint"):
        export_latest(recipe, tmp_path / "run", tmp_path / "model")
    train(recipe, tmp_path / "run", only="tower")
    early = load_file(export_latest(recipe, tmp_path / "run", tmp_path / "early") / "model.safetensors")
    finished = train(recipe, tmp_path / "run")
    late = load_file(export_latest(recipe, tmp_path / "run", tmp_path / "late") / "model.safetensors")
    last = load_file(finished / "model.safetensors")
    assert all(torch.equal(tensor, late[name]) for name, tensor in last.items())
    assert not all(torch.equal(tensor, early[name]) for name, tensor in last.items())


def test_settings_younger_than_a_run_do_not_stop_it(recipe: Path, tmp_path: Path) -> None:
    folder = train(recipe, tmp_path / "run", only="tower")
    state = json.loads((folder / "trainer" / "state.json").read_text(encoding="utf-8"))
    assert not state["fingerprint"].keys() & run.YOUNGER
    recipe.write_text(RECIPE.replace('name = "tower"', 'name = "tower"\npage_share = 0.5'), encoding="utf-8")
    with pytest.raises(CheckpointError, match="page_share was None, is 0.5"):
        train(recipe, tmp_path / "run", only="tower")


def test_stages_side_by_side_equal_stages_in_turn(recipe: Path, tmp_path: Path) -> None:
    train(recipe, tmp_path / "apart", only="language")
    train(recipe, tmp_path / "apart", only="tower")
    for name in ("tower", "language"):
        train(recipe, tmp_path / "turn", only=name)
    for name in ("tower", "language"):
        files = [tmp_path / run_name / "stages" / name / "checkpoint-3" / "trainer" / "weights.safetensors" for run_name in ("apart", "turn")]
        weights = [load_file(file) for file in files]
        assert all(torch.equal(tensor, weights[1][key]) for key, tensor in weights[0].items())


def test_a_changed_stage_or_model_is_refused(recipe: Path, tmp_path: Path) -> None:
    train(recipe, tmp_path / "run", only="tower")
    recipe.write_text(RECIPE.replace("batch = 2", "batch = 3", 1), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"batch was 2, is 3\. Give those of before, or name another folder\.$"):  # there is no --force
        train(recipe, tmp_path / "run", only="tower")
    recipe.write_text(RECIPE.replace("mlp_dim = 32", "mlp_dim = 48"), encoding="utf-8")
    with pytest.raises(ConfigError, match="begun with another model"):
        train(recipe, tmp_path / "run")
    with pytest.raises(ConfigError, match="no stage 'none'"):
        train(recipe, tmp_path / "other", only="none")


def test_a_damaged_checkpoint_is_named(recipe: Path, tmp_path: Path) -> None:
    folder = train(recipe, tmp_path / "run", only="tower")
    weights = folder / "trainer" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"weights\.safetensors is damaged.* Delete that checkpoint"):
        train(recipe, tmp_path / "run", only="tower")


def test_a_loss_that_stays_infinite_stops_the_stage(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    def spoilt(*arguments: Any) -> Any:
        loss, parts = batch_losses(*arguments)
        return loss * float("nan"), parts

    monkeypatch.setattr(stage, "batch_losses", spoilt)
    with pytest.raises(DivergedError, match=r"3 steps in a row, 1 to 3 .*batch: 4, 5"):
        train(recipe, tmp_path / "run", only="tower")


def test_the_recipe_of_a_run_can_be_its_own_copy(recipe: Path, tmp_path: Path) -> None:
    folder = train(recipe, tmp_path / "run", only="tower")
    assert train(tmp_path / "run" / "recipe.toml", tmp_path / "run", only="tower") == folder


@pytest.mark.parametrize("at", [1, 2])
def test_a_run_killed_while_it_prepares_goes_on(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    out = tmp_path / "run"
    write_bytes, save = Path.write_bytes, QWenTokenizer.save_pretrained

    def cut(self: Path, content: bytes) -> int:
        if at == 1 and "recipe" in self.name:
            write_bytes(self, content[:60])
            raise Stopped
        return write_bytes(self, content)

    def cut_later(*arguments: Any) -> Any:
        if at == 2:
            raise Stopped
        return save(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Path, "write_bytes", cut)
        patch.setattr(QWenTokenizer, "save_pretrained", cut_later)
        train(recipe, out, only="tower")
    assert train(recipe, out, only="tower").exists()
    assert sorted(path.name for path in (out / "tokenizer").iterdir()) == ["qwen.tiktoken", "tokenizer_config.json"]


def test_a_tokenizer_of_which_a_kill_left_half_is_made_again(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "tokenizer").mkdir(parents=True)
    (tmp_path / "run" / "tokenizer" / "qwen.tiktoken").write_text("IQ== 0\n")
    assert train(recipe, tmp_path / "run", only="tower").exists()


def test_a_full_disk_while_it_prepares_is_told(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fresh, "write_ranks", fail)
    with pytest.raises(DiskError, match="No space left"):
        train(recipe, tmp_path / "run", only="tower")


def test_two_runs_do_not_prepare_one_folder(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with hold_folder(tmp_path / "run"), pytest.raises(LockError):
        train(recipe, tmp_path / "run")


GOES_ON = """
name = "on"
seed = 3
start = "begun"
max_patches = 24

[[stage]]
name = "shapes"
objective = "answers"
train = ["visual", "resampler", "language", "heads"]
label_weight = 0.1
shape_share = 0.6
small_sign_share = 0.3
steps = 3
batch = 3
learning_rate = 1e-3
max_tokens = 250
"""


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a fresh checkpoint."""
    folder = tmp_path_factory.mktemp("begun")
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    sizes = read_recipe(folder / "recipe.toml").model
    assert sizes is not None
    tokenizer = make_tokenizer(sizes, folder / "model")
    make_model(sizes, tokenizer).save_pretrained(folder / "model")
    return folder / "model"


def test_a_run_goes_on_from_a_checkpoint_with_pictures_of_any_shape(recipe: Path, begun: Path, tmp_path: Path) -> None:
    shutil.copytree(begun, tmp_path / "begun")
    recipe.write_text(GOES_ON)
    model = QWenLMHeadModel.from_pretrained(train(recipe, tmp_path / "out", device="cpu"), dtype=torch.float32)
    before = QWenLMHeadModel.from_pretrained(begun)
    assert dict(model.config.visual or {}) == dict(before.config.visual or {}) | {"max_patches": 24}
    found, expected = (each.transformer.visual.attn_pool.pos_embed for each in (model, before))
    assert torch.equal(found, expected.bfloat16().float()), "the part that never learns"
    change = (model.transformer.visual.conv1.weight - before.transformer.visual.conv1.weight).abs().max()
    assert 0 < change < 0.01, "it goes on from there: three steps of at most 1e-3, and bf16"
    shutil.rmtree(tmp_path / "begun")
    assert train(recipe, tmp_path / "out", device="cpu").is_dir(), "the run keeps what it goes on from"
    recipe.write_text(GOES_ON.replace("24", "25"))
    with pytest.raises(ConfigError, match="begun with another model, start, max_patches or seed"):
        train(recipe, tmp_path / "out", device="cpu")
    with pytest.raises(ConfigError, match="no folder of a checkpoint"):
        train(recipe, tmp_path / "other", device="cpu")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('start = "begun"\n', "", "lacks hidden_size"),
        ('start = "begun"\n', 'start = ""\n', "either a .model. or a start"),
        ('"answers"', '"labels"', "no labels of patches"),
        ("label_weight", "letter_weight", "no labels of patches"),
        ("shape_share = 0.6", "shape_share = 0.8", "shares of one whole"),
        ("max_patches = 24", "max_patches = 3", "max_patches=3 is not a whole number from 16"),
    ],
)
def test_recipes_that_cannot_go_on(recipe: Path, begun: Path, tmp_path: Path, old: str, new: str, message: str) -> None:
    shutil.copytree(begun, tmp_path / "begun")
    recipe.write_text(GOES_ON.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        train(recipe, tmp_path / "out", device="cpu")


def test_the_shapes_and_the_squares_learn_alike() -> None:
    """Both recipes differ in name and max_patches alone, so that their difference is that of the resolution."""
    shapes, squares = (read_recipe(Path(run.__file__).parents[4] / "recipes" / f"nano_{name}.toml") for name in ("shapes", "squares"))
    assert squares.max_patches is None
    assert replace(shapes, name=squares.name, max_patches=None) == squares
