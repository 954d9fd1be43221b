"""Writes docs/cli.md from the command line's own help, so that the page cannot differ from the program.

.venv/bin/python scripts/make_cli_docs.py
"""

import contextlib
import io
import os
from pathlib import Path
from unittest import mock

from qwen_vl.cli import app, main

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
WIDTH = "110"

HEAD = """# Command line

Made by `scripts/make_cli_docs.py` from the program's own help; a test compares the two.

stdout is the answer and nothing else; progress and warnings go to stderr. Exit codes: 0 done, 1 failed (one `error:` line says why), 2 wrong
usage or data, 3 the output folder is in use by another process, 4 the disk is full, 5 a training diverged, 130 interrupted. Nothing
is overwritten without `--force`, and no file is left half-written. Text never opens files: what looks like a tag or a path in a question is read as
words.
"""


def help_of(*arguments: str) -> str:
    """Return the help text of a subcommand, or of the program."""
    shown = io.StringIO()
    with mock.patch.dict(os.environ, COLUMNS=WIDTH), contextlib.redirect_stdout(shown):
        main([*arguments, "--help"])
    return shown.getvalue().strip()


def render() -> str:
    """Return the page."""
    sections = [HEAD, f"```\n{help_of()}\n```\n"]
    for command in app.registered_commands:
        sections.append(f"## qwen-vl {command.name}\n\n```\n{help_of(str(command.name))}\n```\n")
    return "\n".join(sections)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
