"""Draw picture-book scenes with exact boxes, questions and answers.

Writes the pictures and annotations.jsonl. The same seed gives the same scenes on every machine.

\b
Examples:
    qwen-vl picturebook --seed 7 --count 4 --out book
    qwen-vl picturebook --count 100 --out book --force
"""

from pathlib import Path
from typing import Annotated

import typer

from qwen_vl.cli.output import note
from qwen_vl.errors import ConfigError


def run(
    *,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the first scene; the others follow")] = 0,
    count: Annotated[int, typer.Option("--count", min=1, help="Number of scenes")] = 10,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Folder to write")],
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that is not empty")] = False,
) -> None:
    """Write the book."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file. Name a folder to write.")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise ConfigError(f"{out} is not empty. Add --force to write into it, or name another folder.")
    from qwen_vl.picturebook.export import write_book

    try:
        write_book(seed, count, out)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror or type(error).__name__}. Name another folder.") from None
    note(f"wrote {count} scenes to {out}")
