"""Ask about many pictures and write one JSON line for each.

Stopped and started again with the same arguments, it goes on where it was. A picture that cannot be read gets a line with `error`; the others
are answered.

\b
Examples:
    qwen-vl batch photos/ --question "What is this?" --out answers.jsonl
    qwen-vl batch --input pairs.jsonl --out answers.jsonl
"""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from qwen_vl.cli import options
from qwen_vl.cli.output import check_output, show_progress
from qwen_vl.errors import ConfigError, PromptError, cannot_write

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"}


def run(
    pictures: Annotated[list[str] | None, typer.Argument(metavar="PICTURE|FOLDER", help="Pictures, and folders of pictures")] = None,
    *,
    question: Annotated[str | None, typer.Option("--question", help="The question for every picture")] = None,
    input_file: Annotated[
        Path | None,
        typer.Option(
            "--input", metavar="FILE", help='JSON lines {"image": "a.png", "question": "..."}; paths are relative to that file and stay below it'
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="JSON lines with the answers")],
    model: options.Model = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    seed: options.Seed = None,
    max_new_tokens: options.MaxNewTokens = None,
    temperature: options.Temperature = None,
    boxes: options.Boxes = None,
    confidence: options.Confidence = False,
    force: Annotated[bool, typer.Option("--force", help="Start anew, even if the file holds answers")] = False,
) -> None:
    """Answer all questions."""
    if bool(pictures) == bool(input_file):
        raise typer.BadParameter("give either pictures or --input")
    if pictures and not question:
        raise typer.BadParameter("give the --question for the pictures")
    items = read_pairs(input_file, question) if input_file else list_pictures(pictures or [])
    check_output(out, force=True)
    refuse_input(out, [input_file] if input_file else [Path(name) for name in items])
    sampling = options.sampling_of(seed, max_new_tokens, temperature, boxes, confidence)
    vl = options.load_model(model, device, dtype)
    if force:
        try:
            out.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(out, error, "Name another file.") from None
    results = vl.batch(items, None if input_file else question, out=out, progress=show_progress, **sampling)
    num_failed = sum(result.error is not None for result in results)
    if num_failed:
        typer.echo(f"error: {num_failed} of {len(results)} could not be answered; {out} says why. Run again to try these again.", err=True)
    raise typer.Exit(1 if num_failed else 0)


def refuse_input(out: Path, inputs: list[Path]) -> None:
    """Raise ConfigError if the answers would take the place of something that is to be read."""
    if out.exists() and any(os.path.exists(path) and path.samefile(out) for path in inputs):
        raise ConfigError(f"{out} is one of the inputs. Name another file for the answers.")


def list_pictures(names: list[str]) -> list[Any]:
    """Return the pictures, with each folder replaced by the pictures in it. Raises: ConfigError for a folder without pictures."""
    pictures: list[Any] = []
    for name in names:
        if not os.path.isdir(name):
            pictures.append(name)
            continue
        found = sorted(path for path in Path(name).iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)
        if not found:
            raise ConfigError(f"{name} holds no pictures ({', '.join(sorted(PICTURE_SUFFIXES))}). Name another folder.")
        pictures += found
    return pictures


def read_pairs(path: Path, question: str | None) -> list[Any]:
    """Return (picture, question) of each line. Raises: ConfigError naming the line that cannot be used."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # editors on Windows begin files with a byte-order mark
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not a text file of JSON lines.") from None
    pairs = [read_pair(path, number, line, question) for number, line in enumerate(lines, start=1) if line.strip()]
    if not pairs:
        raise ConfigError(f"{path} holds no line. Write one JSON object for each picture.")
    return pairs


def read_pair(path: Path, number: int, line: str, question: str | None) -> tuple[list[str], str]:
    """Return (pictures, question) of one line. Nobody typed these paths, so none may lead out of the file's folder."""
    try:
        record = json.loads(line)
        images = record["image"] if "image" in record else record["images"]
        asked = record.get("question", question)
    except (json.JSONDecodeError, RecursionError, KeyError, TypeError, AttributeError):
        raise ConfigError(f'{path} line {number} is not {{"image": "a.png", "question": "..."}}. Correct it.') from None
    names = images if isinstance(images, list) else [images]
    if not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{path} line {number}: the image must be a path. Correct it.")
    if not isinstance(asked, str) or not asked.strip():
        raise PromptError(f"{path} line {number} has no question. Add one, or give --question for all.")
    return [below(path, number, name) for name in names], asked


def below(path: Path, number: int, name: str) -> str:
    """Return a picture's path below the file's folder. Raises: ConfigError if it leads elsewhere."""
    root = path.parent.resolve()
    try:
        target = (root / name).resolve()
    except (ValueError, OSError):  # NUL, half a character, links in a circle
        raise ConfigError(f"{path} line {number}: {name[:80]!r} is not a path. Correct it.") from None
    if not target.is_relative_to(root):
        raise ConfigError(f"{path} line {number}: {name!r} is not below {path.parent}. Move the file {path.name} to a folder above all its pictures.")
    return str(target)
