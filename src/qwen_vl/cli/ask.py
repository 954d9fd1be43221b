"""Ask a question about one or more pictures, or about none.

\b
Examples:
    qwen-vl ask street.jpg "How many bicycles are there?"
    qwen-vl ask before.png after.png "What is different?"
    cat receipt.png | qwen-vl ask - --json "What is the total?"
"""

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen_vl.cli import options
from qwen_vl.cli.output import STDIN, check_outputs, describe_scores, read_picture, save_drawing, show, show_answer, show_json

if TYPE_CHECKING:
    from PIL import Image

    from qwen_vl.api import Answer, QwenVL


def run(
    *,
    pictures: Annotated[
        list[str] | None, typer.Argument(metavar="PICTURE", help="Path, address, or - for stdin; none for a question without one")
    ] = None,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="In English or Chinese")],
    model: options.Model = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    seed: options.Seed = None,
    max_new_tokens: options.MaxNewTokens = None,
    temperature: options.Temperature = None,
    boxes: options.Boxes = None,
    confidence: options.Confidence = False,
    stream: Annotated[bool | None, typer.Option("--stream/--no-stream", help="Print while it is written [default: on a terminal]")] = None,
    as_json: options.Json = False,
    draw: options.Draw = None,
    font: options.Font = None,
    out: options.Out = None,
    force: options.Force = False,
) -> None:
    """Answer the question."""
    names = pictures or []
    if not names and (question == STDIN or os.path.isfile(question)):
        raise typer.BadParameter(f"the question is missing: qwen-vl ask {question} QUESTION")
    if names.count(STDIN) > 1:
        raise typer.BadParameter("stdin (-) can be only one of the pictures")
    check_outputs(out, draw, force=force)
    from qwen_vl.api.prompts import check_question

    check_question(question)
    sources = [read_picture(name) for name in names]
    sampling = options.sampling_of(seed, max_new_tokens, temperature, boxes, confidence)
    vl = options.load_model(model, device, dtype)
    is_streaming = not out and (stream if stream is not None else sys.stdout.isatty() and not as_json)
    if is_streaming:
        answer = show_stream(vl, sources, question, sampling, as_json=as_json)
    else:
        answer = vl.ask(sources, question, **sampling)
        show_answer(answer, as_json=as_json, out=out)
    raise typer.Exit(save_drawing(answer, draw, font))


def show_stream(vl: "QwenVL", pictures: "list[Image.Image]", question: str, sampling: dict[str, Any], *, as_json: bool) -> "Answer":
    """Print the pieces as they come; as JSON, one `delta` a line and the whole answer in the last."""
    with vl.stream(pictures, question, **sampling) as pieces:
        for piece in pieces:
            if as_json:
                show_json({"delta": piece})
            else:
                show(piece, end="")
        answer = pieces.answer
    if as_json:
        show_json(answer.to_dict())
    else:
        show("\n".join(["", *describe_scores(answer)]))
    return answer
