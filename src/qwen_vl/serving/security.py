"""The guard in front of every route: who may ask, under which name the server was called, how long a body may be, and how long it may take.

It works on ASGI's messages, so that nothing is parsed or stored before it has agreed: a route that somebody adds later is guarded too.
"""

import asyncio
import base64
import binascii
import hmac
import logging
import os
import re
import secrets
import stat
from collections.abc import Collection
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwen_vl.errors import ConfigError
from qwen_vl.serving.bodies import BODY, Bodies, HeldBody
from qwen_vl.serving.errors import ServeError
from qwen_vl.serving.settings import ServeSettings

logger = logging.getLogger(__name__)

OPEN_ROUTE = "GET", "/health"  # tells nothing but whether the server works
SIGNED_UPLOAD = re.compile(r"/api/v1/uploads/[A-Za-z0-9_-]+")  # by POST: a permission, which its route checks before it reads on
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
LINGER_S = 1.0  # reading on after a refusal, so that the client gets to read the answer
MAX_KEY_BYTES = 4096
MAX_HEADERS = 100  # uvicorn bounds their length, not their number


def read_keys(path: Path | None, environment: str | None) -> tuple[str, ...]:
    """Return the API keys of a file, one a line, and of the environment, separated by commas.

    Raises: ConfigError for a file that cannot be read, holds no key, or one that no client can send.
    """
    keys = [key.strip() for key in (environment or "").split(",")]
    if path is not None:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            raise ConfigError(f"the key file {path} cannot be read as text. Write one key a line into it.") from None
        found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not found:
            raise ConfigError(f"the key file {path} holds no key. Write one a line, for example of: openssl rand -hex 32")
        if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
            logger.warning("the key file can be read by other users of this machine; chmod 600 makes it yours alone")
        keys += found
    keys = [key for key in keys if key]
    if any(not key.isascii() or not key.isprintable() or " " in key or len(key) > MAX_KEY_BYTES for key in keys):
        raise ConfigError("an API key holds blanks or characters that a header cannot carry, or is longer than 4096. Use letters and digits.")
    return tuple(dict.fromkeys(keys))


class KeyRing:
    """The keys that open this server."""

    def __init__(self, keys: Collection[str]) -> None:
        self._secret = secrets.token_bytes(32)
        self._digests = [self._digest(key.encode()) for key in keys]

    @property
    def is_empty(self) -> bool:
        """Whether nobody needs a key."""
        return not self._digests

    def owner(self, presented: bytes) -> str | None:
        """Return a name for whoever presents a key, or None if it is none of ours; takes the same time whatever is presented.

        Every key is compared, by digests of one length: neither the place nor the number of equal characters can be told from the time.
        The name is a digest with a secret of this process: it stands in the addresses of uploads, which proxies log, and no key can be tried on it.
        """
        digest, found = self._digest(presented[: MAX_KEY_BYTES + 1]), None
        for known in self._digests:
            if hmac.compare_digest(digest, known):
                found = known.hex()
        return found

    def _digest(self, key: bytes) -> bytes:
        return hmac.digest(self._secret, key, "sha256")


def presented_key(headers: Headers) -> bytes:
    """Return the key that a request presents: a bearer token, or the password of basic authentication, which browsers ask for."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode("latin-1", "replace")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""


class _Body:
    """A body while it comes: counted and timed.

    Args:
        held: its part of what the bodies of all requests hold.
        is_read: there is none.
    """

    def __init__(self, receive: Receive, settings: ServeSettings, held: HeldBody, *, is_read: bool) -> None:
        self._receive, self._settings, self._held, self.is_read = receive, settings, held, is_read
        self._num_bytes = 0
        self._deadline = asyncio.get_running_loop().time() + settings.body_timeout_s
        self.refusal: ServeError | None = None  # what is wrong with it

    async def receive(self) -> Message:
        """Return the next message, as ASGI's `receive`. Raises: ServeError 408, 413 or 429, which `refusal` is then."""
        try:
            message = await self._next()
            self._count(message)
        except ServeError as error:
            self.refusal = error
            raise
        return message

    async def _next(self) -> Message:
        try:
            async with asyncio.timeout_at(None if self.is_read else self._deadline):
                return await self._receive()
        except TimeoutError:
            raise ServeError(408, "request_timeout", f"The body did not come within {self._settings.body_timeout_s:g} seconds.") from None

    def _count(self, message: Message) -> None:
        num_bytes = len(message.get("body", b""))
        self._num_bytes += num_bytes
        self.is_read = self.is_read or not message.get("more_body")
        if self._num_bytes > self._settings.max_body_bytes:
            raise _too_large(self._settings)
        self._held.grow(num_bytes)


class Guard:
    """Refuses, before anything else happens, what may not be asked.

    Args:
        app: what is guarded.
        bodies: counts what bodies hold, of all requests; None: its own.
        has_page: a browser that has no key is asked for it as the password of a dialog.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings, *, bodies: Bodies | None = None, has_page: bool = False) -> None:
        self.app, self.settings, self.has_page = app, settings, has_page
        self.bodies = bodies or Bodies(settings.max_held_bytes)
        self.keys = KeyRing(settings.api_keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with an error."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # no websockets here
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = Headers(scope=scope)
        try:
            if len(scope["headers"]) > MAX_HEADERS:
                raise ServeError(431, "too_many_headers", f"A request may have at most {MAX_HEADERS} headers.")
            self._check_host(headers)
            scope.setdefault("state", {})["owner"] = self._owner(scope, headers)
            self._check_length(headers)
        except ServeError as error:
            await self._refuse(error, scope, receive, send)
            return
        await self._counted(scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        """Refuse a browser that was led here under another name: without keys, its own page would be all that it needs (DNS rebinding)."""
        if not self.keys.is_empty or not self.settings.is_local:
            return
        name = headers.get("host", "").rpartition("@")[2]
        name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
        if name.lower() not in LOCAL_NAMES | {self.settings.host}:
            raise ServeError(421, "wrong_host", "This server is asked under another name than its own. Use localhost, or set API keys.")

    def _owner(self, scope: Scope, headers: Headers) -> str:
        """Return a name for whoever asks. Raises: ServeError 401."""
        asked = scope["method"], scope["path"]
        if self.keys.is_empty or asked == OPEN_ROUTE or (asked[0] == "POST" and SIGNED_UPLOAD.fullmatch(asked[1])):
            return ""
        owner = self.keys.owner(presented_key(headers))
        if owner is None:
            raise ServeError(401, "invalid_api_key", "A valid API key is needed: send Authorization: Bearer <key>.")
        return owner

    def _check_length(self, headers: Headers) -> None:
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit():
            raise ServeError(400, "invalid_header", "The Content-Length is no number.")
        if len(length) > 15 or int(length) > self.settings.max_body_bytes:
            raise _too_large(self.settings)

    async def _counted(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app on a body that is counted and timed as it comes; a connection on which a body was left unread is closed after the answer.

        The app learns what is wrong with a body from an error of `receive`. Where it makes something else of that, the client is told by the guard.
        """
        has_begun = False

        async def noting(message: Message) -> None:
            nonlocal has_begun
            if body.refusal is not None and not has_begun and message.get("status") != body.refusal.status:
                return
            if message["type"] == "http.response.start":
                has_begun = True
                if not body.is_read:
                    message = {**message, "headers": [*message.get("headers", []), (b"connection", b"close")]}
            elif not body.is_read and not message.get("more_body"):
                await send({**message, "more_body": True})
                await _linger(receive)
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        with self.bodies.hold() as held:
            scope["state"][BODY] = held
            body = _Body(receive, self.settings, held, is_read=not _has_body(scope))
            try:
                await self.app(scope, body.receive, noting)
            except Exception:  # a framework may have made anything of the refusal that `receive` raised; whatever else it is goes on
                if body.refusal is None or has_begun:
                    raise
        if body.refusal is not None and not has_begun:
            await self._refuse(body.refusal, scope, receive, send)

    async def _refuse(self, error: ServeError, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with an error and close the connection, on which an unread body may wait."""
        headers = error.headers | {"Connection": "close"}
        if error.status == 401 and self.has_page:
            headers["WWW-Authenticate"] = 'Basic realm="qwen-vl: the API key is the password", charset="UTF-8"'
        response = JSONResponse(error.to_body(scope["path"]), error.status, headers)
        await send({"type": "http.response.start", "status": error.status, "headers": response.raw_headers})
        await send({"type": "http.response.body", "body": response.body, "more_body": True})
        if _has_body(scope):
            await _linger(receive)
        await send({"type": "http.response.body", "body": b""})


def _too_large(settings: ServeSettings) -> ServeError:
    return ServeError(413, "request_too_large", f"The body is larger than {settings.max_body_bytes} bytes.")


def _has_body(scope: Scope) -> bool:
    """Tell whether a body follows the headers."""
    headers = Headers(scope=scope)
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


async def _linger(receive: Receive) -> None:
    """Read on for a moment and throw away: closing on unread bytes would reset the connection, and the answer with it."""
    try:
        async with asyncio.timeout(LINGER_S):
            num_bytes = 0
            while num_bytes < 2**20:
                message = await receive()
                num_bytes += len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body"):
                    return
    except TimeoutError:
        pass
