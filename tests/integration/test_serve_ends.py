"""How a server begins and ends: signals, an engine that dies or hangs, and starts that cannot work. Each case has a process of its own.

F06, F07, F09, F10 and F24 of the reliability plan.
"""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import qwen_vl
from tests.integration.serving import (
    BUSY,
    DEADLINE_S,
    KEY,
    Server,
    chat_body,
    check_silent,
    code_of,
    picture_uri,
    post_bytes,
    read_all,
    shown,
    start_server,
    wait_until,
)

FAULTY = (str(Path(__file__).with_name("faulty_server.py")),)
NUM_STREAMS = 8


def read_events(server: Server, num_tokens: int, begun: threading.Semaphore) -> list[Any]:
    """Return the events of a stream."""
    body = {"model": "nano", "messages": [{"role": "user", "content": "Tell me a story"}], "stream": True}
    lengths = {"max_tokens": num_tokens, "min_tokens": num_tokens}
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    events: list[Any] = []
    with contextlib.closing(http.client.HTTPConnection(*server.address, timeout=DEADLINE_S)) as connection:
        connection.request("POST", "/v1/chat/completions", json.dumps(body | lengths), headers)
        with connection.getresponse() as response:
            assert response.status == 200
            while line := response.readline():
                if line.startswith(b"data: "):
                    events.append(line[6:].decode().strip())
                    if len(events) == 3:
                        begun.release()
    return events


def with_streams(server: Server, num_tokens: int, act: Callable[[], Any], num_streams: int = NUM_STREAMS) -> list[list[Any]]:
    """Do something while streams are written, and return their events."""
    begun = threading.Semaphore(0)
    with ThreadPoolExecutor(num_streams) as pool:
        streams: list[Future[list[Any]]] = [pool.submit(read_events, server, num_tokens, begun) for _ in range(num_streams)]
        for _ in streams:
            assert begun.acquire(timeout=DEADLINE_S)
        act()
        return [stream.result(DEADLINE_S) for stream in streams]


def last_error(events: list[Any]) -> str:
    """Return the code of the error that a stream ended with."""
    return str(json.loads(events[-1])["error"]["code"])


def test_sigterm_lets_streams_finish_and_takes_nothing_new(tmp_path: Path) -> None:
    """F09."""
    with start_server(tmp_path, "--grace", str(DEADLINE_S)) as server:
        refused = []

        def stop() -> None:
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: server.health == 503, "the health says that it stops")
            refused.append(server.ask())

        streams = with_streams(server, 120, stop)
        assert all(events[-1] == "[DONE]" for events in streams)
        assert refused[0].status_code == 503 and code_of(refused[0]) == "shutting_down"
        assert server.process.wait(DEADLINE_S) == 0


def test_what_is_not_finished_in_time_ends_with_an_error(tmp_path: Path) -> None:
    """F09."""
    with start_server(tmp_path, "--grace", "0.5") as server:
        streams = with_streams(server, 1900, lambda: server.process.send_signal(signal.SIGINT))
        assert {last_error(events) for events in streams} == {"shutting_down"}
        assert server.process.wait(DEADLINE_S) == 0


def test_what_has_not_begun_when_the_time_is_over_is_told_so(tmp_path: Path) -> None:
    """F09: answers that are written, requests that wait for a place, and one whose body still comes."""
    order = tmp_path / "fault"
    arguments = ("--grace", "0.5", "--max-running", "2")
    with (
        start_server(tmp_path, *arguments, program=FAULTY, env={"FAULT": str(order)}) as server,
        server.connect() as half,
        ThreadPoolExecutor(6) as pool,
    ):
        order.write_text("slow 1")
        asking = [pool.submit(server.ask, max_tokens=1900, min_tokens=1900, stream=number % 2 == 0) for number in range(6)]
        half.sendall(post_bytes(chat_body())[:-5])
        names, expected = ("requests_admitted", "requests_waiting", "places_taken"), [7, 4, 2]
        wait_until(lambda: [server.gauges()[f"qwen_vl_{name}"] for name in names] == expected, "two are written, and the others wait")
        server.process.send_signal(signal.SIGTERM)
        responses = [each.result(DEADLINE_S) for each in asking]
        begun = [response for response in responses if response.status_code == 200]  # streams
        refused = [response for response in responses if response not in begun]
        assert {response.status_code for response in refused} == {503} and {code_of(response) for response in refused} == {"shutting_down"}
        assert {last_error([line[6:] for line in response.text.splitlines() if line.startswith("data: ")]) for response in begun} <= {"shutting_down"}
        assert len(refused) >= 4
        answered = read_all(half)
        assert answered.startswith(b"HTTP/1.1 503 ") and b"shutting_down" in answered
        assert server.process.wait(DEADLINE_S) == 0
        check_silent(server.log)


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    """F09."""
    with start_server(tmp_path, "--grace", "600") as server:

        def stop_twice() -> None:
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: server.health == 503, "the health says that it stops")
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(1 * BUSY) == 130

        with contextlib.suppress(http.client.HTTPException, ConnectionError):
            (events,) = with_streams(server, 1900, stop_twice, num_streams=1)
            assert events[-1] != "[DONE]"
        assert server.process.poll() == 130


@pytest.mark.parametrize(
    ("fault", "arguments"),
    [
        ("die", []),
        pytest.param("hang", ["--watchdog", "2"], marks=pytest.mark.slow),
    ],
)
def test_an_engine_that_is_gone_ends_streams_and_process(tmp_path: Path, fault: str, arguments: list[str]) -> None:
    """F06, F07: every stream ends with an error event, the health says so at once, and the process leaves with 1 for its supervisor."""
    order = tmp_path / "fault"
    with start_server(tmp_path, *arguments, program=FAULTY, env={"FAULT": str(order)}) as server:
        health: list[int] = []
        broken_at_s: list[float] = []

        def break_it() -> None:
            broken_at_s.append(time.monotonic())
            order.write_text(f"{fault} 1")
            health.append(wait_until(lambda: server.health != 200 and (server.health or 503), "the health tells of it"))

        streams = with_streams(server, 1900, break_it)
        if fault == "die":
            assert time.monotonic() - broken_at_s[0] < 2
        assert {last_error(events) for events in streams} == {"engine_down"} and health == [503]
        assert server.process.wait(DEADLINE_S) == 1
        assert ("has died" if fault == "die" else "has hung") in server.log
        if fault == "hang":
            assert "thread engine is at hang:" in server.log


@pytest.mark.slow
def test_a_vision_tower_that_hangs_is_seen_too(tmp_path: Path) -> None:
    """F07."""
    order = tmp_path / "fault"
    with start_server(tmp_path, "--watchdog", "2", program=FAULTY, env={"FAULT": str(order)}) as server:
        order.write_text("hang-vision 1")
        from PIL import Image

        response = server.ask(shown("What?", picture_uri(Image.new("RGB", (9, 9)))))
        assert response.status_code == 503 and code_of(response) == "engine_down"
        assert server.process.wait(DEADLINE_S) == 1


def start_in_vain(*arguments: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Run `qwen-vl serve` where it cannot work and return the exit code and stderr, once it has ended in time and left no process behind."""
    begun_s = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-m", "qwen_vl", "serve", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        start_new_session=True,  # by which its children are known
    ) as process:
        try:
            stdout, stderr = process.communicate(timeout=2 * DEADLINE_S)
        finally:
            process.kill()
    assert time.monotonic() - begun_s < 5 * BUSY
    wait_until(lambda: not session_of(process.pid), "no child is left", BUSY)
    assert stdout == ""
    return process.returncode, stderr


def session_of(leader: int) -> list[int]:
    """Return the processes of a session, among them those that have ended and are not waited for."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            fields = stat.read_text().rpartition(")")[2].split()  # after the name, which may hold anything
            if int(fields[3]) == leader:
                found.append(int(stat.parent.name))
    return found


def test_starts_that_cannot_work_end_with_one_line(tmp_path: Path) -> None:
    """F10."""
    empty = tmp_path / "empty.txt"
    empty.write_text("\n# nothing\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        cases = [
            (["--port", port], 2, f"port {port} cannot be used"),
            (["--host", "0.0.0.0"], 2, "no API key is set"),
            (["--api-key-file", str(empty)], 2, "holds no key"),
        ]
        for arguments, code, words in cases:
            assert_refused(start_in_vain(*arguments), code, words)


@pytest.mark.slow
def test_more_starts_that_cannot_work(tmp_path: Path) -> None:
    """F10."""
    cases = [
        (["--port", "0", "--model", str(tmp_path / "nowhere")], 1, "nowhere"),
        (["--port", "70000"], 2, "70000"),
        (["--host", "no such host", "--allow-open"], 2, "not known"),
        (["--max-context", "1"], 2, "max_context=1"),
        (["--api-key-file", str(tmp_path / "missing")], 2, "cannot be read"),
    ]
    for arguments, code, words in cases:
        assert_refused(start_in_vain(*arguments), code, words)
    assert_refused(start_in_vain("--port", "0", env={"QWEN_VL_API_KEY": "a b"}), 2, "API key")


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["cut short", "no header", "missing"])
def test_a_shard_that_is_broken_is_named(tmp_path: Path, fault: str) -> None:
    """F10."""
    folder = tmp_path / "broken"
    shutil.copytree(Path(qwen_vl.__file__).parent / "assets" / "nano", folder)
    shard = min(folder.glob("*.safetensors"))
    if fault == "missing":
        shard.unlink()
    else:
        content = shard.read_bytes()
        shard.write_bytes(content[:-1000] if fault == "cut short" else b"\xff" * 64 + content[64:])
    assert_refused(start_in_vain("--port", "0", "--model", str(folder)), 1, shard.name if fault != "missing" else folder.name)


def assert_refused(outcome: tuple[int, str], code: int, words: str) -> None:
    found, said = outcome
    assert found == code and words in said and said.startswith("error: ") and said.count("\n") == 1, outcome


POOR = """
import os, resource, sys

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod"}


def refuse(event, arguments):
    target = arguments[0] if arguments else None
    if event == "open":
        is_change = isinstance(target, (str, bytes)) and target != os.devnull and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    else:
        is_change = event in CHANGES and not (event == "os.mkdir" and os.path.isdir(target))  # which says that it is there
    if is_change:
        raise OSError(30, "Read-only file system")


os.umask(0o077)
os.chdir("/proc")
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
sys.addaudithook(refuse)
from qwen_vl import cli
sys.exit(cli.main())
"""


@pytest.mark.slow
def test_it_serves_where_little_is_allowed(tmp_path: Path) -> None:
    """F24 and B83: 64 files, no home, no folder for temporary files, checks of Python off, and whatever the server's process would write or make is
    refused, as by a file system that is read-only. It answers as anywhere else, and says once what it lacks.
    """
    program = tmp_path / "poor.py"
    program.write_text(POOR)
    env = {"HOME": "/nonexistent", "TMPDIR": "/nonexistent", "LC_ALL": "C", "PYTHONOPTIMIZE": "1", "HF_HOME": "/nonexistent"}
    contents = ["Who are you?", shown("What is this?", picture_uri())]
    with start_server(tmp_path) as server:
        usual = [server.ask(content, temperature=0).json()["choices"] for content in contents]
    with start_server(tmp_path, program=(str(program),), env=env) as server:
        assert [server.ask(content, temperature=0).json()["choices"] for content in contents] == usual
        with contextlib.ExitStack() as held:  # of 64 files, 8 are for connections
            several = [held.enter_context(server.connect()) for _ in range(12)]
            wait_until(lambda: sum(read_at_once(connection) == b"" for connection in several) == 4, "those beyond are cut")
        assert server.ask().status_code == 200 and server.stop() == 0
        (lack,) = [line for line in server.log.splitlines() if line.startswith("WARNING") and "stopping" not in line]
        assert "no folder for temporary files" in lack


def read_at_once(connection: socket.socket) -> bytes | None:
    """Return what has come on a connection, nothing for its end, or None if nothing came."""
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return None
    except ConnectionError:
        return b""


@pytest.mark.slow
def test_clock_jumps_change_nothing(tmp_path: Path) -> None:
    """F12: time-outs go by a clock that nobody sets. With 3 seconds for 10 and 30, half a body and a silent connection are cut then, not before."""
    program = tmp_path / "jumpy.py"
    program.write_text(
        "import itertools, runpy, sys, time\n"
        "real, jumps = time.time, itertools.cycle((0, 3600, -3600))\n"
        "time.time = lambda: real() + next(jumps)\n"
        f"runpy.run_path({FAULTY[0]!r})\n"
    )
    env = {"FAULT": str(tmp_path / "none"), "SEND_TIMEOUT": "3"}
    with start_server(tmp_path, program=(str(program),), env=env) as server:

        def wait(sent: bytes) -> tuple[bytes, float]:
            began_s = time.monotonic()
            return server.raw(sent), time.monotonic() - began_s

        with ThreadPoolExecutor(2) as pool:
            waiting = [pool.submit(wait, sent) for sent in (post_bytes(chat_body())[:-5], b"")]
            while not all(each.done() for each in waiting):
                assert server.ask(max_tokens=4).status_code == 200 and server.health == 200
        (late, late_s), (silent, silent_s) = (each.result() for each in waiting)
        assert b" 408 " in late and b"request_timeout" in late and silent == b""
        assert 3 <= late_s < DEADLINE_S and 3 <= silent_s < DEADLINE_S
        assert server.stop() == 0
