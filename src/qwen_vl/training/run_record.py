"""What is written beside a tuning run, so that it can be told from others, repeated and plotted."""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qwen_vl.surroundings import find_versions
from qwen_vl.whole import whole_file

from .settings import FinetuneSettings
from .strategy.base import Strategy

VERSIONS_OF = ("qwen-vl", "torch", "transformers", "peft", "accelerate", "deepspeed", "pillow")


def describe_run(settings: FinetuneSettings, strategy: Strategy) -> dict[str, Any]:
    """Return what a run can be repeated from: all settings, processes, versions, and the commit where this is a git checkout."""
    return {
        "settings": asdict(settings),
        "strategy": type(strategy).__name__,
        "processes": strategy.world_size,
        "device": str(strategy.device),
        "versions": find_versions(*VERSIONS_OF),
        "commit": find_commit(),
    }


def find_commit() -> str | None:
    """Return the commit of the checkout that this code runs from, with "+" if files were changed; None outside of one."""
    folder = Path(__file__).parent
    try:
        found = [
            subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=10).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"], ["ls-files", __file__])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return found[0] + ("+" if found[1] else "") if found[2] else None  # else it is installed into another project's checkout


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a file whole or not at all."""
    with whole_file(path) as work:
        work.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def history_row(row: Mapping[str, Any], steps_per_epoch: int) -> dict[str, Any]:
    """Return a row of metrics under Hugging Face's names."""
    renamed = {"lr": "learning_rate"}
    values = {renamed.get(name, name): value for name, value in row.items() if name != "evaluation"}
    values |= {f"eval_{name}": value for name, value in row.get("evaluation", {}).items()}
    return {**values, "epoch": row["step"] / steps_per_epoch}
