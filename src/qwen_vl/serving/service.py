"""Between the routes and the engine: who is let in, in which order, and what becomes of it.

with service.admit():                            # before the body is read: 429 if too many wait
    async with await service.open(request) as generation:  # waits for a place, in the order of arrival
        async for delta in generation:           # pieces of text as they come
            ...
    generation.answers

All state belongs to the event loop; preparing (words to tokens, pictures to features) is done by threads, writing by the engine's own.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

from qwen_vl.api import Answer, QwenVL, RequestStream, TokenLogprob
from qwen_vl.serving.bodies import Bodies
from qwen_vl.serving.errors import ServeError, engine_down, translated, where
from qwen_vl.serving.metrics import Metrics
from qwen_vl.serving.places import Places
from qwen_vl.serving.settings import ServeSettings
from qwen_vl.serving.watchdog import LEAST_PATIENCE_S, Watchdog

logger = logging.getLogger(__name__)

NUM_PREPARERS = 4  # requests whose words and pictures are made ready at once


class Request(Protocol):
    """What can be asked: a protocol's request, or a turn of the web page."""

    @property
    def n(self) -> int: ...  # answers

    def begin(self, vl: QwenVL, settings: ServeSettings, index: int, on_event: Callable[[], None]) -> RequestStream: ...  # in a preparing thread


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatRequest:
    """A checked request in the words of `QwenVL.begin`: protocols differ before it, not after."""

    messages: Sequence[Mapping[str, Any]] = ()  # in content parts; pictures as PIL pictures: {"type": "image", "image": picture}
    text: str | Sequence[Mapping[str, Any]] | None = None  # to be continued as it stands, instead of messages
    sampling: Mapping[str, Any] = field(default_factory=dict)  # max_new_tokens, temperature, top_p, seed ..
    stop: Sequence[str] = ()
    logprobs: int | None = None  # so many alternatives beside each token; None: no probabilities
    n: int = 1
    boxes: str | None = None  # the rule of the box grammar
    confidence: bool = False
    as_json: bool = False  # nothing but one JSON object is written
    owner: str = ""  # whoever asks: what the engine keeps of prompts is not shared with others

    def begin(self, vl: QwenVL, settings: ServeSettings, index: int, on_event: Callable[[], None]) -> RequestStream:
        """Let the engine begin one of the answers. Raises: as `QwenVL.begin`."""
        sampling = {**self.sampling, "stop": list(self.stop) or None, "logprobs": self.logprobs, "boxes": self.boxes}
        sampling["confidence"] = self.confidence or None
        if sampling.get("seed") is not None:
            sampling["seed"] = (sampling["seed"] + index) % 2**63  # the choices of one request differ, and repeat
        common: dict[str, Any] = {"on_event": on_event, "box_tags": settings.box_tags, "max_context": settings.max_context, "salt": self.owner}
        if self.text is not None:
            return vl.begin_text(self.text, **common, **sampling)
        return vl.begin(self.messages, as_json=self.as_json, **common, **sampling)


@dataclass(frozen=True, slots=True)
class Delta:
    """What is new in one choice."""

    index: int  # of the choice, from 0
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    answer: Answer | None = None  # with the last delta of the choice


class Generation(AsyncIterator[Delta]):
    """The answers to one request while they are written. Close it, or use it in `async with`, so that its places are free again.

    What a slow reader has not taken yet is one piece of text a choice, however long it waits.
    """

    def __init__(self, service: "Service", request: Request) -> None:
        self.answers: list[Answer | None] = [None] * request.n
        self._service, self._request = service, request
        self._streams: list[RequestStream] = []
        self._news = asyncio.Event()
        self._is_signalled = False  # news are on their way into the event loop
        self._loop = asyncio.get_running_loop()
        self._ready: deque[Delta] = deque()
        self._lock = threading.Lock()  # of `_streams` and `_is_closed`, which a preparing thread sees too
        self._is_closed = self._is_prepared = False
        self._cut: ServeError | None = None
        self._beginning: asyncio.Future[None] = self._loop.create_future()
        self._opened_at = self._loop.time()
        self._has_text = False

    # -- in a preparing thread

    def prepare(self) -> None:
        """Let the engine begin all choices. Raises: whatever `QwenVL.begin` does; nothing is left behind then."""
        for index in range(self._request.n):
            stream = self._request.begin(self._service.vl, self._service.settings, index, self._signal)
            with self._lock:
                if self._is_closed:
                    stream.close()
                    return
                self._streams.append(stream)

    def _signal(self) -> None:
        """Wake whoever reads; called by the engine's thread at each token, so it does next to nothing."""
        if not self._is_signalled:
            self._is_signalled = True
            try:
                self._loop.call_soon_threadsafe(self._news.set)
            except RuntimeError:  # the loop is closed: the server is ending
                pass

    # -- in the event loop

    @property
    def answer(self) -> Answer:
        """The only answer, or the first of several. Raises: RuntimeError before it is complete."""
        if self.answers[0] is None:
            raise RuntimeError("the answer is not complete yet")
        return self.answers[0]

    async def __anext__(self) -> Delta:
        """Return what is new. Raises: ServeError if the request failed, the engine did, or the server stops."""
        while not self._ready:
            if self._cut is not None:
                raise self._cut
            if all(answer is not None for answer in self.answers):
                raise StopAsyncIteration
            self._news.clear()
            self._is_signalled = False  # before looking: what comes now signals again
            self._collect()
            if not self._ready and self._cut is None:
                await self._news.wait()
        return self._ready.popleft()

    async def whole(self) -> list[Answer]:
        """Wait for the end and return all answers. Raises: ServeError as `__anext__`."""
        async for _ in self:
            pass
        return [answer for answer in self.answers if answer is not None]

    def _collect(self) -> None:
        """Take what the engine has written since."""
        for index, stream in enumerate(self._streams):
            if self.answers[index] is not None:
                continue
            try:
                piece = stream.poll()
            except BaseException as error:  # noqa: BLE001  of this request alone, or whatever the engine died of
                raise self._service.explain(error) from None
            if piece is None:
                continue
            if stream.is_over:
                self.answers[index] = stream.answer
                self._service.note_answer(stream.answer)
            if piece.text and not self._has_text:
                self._has_text = True
                self._service.metrics.first_token_s.observe(self._loop.time() - self._opened_at)
            if piece.text or piece.logprobs or stream.is_over:
                self._ready.append(Delta(index, piece.text, piece.logprobs, self.answers[index]))

    async def begun(self) -> None:
        """Wait until the engine has it. Raises: ServeError if that failed."""
        await self._beginning

    def note_prepared(self, error: BaseException | None) -> None:
        """Note that the preparing thread has let go of it."""
        self._is_prepared = True
        if not self._beginning.done():
            if error is None:
                self._beginning.set_result(None)
            else:
                self._beginning.set_exception(self._service.explain(error))

    @property
    def is_free(self) -> bool:
        """Whether nobody needs its places any more."""
        return self._is_closed and self._is_prepared

    def cut(self, error: ServeError) -> None:
        """End it with an error that whoever reads raises."""
        self._cut = error
        self._news.set()
        if not self._beginning.done():
            self._beginning.set_exception(error)

    async def close(self) -> None:
        """Cancel what is still written and free the places; any number of times."""
        with self._lock:
            was_closed, self._is_closed = self._is_closed, True
            streams, self._streams = self._streams, []  # each refers to this object: a circle, which only the garbage collector would find
        for stream in streams:
            if not stream.is_over:
                stream.close()
        if not was_closed:
            self._service.metrics.answer_s.observe(self._loop.time() - self._opened_at)
            self._service.release(self)

    async def __aenter__(self) -> "Generation":
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()


class Service:
    """One loaded model and the requests to it.

    Args: on_failure: called once, in the event loop, when the engine is found dead or hanging; nothing works afterwards.
    """

    def __init__(self, vl: QwenVL, settings: ServeSettings, on_failure: Callable[[], None] | None = None) -> None:
        self.vl, self.settings, self.on_failure = vl, settings, on_failure
        self.places = Places(settings.max_running)
        self.bodies = Bodies(settings.max_held_bytes)
        self.metrics = Metrics(self._gauges)
        self.watchdog = Watchdog(vl.engine, settings.watchdog_s or LEAST_PATIENCE_S)
        self.num_admitted = 0
        self.is_draining = self._is_closing = False
        self.failure: ServeError | None = None
        self._generations: dict[Generation, int] = {}  # and their places
        self._unanswered: set[asyncio.Timeout] = set()  # requests whose answer has not begun
        self._ending: ServeError | None = None  # what ended all of them
        self._preparers = ThreadPoolExecutor(NUM_PREPARERS, "prepare")
        self._watcher: asyncio.Task[None] | None = None
        self._is_idle = asyncio.Event()

    # -- its life

    async def start(self) -> None:
        """Start the engine's thread, and watch it."""
        self.vl.engine.start()
        self._watcher = asyncio.create_task(self._watch(), name="watchdog")

    async def _watch(self) -> None:
        async for reason in self.watchdog.reasons():
            self.fail(reason)

    def fail(self, reason: str) -> None:
        """Note that the engine is gone: everything in flight ends with an error now, and nothing more is taken."""
        if self.failure is not None:
            return
        logger.critical("%s; this process cannot go on", reason)
        self.failure = engine_down()
        self._end_all(self.failure)
        if self.on_failure is not None:
            self.on_failure()

    async def drain(self) -> None:
        """Take nothing new, let what is in flight end within the grace time, then end it with an error."""
        self.is_draining = True
        try:
            async with asyncio.timeout(self.settings.grace_s):
                await self._until_idle()
        except TimeoutError:
            logger.warning("%d requests were not finished within the grace time and are cut", self.num_admitted)
        self._end_all(ServeError(503, "shutting_down", "The server stops.", retry_after_s=5))

    def _end_all(self, error: ServeError) -> None:
        """End everything that is in flight with an error: answers, requests that wait for a place, and those that are still read."""
        self._ending = error
        self.places.refuse(error)
        for generation in list(self._generations):
            generation.cut(error)
        for request in list(self._unanswered):
            request.reschedule(0)  # now
        self._unanswered.clear()

    async def _until_idle(self) -> None:
        while self.num_admitted and self.failure is None:
            self._is_idle.clear()
            await self._is_idle.wait()

    async def close(self) -> None:
        """Stop watching, and stop the engine if it can be stopped."""
        self._is_closing = True
        if self._watcher is not None:
            self._watcher.cancel()
        self._preparers.shutdown(wait=False, cancel_futures=True)
        if self.failure is None:
            await asyncio.to_thread(self.vl.engine.close)

    @property
    def status(self) -> str:
        """How it is: ok, draining, or down."""
        return "down" if self.failure is not None else "draining" if self.is_draining else "ok"

    # -- requests

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Hold a place in the queue for one request, from before its body is read to its end.

        Raises: ServeError 429 if all places are taken; 503 if the server is stopping or its engine is down.
        """
        self._check_open()
        if self.num_admitted >= self.settings.max_running + self.settings.max_waiting:
            raise ServeError(429, "overloaded", "Too many requests wait already. Try again in a moment.", retry_after_s=1)
        self.num_admitted += 1
        try:
            yield
        finally:
            self.num_admitted -= 1
            self._is_idle.set()

    @asynccontextmanager
    async def until_answered(self) -> AsyncGenerator[Callable[[], None]]:
        """Let the end of the grace time, or of the engine, end a request wherever it is, unless its answer has begun.

        Yields: what to call before the answer begins; it raises what the block raises. Raises: ServeError 503.
        """
        try:
            async with asyncio.timeout(None) as unanswered:
                self._unanswered.add(unanswered)

                def note_answered() -> None:
                    self._unanswered.discard(unanswered)
                    if unanswered.expired() and self._ending is not None:  # another task of the request was quicker than its end
                        raise self._ending
                    unanswered.reschedule(None)  # it may have been told to end in this very moment

                try:
                    yield note_answered
                finally:
                    self._unanswered.discard(unanswered)
        except TimeoutError:
            if not unanswered.expired() or self._ending is None:
                raise
            raise self._ending from None

    def _check_open(self) -> None:
        if self.failure is not None:
            raise self.failure
        if self.is_draining:
            raise ServeError(503, "shutting_down", "The server stops and takes no new requests.", retry_after_s=5)

    async def open(self, request: Request) -> Generation:
        """Wait until there is room for the request, then let the engine begin.

        Raises: ServeError: 400 for what cannot be asked, 503 for a lack of memory, a dead engine or a server that has stopped.
        """
        loop = asyncio.get_running_loop()
        arrived_at, count = loop.time(), min(request.n, self.places.num_places)
        await self.places.take(count)
        self.metrics.waiting_s.observe(loop.time() - arrived_at)
        generation = Generation(self, request)
        self._generations[generation] = count
        work = asyncio.wrap_future(self._preparers.submit(self._prepare, generation))
        work.add_done_callback(lambda done: self._note_prepared(generation, done))
        try:
            await generation.begun()
        except BaseException:
            await generation.close()
            raise
        return generation

    def _prepare(self, generation: Generation) -> None:
        with self.watchdog.watching():
            generation.prepare()

    def _note_prepared(self, generation: Generation, done: "asyncio.Future[None]") -> None:
        generation.note_prepared(asyncio.CancelledError() if done.cancelled() else done.exception())
        self.release(generation)

    def release(self, generation: Generation) -> None:
        """Give a generation's places back, once neither its reader nor a preparing thread needs it."""
        if generation.is_free and (count := self._generations.pop(generation, 0)):
            self.places.give_back(count)

    def explain(self, error: BaseException) -> ServeError:
        """Return what a client is told of an exception, and log what is nobody's fault but ours."""
        if self.vl.engine.is_closed and not isinstance(error, ServeError):
            if not self._is_closing:
                self.fail("the engine's thread has died")
            return engine_down()
        told = translated(error)
        if told.code == "internal_error":
            logger.error("a request failed: %s", where(error))
        return told

    def note_answer(self, answer: Answer) -> None:
        """Count a finished answer."""
        self.metrics.prompt_tokens.inc(answer.usage.prompt_tokens)
        self.metrics.new_tokens.inc(answer.usage.completion_tokens)

    def _gauges(self) -> Iterator[tuple[str, str, float]]:
        engine = self.vl.engine.statistics()
        yield "up", "1 while the engine works", float(self.failure is None)
        yield "requests_admitted", "Requests in the server", self.num_admitted
        yield "requests_waiting", "Requests that wait for a place", self.places.num_waiting
        yield "body_bytes", "Bytes of requests' bodies that are held", self.bodies.num_bytes
        yield "places_taken", "Answers that are written or prepared", self.places.num_places - self.places.num_free
        yield "engine_waiting", "Answers that wait in the engine", engine.num_waiting
        yield "engine_running", "Answers that are read or written by the engine", engine.num_reading + engine.num_writing
        yield "engine_rounds", "Rounds of work so far", engine.num_rounds
        yield "engine_prompt_tokens", "Prompt tokens read so far, without cached ones", engine.num_prompt_tokens
        yield "engine_new_tokens", "Tokens written so far", engine.num_new_tokens
        yield "engine_preempted", "Times that an answer had to wait again for memory", engine.num_preempted
        yield "kv_cache_bytes", "Memory of keys and values in flight", engine.kv_bytes
        for name, cache in (("prefix", engine.prefixes), ("feature", engine.features)):
            yield f"{name}_cache_bytes", f"Memory of the {name} cache", cache.num_bytes
            yield f"{name}_cache_hits", f"Finds in the {name} cache so far", cache.num_hits
            yield f"{name}_cache_misses", f"Searches in vain of the {name} cache so far", cache.num_misses
