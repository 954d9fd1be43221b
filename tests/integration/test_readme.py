"""README: its code blocks run, its generated parts are up to date, and the answers it shows are nano's."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qwen_vl.api import QwenVL

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "README.zh.md"]
PROGRAM = [sys.executable, "-c", "import sys; from qwen_vl.cli import main; sys.exit(main())"]


def blocks(language: str) -> list[str]:
    """Return the code blocks of both pages in a language."""
    return [block for page in PAGES for block in re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.S)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder from which the repository's `src` is found, as the page assumes, and where files may be left."""
    (tmp_path / "src").symlink_to(ROOT / "src")
    return tmp_path


def run(command: list[str], folder: Path) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("block", blocks("python"))
def test_the_python_blocks_run(block: str, folder: Path) -> None:
    run([sys.executable, "-c", block], folder)


@pytest.mark.parametrize("line", [line for block in blocks("bash") for line in block.splitlines() if line.startswith("qwen-vl ")])
def test_the_commands_run(line: str, folder: Path) -> None:
    words = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', line)]
    assert run([*PROGRAM, *words[1:]], folder).strip()


def test_the_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for block in blocks("bash"):
        for target in re.findall(r"^make (\w+)", block, re.M):
            assert re.search(rf"^{target}:", makefile, re.M), target


def test_the_generated_parts_are_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("make_readme", ROOT / "scripts" / "make_readme.py")
    assert spec is not None and spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    assert maker.render() == PAGES[0].read_text(encoding="utf-8")


def test_the_answers_shown_are_nanos() -> None:
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", PAGES[0].read_text(encoding="utf-8").split("## Start")[0], re.M)[1:]
    assert len(rows) == 2
    chat = QwenVL.load(device="cpu").chat()
    picture = ROOT / "src" / "qwen_vl" / "assets" / "demo" / "beach.png"
    for number, (question, answer) in enumerate(rows):
        assert chat.send(question, picture if number == 0 else None).text == answer.strip("`")


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (ROOT / target).exists(), f"{page.name}: {target}"
