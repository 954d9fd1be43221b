"""What goes wrong in a server, to order: memory, bugs, clients that leave or never read, floods. The neighbours notice nothing.

F01 to F08 of the reliability plan; those that end the process are in test_serve_ends.
"""

import hashlib
import json
import re
import socket
import statistics
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.integration.serving import (
    BUSY,
    DEADLINE_S,
    KEY,
    STEADY,
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
NUM_PLACES, NUM_WAITING = 8, 6
NEIGHBOURS_TOKENS = 600  # what happens beside them takes a third of it


class Faulty:
    """A server whose faults are ordered by a file."""

    def __init__(self, server: Server, order: Path) -> None:
        self.server, self._order = server, order
        self.hold = Invariants(server)

    def order(self, place: str, count: int = 1) -> None:
        self._order.write_text(f"{place} {count}")

    def forget_order(self) -> None:
        self._order.write_text("")

    @property
    def has_happened(self) -> bool:
        return not self._order.read_text()


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    folder = tmp_path_factory.mktemp("faulty")
    order = folder / "fault"
    order.write_text("")
    limits = ("--max-running", str(NUM_PLACES), "--max-waiting", str(NUM_WAITING))
    with start_server(folder, *limits, program=FAULTY, env={**STEADY, "FAULT": str(order), "SEND_TIMEOUT": "3"}) as server:
        found = Faulty(server, order)
        with found.hold:
            yield found


def ask_at_length(server: Server, number: int) -> httpx.Response:
    """Ask for a long answer: a neighbour of those that fail."""
    return server.ask(f"Number {number % 2}", temperature=0, max_tokens=NEIGHBOURS_TOKENS, min_tokens=NEIGHBOURS_TOKENS)


@pytest.fixture(scope="module")
def alone(faulty: Faulty) -> list[Any]:
    """Return what the neighbours answer when nobody is beside them."""
    even, odd = (ask_at_length(faulty.server, number).json()["choices"] for number in range(2))
    return [even, odd, even, odd, even, odd, even]


@pytest.mark.parametrize("place", ["memory-kv", "memory-vision", "memory-sampler"])
def test_a_lack_of_memory_is_one_requests_alone(faulty: Faulty, alone: list[Any], place: str) -> None:
    """F03, with seven answers being written beside it: the memory ends for the k-th who comes, or with the k-th token of one; k = 1..5."""
    server, running = faulty.server, []
    server.wait_idle()
    with ThreadPoolExecutor(len(alone)) as pool:
        neighbours = [pool.submit(ask_at_length, server, number) for number in range(len(alone))]
        wait_until(lambda: server.gauges()["qwen_vl_engine_running"] == len(alone), "all neighbours are read or written")
        for count in range(1, 6):
            faulty.order(place, count)
            num_visitors = 1 if place == "memory-sampler" else count
            responses = [visit(server, f"{place} {count} {number}") for number in range(num_visitors)]
            assert [each.status_code for each in responses] == [200] * (num_visitors - 1) + [503] and faulty.has_happened
            assert code_of(responses[-1]) == "out_of_memory" and responses[-1].headers["retry-after"]
            faulty.hold.check_told(responses[-1])
            running.append(server.gauges()["qwen_vl_engine_running"])
        assert [each.result().json()["choices"] for each in neighbours] == alone
    assert set(running) == {len(alone)}, "the neighbours were not all written meanwhile"
    with faulty.hold():
        pass


def visit(server: Server, name: str) -> httpx.Response:
    """Ask for a short sampled answer about a picture that nobody has seen."""
    color = tuple(hashlib.sha256(name.encode()).digest()[:3])
    return server.ask(shown("What is it?", picture_uri(Image.new("RGB", (8, 8), color))), max_tokens=6, min_tokens=6, temperature=0.5)


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


def test_a_bug_in_one_of_eight_answers_leaves_seven_as_they_are_alone(faulty: Faulty) -> None:
    """F05: the bug comes while all eight are written together."""
    server = faulty.server

    def ask(number: int) -> httpx.Response:
        return server.ask(f"Number {number}", temperature=0.9, seed=number, max_tokens=40, min_tokens=40)

    alone = [ask(number).json()["choices"] for number in range(NUM_PLACES)]
    before = server.gauges()
    faulty.order("bug-sampler", 200)  # of the passes of eight answers with forty tokens each
    with ThreadPoolExecutor(NUM_PLACES) as pool:
        together = list(pool.map(ask, range(NUM_PLACES)))
    assert faulty.has_happened
    written, rounds = (server.gauges()[name] - before[name] for name in ("qwen_vl_engine_new_tokens", "qwen_vl_engine_rounds"))
    assert written > 3 * rounds, "they were not written together"
    (failed,) = (number for number, response in enumerate(together) if response.status_code != 200)
    assert code_of(together[failed]) == "internal_error"
    assert [each.json()["choices"] for each in together if each.status_code == 200] == alone[:failed] + alone[failed + 1 :]


def leave_after(server: Server, num_bytes: int) -> float:
    """Begin a long stream, read some of it, and cut the line. Returns: the tokens that the engine had written by then."""
    with server.connect() as connection:
        connection.sendall(post_bytes(chat_body("Tell me a story", stream=True, **LONG)))
        found = 0
        while found < num_bytes and (chunk := connection.recv(512)):
            found += len(chunk)
        num_tokens = server.gauges()["qwen_vl_engine_new_tokens"]
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not a polite end
    return num_tokens


@pytest.mark.parametrize("num_clients", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_clients_that_leave_free_their_places(faulty: Faulty, num_clients: int) -> None:
    """F01, at many moments; 1,500 tokens each would take minutes otherwise."""
    server = faulty.server
    with faulty.hold(limit_s=60 + num_clients):
        for number in range(num_clients):
            leave_after(server, number % 5 * 150)
            if number % 3 == 0:  # also where the answer is not streamed, or its body not whole
                with server.connect() as connection:
                    connection.sendall(post_bytes(chat_body("Tell me a story", **LONG))[: None if number % 2 else -9])
                wait_until(lambda: server.gauges()["qwen_vl_requests_admitted"] <= 3, "those who left are noticed")
    assert server.gauges()["qwen_vl_places_taken"] == 0


@pytest.mark.parametrize("num_bytes", [0, 1, 1500])
def test_for_a_client_that_leaves_nothing_more_is_written(faulty: Faulty, num_bytes: int) -> None:
    """F01: two rounds at most, and what passes while the tokens are counted; rounds take a tenth of a second here."""
    server = faulty.server
    server.wait_idle()
    faulty.order("slow")
    try:
        num_tokens = leave_after(server, num_bytes)
        server.wait_idle()
        assert server.gauges()["qwen_vl_engine_new_tokens"] - num_tokens <= 4
    finally:
        faulty.forget_order()


def num_dropped(server: Server) -> float:
    """Return how many slow readers have been dropped."""
    found = re.search(r'^qwen_vl_dropped_total{reason="slow reader"} (\S+)', server.client.get("/metrics").text, re.M)
    return float(found[1]) if found else 0.0


def test_a_reader_that_does_not_read_is_dropped(faulty: Faulty) -> None:
    """F02, with 3 seconds for 30: the others are served meanwhile, and what is not read does not pile up."""
    server = faulty.server
    assert server.ask("Tell me a story", n=4, logprobs=True, top_logprobs=20, **LONG).status_code == 200  # the memory of four long answers is there
    with faulty.hold(limit_s=DEADLINE_S), socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(server.address)
        before, dropped = server.gauges()["qwen_vl_engine_rounds"], num_dropped(server)
        connection.sendall(post_bytes(chat_body("Tell me a story", stream=True, n=4, logprobs=True, top_logprobs=20, **LONG)))
        wait_until(lambda: num_dropped(server) == dropped + 1, "the reader is dropped")
        assert server.gauges()["qwen_vl_engine_rounds"] > before
        with pytest.raises((ConnectionError, TimeoutError)):
            connection.settimeout(5)
            while connection.recv(65536):
                pass
            raise ConnectionResetError  # an end is as good


def test_who_asks_without_a_key_and_never_reads_is_dropped_too(faulty: Faulty) -> None:
    """F02: the answers of /health, asked for until the server takes no more, as those of its buffers wait for their reader."""
    server, asked = faulty.server, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000
    before = num_dropped(server)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(server.address)
        connection.settimeout(2)
        with pytest.raises((TimeoutError, ConnectionError)):
            while True:
                connection.sendall(asked)
        wait_until(lambda: num_dropped(server) == before + 1, "the reader is dropped")
    assert "a reader took nothing for 3 s and is dropped" in server.log and server.ask().status_code == 200


def test_a_flood_is_told_to_come_again(faulty: Faulty) -> None:
    """F08: 8 places and 6 who wait; of sixty at once these are served, or more as places become free, and the others know at once."""
    server, started, took_s = faulty.server, threading.Barrier(61), dict[int, float]()
    server.wait_idle()

    def ask(number: int) -> httpx.Response:
        with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=120, trust_env=False, verify=False) as client:
            started.wait(60)
            body = {"model": "nano", "messages": [{"role": "user", "content": "Tell me a story"}], "max_tokens": 150, "min_tokens": 150}
            begun_s = time.monotonic()
            response = client.post("/v1/chat/completions", json=body)
            took_s[number] = time.monotonic() - begun_s
            return response

    with ThreadPoolExecutor(60) as pool:
        waiting = [pool.submit(ask, number) for number in range(60)]
        started.wait(60)
        responses = [each.result() for each in waiting]
    served = [response for response in responses if response.status_code == 200]
    refused = [response for response in responses if response.status_code == 429]
    assert len(served) >= NUM_PLACES + NUM_WAITING and refused and len(served) + len(refused) == 60
    served_s, refused_s = ([took_s[number] for number, response in enumerate(responses) if response.status_code == status] for status in (200, 429))
    assert statistics.median(refused_s) < 0.1 * BUSY and max(refused_s) < min(served_s)
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
