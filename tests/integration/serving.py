"""A real server process on nano, and what must hold whatever is sent to it.

    with start_server() as server, Invariants(server) as hold:
        with hold():
            response = server.post("/v1/chat/completions", content=b"{")
        assert code_of(response) == "invalid_json"

`Invariants` states I1 to I8 of the reliability plan once: a canary stream beside every case stays what it is alone, a good request follows, nothing
is left behind, and no answer or log line tells of paths, addresses or contents.
"""

import base64
import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
from PIL import Image

KEY = "test-key-5f1d9c"
DEADLINE_S = 60.0  # for what must happen, on a machine that may be busy
BUSY = 5  # times what it takes on a machine of its own: what a busy one is given
BEACH = Path(__file__).parents[2] / "src/qwen_vl/assets/demo/beach.png"
SECRET = "canary-words-of-a-prompt"  # stands in prompts, and must never stand in a log

# Blocks of this size and more are given back when they are freed: what stays resident is what is held, not what the allocator may use again.
STEADY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 18), "MALLOC_TRIM_THRESHOLD_": str(1 << 18)}

# Without a guard, where the tests run without one (guard_mutations).
PROGRAM = ("-m", "tests.integration.guard_mutations") if "GUARD" in os.environ else ("-m", "qwen_vl")

# What must not be told: addresses of memory, paths, libraries' words and tracebacks.
LEAKS = re.compile(r"0x[0-9a-f]{6,}|(?:/(?:home|work|usr|tmp|etc|root|var|proc)/)|Traceback|File \"|site-packages|pydantic|PIL\.|torch\b|Exception\b")


def wait_until(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Poll until the condition gives something true, and return it."""
    end = time.monotonic() + deadline_s
    while not (found := condition()):
        assert time.monotonic() < end, f"{what}: not within {deadline_s} s"
        time.sleep(0.02)
    return found


@dataclass
class Server:
    """A running server process."""

    process: "subprocess.Popen[bytes]"
    url: str
    log_path: Path
    key: str | None
    temporary: Path  # its folder for temporary files
    client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        headers = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
        # No connection is kept: an idle one would look like a descriptor that was not given back.
        limits = httpx.Limits(max_keepalive_connections=0)
        self.client = httpx.Client(base_url=self.url, headers=headers, timeout=DEADLINE_S, trust_env=False, verify=False, limits=limits)

    @property
    def log(self) -> str:
        """All that it has logged."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        found = httpx.URL(self.url)
        return found.host, found.port or 80

    def post(self, path: str = "/v1/chat/completions", **arguments: Any) -> httpx.Response:
        """Send a request."""
        return self.client.post(path, **arguments)

    def ask(self, content: Any = "Who are you?", **fields: Any) -> httpx.Response:
        """Ask one question."""
        return self.post(json={"model": "nano", "messages": [{"role": "user", "content": content}], "max_tokens": 24, **fields})

    def stream(self, content: Any = "Who are you?", **fields: Any) -> list[dict[str, Any]]:
        """Ask one question and return all events of the answer."""
        body = {"model": "nano", "messages": [{"role": "user", "content": content}], "max_tokens": 24, "stream": True, **fields}
        with self.client.stream("POST", "/v1/chat/completions", json=body) as response:
            assert response.status_code == 200, response.read()
            return list(events_of(response.iter_lines()))

    def raw(self, content: bytes, *, timeout_s: float = DEADLINE_S) -> bytes:
        """Send bytes on a connection of their own and return all that comes back until it is closed, or nothing comes any more."""
        with self.connect() as connection:
            connection.settimeout(timeout_s)
            connection.sendall(content)
            return read_all(connection)

    def connect(self) -> socket.socket:
        """Open a connection."""
        return socket.create_connection(self.address, timeout=DEADLINE_S)

    def gauges(self) -> dict[str, float]:
        """Return the metrics without labels, by name."""
        lines = self.client.get("/metrics").text.splitlines()
        pairs = [line.rsplit(" ", 1) for line in lines if line and not line.startswith("#") and "{" not in line]
        return {name: float(value) for name, value in pairs}

    @property
    def health(self) -> int:
        """The status of /health; 0 if nobody answers."""
        try:
            return self.client.get("/health").status_code
        except httpx.HTTPError:
            return 0

    def wait_idle(self) -> None:
        """Wait until nothing is in flight."""
        names = ("requests_admitted", "requests_waiting", "places_taken", "engine_waiting", "engine_running")
        wait_until(lambda: not any(self.gauges()[f"qwen_vl_{name}"] for name in names), "requests have left the server")

    def stop(self, sig: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(sig)
        return self.process.wait(DEADLINE_S)

    # -- what the process holds (Linux)

    @property
    def num_files(self) -> int:
        """Open file descriptors."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    @property
    def temporary_files(self) -> set[Path]:
        """What lies in its folder for temporary files."""
        return set(self.temporary.rglob("*"))

    @property
    def num_threads(self) -> int:
        """Threads."""
        return number_of(self.process.pid, "Threads")

    @property
    def children(self) -> list[int]:
        """The processes that it has started: its decoders."""
        tasks = Path(f"/proc/{self.process.pid}/task")
        return [int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()]

    @property
    def memory_bytes(self) -> int:
        """Resident memory now, with that of its decoders."""
        return self._sum("VmRSS")

    @property
    def cache_bytes(self) -> int:
        """What the caches hold, which have bounds of their own."""
        gauges = self.gauges()
        return int(sum(gauges[f"qwen_vl_{cache}_cache_bytes"] for cache in ("prefix", "feature", "kv")))

    @property
    def peak_bytes(self) -> int:
        """Highest resident memory since `forget_peak`, with that of its decoders; they need not have been highest at one time."""
        return self._sum("VmHWM")

    def forget_peak(self) -> None:
        """Begin to look for the highest memory anew."""
        for pid in (self.process.pid, *self.children):
            with contextlib.suppress(OSError):  # not everywhere allowed; and a decoder may have ended
                Path(f"/proc/{pid}/clear_refs").write_text("5")

    def _sum(self, name: str) -> int:
        return 1024 * sum(number_of(pid, name) for pid in (self.process.pid, *self.children))


def number_of(pid: int, name: str) -> int:
    """Return a number of a process's status, memory in KiB; 0 if the process has ended."""
    with contextlib.suppress(OSError, StopIteration):  # what has ended and is not yet waited for has no memory
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
    return 0


def events_of(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Yield the JSON documents of server-sent events, and `{"done": True}` for the last word."""
    for line in lines:
        if line.startswith("data: "):
            yield {"done": True} if line == "data: [DONE]" else json.loads(line[6:])


def text_of(events: Sequence[dict[str, Any]]) -> str:
    """Return the text of a streamed answer."""
    return "".join(choice["delta"].get("content") or "" for event in events for choice in event.get("choices", ()))


def code_of(response: httpx.Response) -> str:
    """Return the stable code of an error in OpenAI's form, whose shape is checked."""
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}, body
    assert isinstance(body["error"]["message"], str) and body["error"]["message"]
    return str(body["error"]["code"])


def read_all(connection: socket.socket) -> bytes:
    """Return what comes until the connection is closed or silent."""
    found = b""
    with contextlib.suppress(TimeoutError, ConnectionError):
        while chunk := connection.recv(65536):
            found += chunk
    return found


def post_bytes(body: bytes, path: str = "/v1/chat/completions", **headers: str) -> bytes:
    """Return a request as it goes over the line."""
    named = {"Host": "127.0.0.1", "Authorization": f"Bearer {KEY}", "Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in named.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def chat_body(content: Any = "Who are you?", **fields: Any) -> bytes:
    """Return the body of a chat request."""
    return json.dumps({"model": "nano", "messages": [{"role": "user", "content": content}], **fields}).encode()


def picture_uri(image: Image.Image | None = None, kind: str = "PNG") -> str:
    """Return a picture as a data URI; the beach if none is given."""
    if image is None:
        content = BEACH.read_bytes()
    else:
        buffer = io.BytesIO()
        image.save(buffer, kind)
        content = buffer.getvalue()
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode()}"


def shown(text: str, *uris: str) -> list[dict[str, Any]]:
    """Return content parts: pictures, then a question."""
    return [*({"type": "image_url", "image_url": {"url": uri}} for uri in uris), {"type": "text", "text": text}]


@contextlib.contextmanager
def start_server(
    folder: Path,
    *arguments: str,
    key: str | None = KEY,
    program: Sequence[str] = PROGRAM,
    env: dict[str, str] | None = None,
) -> Iterator[Server]:
    """Run `qwen-vl serve` on a free port, with nano and short contexts, and end it afterwards.

    Args:
        folder: for its log and its temporary files.
        program: what Python runs instead of the command, as a program that injects faults first.
    """
    log_path = folder / "server.log"
    temporary = folder / "temporary"
    temporary.mkdir(exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "TMPDIR": str(temporary), **(env or {})}
    environment.pop("QWEN_VL_API_KEY", None)
    if key is not None:
        environment["QWEN_VL_API_KEY"] = key
    command = [sys.executable, *program, "serve", "--port", "0", "--max-context", "2048", *arguments]
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)
    server = None
    try:

        def find_url() -> str | None:
            text = log_path.read_text(errors="replace")
            assert process.poll() is None, text
            found = re.search(r"answers at (http://\S+)/v1", text)
            return found[1] if found else None

        server = Server(process, wait_until(find_url, "the server answers", 2 * DEADLINE_S), log_path, key, temporary)
        yield server
    finally:
        if server is not None:
            server.client.close()
        if process.poll() is None:
            process.kill()
        process.wait(DEADLINE_S)


@contextlib.contextmanager
def start_scripted(folder: Path) -> Iterator[tuple[Server, Callable[[list[int]], Any]]]:
    """Run a server whose model writes what it is told to; the second is given the tokens of all answers from then on, none for its own."""
    script, names = folder / "script.json", folder / "names.json"

    def tell(ids: list[int]) -> None:
        part = script.with_suffix(".part")
        part.write_text(json.dumps(ids))
        part.replace(script)  # at once: the model reads it at every token, also after its reader has gone

    script.write_text("[]")
    names.write_text("{}")
    program = (str(Path(__file__).with_name("altered_server.py")),)
    with start_server(folder, program=program, env={"NAMES": str(names), "SCRIPT": str(script)}) as server:
        yield server, tell


class Invariants:
    """I1 to I8, around each case. Use it once for a server, and call it around each case; as a context it looks at the end at what is kept (I7).

    That wants a server with the environment `STEADY`. Kept may be a quarter of a MiB by each case, and 32 MiB once: a first use of its kind fills
    pools and lets oneDNN keep programs, several MiB for each number of rows. A single case is therefore no measure; 75 were seen to keep 26 MiB.
    """

    CANARY = "Tell me about the picture."
    CANARY_TOKENS = 16
    MAX_PEAK_BYTES = 64 << 20
    MAX_KEPT_BYTES, MAX_POOL_BYTES = 1 << 18, 32 << 20
    MAX_KEPT_FILES = 0

    def __init__(self, server: Server) -> None:
        self.server = server
        self.num_cases = 0
        self.solo = self._canary()
        server.ask(shown("What is this?", picture_uri()))
        server.wait_idle()
        self.first_bytes = server.memory_bytes - server.cache_bytes
        self.temporary_files = server.temporary_files  # the empty folders that libraries make when they are loaded

    def _canary(self) -> str:
        events = self.server.stream(f"{self.CANARY} {SECRET}", max_tokens=self.CANARY_TOKENS, min_tokens=self.CANARY_TOKENS, temperature=0)
        assert events[-1] == {"done": True}, events[-3:]
        return text_of(events)

    def __enter__(self) -> Self:
        """Give itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Check what all cases together have left behind, unless there is an error to tell of already."""
        allowed = self.MAX_POOL_BYTES + self.num_cases * self.MAX_KEPT_BYTES
        assert kind is not None or self.kept_bytes <= allowed, f"I7: {self.kept_bytes >> 20} MiB are kept of {self.num_cases} cases"

    @property
    def kept_bytes(self) -> int:
        """Memory that all cases together have left behind, without what the caches hold."""
        return self.server.memory_bytes - self.server.cache_bytes - self.first_bytes

    @contextlib.contextmanager
    def __call__(self, *, limit_s: float = 30.0, max_peak_bytes: int = MAX_PEAK_BYTES) -> Iterator["Watch"]:
        """Check all invariants around a case. Args: limit_s: how long it may take, with room for a busy machine."""
        server = self.server
        server.wait_idle()
        num_files, num_threads, before_bytes, log_start = server.num_files, server.num_threads, server.memory_bytes, len(server.log)
        server.forget_peak()
        watch = Watch(self)
        watch.start()
        started_s = time.monotonic()
        try:
            yield watch
            assert time.monotonic() - started_s < limit_s, "I1: the case took too long"
        finally:
            watch.stop()
        assert server.process.poll() is None, f"the server has ended:\n{server.log[-2000:]}"
        assert set(watch.canaries) == {self.solo}, "I4: the canary differs from its solo run"
        assert not watch.failures, f"I4, I8: {watch.failures}"
        assert watch.worst_s < MAX_HEALTH_S, f"I8: /health took {watch.worst_s:.1f} s"
        good = server.ask("Who are you?")
        assert good.status_code == 200, f"I5: {good.text}"
        server.wait_idle()  # I6, the requests
        wait_until(lambda: server.num_files <= num_files + self.MAX_KEPT_FILES, "I6: file descriptors are given back")
        wait_until(lambda: server.num_threads <= num_threads + MAX_NEW_THREADS, "I6: threads end")
        assert server.temporary_files == self.temporary_files, "I6: temporary files are left"
        assert server.peak_bytes - before_bytes <= max_peak_bytes, f"I7: {(server.peak_bytes - before_bytes) >> 20} MiB more at the peak"
        check_silent(server.log[log_start:])
        self.num_cases += 1

    def check_told(self, response: httpx.Response) -> None:
        """I2 and I3: an error has the form of errors and tells nothing that it must not."""
        assert response.status_code < 500 or response.status_code == 503, response.text
        if response.status_code >= 400:
            code_of(response)
        assert not LEAKS.search(response.text), f"I3: {response.text}"


MAX_HEALTH_S = 3.0  # a load balancer's patience; a tenth of it on a machine of its own
MAX_NEW_THREADS = 8  # pools fill up to their size


def check_silent(log: str) -> None:
    """I3: what was logged tells no path, host, address or content."""
    assert SECRET not in log and KEY not in log, "I3: a content or key was logged"
    assert not (found := LEAKS.search(log)), f"I3: {found} in the log: {log[-1000:]}"


class Watch:
    """Streams the canary and asks after the health, again and again, beside a case."""

    def __init__(self, hold: Invariants) -> None:
        self.hold = hold
        self.canaries: list[str] = []
        self.failures: list[str] = []
        self.worst_s = 0.0  # that an answer of /health took
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._repeat, args=(look,), daemon=True) for look in (self._see_canary, self._see_health)]

    def _see_canary(self) -> None:
        self.canaries.append(self.hold._canary())

    def _see_health(self) -> None:
        started_s = time.monotonic()
        health = self.hold.server.health
        self.worst_s = max(self.worst_s, time.monotonic() - started_s)
        assert health == 200, f"/health gave {health}"
        self._is_over.wait(0.1)

    def _repeat(self, look: Callable[[], None]) -> None:
        """Look until told to stop, once at least."""
        while True:
            try:
                look()
            except Exception as error:  # noqa: BLE001  it is told by whoever stops the watch
                self.failures.append(f"{type(error).__name__}: {error}")
            if self._is_over.is_set():
                return

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Wait for the canary that flies."""
        self._is_over.set()
        for thread in self._threads:
            thread.join(DEADLINE_S)
