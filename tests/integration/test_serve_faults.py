"""What goes wrong in a server, to order: memory, bugs, clients that leave or never read, floods. The neighbours notice nothing.

F01 to F08 of the reliability plan; those that end the process are in test_serve_ends.
"""

import json
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.integration.serving import (
    KEY,
    Invariants,
    Server,
    chat_body,
    code_of,
    picture_uri,
    post_bytes,
    read_all,
    shown,
    start_server,
    wait_until,
)

FAULTY = (str(Path(__file__).with_name("faulty_server.py")),)
LONG = {"max_tokens": 1500, "min_tokens": 1500}


class Faulty:
    """A server whose faults are ordered by a file."""

    def __init__(self, server: Server, order: Path) -> None:
        self.server, self._order = server, order
        self.hold = Invariants(server)

    def order(self, place: str, count: int = 1) -> None:
        self._order.write_text(f"{place} {count}")

    @property
    def has_happened(self) -> bool:
        return not self._order.read_text()


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    folder = tmp_path_factory.mktemp("faulty")
    order = folder / "fault"
    order.write_text("")
    with start_server(folder, "--max-running", "4", "--max-waiting", "6", program=FAULTY, env={"FAULT": str(order), "SEND_TIMEOUT": "3"}) as server:
        yield Faulty(server, order)


@pytest.mark.parametrize("place", ["memory-kv", "memory-vision", "memory-sampler"])
@pytest.mark.parametrize("count", [1, 3])
def test_a_lack_of_memory_is_one_requests_alone(faulty: Faulty, place: str, count: int) -> None:
    """F03. The canary is started after the fault has happened, so that it cannot be the one that is hit."""
    server, statuses = faulty.server, []
    server.wait_idle()
    faulty.order(place, count)
    for number in range(count):
        content: Any = shown("What is it?", picture_uri(Image.new("RGB", (8, 8), (number, count, len(place)))))
        response = server.ask(content, max_tokens=1, temperature=0.5)
        statuses.append(response.status_code)
        if response.status_code == 503:
            assert code_of(response) == "out_of_memory" and response.headers["retry-after"]
            faulty.hold.check_told(response)
    assert statuses == [200] * (count - 1) + [503] and faulty.has_happened
    with faulty.hold():
        pass


@pytest.mark.parametrize("place", ["bug-sampler", "bug-route", "bug-stream"])
def test_a_bug_is_one_requests_alone_and_tells_nothing(faulty: Faulty, place: str) -> None:
    """F05: those who come next are what they are alone; neither the client nor the log sees the bug's words."""
    server = faulty.server
    server.wait_idle()
    alone = [server.ask(f"Number {number}", temperature=0.9, seed=1, max_tokens=8).json()["choices"] for number in range(3)]
    faulty.order(place)
    failed: httpx.Response | list[dict[str, Any]]
    if place == "bug-stream":
        events = server.stream("Number 9", max_tokens=8)
        assert events[-1]["error"]["code"] == "internal_error" and "secret" not in json.dumps(events)
    else:
        failed = server.ask("Number 9", temperature=0.9, seed=1, max_tokens=8)
        assert failed.status_code == 500 and code_of(failed) == "internal_error" and "secret" not in failed.text
    assert faulty.has_happened
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda number: server.ask(f"Number {number}", temperature=0.9, seed=1, max_tokens=8).json()["choices"], range(3)))
    assert together == alone
    assert "secret" not in server.log and "RuntimeError" in server.log


def test_a_bug_in_one_of_eight_answers_leaves_seven_as_they_are_alone(tmp_path: Path) -> None:
    """F05: the bug comes while all eight are written together."""
    order = tmp_path / "fault"
    with start_server(tmp_path, program=FAULTY, env={"FAULT": str(order)}) as server:

        def ask(number: int) -> httpx.Response:
            return server.ask(f"Number {number}", temperature=0.9, seed=number, max_tokens=40, min_tokens=40)

        alone = [ask(number).json()["choices"] for number in range(8)]
        before = server.gauges()
        order.write_text("bug-sampler 200")  # of the passes of eight answers with forty tokens each
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(ask, range(8)))
        assert not order.read_text()
        written, rounds = (server.gauges()[name] - before[name] for name in ("qwen_vl_engine_new_tokens", "qwen_vl_engine_rounds"))
        assert written > 3 * rounds, "they were not written together"
        (failed,) = (number for number, response in enumerate(together) if response.status_code != 200)
        assert code_of(together[failed]) == "internal_error"
        assert [each.json()["choices"] for each in together if each.status_code == 200] == alone[:failed] + alone[failed + 1 :]


def leave_after(server: Server, num_bytes: int) -> None:
    """Begin a long stream, read some of it, and cut the line."""
    with server.connect() as connection:
        connection.sendall(post_bytes(chat_body("Tell me a story", stream=True, **LONG)))
        found = 0
        while found < num_bytes and (chunk := connection.recv(512)):
            found += len(chunk)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not a polite end


@pytest.mark.parametrize("num_clients", [12, pytest.param(1000, marks=pytest.mark.slow)])
def test_clients_that_leave_free_their_places(faulty: Faulty, num_clients: int) -> None:
    """F01: within a round or two; 1,500 tokens each would take minutes otherwise."""
    server = faulty.server
    with faulty.hold(limit_s=60 + num_clients):
        for number in range(num_clients):
            leave_after(server, number % 5 * 150)
            if number % 3 == 0:  # also where the answer is not streamed, or its body not whole
                with server.connect() as connection:
                    connection.sendall(post_bytes(chat_body("Tell me a story", **LONG))[: None if number % 2 else -9])
                wait_until(lambda: server.gauges()["qwen_vl_requests_admitted"] <= 3, "those who left are noticed")
    assert server.gauges()["qwen_vl_places_taken"] == 0


def test_a_reader_that_does_not_read_is_dropped(faulty: Faulty) -> None:
    """F02, with 3 seconds for 30."""
    server = faulty.server
    server.wait_idle()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(server.address)
        connection.sendall(post_bytes(chat_body("Tell me a story", stream=True, n=4, logprobs=True, top_logprobs=20, **LONG)))
        before = server.gauges()["qwen_vl_engine_rounds"]
        wait_until(lambda: 'dropped_total{reason="slow reader"} 1.0' in server.client.get("/metrics").text, "the reader is dropped")
        assert server.gauges()["qwen_vl_engine_rounds"] > before
        server.wait_idle()
        with pytest.raises((ConnectionError, TimeoutError)):
            connection.settimeout(5)
            while connection.recv(65536):
                pass
            raise ConnectionResetError  # an end is as good
    assert server.ask().status_code == 200


def test_a_flood_is_told_to_come_again(faulty: Faulty) -> None:
    """F08: 4 places and 6 who wait; of sixty at once ten are served, or more as places become free, and the others know at once."""
    server, started = faulty.server, threading.Barrier(61)
    server.wait_idle()

    def ask(number: int) -> httpx.Response:
        with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=120, trust_env=False, verify=False) as client:
            started.wait(60)
            body = {"model": "nano", "messages": [{"role": "user", "content": "Tell me a story"}], "max_tokens": 150, "min_tokens": 150}
            return client.post("/v1/chat/completions", json=body)

    with ThreadPoolExecutor(60) as pool:
        waiting = [pool.submit(ask, number) for number in range(60)]
        started.wait(60)
        responses = [each.result() for each in waiting]
    served = [response for response in responses if response.status_code == 200]
    refused = [response for response in responses if response.status_code == 429]
    assert len(served) >= 10 and refused and len(served) + len(refused) == 60
    assert len({response.json()["choices"][0]["message"]["content"] for response in served}) == 1
    assert all(code_of(response) == "overloaded" and int(response.headers["retry-after"]) >= 1 for response in refused)
    with faulty.hold():
        pass


def test_slow_and_silent_connections_are_cut(faulty: Faulty) -> None:
    """B08 and B84, with 3 seconds for 10 and 30: half a body, half a header, nothing at all."""
    server = faulty.server
    whole = post_bytes(chat_body())
    with faulty.hold(limit_s=90):
        with server.connect() as half_body, server.connect() as half_header, server.connect() as silent:
            half_body.sendall(whole[:-5])
            half_header.sendall(whole[:40])
            answer = read_all(half_body)
            assert b" 408 " in answer and b"request_timeout" in answer
            assert read_all(half_header) == read_all(silent) == b""


def test_a_body_that_is_too_large_is_refused_while_it_comes(faulty: Faulty) -> None:
    """B07."""
    server = faulty.server
    with faulty.hold():
        told = server.raw(post_bytes(b"", **{"Content-Length": str(33 << 20)}))
        assert b" 413 " in told and b"request_too_large" in told
        with server.connect() as connection:
            connection.sendall(post_bytes(b"", **{"Transfer-Encoding": "chunked"}).replace(b"Content-Length: 0\r\n", b""))
            sent, chunk = 0, b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
            try:
                while sent < 64:
                    connection.sendall(chunk)
                    sent += 1
            except ConnectionError:
                pass
            assert 32 <= sent < 64
