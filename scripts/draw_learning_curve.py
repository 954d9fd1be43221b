"""Draws the learning curve of a training run from its log.jsonl: mean loss of an answer token by kind of question, stage after stage.

.venv/bin/python scripts/draw_learning_curve.py LOG.jsonl OUT.png
"""

import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw

from qwen_vl.grounding.fonts import load_font

SIZE, LEFT, TOP, BOTTOM, RIGHT = (1200, 520), 60, 50, 60, 150  # pixels
LINES = {
    "what": "#1f77b4",
    "colour": "#d62728",
    "count": "#2ca02c",
    "yes_no": "#9467bd",
    "where": "#8c564b",
    "refer": "#ff7f0e",
    "caption": "#7f7f7f",
}
MAX_LOSS = 1.5  # nats


def read_rows(log: Path) -> list[dict[str, float | str]]:
    """Return the rows of stages with answers, in the order of the log; of repeated steps the last."""
    rows: dict[tuple[str, int], dict[str, float | str]] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if "refer" in row:
            rows.pop((row["stage"], row["step"]), None)
            rows[row["stage"], row["step"]] = row
    return list(rows.values())


def draw(rows: list[dict[str, float | str]]) -> Image.Image:
    """Return the picture."""
    image = Image.new("RGB", SIZE, "white")
    pen, font = ImageDraw.Draw(image), load_font(15)
    width, height = SIZE[0] - LEFT - RIGHT, SIZE[1] - TOP - BOTTOM

    def place(index: int, loss: float) -> tuple[float, float]:
        return LEFT + width * index / max(1, len(rows) - 1), TOP + height * (1 - min(loss, MAX_LOSS) / MAX_LOSS)

    for tick in range(4):
        y = place(0, tick / 2)[1]
        pen.line((LEFT, y, LEFT + width, y), fill="#dddddd")
        pen.text((LEFT - 10, y), f"{tick / 2:.1f}", fill="black", font=font, anchor="rm")
    stages: list[str] = []
    for index, row in enumerate(rows):
        if row["stage"] not in stages:
            x = place(index, 0)[0]
            pen.line((x, TOP, x, TOP + height), fill="#999999")
            pen.text((x + 4, TOP + height + 8 + 20 * (len(stages) % 2)), str(row["stage"]), fill="#555555", font=font)
            stages.append(str(row["stage"]))
    for number, (name, colour) in enumerate(LINES.items()):
        points = [place(index, float(row[name])) for index, row in enumerate(rows) if isinstance(row.get(name), float)]
        pen.line(points, fill=colour, width=2)
        pen.text((LEFT + width + 20, TOP + 24 * number), name, fill=colour, font=font)
    pen.text((LEFT, 16), "nano: loss of an answer token in nats, by kind of question, over the stages of its training", fill="black", font=font)
    return image


if __name__ == "__main__":
    draw(read_rows(Path(sys.argv[1]))).save(sys.argv[2])
