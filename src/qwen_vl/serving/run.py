"""Run a server in this process: from a free port to an exit code.

The port is taken before the model is loaded, so that a mistake is told at once. The first SIGTERM or SIGINT lets answers in flight end; a second
one ends the process.
"""

import asyncio
import gc
import logging
import os
import socket
import socketserver
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from PIL import Image

from qwen_vl.errors import ConfigError
from qwen_vl.serving.protocol import BoundedProtocol, bounded
from qwen_vl.serving.settings import ServeSettings
from qwen_vl.serving.watchdog import LEAST_PATIENCE_S

if TYPE_CHECKING:
    from qwen_vl.api import QwenVL

logger = logging.getLogger(__name__)

BACKLOG = 512
MAX_HEADER_BYTES = 64 * 1024
MAX_CONNECTIONS = 2000
FEW_FILES = 64  # descriptors that are kept for everything but connections
FLUSH_S = 2.0  # for last events to reach their readers
CLOSE_S = 8.0  # for the engine and the decoders to end
FAILED, FORCED = 1, 130
WARM_UPS = 10  # so many times what one small answer takes is no hanging yet, however slow the machine


def listen(settings: ServeSettings) -> socket.socket:
    """Take the address and return its socket, which nobody answers yet. Raises: ConfigError if that fails.

    It listens at once, so that a second server finds the port taken, however long this one takes to load.
    """

    class Listener(socketserver.TCPServer):
        allow_reuse_address = os.name == "posix"
        request_queue_size = 1
        address_family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET

    try:
        found = Listener((settings.host, settings.port), socketserver.BaseRequestHandler).socket
        # Connections inherit it. asyncio turns Nagle's delay off only for sockets that name their protocol; it costs an answer's first event 40 ms.
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"{settings.host} port {settings.port} cannot be used: {reason}. Choose another with --host or --port.") from None
    found.setblocking(False)
    return found


def url_of(found: socket.socket) -> str:
    """Return the address of a socket as a browser takes it."""
    host, port = found.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def raise_file_limit() -> int:
    """Let this process have as many open files as it may, and return how many connections that leaves room for."""
    try:
        import resource
    except ImportError:  # not on this system
        return MAX_CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + 4 * FEW_FILES
    best = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < best:
        resource.setrlimit(resource.RLIMIT_NOFILE, (best, hard))
        soft = best
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else max(min(MAX_CONNECTIONS, soft - FEW_FILES), 8)


def do_without_files() -> None:
    """Let torch be imported where nothing can be written: it makes a folder for compiled code at once, which only a GPU has a use for."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.sep)  # a folder that need not be made
        logger.warning("no folder for temporary files can be written to: code that is compiled for a GPU cannot be kept")


def end_within(seconds: float, exit_code: int) -> None:
    """See to it that the process ends: a thread that hangs may hang for ever, and Python's own end waits for it."""
    deadline = threading.Timer(seconds, os._exit, (exit_code,))
    deadline.daemon = True
    deadline.start()


class Server(uvicorn.Server):
    """uvicorn, with our limits and our way to end."""

    def __init__(self, settings: ServeSettings, max_connections: int) -> None:
        super().__init__(config_of(settings, bounded(settings, max_connections, self._note_slow_reader)))
        self.stopping: asyncio.Task[None] | None = None
        self.exit_code = 0
        self.app: Any = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop at the first signal; end at once at the second."""
        if self.stopping is not None or self.exit_code:
            os._exit(FORCED)
        self._loop.call_soon_threadsafe(self._begin_to_stop)

    def _begin_to_stop(self) -> None:
        if self.stopping is None:
            self.stopping = self._loop.create_task(self._stop())

    async def _stop(self) -> None:
        logger.warning("stopping: answers in flight have %g s; a second signal ends them now", self.app.state.service.settings.grace_s)
        await self.app.state.service.drain()
        self.should_exit = True
        end_within(FLUSH_S + CLOSE_S, self.exit_code)

    def _note_slow_reader(self) -> None:
        self.app.state.service.metrics.dropped.labels("slow reader").inc()

    def note_failure(self) -> None:
        """End because the engine is gone; the service has told all streams."""
        self.exit_code = FAILED
        self.should_exit = True
        end_within(FLUSH_S, FAILED)

    async def serve(self, sockets: list[Any] | None = None) -> None:
        """Serve until told to stop."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)


def serve(load: Callable[[], "QwenVL"], settings: ServeSettings, *, greet: Callable[[str], None], extend: Callable[..., Any] | None = None) -> int:
    """Serve a model until a signal comes, and return the exit code.

    Args:
        load: loads the model, once the port is ours.
        greet: called with the server's address once it answers.
        extend: adds to the application, as `mount_page` does.
    Raises: ConfigError for an address that cannot be used, and whatever `load` raises.
    """
    with listen(settings) as found:
        do_without_files()
        from qwen_vl.serving.app import create_app  # with torch and all that takes seconds to import: not before the address is known to be ours

        max_connections = raise_file_limit()
        vl = load()
        patient = with_patience(settings, warm_up(vl))
        server = Server(settings, max_connections)
        app = create_app(vl, patient, on_failure=server.note_failure, has_page=extend is not None)
        server.app = app
        server.config.app = app if extend is None else extend(app, vl, service=server.app.state.service)
        freeze_garbage()
        asyncio.run(_run(server, found, greet))
    return server.exit_code


def warm_up(vl: "QwenVL") -> float:
    """Make the engine ready for many requests and ask the model something, so that the first client need not wait for what is done once.

    Returns: the seconds that a later answer takes. Raises: CapacityError if the memory does not suffice even for this.
    """
    vl.engine.expect_many()
    has_eyes = vl.model.config.visual is not None
    # The first answer compiles and measures kernels, up to a minute on a GPU. The second is about another picture, so that no cache spares it work.
    for question, colour in (("What is this?", (120, 160, 200)), ("Where is it?", (200, 160, 120))):
        started = time.monotonic()
        vl.ask(Image.new("RGB", (64, 64), colour) if has_eyes else None, question, max_new_tokens=2, do_sample=False)
    return time.monotonic() - started


def with_patience(settings: ServeSettings, answer_s: float) -> ServeSettings:
    """Return settings whose watchdog has the patience that a machine needs, unless it is set. Args: answer_s: what a small answer takes."""
    return settings if settings.watchdog_s is not None else replace(settings, watchdog_s=max(LEAST_PATIENCE_S, WARM_UPS * answer_s))


def freeze_garbage() -> None:
    """Let the garbage collector look no more at what has been loaded by now, which lives as long as the process.

    Python looks at everything only once the young objects are a quarter of the old ones. A million and a half of them come with the libraries: what
    requests leave in cycles would grow to a tenth of a gigabyte first, and the look would hold all answers up for half a second. Without them a look
    takes milliseconds, and comes five times as often as usual.
    """
    gc.collect()
    gc.freeze()
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, 2)


def config_of(settings: ServeSettings, protocol: type[BoundedProtocol]) -> uvicorn.Config:
    """Return uvicorn's configuration."""
    return uvicorn.Config(
        app=_not_ready,
        http=protocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        backlog=BACKLOG,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        timeout_keep_alive=int(settings.idle_timeout_s) or 1,
        timeout_graceful_shutdown=int(FLUSH_S),
    )


async def _not_ready(scope: Any, receive: Any, send: Any) -> None:
    raise RuntimeError("the server has no application yet")


async def _run(server: Server, found: Any, greet: Callable[[str], None]) -> None:
    greeting = asyncio.create_task(_greet(server, url_of(found), greet))
    try:
        await server.serve([found])
    finally:
        greeting.cancel()


async def _greet(server: Server, url: str, greet: Callable[[str], None]) -> None:
    while not server.started:
        await asyncio.sleep(0.02)
    greet(url)
