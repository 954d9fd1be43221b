"""The examples of docs/serving.md run against a real server, and its tables say what the code does."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen_vl.serving import body, decoder, schemas, security, uploads
from qwen_vl.serving.settings import ServeSettings
from tests.integration.serving import DEADLINE_S, KEY, Server, start_server

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
CURLS = [block for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) if "curl" in block]
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with start_server(tmp_path_factory.mktemp("server")) as found:
        yield found


def run(server: Server, *command: str, text: str) -> str:
    """Run a program on the text, with the page's address and key replaced by the server's."""
    text = text.replace("http://127.0.0.1:8000", server.url).replace("the-key", KEY)
    environment = {"KEY": KEY, "PATH": "/usr/local/bin:/usr/bin:/bin", "NO_PROXY": "*", "no_proxy": "*"}
    done = subprocess.run([*command, text], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=2 * DEADLINE_S)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def check_document(document: Any) -> None:
    assert isinstance(document, dict)
    choices = document["choices"] if "choices" in document else document["output"]["choices"]
    assert choices[0]["message"]["content"]
    assert choices[0]["finish_reason"] in ("stop", "length")


@pytest.mark.parametrize("block", CURLS, ids=range(len(CURLS)))
def test_curl(server: Server, block: str) -> None:
    answer = run(server, "bash", "-euc", text=block)
    if "/metrics" in block:
        assert answer.startswith('{"status":"ok"}')
        assert "qwen_vl_requests_total" in answer
    elif "-sN" in block:
        assert answer.count("data:") > 3
        assert '"error"' not in answer
    else:
        check_document(json.loads(answer))


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_program(server: Server, program: str) -> None:
    assert len(run(server, sys.executable, "-c", text=program).strip()) > 1


def test_there_are_examples() -> None:
    assert (len(CURLS), len(PROGRAMS)) == (7, 2)


def test_every_code_of_the_table_is_in_the_code() -> None:
    table = PAGE.partition("## Errors")[2].partition("## Health")[0]
    rows = [line.split("|")[2] for line in table.splitlines() if re.match(r"\| \d", line)]
    named = set(re.findall(r"`([a-z_]+)`", " ".join(rows)))
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src/qwen_vl/serving").glob("*.py"))
    assert {code for code in named if f'"{code}"' not in sources} == set()
    raised = set(re.findall(r'ServeError\(\s*\d{3},\s*"([a-z_]+)"', sources))
    assert raised - named <= {"internal_error", "invalid_header", "invalid_request", "invalid_form", "invalid_upload_name", "upload_exists"} | {
        "unsupported_content_encoding"
    }


def test_limits_of_the_table_are_the_defaults() -> None:
    table = PAGE.partition("## Limits")[2].partition("## Errors")[0]
    plain, kept = ServeSettings(), uploads.UploadLimits()
    for value in (f"{plain.max_body_bytes >> 20} MiB, {plain.body_timeout_s:g} s", f"{plain.max_image_bytes >> 20} MiB; JPEG"):
        assert value in table
    assert f"and files fetched for them | {plain.max_held_bytes >> 20} MiB |" in table
    assert f"{plain.max_image_pixels // 10**6} million pixels; one side at most {decoder.DecoderLimits().max_aspect} times" in table
    assert f"{plain.max_text_chars:,} characters, {plain.max_messages:,} messages" in table
    lists = f"{plain.max_parts:,} parts of content, {schemas.MAX_TOOLS} tools, {body.MAX_FIELDS:,} fields, {body.MAX_MARKS:,} commas"
    assert lists in table and f"{security.MAX_HEADERS} headers" in table
    assert f"{plain.max_choices}; {plain.max_logprobs}; {plain.max_stops} strings of {plain.max_stop_chars}" in table
    assert f"{plain.max_running}; {plain.max_waiting} (" in table
    assert f"per key {kept.max_owner_files} files and {kept.max_owner_bytes >> 20} MiB" in PAGE
