"""The recipe of a training run: one TOML file that states the model, the vocabulary and the stages.

An unknown key is an error that suggests the nearest name; every value is checked before anything is built.
"""

import math
import tomllib
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from qwen_vl.errors import ConfigError, nearest
from qwen_vl.picturebook.pictures import ALL_TASK_NAMES

PARTS = ("visual", "resampler", "language", "symbols", "heads", "letters")
OBJECTIVES = ("labels", "symbols", "imitate", "answers")
NOT_NEGATIVE = ("min_learning_rate", "warmup_steps", "weight_decay", "clip", "label_weight", "mention_weight", "letter_weight", "first_seed")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRecipe:
    """Sizes of a fresh model; the rest of its configuration follows."""

    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    seq_length: int
    image_size: int  # pixels per side
    patch_size: int  # pixels per side
    num_queries: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    vision_mlp_ratio: float
    num_ranks: int  # byte-pair tokens of the vocabulary
    vocabulary_scenes: int = 3000  # scenes whose questions and answers the vocabulary is learnt from

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) <= 0:
                raise ConfigError(f"[model]: {name}={getattr(self, name)} must be positive")
        if self.hidden_size % self.num_heads:
            raise ConfigError(f"[model]: hidden_size={self.hidden_size} is not a multiple of num_heads={self.num_heads}")


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRecipe:
    """One stage of training.

    Objectives: "labels" (the tower names what each cell shows), "symbols" (the language model answers from symbolic pictures), "imitate" (the
    tower gives the symbolic pictures' vectors), "answers" (the whole model answers from pixels).
    """

    name: str
    objective: str
    train: tuple[str, ...]  # the parts that learn, of PARTS; all others are frozen
    steps: int
    batch: int  # lessons a step
    learning_rate: float
    min_learning_rate: float = 1e-5
    warmup_steps: int = 200
    weight_decay: float = 0.05
    beta2: float = 0.98
    clip: float = 1.0
    max_tokens: int = 512  # of a lesson
    num_questions: int = 100  # at most so many about a scene; fewer questions, more scenes
    label_weight: float = 0.0  # of the cells' labels beside the answers
    mention_weight: float = 0.0  # of what tokens that name a thing know about it
    two_picture_share: float = 0.06  # of the lessons with pictures
    compare_rounds: int = 1  # of questions about two pictures; after the first, those with short answers alone
    talk_share: float = 0.03  # of lessons: those without a picture
    tasks: tuple[str, ...] = ()  # names of those asked about one picture; empty: all. The two shares above have tasks of their own
    dialogue: bool = False  # the questions of a lesson are the turns of one conversation, each seeing those before it
    first_seed: int = 0  # scenes of step s begin at first_seed + s * batch
    page_share: float = 0.0  # of the lessons about one picture: charts and receipts
    strange_share: float = 0.0  # .. pictures that are no drawings
    sign_share: float = 0.0  # .. scenes with a sign larger than usual
    small_sign_share: float = 0.0  # .. scenes with a sign smaller than usual
    shape_share: float = 0.0  # .. scenes of 3:1 and 1:3
    letter_weight: float = 0.0  # of the letters' labels beside the answers

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ConfigError(f"stage {self.name}: objective {self.objective!r} is none of {', '.join(OBJECTIVES)}")
        shares = (self.page_share, self.strange_share, self.sign_share, self.small_sign_share, self.shape_share)
        if min(shares) < 0 or sum(shares) > 1:
            raise ConfigError(
                f"stage {self.name}: page_share, strange_share, sign_share, small_sign_share and shape_share must be shares of one whole, "
                f"from 0 to 1 together"
            )
        if self.objective in ("symbols", "imitate") and (self.page_share or self.strange_share or self.letter_weight):
            raise ConfigError(
                f"stage {self.name}: objective {self.objective!r} has no pages, no strange pictures and no letters: symbols are of scenes"
            )
        for name in ("two_picture_share", "talk_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"stage {self.name}: {name}={getattr(self, name)} must be a share, from 0 to 1")
        if unknown := [name for name in self.tasks if name not in ALL_TASK_NAMES]:
            raise ConfigError(f"stage {self.name}: tasks names {unknown[0]!r}, which is none of {', '.join(ALL_TASK_NAMES)}")
        if set(self.train) - set(PARTS) or not self.train:
            raise ConfigError(f"stage {self.name}: train={list(self.train)} must name parts of {', '.join(PARTS)}")
        for name in ("steps", "batch", "learning_rate", "max_tokens", "num_questions", "compare_rounds"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"stage {self.name}: {name}={getattr(self, name)} must be positive")
        for name in NOT_NEGATIVE:
            if getattr(self, name) < 0:
                raise ConfigError(f"stage {self.name}: {name}={getattr(self, name)} must not be negative")
        if not 0 < self.beta2 < 1:
            raise ConfigError(f"stage {self.name}: beta2={self.beta2} must lie between 0 and 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A run: a fresh model of `model`'s sizes, or one that goes on from the checkpoint `start`, and what it learns."""

    name: str
    seed: int
    model: ModelRecipe | None
    stages: tuple[StageRecipe, ...]
    start: str = ""  # a checkpoint's folder, from the recipe's own
    max_patches: int | None = None  # of a picture, which then keeps its shape; for what goes on from a checkpoint

    def __post_init__(self) -> None:
        if (self.model is None) == (self.start == ""):
            raise ConfigError("a recipe has either a [model] or a start")
        if self.max_patches is None:
            return
        if not self.start:
            raise ConfigError("max_patches needs a start: the cells of pictures that keep their shape have no labels to begin with")
        for stage in self.stages:
            if stage.objective == "labels" or stage.letter_weight:
                raise ConfigError(f"stage {stage.name}: with max_patches there are no labels of patches; leave out letter_weight and `labels`")


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file. Raises: ConfigError naming the file and the key."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such recipe file") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: not a readable TOML recipe ({type(error).__name__})") from error
    sizes, entries = table.pop("model", {}), table.pop("stage", [])
    if not isinstance(sizes, dict) or not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries) or not entries:
        raise ConfigError(f"{path}: a recipe has one [model] or start, and at least one [[stage]]")
    model = None if "start" in table and not sizes else _build(ModelRecipe, sizes, f"{path}: [model]")
    stages = tuple(_build(StageRecipe, entry, f"{path}: [[stage]]") for entry in entries)
    names = [stage.name for stage in stages]
    if len(set(names)) < len(names):
        raise ConfigError(f"{path}: two stages have the same name; found {', '.join(names)}")
    return _build(Recipe, {**table, "model": model, "stages": stages}, str(path))


def _check_type(place: str, key: str, value: object, kind: Any) -> None:
    """Raise: ConfigError when a value of the file is not of its field's kind."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    fits = {
        int: is_number and isinstance(value, int),
        int | None: is_number and isinstance(value, int),  # a file cannot say None
        float: is_number,
        str: isinstance(value, str),
        bool: isinstance(value, bool),
        tuple[str, ...]: isinstance(value, list) and all(isinstance(each, str) for each in value),
    }
    if not fits.get(kind, True):
        name = {int: "a whole number", int | None: "a whole number", float: "a number", str: "a text", bool: "true or false"}.get(
            kind, "a list of texts"
        )
        raise ConfigError(f"{place}: {key}={value!r} must be {name}")


def _build(kind: type[T], values: dict[str, Any], place: str) -> T:
    known = {entry.name: entry for entry in fields(kind)}  # type: ignore[arg-type]  # T is one of the dataclasses above
    for key in values:
        if key not in known:
            raise ConfigError(f"{place} has an unknown key {key!r}{nearest(key, known)}")
        _check_type(place, key, values[key], known[key].type)
    missing = [name for name, entry in known.items() if name not in values and entry.default is MISSING]
    if missing:
        raise ConfigError(f"{place} lacks {', '.join(missing)}")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
