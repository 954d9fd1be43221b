"""Recipe files: what is wrong is named, with the nearest right name."""

from pathlib import Path

import pytest

from qwen_vl.errors import ConfigError
from qwen_vl.training.picturebook.recipe import read_recipe

RECIPES = Path(__file__).parents[4] / "recipes"
NANO = RECIPES / "nano.toml"


def test_the_recipe_of_nano_reads() -> None:
    recipe = read_recipe(NANO)
    assert recipe.name == "nano" and recipe.stages[0].name == "tower"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("hidden_size =", "hiden_size =", "did you mean 'hidden_size'"),
        ('objective = "labels"', 'objective = "label"', "objective 'label' is none of"),
        ('train = ["visual", "resampler", "heads"]', 'train = ["eyes"]', "must name parts"),
        ("steps = ", "steps = -", "must be positive"),
        ("seed = 2023", "", "lacks seed"),
        ("steps = ", 'steps = "many" # ', "must be a whole number"),
        ("hidden_size = 256", "hidden_size = 255", "not a multiple of num_heads"),
        ('name = "language"', 'name = "tower"', "same name"),
        ("learning_rate = 1.5e-3", "learning_rate = nan", "must be a number"),
        ("[model]", "[model", "not a readable TOML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = NANO.read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "recipe.toml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_recipe(path)


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such recipe"):
        read_recipe(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("page_share = 0.7\nstrange_share = 0.4", "shares of one whole"),
        ("sign_share = -0.1", "shares of one whole"),
        ("compare_rounds = 0", "compare_rounds=0 must be positive"),
        ("talk_share = 1.5", "talk_share=1.5 must be a share"),
        ("weight_decay = -0.1", "weight_decay=-0.1 must not be negative"),
        ("clip = -1.0", "clip=-1.0 must not be negative"),
        ("beta2 = 1.0", "beta2=1.0 must lie between"),
        ('tasks = ["captoin"]', "'captoin', which is none of what, "),
    ],
)
def test_settings_of_a_stage_must_fit(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "recipe.toml"
    text = NANO.read_text(encoding="utf-8")
    path.write_text(text.replace('name = "tasks"', f'name = "tasks"\n{line}'), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_recipe(path)


def test_an_optional_number_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text((RECIPES / "nano_shapes.toml").read_text(encoding="utf-8").replace("max_patches = 576", 'max_patches = "big"'), encoding="utf-8")
    with pytest.raises(ConfigError, match="max_patches='big' must be a whole number"):
        read_recipe(path)


@pytest.mark.parametrize("line", ["page_share = 0.1", "strange_share = 0.1", "letter_weight = 0.1"])
def test_symbols_are_of_scenes_alone(tmp_path: Path, line: str) -> None:
    path = tmp_path / "recipe.toml"
    text = NANO.read_text(encoding="utf-8")
    path.write_text(text.replace('objective = "symbols"', f'objective = "symbols"\n{line}'), encoding="utf-8")
    with pytest.raises(ConfigError, match="symbols are of scenes"):
        read_recipe(path)
