"""The gateway: reads a request, chooses its replica by what its caches know, and passes the answer on as it comes.

It knows nothing of Ray: how a replica is asked, and how many there are, it is told (`deployment`).
"""

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import ExitStack
from typing import Any, Protocol, TypeAlias

from fastapi import FastAPI, Request
from prometheus_client import generate_latest
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import request_response
from starlette.types import ASGIApp, Receive, Scope, Send

from qwen_vl.serving.bodies import Bodies, let_go
from qwen_vl.serving.errors import DASHSCOPE, ServeError, engine_down, translated, where
from qwen_vl.serving.metrics import CONTENT_TYPE
from qwen_vl.serving.refusals import tell_errors
from qwen_vl.serving.run import MAX_HEADER_BYTES
from qwen_vl.serving.security import Guard
from qwen_vl.serving.settings import ServeSettings
from qwen_vl.serving.stream import ClientLeftError, JSONAnswer, dashscope_event, event, while_connected
from qwen_vl.serving.upload_routes import make_upload_router, owner_of
from qwen_vl.serving.uploads import UploadLimits, UploadStore

from .affinity import subject_of
from .lending import lend
from .traffic import Sight, Traffic

logger = logging.getLogger(__name__)

ATTEMPTS = 3  # for a request whose replica died before it said anything
KEPT = ("type", "asgi", "http_version", "method", "path", "raw_path", "query_string", "headers", "scheme", "client", "server")
Message: TypeAlias = MutableMapping[str, Any]  # of ASGI


class ReplicaLostError(Exception):
    """A replica died before its answer was complete."""


class Messages(Protocol):
    """ASGI's messages of one answer, as a replica gives them. Raises: ReplicaLostError, or ServeError for what the client is told."""

    def __aiter__(self) -> "Messages": ...

    def __anext__(self) -> Awaitable[Message]: ...

    def cancel(self) -> None: ...  # nobody reads on


Ask: TypeAlias = Callable[[str, Message, bytes, Mapping[str, bytes]], Messages]  # affinity key, scope, body, pictures that are lent


class Gateway:
    """The application in front of the replicas, `app`.

    Args:
        ask: hands a request to a replica.
        look: counts the replicas that answer; None if they cannot be seen now.
        max_requests: so many are taken at once.
    """

    def __init__(self, settings: ServeSettings, ask: Ask, look: Callable[[], int | None], max_requests: int) -> None:
        self.settings, self._ask, self._sight = settings, ask, Sight(look)
        self.uploads = UploadStore(UploadLimits.of(settings))  # for all replicas
        self.traffic = Traffic(max_requests, self.uploads.limits.max_total_bytes)
        self.bodies = Bodies(settings.max_held_bytes)
        self.app = self._make_routes()
        self.app.add_middleware(Guard, settings=settings, bodies=self.bodies)  # strangers, floods and what is too large end here
        self.app.add_middleware(Frame)

    def _make_routes(self) -> FastAPI:
        routes = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
        tell_errors(routes)
        routes.include_router(make_upload_router(self.uploads, self.traffic.request))
        routes.router.default = request_response(self._answer)  # all other paths are the replicas'

        @routes.get("/health")
        async def health() -> Response:
            """Tell whether any replica answers: 200, or 503 while none does or the server stops. No replica is asked, as all may be busy."""
            status = "draining" if self.traffic.is_draining else "ok" if await self._sight.num_ready() else "down"
            return JSONAnswer({"status": status}, 200 if status == "ok" else 503)

        @routes.get("/metrics")
        async def metrics() -> Response:
            """Give the gateway's own counts to Prometheus."""
            return Response(generate_latest(self.traffic.registry), media_type=CONTENT_TYPE)

        return routes

    async def _answer(self, request: Request) -> Response:
        """Let a replica answer."""
        with ExitStack() as held:
            try:
                held.enter_context(self.traffic.request())
                messages, start = await self.traffic.uncut(self._pass_in(request, held))
            except (ClientLeftError, ClientDisconnect):  # the second while its body was read
                return Response(status_code=499)  # nobody reads it
            except ServeError as error:
                self.traffic.requests.labels(str(error.status)).inc()
                raise
            self.traffic.requests.labels(str(start["status"])).inc()
            return PassedOn(messages, start, held.pop_all(), self.traffic)

    async def _pass_in(self, request: Request, held: ExitStack) -> tuple[Messages, Message]:
        """Hand a request to a replica, and return as `_begin`. Args: held: what is held until the answer is complete."""
        body = await request.body()
        subject = await asyncio.to_thread(subject_of, body)
        lent = lend(subject.handles, self.uploads, owner_of(request), self.settings.max_images)
        held.enter_context(self.traffic.lending(sum(map(len, lent.values()))))
        found = await while_connected(request, self._begin(subject.key, plain_scope(request, len(body)), body, lent))
        let_go(request)  # the replica that answers has the body
        return found

    async def _begin(self, key: str, scope: Message, body: bytes, lent: Mapping[str, bytes]) -> tuple[Messages, Message]:
        """Return the answer's messages after the first, and that, from the first replica that lives long enough to give it.

        Raises: ServeError 503 if there is none, 429 if all have as much as they take.
        """
        for _ in range(ATTEMPTS):
            messages = self._ask(key, scope, body, lent)
            try:
                return messages, await anext(messages)
            except ReplicaLostError:
                self.traffic.retries.inc()  # nothing was said yet, so nothing is lost by asking another one
            except StopAsyncIteration:
                break
            except asyncio.CancelledError:
                messages.cancel()
                raise
        raise engine_down()


class Frame:
    """Bounds the headers, which Ray's proxy does not, and makes a plain error of whatever a route did not expect."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        has_begun = False

        async def noting(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        if sum(len(name) + len(value) for name, value in scope.get("headers", ())) > MAX_HEADER_BYTES:
            error = ServeError(400, "invalid_header", f"The headers have more than {MAX_HEADER_BYTES} bytes.")
            await JSONAnswer(error.to_body(scope["path"]), error.status, {"Connection": "close"})(scope, receive, send)
            return
        try:
            await self.app(scope, receive, noting)
        except Exception as error:  # noqa: BLE001  the client is told, the log names the place, and the next request is served
            if has_begun:
                raise  # what has been said cannot be taken back: the connection is cut
            logger.error("a request failed: %s", where(error))
            told = translated(error)
            await JSONAnswer(told.to_body(scope["path"]), told.status, told.headers)(scope, receive, send)


class PassedOn(Response):
    """A replica's answer as it comes.

    Args:
        held: let go of at the end, whatever it is.
        traffic: when it is cut, the answer ends with an error.
    """

    def __init__(self, messages: Messages, start: Message, held: ExitStack, traffic: Traffic) -> None:
        self.messages, self.start, self.held, self.traffic = messages, start, held, traffic
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; if the client leaves, the replica is told."""
        with self.held:
            try:
                await while_connected(Request(scope, receive), self._pass_on(scope["path"], send))
            except ClientLeftError:
                pass
            finally:
                self.messages.cancel()

    async def _pass_on(self, path: str, send: Send) -> None:
        num_events = 0
        await send(self.start)
        try:
            while (message := await self.traffic.uncut(self._next())) is not None:
                num_events += bool(message.get("body"))
                await send(message)
        except (ServeError, ReplicaLostError) as error:
            if not self._is_event_stream:
                raise  # what has been said cannot be taken back: the connection is cut
            told = error if isinstance(error, ServeError) else engine_down()
            await send({"type": "http.response.body", "body": error_event(told, path, num_events + 1)})

    @property
    def _is_event_stream(self) -> bool:
        return any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in self.start["headers"])

    async def _next(self) -> Message | None:
        """Return the next message, or None after the last. Raises: as `Messages`."""
        return await anext(self.messages, None)


def error_event(error: ServeError, path: str, number: int) -> bytes:
    """Return the event that ends a stream, in the form of the path's protocol."""
    if path.startswith(DASHSCOPE):
        return dashscope_event(number, "error", error.status, error.to_dashscope(str(uuid.uuid4())))
    return event(error.to_openai())


def plain_scope(request: Request, num_bytes: int) -> Message:
    """Return what a replica needs of the request's scope: values that travel between processes. Args: num_bytes: length of the body."""
    headers = [pair for pair in request.scope["headers"] if pair[0] not in (b"content-length", b"transfer-encoding")]
    if num_bytes:
        headers.append((b"content-length", str(num_bytes).encode()))
    return {name: request.scope.get(name) for name in KEPT} | {"headers": headers, "root_path": ""}
