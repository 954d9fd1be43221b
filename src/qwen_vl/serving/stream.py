"""Answers of routes: whole ones that end with their client, and server-sent events that a slow client cannot hold up."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Coroutine
from contextlib import ExitStack, aclosing
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from qwen_vl.serving.errors import ServeError, translated, where
from qwen_vl.serving.metrics import Metrics
from qwen_vl.serving.protocol import IS_SLOW

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Events = AsyncGenerator[bytes, None]


class ClientLeftError(Exception):
    """The client has closed the connection, so nobody wants the answer."""


def event(document: Any, name: str | None = None) -> bytes:
    """Return one server-sent event. Args: document: to be JSON, or text as it stands."""
    text = document if isinstance(document, str) else to_json(document)
    return f"{f'event: {name}{chr(10)}' if name else ''}data: {text}\n\n".encode()


def dashscope_event(number: int, kind: str, status: int, document: Any) -> bytes:
    """Return one event as DashScope's protocol writes it. Args: number: of the event, from 1; kind: result or error; status: of HTTP."""
    # Clients read the status of an error from `status:`, others from the comment before it.
    lines = f"id:{number}\nevent:{kind}\n:HTTP_STATUS/{status}\n" + (f"status:{status}\n" if kind == "error" else "")
    return f"{lines}data:{to_json(document)}\n\n".encode()


def to_json(document: Any) -> str:
    """Return compact JSON, with text as it is and no NaN."""
    return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


class JSONAnswer(Response):
    """A JSON document."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the document's bytes."""
        return to_json(content).encode()


async def _gone(receive: Receive) -> None:
    """Wait until the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Do some work for a client whose body has been read, and cancel it if the client leaves.

    Raises: ClientLeftError if it left; else whatever the work raises.
    """
    return await work_until(_gone(request.receive), ClientLeftError(), work)


async def work_until(end: Coroutine[Any, Any, object], error: Exception, work: Coroutine[Any, Any, Result]) -> Result:
    """Do some work, and cancel it if an end comes first. Raises: the error if it came; else whatever the work raises, or the wait for the end."""
    task, ending = asyncio.ensure_future(work), asyncio.ensure_future(end)
    try:
        await asyncio.wait((task, ending), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            ending.result()
            raise error
        return task.result()
    finally:
        for each in (task, ending):
            each.cancel()
        await asyncio.gather(task, ending, return_exceptions=True)


class EventStream(Response):
    """Sends events as they come, and sees to it that whatever was opened for them is closed, however it ends.

    Args:
        events: the events' bytes; an error that they raise becomes the last event.
        held: what is let go at the end, as the place in the queue.
        explain: the event that tells of an error, in the protocol's form.
    """

    media_type = "text/event-stream"

    def __init__(self, events: Events, held: ExitStack, metrics: Metrics, explain: Any) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.events, self.held, self.metrics, self.explain = events, held, metrics, explain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request."""
        try:
            await while_connected(Request(scope, receive), self._send_all(send))
        except ClientLeftError:
            if not scope.get("state", {}).get(IS_SLOW):  # the protocol has dropped and counted those
                self.metrics.dropped.labels("client left").inc()
        finally:
            await self.events.aclose()  # also where it never began
            self.held.close()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with aclosing(self.events) as events, aclosing(self._explained(events)) as explained:
            async for chunk in explained:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _explained(self, events: Events) -> Events:
        """Yield the events; in place of an error, the event that tells of it."""
        try:
            async for each in events:
                yield each
        except ServeError as error:
            yield self.explain(error)
        except Exception as error:  # noqa: BLE001  the answer has begun, so this is the last place where a client can be told
            logger.error("a stream failed: %s", where(error))
            yield self.explain(translated(error))
