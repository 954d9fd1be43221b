"""Where answers go: stdout or a file, whole or not at all; and what is said on stderr."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from qwen_vl.errors import ConfigError, ImageError, cannot_write

if TYPE_CHECKING:
    from PIL import Image

    from qwen_vl.api import Answer

STDIN = "-"
MAX_STDIN_BYTES = 256 << 20


def note(text: str) -> None:
    """Say something to whoever watches; nothing when stderr is no terminal."""
    if sys.stderr.isatty():
        typer.echo(text, err=True)


def check_output(path: Path | None, *, force: bool) -> None:
    """Raise ConfigError unless the file can be written: checked before the work, so that no answer is lost."""
    if path is None:
        return
    if os.path.isdir(path):
        raise ConfigError(f"{path} is a folder. Name a file to write.")
    if not os.path.isdir(path.parent):
        raise ConfigError(f"There is no folder {path.parent} to write {path.name} into. Make it first.")
    if os.path.exists(path) and not os.path.isfile(path):
        raise ConfigError(f"{path} is no regular file, and would be replaced by one. Name another file.")
    if os.path.exists(path) and not force:
        raise ConfigError(f"{path} exists. Add --force to overwrite it, or name another file.")
    # What is written gets its name only when it is whole, so the folder must take a new file.
    if not os.access(path.parent, os.W_OK) or (os.path.exists(path) and not os.access(path, os.W_OK)):
        raise ConfigError(f"{path} cannot be written: permission denied. Name another file.")


def check_picture_output(path: Path | None, *, force: bool) -> None:
    """Raise ConfigError unless a picture can be written to the file."""
    check_output(path, force=force)
    if path is None:
        return
    from PIL import Image

    Image.init()
    if Image.EXTENSION.get(path.suffix.lower()) not in Image.SAVE:
        raise ConfigError(f"{path} does not end like a picture. Name a file that ends in .png or .jpg.")


def check_outputs(out: Path | None, draw: Path | None, *, force: bool) -> None:
    """Raise ConfigError unless the answer and the drawing can be written, each to a file of its own."""
    check_output(out, force=force)
    check_picture_output(draw, force=force)
    if out and draw and out.absolute() == draw.absolute():
        raise ConfigError(f"{out} cannot hold both the answer and the drawing. Name two files.")


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all. Raises: ConfigError or DiskError if that fails."""
    from qwen_vl.whole import whole_file

    with whole_file(path, remedy="Name another file.") as work:
        write(work)


def read_picture(name: str) -> "Image.Image":
    """Load a picture, from stdin if the name is `-`: before the model, which takes longer. Raises: ImageError if that fails."""
    from qwen_vl.processing.images import load_image

    return load_image(read_stdin() if name == STDIN else name)


def read_stdin() -> bytes:
    """Return what stdin holds. Raises: ImageError if that is nothing or too much."""
    if sys.stdin is None or sys.stdin.isatty():
        raise ImageError("There is no picture on stdin. Pipe one in: cat photo.png | qwen-vl ask - QUESTION")
    content = sys.stdin.buffer.read(MAX_STDIN_BYTES + 1)
    if not content:
        raise ImageError("The picture on stdin is empty. Pipe one in: cat photo.png | qwen-vl ask - QUESTION")
    if len(content) > MAX_STDIN_BYTES:
        raise ImageError(f"The picture on stdin has more than {MAX_STDIN_BYTES >> 20} MiB. Make it smaller.")
    return content


def show(text: str = "", *, end: str = "\n") -> None:
    """Print on stdout, at once. Raises: ConfigError if stdout takes nothing more; a reader that left is the command line's to handle."""
    try:
        typer.echo(text + end, nl=False)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise cannot_write("stdout", error, "Send it elsewhere.") from None


def show_json(record: dict[str, Any]) -> None:
    """Print one JSON document on one line."""
    show(json.dumps(record, ensure_ascii=False))


def show_answer(answer: "Answer", *, as_json: bool, out: Path | None) -> None:
    """Print an answer, or write it into the file."""
    text = json.dumps(answer.to_dict(), ensure_ascii=False) if as_json else "\n".join([answer.text, *describe_scores(answer)])
    if out:
        write_whole(out, lambda path: path.write_text(text + "\n", encoding="utf-8"))
        note(f"wrote {out}")
    else:
        show(text)


def describe_scores(answer: "Answer") -> list[str]:
    """Return one line for each box whose confidence was asked for."""
    lines = []
    for score in answer.box_scores or ():
        x1, y1, x2, y2 = score.box.to_tuple()
        spread = " ".join(f"{value:.0f}" for value in score.spread)
        lines.append(f"confidence {score.confidence:.2f}  box ({x1},{y1}),({x2},{y2})  spread {spread}")
    return lines


def save_drawing(answer: "Answer", draw: Path | None, font: Path | None) -> int:
    """Draw the boxes if that was asked for, and return the exit code: 1 if there was no box to draw."""
    if draw is None:
        return 0
    if not answer.boxes:
        typer.echo(f"error: The answer holds no box, so {draw} was not written. Ask for boxes, for example with: qwen-vl ground", err=True)
        return 1
    picture = answer.draw(font_path=font)
    write_whole(draw, picture.save)
    note(f"wrote {draw}")
    return 0


def show_progress(done: int, total: int) -> None:
    """Count on one line of a terminal."""
    if sys.stderr.isatty():
        typer.echo(f"\r{done} of {total}", nl=done == total, err=True)
