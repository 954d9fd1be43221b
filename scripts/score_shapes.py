"""Puts the exam about shape and size to two checkpoints, and writes what it found into docs/resolution.md and its translation.

OMP_NUM_THREADS=1 .venv/bin/python scripts/score_shapes.py runs/nano_shapes/model runs/nano_squares/model [--scenes 300]

Both checkpoints are asked the same questions about the same pictures. With --dev it takes the pictures that are for choosing between checkpoints,
and writes nothing. `--render` only writes the page again from the record.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "docs" / name for name in ("resolution.md", "resolution.zh.md")]
RECORD = ROOT / "benchmarks" / "results" / "nano_shapes_cpu_2026-11.json"
BEGIN, END = "<!-- exam of shapes: written by scripts/score_shapes.py -->", "<!-- end of the exam -->"


def main() -> None:
    """Ask, print, and write the record and the page."""
    parser = argparse.ArgumentParser(description="Put the exam about shape and size to two checkpoints.")
    parser.add_argument("models", type=Path, nargs="*", metavar="MODEL", help="the checkpoint with max_patches, then the one it is compared with")
    parser.add_argument("--scenes", type=int, default=300, help="pictures of each layout")
    parser.add_argument("--dev", action="store_true")
    parser.add_argument("--render", action="store_true")
    arguments = parser.parse_args()
    if arguments.render:
        write_page()
        return
    if len(arguments.models) != 2:
        parser.error("name two checkpoints")

    from qwen_vl.api import QwenVL
    from qwen_vl.evaluation.picturebook_shapes import compare_shapes
    from qwen_vl.picturebook.catalog import DEVELOPMENT_SEED_START, EVALUATION_SEED_START

    first_seed = DEVELOPMENT_SEED_START if arguments.dev else EVALUATION_SEED_START
    ours, theirs = (QwenVL.load(model) for model in arguments.models)
    rows = compare_shapes(ours, theirs, arguments.scenes, first_seed, progress=show_progress)
    command = f"python scripts/score_shapes.py {' '.join(map(str, arguments.models))} --scenes {arguments.scenes}"
    record = {"bench": "nano_shapes", "command": command, "num_scenes": arguments.scenes, "rows": [asdict(row) for row in rows]}
    print(render(record))
    if not arguments.dev:
        RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        write_page()


def render(record: dict[str, Any]) -> str:
    """Return the table of a record."""
    lines = ["| pictures | questions | any shape | squares | difference, points |", "|---|---|---|---|---|"]
    for row in record["rows"]:
        low, high = (100 * row["difference"][end] for end in ("low", "high"))
        margin = f"{100 * (row['ours'] - row['theirs']):+.1f} ({low:+.1f} to {high:+.1f})"
        lines.append(f"| {row['layout']} | {row['topic']} ({row['num_questions']}) | {row['ours']:.1%} | {row['theirs']:.1%} | {margin} |")
    return "\n".join([*lines, "", f"`{record['command']}`"])


def write_page() -> None:
    """Replace what stands between the marks of the pages."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        before, _, rest = text.partition(BEGIN)
        _, _, after = rest.partition(END)
        page.write_text(f"{before}{BEGIN}\n{render(record)}\n{END}{after}", encoding="utf-8")


def show_progress(done: int, total: int) -> None:
    """Say on stderr how far a part is."""
    print(f"\r{done} of {total} ", end="\n" if done == total else "", file=sys.stderr)


if __name__ == "__main__":
    main()
