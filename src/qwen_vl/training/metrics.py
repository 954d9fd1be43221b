"""What a run says about itself: means over the logged steps, `metrics.jsonl`, and TensorBoard.

A row of `metrics.jsonl` is either of training (`loss`, `lr`, ..), of evaluation (`evaluation`: means by name), or of a skipped step (`reason`,
`ids`); each has `step`, the number of steps done.
"""

import json
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from qwen_vl.whole import whole_file

logger = logging.getLogger(__name__)
Row = dict[str, Any]  # a line of metrics.jsonl
METRICS = "metrics.jsonl"


class Meter:
    """Means and rates since the last logged step. Its `state` is saved, so that a resumed run logs the same means."""

    def __init__(self) -> None:
        self.values: dict[str, list[Tensor | float]] = {}
        self.tokens = self.pictures = self.steps = 0
        self.since = time.monotonic()

    def add(self, values: Mapping[str, Tensor | float]) -> None:
        """Take values of a step; tensors are read only when they are logged, so nothing waits for the device."""
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)

    def count(self, batch: Mapping[str, Any]) -> None:
        """Count a batch's tokens, without padding, and its pictures."""
        mask, ids = batch.get("attention_mask"), batch.get("input_ids")
        if isinstance(mask, Tensor) and mask.ndim == 2:
            self.tokens += int(mask.sum())
        elif isinstance(ids, Tensor):
            self.tokens += ids.numel()
        pictures = batch.get("pixel_values", batch.get("image_features"))
        self.pictures += 0 if pictures is None else len(pictures)

    def means(self) -> dict[str, float]:
        """Return the mean of each value that was a number at least once."""
        found = {name: [number for number in map(float, values) if not math.isnan(number)] for name, values in self.values.items()}
        return {name: math.fsum(numbers) / len(numbers) for name, numbers in found.items() if numbers}

    def reset(self) -> None:
        """Begin the next logged steps."""
        self.values = {}
        self.reset_clock()

    def reset_clock(self) -> None:
        """Begin to count time, tokens and pictures anew."""
        self.tokens = self.pictures = self.steps = 0
        self.since = time.monotonic()

    def state(self) -> dict[str, list[float]]:
        """Return the values so far as JSON."""
        return {name: [float(value) for value in values] for name, values in self.values.items()}

    def restore(self, state: Mapping[str, list[float]]) -> None:
        """Take the values that `state` returned."""
        self.values = {name: list(values) for name, values in state.items()}


class MetricsFile:
    """The run's `metrics.jsonl`, and its TensorBoard files if wanted. Everything after `step` is cut off: a resumed run writes it again."""

    def __init__(self, out: Path, step: int, *, tensorboard: bool = False) -> None:
        self.path = out / METRICS
        kept = [row for row in read_metrics(self.path) if row["step"] <= step]
        with whole_file(self.path) as work:
            work.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept), encoding="utf-8")
        self.file = self.path.open("a", encoding="utf-8")
        self.board = _open_board(out / "tensorboard", step) if tensorboard else None

    def write(self, row: Row) -> None:
        """Append a row."""
        self.file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.file.flush()
        if self.board is not None:
            numbers = {**row, **{f"evaluation/{name}": value for name, value in row.get("evaluation", {}).items()}}
            for name, value in numbers.items():
                if name != "step" and isinstance(value, (int, float)):
                    self.board.add_scalar(name, value, row["step"])

    def sync(self) -> None:
        """Wait until all rows are on the disk, those for TensorBoard too: a run that is killed and resumed writes only the later ones again."""
        os.fsync(self.file.fileno())
        if self.board is not None:
            self.board.flush()

    def close(self) -> None:
        """Close the files."""
        self.file.close()
        if self.board is not None:
            self.board.close()


def read_metrics(path: Path) -> list[Row]:
    """Return the rows of a metrics file, [] if there is none; a last line that was cut in half is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _open_board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.warning('TensorBoard files are not written: tensorboard is missing. Install it with: pip install "qwen-vl[train]"')
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)
