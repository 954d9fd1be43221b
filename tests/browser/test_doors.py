"""What the page's server does not do: serve files, take uploads, fetch addresses, or call out. No browser needed, but Gradio is."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qwen_vl.serving.web.door import is_open
from qwen_vl.serving.web.texts import EN
from tests.browser.conftest import DEADLINE_MS
from tests.integration.bad_requests import CATALOGUE, probe
from tests.integration.serving import LEAKS, post_bytes, start_server, wait_until
from tests.integration.test_bad_input import bytes_of, check_form
from tests.integration.wire import exchange

gradio_routes = pytest.importorskip("gradio.routes")
pytestmark = pytest.mark.browser


def call(url: str, *, data: bytes | None = None, kind: str = "application/json") -> tuple[int, bytes, Any]:
    request = urllib.request.Request(url, data=data, headers={"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE_MS / 1000) as reply:
            return reply.status, reply.read(), reply.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


def test_the_page_tells_the_browser_to_keep_to_this_server(nano_url: str) -> None:
    status, body, headers = call(nano_url)
    assert status == 200
    policy = headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert b"fonts.googleapis" not in body


def test_every_other_route_of_gradio_is_closed(nano_url: str, tmp_path: Path) -> None:
    """Those of the version that is installed, whatever they are called; those with a place are tried with places that exist."""
    (tmp_path / "canary.txt").write_text("yellow bird")
    source = Path(gradio_routes.__file__).read_text(encoding="utf-8")
    declared = re.findall(r"@(app|router)\.(get|post|head|put|delete)\(\s*f?\"([^\"]+)\"", source)
    assert len(declared) > 50
    tried = 0
    for owner, method, route in declared:
        place = str(tmp_path / "canary.txt") if "path" in route else "x"
        path = ("/gradio_api" if owner == "router" else "") + re.sub(r"{[^}]*}", place, route)
        if is_open(method.upper(), path.rstrip("/")):  # a plain application sends a path with a slash to the one without
            assert not re.search(r"file|proxy|upload|stream|call|login|reload|edit|history|monitoring|deep_link|info", path)
            continue
        tried += 1
        status, body, _ = call(nano_url + path, data=b"{}" if method == "post" else None)
        assert status == 404, path
        assert b"yellow bird" not in body
    assert tried > 40


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=http://example.org/",
        "/gradio_api/file/etc/passwd",
        "/gradio_api/proxy=http://example.org/",
        "/file=/etc/passwd",
        "/assets/../../../etc/passwd",
        "/static/..%2f..%2f..%2f..%2fetc/passwd",
        "/static//etc/passwd",
    ],
)
def test_no_file_and_no_address_is_served(nano_url: str, path: str) -> None:
    status, body, _ = call(nano_url + path)
    assert status in (403, 404)
    assert b"root:" not in body


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        "x",
        {"turn": "0"},
        {"turn": -1, "picture": 10**9},
        {"example": 10**9},
        {"example": True},
        {"question": 5},
        {"question": "x" * 20_000},
        {"question": "?", "pictures": ["/etc/passwd", {"data": "/etc/passwd"}, {"data": 5}]},
        {"question": "?", "pictures": [{}] * 100},
        {"kind": "../x"},
        {"language": {}},
    ],
)
def test_forged_events_harm_nothing(nano_url: str, data: Any) -> None:
    """Events as a browser never sends them: the server answers something, and goes on."""
    config = json.loads(call(f"{nano_url}/config")[1])
    for dependency in config["dependencies"]:
        if dependency["targets"][0][1] not in {"ask", "look", "save", "speak", "halt", "wipe"}:
            continue
        event = {
            "data": [None] * len(dependency["inputs"]),
            "event_data": data,
            "fn_index": dependency["id"],
            "session_hash": "forged",
            "trigger_id": None,
        }
        status, _, _ = call(f"{nano_url}/gradio_api/queue/join", data=json.dumps(event).encode())
        assert status in (200, 400, 422)
    assert call(nano_url)[0] == 200


def test_paths_of_the_protocols_keep_their_own_refusals(tmp_path: Path) -> None:
    """B11 beside the page: a wrong method is 405 and an unknown path 404, each in the form of its protocol."""
    with start_server(tmp_path, "--web") as server:
        wrong = [
            ("POST", "/health", 405),
            ("HEAD", "/health", 405),
            ("POST", "/v1/models", 405),
            ("GET", "/v1/nowhere", 404),
            ("GET", "/api/v1/x", 404),
        ]
        multimodal = "/api/v1/services/aigc/multimodal-generation/generation"
        probes = [
            probe(b"", status, method=method, path=path, headers={})
            for method, path, status in [
                *wrong,
                ("GET", multimodal, 405),
                ("DELETE", multimodal, 405),
                ("POST", "/", 404),
                ("GET", "/gradio_api/info", 404),
            ]
        ]
        for each in [*CATALOGUE["B11"](), *probes]:
            reply = exchange(server.address, bytes_of(each))
            assert reply.status in each.statuses, f"{each.method} {each.path}: {reply.status} {reply.body[:300]!r}"
            if each.method != "HEAD":
                assert reply.headers["content-type"] == "application/json"
                check_form(reply)
            if reply.status == 405:
                assert reply.headers["allow"]
        assert server.client.get("/").status_code == 200
        assert server.ask().status_code == 200


def test_bodies_for_the_page_are_bounded_too(tmp_path: Path) -> None:
    """B07, B08, with 3 seconds for 10: Gradio reads them, and would tell of what is wrong with one in words of its own."""
    program = str(Path(__file__).parents[1] / "integration" / "faulty_server.py")
    with start_server(tmp_path, "--web", program=(program,), env={"FAULT": str(tmp_path / "none"), "SEND_TIMEOUT": "3"}) as server:
        path = "/gradio_api/queue/join"
        late = server.raw(post_bytes(b'{"data": [', path, **{"Content-Length": "100"}))
        assert b" 408 " in late and b"request_timeout" in late
        begun = post_bytes(b"", path, **{"Transfer-Encoding": "chunked"}).replace(b"Content-Length: 0\r\n", b"")
        large = server.raw(begun + (b"100000\r\n" + b" " * (1 << 20) + b"\r\n") * 33)
        assert b" 413 " in large and b"request_too_large" in large
        assert not LEAKS.search(server.log) and server.ask().status_code == 200


def test_a_server_that_is_told_to_stop_lets_the_pages_answer_end(tmp_path: Path) -> None:
    """F09 for the page: with an engine that takes its time, SIGTERM comes while an answer is written."""
    program = tmp_path / "slow.py"
    program.write_text(
        "import sys, time\n"
        "from qwen_vl import cli\n"
        "from qwen_vl.engine.engine import Engine\n"
        "step = Engine.step\n"
        "Engine.step = lambda self, *rest: (time.sleep(0.05), step(self, *rest))[1]\n"
        "sys.exit(cli.main())\n"
    )
    with start_server(tmp_path, "--web", "--grace", "60", program=(str(program),)) as server:
        dependencies = server.client.get("/config").json()["dependencies"]
        number = next(each["id"] for each in dependencies if each["targets"][0][1] == "ask")
        event = {"data": [0, 1, 256, "off", False, "", False], "event_data": {"example": 1}, "fn_index": number, "session_hash": "me"}
        assert server.post("/gradio_api/queue/join", json=event | {"trigger_id": None}).status_code == 200
        shown = ""
        with server.client.stream("GET", "/gradio_api/queue/data?session_hash=me") as events:
            for line in events.iter_lines():
                shown += line
                if "process_generating" in line and "data-busy" in line and server.health == 200:
                    server.process.send_signal(signal.SIGTERM)
                    wait_until(lambda: server.health != 200, "the health says that it stops")
                if "process_completed" in line:
                    break
        assert "data-busy" in shown
        assert 'data-action=\\"again' in shown  # the whole answer, with what can be done with it
        assert EN.errors["shutting_down"] not in shown
        assert server.process.wait(DEADLINE_MS / 1000) == 0


@contextmanager
def web_command(folder: Path, **environment: str) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """Run `qwen-vl web` and yield its address."""
    command = [sys.executable, "-m", "qwen_vl", "web", "--port", "0", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder) as process:
        try:
            assert process.stderr is not None
            said = []
            for line in process.stderr:
                said.append(line)
                if "The page is at http://127.0.0.1:" in line:
                    break
            yield said[-1].split("The page is at ")[1].split(". ")[0], process
        finally:
            process.kill()


def test_the_command_serves_the_page(tmp_path: Path) -> None:
    with web_command(tmp_path) as (url, process):
        status, body, headers = call(url)
        assert status == 200
        assert b"gradio" in body
        assert "Content-Security-Policy" in headers
        assert call(f"{url}/health")[0] == 200
        assert call(f"{url}/v1/models")[0] == 200
        assert b'qwen_vl_requests_total{route="page",status="200"} 1.0' in call(f"{url}/metrics")[1]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_a_key_is_asked_for_and_opens_the_page(tmp_path: Path, browser: Any) -> None:
    """A browser that knows no key is asked for it in its own dialog, of which it is the password; then the whole page works."""
    with web_command(tmp_path, QWEN_VL_API_KEY="test") as (url, _):
        status, body, headers = call(url)
        assert (status, headers["WWW-Authenticate"].partition(" ")[0]) == (401, "Basic") and b"gradio" not in body
        for path in ("/config", "/gradio_api/queue/data?session_hash=x", "/v1/models", "/metrics"):
            assert call(url + path)[0] == 401
        assert call(f"{url}/health")[0] == 200
        refused = browser.new_context(http_credentials={"username": "anybody", "password": "wrong"})
        let_in = browser.new_context(http_credentials={"username": "anybody", "password": "test"})
        try:
            assert refused.new_page().goto(url).status == 401
            page = let_in.new_page()
            page.set_default_timeout(DEADLINE_MS)
            assert page.goto(url).status == 200
            page.wait_for_selector("body.is-ready")
            page.locator("#composer textarea").fill("Who are you?")
            page.locator("#composer textarea").press("Enter")
            page.locator(".turn [data-action=again]").wait_for()
            assert page.locator(".answer").inner_text().strip()
        finally:
            refused.close()
            let_in.close()
        request = urllib.request.Request(f"{url}/metrics", headers={"Authorization": "Bearer test"})
        with urllib.request.urlopen(request, timeout=DEADLINE_MS / 1000) as reply:
            counted = re.findall(r'qwen_vl_requests_total\{route="page",status="(\d+)"\} ([\d.]+)', reply.read().decode())
        assert float(dict(counted)["200"]) > 5
