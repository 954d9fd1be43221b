"""Fills the generated parts of README.md: nano's scores from its folder, and the map of src/ from the packages' own first lines.

.venv/bin/python scripts/make_readme.py
"""

import ast
import json
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "README.md"
SOURCE = ROOT / "src" / "qwen_vl"
SCORES = SOURCE / "assets" / "nano" / "scores.json"
TASKS = {
    "what": "what is it",
    "colour": "which colour",
    "count": "how many",
    "yes_no": "yes or no",
    "where": "where",
    "read": "read a sign",
    "compare": "compare two pictures",
    "refer": "box of a phrase, IoU >= 0.5",
}


def render_scores() -> str:
    """Return the table of nano's scores."""
    record = json.loads(SCORES.read_text(encoding="utf-8"))
    lines = [
        f"nano on {record['num_scenes']} held-out scenes of the picture book, {record['num_questions']:,} questions: share of right answers.",
        f"Made by `{record['command']}`.",
        "",
        "| question | English | 中文 |",
        "|---|---|---|",
    ]
    for task, title in TASKS.items():
        cells = [record["scores"].get(f"{task} {language}") for language in ("en", "zh")]
        lines.append(f"| {title} | " + " | ".join(f"{cell['accuracy']:.1%}" if cell else "" for cell in cells) + " |")
    lines += ["", f"Answers that should hold a box and hold none that can be read: {record['unparsed']} of {record['num_boxed']:,}."]
    return "\n".join(lines)


def render_map() -> str:
    """Return the list of packages and modules with what their docstrings begin with."""
    lines = []
    for path in sorted(SOURCE.iterdir()):
        home = path / "__init__.py" if path.is_dir() else path
        if home.suffix == ".py" and home.exists() and path.name != "__init__.py":
            text = ast.get_docstring(ast.parse(home.read_text(encoding="utf-8"))) or ""
            name = f"{path.name}/" if path.is_dir() else path.name
            lines.append(f"- [`{name}`](src/qwen_vl/{path.name}): {text.splitlines()[0]}")
    return "\n".join(lines)


def render() -> str:
    """Return the whole page with its generated parts filled in."""
    page = PAGE.read_text(encoding="utf-8")
    for name, text in (("scores", render_scores()), ("map", render_map())):
        before, begin, rest = page.partition(f"<!-- begin: {name} -->\n")
        _, end, after = rest.partition(f"<!-- end: {name} -->")
        if not end:
            raise ValueError(f"{PAGE.name} has no place for {name}")
        page = f"{before}{begin}{text}\n{end}{after}"
    return page


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
