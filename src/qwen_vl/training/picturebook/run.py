"""Run a recipe: its stages one after the other, resumable at any step.

    train(Path("recipes/nano.toml"), Path("runs/nano"))

The folder `out` holds the tokenizer, a folder per stage in `out/stages` with its checkpoints and `metrics.jsonl` (see `training.trainer`), and at
the end the finished model in `out/model`.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from qwen_vl.errors import ConfigError, cannot_write
from qwen_vl.lock import hold_folder
from qwen_vl.modeling.model import QWenLMHeadModel
from qwen_vl.processing.resolution import Resolution
from qwen_vl.processing.tokenization import QWenTokenizer
from qwen_vl.surroundings import find_versions
from qwen_vl.whole import whole_file, whole_folder

from ..checkpoint import find_checkpoint
from ..metrics import Row
from ..strategy.base import Batch, load_weights
from ..strategy.single import SingleStrategy
from ..trainer import WEIGHTS, Summary, Trainer, TrainerSettings
from .data import make_loader
from .fresh import make_model, make_tokenizer
from .optimizer import make_optimizers
from .recipe import Recipe, StageRecipe, read_recipe
from .stage import Pupil

SAVE_SECONDS = 120.0
# Settings younger than the first runs: named only where they are used, so that a run from before them goes on.
YOUNGER = frozenset({"page_share", "strange_share", "sign_share", "small_sign_share", "shape_share", "letter_weight", "compare_rounds"})
# What may differ when a stage goes on: how long and how fast, not what it sees and learns.
MAY_CHANGE = frozenset({"steps", "learning_rate", "min_learning_rate", "warmup_steps", "weight_decay", "beta2", "clip"})
VERSIONS_OF = ("qwen-vl", "torch", "transformers", "tokenizers", "pillow", "numpy")
TOKENIZER = "tokenizer"
START = "start"  # folder of the run with the checkpoint that it goes on from
LOG_STEPS = 50
NUM_WORKERS = 1  # processes that draw the next pictures
CURVES = True  # draw each stage's loss.png

Report = Callable[[str, Row], None]  # stage name, row of its metrics


def train(
    recipe_path: Path, out: Path, *, only: str | None = None, device: str | None = None, compile_blocks: bool = False, report: Report | None = None
) -> Path:
    """Train the recipe's stages and write the finished model.

    Args:
        only: run this stage alone, from the parts that finished stages left; the model is not exported.
        device: where to train; default a GPU if there is one.
        compile_blocks: compile the language model's blocks first, with a C++ compiler; faster steps after a minute of compiling.
        report: called with every row of a stage's metrics, for progress bars.
    Returns: the folder of the finished model, or of the stage's checkpoint with `only`.
    Raises: ConfigError, CheckpointError, LockError, DiskError, DivergedError when the recipe, the folder or a stage cannot be used or goes wrong.
    """
    recipe = read_recipe(recipe_path)
    if only is not None and only not in {stage.name for stage in recipe.stages}:
        raise ConfigError(f"{recipe_path} has no stage {only!r}; it has {', '.join(stage.name for stage in recipe.stages)}")
    torch.manual_seed(recipe.seed)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    tokenizer = _prepare(recipe, recipe_path, out)
    pupil = Pupil(_make_model(recipe, tokenizer, out)).to(place)
    if compile_blocks:
        # Of the tower's blocks each number of pictures would be another shape; the language model's lessons all have one.
        for block in pupil.model.transformer.h:
            block.compile(dynamic=False)
    for stage in recipe.stages:
        folder = out / "stages" / stage.name
        pupil.begin(stage)
        if only is None or stage.name == only:
            summary = _run_stage(pupil, recipe, stage, tokenizer, folder, report)
            if only is not None:
                return summary.checkpoint
        else:
            done = find_checkpoint(folder, "latest")
            if done is not None:
                load_weights(pupil, load_file(done / "trainer" / WEIGHTS))
    return export(pupil, tokenizer, out / "model")


def export_latest(recipe_path: Path, out: Path, folder: Path) -> Path:
    """Write the model as the latest checkpoints in `out` have it, of the stages that have begun, into `folder`; nothing is trained.

    So a run can be scored while it goes on. Raises: ConfigError if no stage of the recipe has a checkpoint; CheckpointError if one is of another.
    """
    recipe = read_recipe(recipe_path)
    found = {stage.name: find_checkpoint(out / "stages" / stage.name, "latest") for stage in recipe.stages}
    if not any(found.values()):
        raise ConfigError(f"{out} has no checkpoint of a stage of {recipe_path}; train it first")
    tokenizer = _read_tokenizer(recipe, out)
    pupil = Pupil(_make_model(recipe, tokenizer, out))
    for stage in recipe.stages:
        done = found[stage.name]
        if done is not None:
            pupil.begin(stage)
            load_weights(pupil, load_file(done / "trainer" / WEIGHTS))
    return export(pupil, tokenizer, folder)


def _prepare(recipe: Recipe, recipe_path: Path, out: Path) -> QWenTokenizer:
    """Make the run's folder, its tokenizer and its copy of the recipe, or check that they belong to this recipe."""
    kept = out / "recipe.toml"
    if kept.exists():
        before = read_recipe(kept)
        if any(getattr(before, name) != getattr(recipe, name) for name in ("model", "seed", "start", "max_patches")):
            raise ConfigError(f"{out} was begun with another model, start, max_patches or seed; choose another --out, or delete it")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with hold_folder(out):  # of two runs that begin together one prepares; stages hold their own folders
            with whole_file(kept) as work:
                work.write_bytes(recipe_path.read_bytes())
            with whole_file(out / "versions.json") as work:
                work.write_text(json.dumps(find_versions(*VERSIONS_OF), indent=1) + "\n", encoding="utf-8")
            if recipe.model is None:
                _copy_start(recipe, recipe_path, out)
            elif not (out / TOKENIZER / "tokenizer_config.json").exists():  # its last file
                with whole_folder(out / TOKENIZER) as work:
                    make_tokenizer(recipe.model, work)
    except OSError as error:
        raise cannot_write(out, error, "Choose another --out, or make room.") from error
    return _read_tokenizer(recipe, out)


def _copy_start(recipe: Recipe, recipe_path: Path, out: Path) -> None:
    """Copy the checkpoint that the run goes on from, once: it must not change under it. Raises: ConfigError if there is none."""
    if (out / START).exists():
        return
    folder = recipe_path.parent / recipe.start
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{recipe_path}: start={recipe.start!r} is no folder of a checkpoint; it is looked for as {folder}")
    with whole_folder(out / START) as work:
        shutil.copytree(folder, work, dirs_exist_ok=True)


def _read_tokenizer(recipe: Recipe, out: Path) -> QWenTokenizer:
    """Return the tokenizer of a run that was prepared."""
    return QWenTokenizer.from_pretrained(out / (START if recipe.model is None else TOKENIZER))


def _make_model(recipe: Recipe, tokenizer: QWenTokenizer, out: Path) -> QWenLMHeadModel:
    """Return a fresh model, or the one that the run goes on from. Raises: ConfigError for a max_patches that it cannot have."""
    if recipe.model is not None:
        return make_model(recipe.model, tokenizer)
    model: QWenLMHeadModel = QWenLMHeadModel.from_pretrained(out / START, dtype=torch.float32)
    if recipe.max_patches is not None:
        model.set_resolution(max_patches=recipe.max_patches)
    return model


def _run_stage(pupil: Pupil, recipe: Recipe, stage: StageRecipe, tokenizer: QWenTokenizer, folder: Path, report: Report | None) -> Summary:
    """Run a stage, or what is left of it."""
    place = next(pupil.parameters()).device
    settings = TrainerSettings(
        steps=stage.steps,
        learning_rate=stage.learning_rate,
        min_learning_rate=stage.min_learning_rate,
        warmup_steps=stage.warmup_steps,
        clip=stage.clip,
        log_steps=LOG_STEPS,
        save_seconds=SAVE_SECONDS,
        seed=recipe.seed,
        curve=CURVES,
    )
    trainer = Trainer(
        pupil,
        SingleStrategy(place, "bf16" if _has_fast_bfloat16(place) else "fp32"),
        settings,
        out=folder,
        make_optimizers=lambda module: make_optimizers(module, stage),
        fingerprint=_fingerprint(stage) | {"seed": recipe.seed},
        save_model=lambda _folder, _weights: None,  # the training state is enough: the model is exported after the last stage
        report=None if report is None else lambda row: report(stage.name, row),
    )
    config = pupil.model.config
    resolution, grid_side = Resolution.of(config.visual or {}), math.isqrt(config.image_slots)

    def steps_from(first_step: int) -> Iterator[tuple[int, list[Batch]]]:
        for batch in make_loader(stage, tokenizer, resolution, grid_side, first_step, NUM_WORKERS):
            yield int(batch["step"]), [batch]

    return trainer.run(steps_from, resume="latest")


def _fingerprint(stage: StageRecipe) -> dict[str, Any]:
    """Return what must be equal when the stage goes on."""
    unused = {each.name for each in fields(stage) if each.name in YOUNGER and getattr(stage, each.name) == each.default}
    return {name: value for name, value in asdict(stage).items() if name not in MAY_CHANGE | unused}


def _has_fast_bfloat16(place: torch.device) -> bool:
    """Tell whether bf16 products are fast here; on a CPU without their instructions they are slower than float32."""
    return place.type == "cuda" or (place.type == "cpu" and torch.cpu._is_avx512_bf16_supported())


@torch.no_grad()
def export(pupil: Pupil, tokenizer: QWenTokenizer, folder: Path) -> Path:
    """Write the finished model in the released layout, with bf16 weights."""
    model = pupil.model.to(torch.bfloat16)
    with whole_folder(folder) as work:
        model.save_pretrained(work)
        tokenizer.save_pretrained(work)
    return folder
