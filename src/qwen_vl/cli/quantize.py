"""Quantize a checkpoint to 4 bits: a folder in the layout of the released Int4 one, loaded by every other command; a full-size one is half as large.

GPTQ looks at what the layers see of some conversations with pictures, --data, and rounds such that their outputs change little. Give 100 or more
that are like those that the model is for, in any form that finetune reads. --method rtn rounds to the nearest: no data, but worse.

One block of the model is in memory at a time. A run that was stopped goes on with the same command; its finished blocks are in OUT.part.

\b
Examples:
    qwen-vl quantize --data train.json --group-size 32 --out int4
    qwen-vl quantize --model weights/Qwen-VL-Chat --method rtn --group-size 32 --out int4-rtn --json
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen_vl.cli import options
from qwen_vl.cli.output import note, show_json
from qwen_vl.errors import ConfigError

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from qwen_vl.quantization.progress import Progress, Summary

MIB = 2**20


def run(
    *,
    model: options.Model = None,
    data: Annotated[Path | None, typer.Option("--data", metavar="FILE", help="Conversations to calibrate on; GPTQ needs them")] = None,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Folder to write")],
    method: Annotated[str, typer.Option("--method", help="gptq or rtn (round to nearest)")] = "gptq",
    group_size: Annotated[
        int, typer.Option("--group-size", metavar="128|64|32", help="Weights that share a scale: fewer are larger and better")
    ] = 128,
    act_order: Annotated[bool, typer.Option("--act-order/--no-act-order", help="Round weights of large inputs first (desc_act)")] = False,
    damping: Annotated[float, typer.Option("--damping", help="Added to the Hessian's diagonal, as a share of its mean")] = 0.01,
    int8_head: Annotated[
        bool, typer.Option("--int8-head/--no-int8-head", help="Answer with an output head in 8 bits: quicker; it is stored in 16")
    ] = False,
    samples: Annotated[int, typer.Option("--samples", metavar="N", min=1, help="Conversations that are taken, by chance")] = 128,
    max_length: Annotated[int, typer.Option("--max-length", metavar="N", min=1, help="Longest conversation, in tokens; others are cut")] = 2048,
    seed: Annotated[int, typer.Option("--seed", help="Chooses the conversations")] = 0,
    device: options.Device = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Quantize."""
    if method == "gptq" and data is None:
        raise ConfigError(
            "GPTQ needs conversations to calibrate on: --data FILE. Take some of those that the model was tuned with, or that it is to answer; "
            "for nano, qwen-vl picturebook --conversations --count 50 --out book draws book/conversations.jsonl. Without data: --method rtn."
        )
    if method == "rtn" and (data or act_order):
        raise ConfigError(f"--method rtn looks at no data: leave {'--data' if data else '--act-order'} out.")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    from qwen_vl.api.loading import load_tokenizer, resolve_device, resolve_folder
    from qwen_vl.checkpoint_facts import check_folder
    from qwen_vl.lock import hold_folder
    from qwen_vl.quantization.gptq import GPTQSettings
    from qwen_vl.quantization.quantize import quantize
    from qwen_vl.quantization.work_folder import check_free, part_folder, remove_if_empty
    from qwen_vl.training.conversations.calibration import CalibrationConversations

    settings = GPTQSettings(group_size=group_size, desc_act=act_order, damp_percent=damping)
    folder = resolve_folder(model)
    check_free(out, folder, is_forced=force)
    check_folder(folder)
    chosen = None
    if data is not None:
        chosen = CalibrationConversations(folder, load_tokenizer(folder), data, num_samples=samples, max_length=max_length, seed=seed)
    part = part_folder(out)
    make_folder(part)
    try:
        with hold_folder(part), Watcher() as watcher:
            summary = quantize(
                folder,
                out,
                chosen,
                settings,
                method=method,
                fingerprint=chosen.fingerprint if chosen else {},
                int8_head=int8_head,
                device=resolve_device(device),
                is_forced=force,
                report=watcher,
            )
    finally:
        remove_if_empty(part)
    note(describe(summary))
    if as_json:
        show_json(summary.to_dict())


def make_folder(folder: Path) -> None:
    """Make a folder. Raises: ConfigError if that cannot be."""
    from qwen_vl.errors import cannot_write

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error, "Name another folder.") from None


class Watcher:
    """Show a run as a bar on stderr, if that is a terminal."""

    def __init__(self) -> None:
        self.bar: Bar | None = None
        self.task: Any = None

    def __enter__(self) -> "Watcher":
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

            columns = BarColumn(bar_width=20), TaskProgressColumn(), TimeRemainingColumn(), TextColumn("{task.description}")
            self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self.task = self.bar.add_task("starting", total=None)
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, progress: "Progress") -> None:
        """Take how far a run is."""
        if self.bar is not None:
            self.bar.update(self.task, description=progress.what, completed=progress.done, total=progress.total or None)


def describe(summary: "Summary") -> str:
    """Return what was made, in a few lines."""
    seen = (
        f", from {summary.num_samples} conversations with {summary.num_pictures} pictures, {summary.num_tokens:,} tokens"
        if summary.num_samples
        else ""
    )
    resumed = f" ({summary.num_resumed} of an earlier run)" if summary.num_resumed else ""
    lines = [f"{summary.num_blocks} blocks{resumed} by {summary.method}{seen}, in {summary.seconds:.0f} s"]
    if summary.errors:
        worst = max(summary.errors, key=lambda name: summary.errors[name])
        mean = sum(summary.errors.values()) / len(summary.errors)
        lines.append(f"error of the layers' outputs: {mean:.2%} on average, {summary.errors[worst]:.2%} at most ({worst})")
    if summary.num_samples and summary.num_tokens < summary.num_tokens_wanted:
        lines.append(
            f"that is fewer tokens than the {summary.num_tokens_wanted:,} inputs of a layer: little better than rounding. Take more samples."
        )
    share = summary.layer_bytes / summary.dense_layer_bytes
    lines.append(
        f"{summary.layer_bytes / MIB:.1f} MiB of quantized layers, {share:.2f} of their size in 16 bits; {summary.total_bytes / MIB:.1f} MiB in all"
    )
    return "\n".join([*lines, f"wrote {summary.out}"])
