"""Train a checkpoint as a recipe file says.

\b
Examples:
    qwen-vl train recipes/nano.toml --out runs/nano
    qwen-vl train recipes/nano.toml --out runs/nano --resume
"""

from pathlib import Path
from typing import Annotated

import typer

from qwen_vl.cli import options
from qwen_vl.errors import ConfigError


def run(
    recipe: Annotated[Path, typer.Argument(help="Recipe file")],
    *,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Folder for checkpoints, logs and the final model")],
    resume: Annotated[bool, typer.Option("--resume/--no-resume", help="Go on from the last checkpoint in --out, if there is one")] = False,
    device: options.Device = None,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that holds another run")] = False,
) -> None:
    """Train."""
    if not recipe.is_file():
        raise ConfigError(f"There is no recipe {recipe}. Give a recipe file.")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file. Name a folder.")
    if out.is_dir() and any(out.iterdir()) and not (resume or force):
        raise ConfigError(f"{out} is not empty. Add --resume to go on with its run, --force to write over it, or name another folder.")
    from qwen_vl.training.run import train

    train(recipe, out, resume=resume, device=device)
