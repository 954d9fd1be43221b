"""One replica: the whole application of one process, called with whole requests, answering in ASGI's own messages."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import anyio
from anyio.streams.memory import MemoryObjectSendStream
from fastapi import FastAPI
from ray import serve

from qwen_vl.errors import CapacityError
from qwen_vl.serving.errors import engine_down

from .gateway import Message
from .lending import borrowing

BUFFERED = 64  # messages of one answer that may wait for the gateway
ENGINE_DOWN = engine_down().status
HEADER = b"x-replica"  # which one answered
MAX_KEYS = 4096  # affinity keys that a replica remembers; its caches are bounded by themselves


class Replica:
    """Runs the application on requests that the gateway hands over.

    Args: make_app: loads the model and returns the application.
    """

    async def __init__(self, make_app: Callable[[], FastAPI]) -> None:  # type: ignore[misc]  # Ray awaits it
        self.name = serve.get_replica_context().replica_id.unique_id
        self.app = await asyncio.to_thread(make_app)
        self._life = self.app.router.lifespan_context(self.app)
        await self._life.__aenter__()

    async def check_health(self) -> None:
        """Raise if the engine is down: Ray then replaces the replica. Raises: CapacityError."""
        if self.app.state.service.failure is not None:
            raise CapacityError("the engine of this replica has stopped")

    async def __del__(self) -> None:
        """End with what the application has started; Ray awaits it after the last answer."""
        if hasattr(self, "_life"):
            await self._life.__aexit__(None, None, None)

    @serve.multiplexed(max_num_models_per_replica=MAX_KEYS)
    async def _remember(self, key: str) -> str:
        """Note that requests of this key are known here; Ray sends the next ones here too."""
        return key

    async def answer(self, scope: Message, body: bytes, lent: Mapping[str, bytes]) -> AsyncIterator[Message]:
        """Yield the messages of the answer: its start, then pieces of the body. Closing the iterator is the client's leaving.

        Args: lent: uploaded pictures that the body names, by handle.
        Raises: ConnectionAbortedError where a server of one process would cut the connection.
        """
        if key := serve.get_multiplexed_model_id():
            await self._remember(key)
        sender, receiver = anyio.create_memory_object_stream[Message](BUFFERED)
        aborted = asyncio.Event()
        scope = {**scope, "state": {"abort": aborted.set}}
        work = asyncio.create_task(self._run(scope, _receiver(body, aborted), sender), context=borrowing(lent))
        try:
            async for message in receiver:
                if aborted.is_set():
                    raise ConnectionAbortedError
                if message["type"] == "http.response.start":
                    if message["status"] == ENGINE_DOWN and self.app.state.service.failure is not None:
                        await asyncio.Event().wait()  # this process ends at once (`make_app`), and the gateway asks another: no error is told
                    message = {**message, "headers": [*message["headers"], (HEADER, self.name.encode())]}
                yield message
            await work
        finally:
            receiver.close()
            work.cancel()
            await asyncio.wait([work])

    async def _run(self, scope: Message, receive: Callable[[], Awaitable[Message]], sender: MemoryObjectSendStream[Message]) -> None:
        with sender:  # closing it ends the answer
            await self.app(scope, receive, sender.send)


def _receiver(body: bytes, aborted: asyncio.Event) -> Callable[[], Awaitable[Message]]:
    """Return ASGI's `receive` for a request that is there whole. That the client left is told by cancelling."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if waiting:
            return waiting.pop()
        await aborted.wait()
        return {"type": "http.disconnect"}

    return receive
