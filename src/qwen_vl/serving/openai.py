"""OpenAI's protocol: chat completions, completions and models, whole or as server-sent events.

Beside OpenAI's fields an answer carries `boxes`: what it names and where, on the 0..999 grid and in pixels of the latest picture.
"""

import asyncio
import itertools
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from PIL.Image import Image
from starlette.responses import Response

from qwen_vl.api import Answer, TokenLogprob
from qwen_vl.api.answer import ref_to_dict
from qwen_vl.serving.bodies import let_go
from qwen_vl.serving.body import read_checked, validate
from qwen_vl.serving.errors import ServeError
from qwen_vl.serving.media import MediaLoader
from qwen_vl.serving.schemas import (
    AssistantMessage,
    ChatCompletionRequest,
    CompletionRequest,
    ImagePart,
    OtherPart,
    Sampled,
    TextPart,
)
from qwen_vl.serving.service import ChatRequest, Delta, Generation, Service
from qwen_vl.serving.settings import ServeSettings
from qwen_vl.serving.stream import ClientLeftError, EventStream, JSONAnswer, event, while_connected
from qwen_vl.serving.tools import STOP, Parts, as_conversation, describe_functions, numbered, tell

Asked = TypeVar("Asked", bound=Sampled)
DONE = event("[DONE]")
STARTED = int(time.time())


def make_router(service: Service, media: MediaLoader) -> APIRouter:
    """Return the routes, without their prefix: they are mounted under /v1 and under DashScope's name for the same."""
    router = APIRouter()
    settings = service.settings

    @router.get("/models")
    async def list_models() -> Response:
        """List the only model."""
        return JSONAnswer({"object": "list", "data": [describe_model(settings)]})

    @router.get("/models/{name:path}")
    async def get_model(name: str) -> Response:
        """Describe the model."""
        check_model(name, settings)
        return JSONAnswer(describe_model(settings))

    @router.post("/chat/completions", openapi_extra=body_of(ChatCompletionRequest))
    async def chat(request: Request) -> Response:
        """Answer a conversation."""
        return await _answer(request, ChatCompletionRequest, read_chat)

    @router.post("/completions", openapi_extra=body_of(CompletionRequest))
    async def complete(request: Request) -> Response:
        """Continue a text."""
        return await _answer(request, CompletionRequest, read_completion)

    @router.post("/embeddings")
    async def embed() -> Response:
        """Refuse: the model was not trained to give embeddings, and its states would be poor ones."""
        raise ServeError(400, "unsupported", "This model gives no embeddings.")

    async def _answer(request: Request, schema: type[Any], read: Any) -> Response:
        with ExitStack() as held:
            held.enter_context(service.admit())
            owner = str(request.scope.get("state", {}).get("owner", ""))

            async def begin(asked: Any) -> tuple["Form", Generation]:
                wanted, form = await read(asked, media, settings, owner)
                del asked  # nobody needs the texts of pictures while it waits for a place and is answered
                let_go(request)
                return form, await service.open(wanted)

            try:
                asking = begin(await read_checked(request, lambda fields: check(schema, fields, settings)))
                form, generation = await while_connected(request, asking)
                if form.asked.stream:
                    return EventStream(stream_events(generation, form), held.pop_all(), service.metrics, lambda error: event(error.to_openai()))
                async with generation:
                    answers = await while_connected(request, generation.whole())
            except ClientLeftError:
                service.metrics.dropped.labels("client left").inc()
                return Response(status_code=499)  # nobody reads it
            return JSONAnswer(form.whole(answers))

    return router


def check(schema: type[Asked], fields: dict[str, Any], settings: ServeSettings) -> Asked:
    """Return the request that a body's fields are. Raises: ServeError."""
    check_size(fields, settings)
    asked = validate(schema, fields)
    check_limits(asked, settings)
    return asked


def body_of(schema: type[Any]) -> dict[str, Any]:
    """Return what the OpenAPI document says of a body that the route reads itself."""
    reference = {"$ref": f"#/components/schemas/{schema.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": reference}}}}


def describe_model(settings: ServeSettings) -> dict[str, Any]:
    """Return OpenAI's description of the model."""
    return {"id": settings.model_name, "object": "model", "created": STARTED, "owned_by": "qwen-vl"}


def check_model(name: str, settings: ServeSettings) -> None:
    """Raise ServeError 404 for another model than this one."""
    if name != settings.model_name:
        raise ServeError(404, "model_not_found", "The model does not exist here; GET /v1/models names the one that does.", "model")


def check_size(fields: dict[str, Any], settings: ServeSettings) -> None:
    """Refuse lists that are too long before their entries are looked at, each of which takes microseconds. Raises: ServeError 400."""
    messages, prompt, stop = (found if isinstance(found := fields.get(name), list) else [] for name in ("messages", "prompt", "stop"))
    if len(messages) > settings.max_messages:
        raise ServeError(400, "context_length_exceeded", f"At most {settings.max_messages} messages are read.", "messages")
    contents = [message.get("content") for message in messages if isinstance(message, dict)]
    if sum(len(content) for content in [prompt, *contents] if isinstance(content, list)) > settings.max_parts:
        raise ServeError(400, "too_many_parts", f"At most {settings.max_parts} parts of content are read.", "prompt" if prompt else "messages")
    if len(stop) > settings.max_stops:
        raise _wrong_stop(settings)


def _wrong_stop(settings: ServeSettings) -> ServeError:
    message = f"stop must be up to {settings.max_stops} strings of 1 to {settings.max_stop_chars} characters."
    return ServeError(400, "invalid_value", message, "stop")


def check_limits(asked: Sampled, settings: ServeSettings) -> None:
    """Refuse what the settings of this server do not allow. Raises: ServeError."""
    check_model(asked.model, settings)
    if asked.num_choices > settings.max_choices:
        raise ServeError(400, "invalid_value", f"n must be at most {settings.max_choices}.", "n")
    if any(not 0 < len(stop) <= settings.max_stop_chars for stop in asked.stops):
        raise _wrong_stop(settings)
    if isinstance(asked, ChatCompletionRequest):
        name, count = "top_logprobs", asked.top_logprobs
        contents = [message.content for message in asked.messages]
        parts = [part for content in contents for part in (content if isinstance(content, list) else [])]
        texts = [content for content in contents if isinstance(content, str)]
    elif isinstance(asked, CompletionRequest):
        name, count, parts, texts = "logprobs", asked.logprobs, asked.parts, []
    else:
        return
    if count is not None and count > settings.max_logprobs:
        raise ServeError(400, "invalid_value", f"{name} must be at most {settings.max_logprobs}.", name)
    texts += [part.text for part in parts if isinstance(part, TextPart)]
    if isinstance(asked, ChatCompletionRequest):
        texts += [message.call.arguments for message in asked.messages if isinstance(message, AssistantMessage) and message.call]
        texts += [describe_functions(asked.callable)] if asked.callable else []
    if sum(map(len, texts)) > settings.max_text_chars:
        raise ServeError(400, "context_length_exceeded", f"The texts have more than {settings.max_text_chars} characters.", "messages")
    if sum(isinstance(part, ImagePart) for part in parts) > settings.max_images:
        raise ServeError(400, "too_many_images", f"At most {settings.max_images} pictures are taken.", "messages")


async def load_parts(parts: Sequence[TextPart | ImagePart | OtherPart], media: MediaLoader, owner: str) -> Parts:
    """Return parts with their pictures loaded, all at once. Raises: ServeError of the first that fails; the others are given up then."""
    try:
        async with asyncio.TaskGroup() as group:
            loading = [group.create_task(media.load(part.image_url.url, owner)) for part in parts if isinstance(part, ImagePart)]
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    pictures = (each.result() for each in loading)

    def loaded(part: TextPart | ImagePart) -> dict[str, Any]:
        return {"type": "image", "image": next(pictures)} if isinstance(part, ImagePart) else {"type": "text", "text": part.text}

    return [loaded(part) for part in parts if not isinstance(part, OtherPart)]


@dataclass(frozen=True, kw_only=True)
class Form:
    """How the answers to one request are told."""

    asked: Sampled  # without contents
    prefix: str
    kind: str
    created: int = field(default_factory=lambda: int(time.time()))
    number: str = field(default_factory=lambda: uuid.uuid4().hex)

    def document(self, kind: str, choices: list[dict[str, Any]], answers: Sequence[Answer] = ()) -> dict[str, Any]:
        """Return a document of the protocol. Args: answers: whose usage is told."""
        found = {"id": f"{self.prefix}-{self.number}", "object": kind, "created": self.created, "model": self.asked.model, "choices": choices}
        return found | ({"usage": usage_of(answers)} if answers else {})

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Return the whole response."""
        return self.document(self.kind, [self.choice(index, answer) for index, answer in enumerate(answers)], answers)

    def opening(self, index: int) -> dict[str, Any] | None:
        """Return what the first event of a choice says, if there is one."""
        raise NotImplementedError

    def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        """Return a whole choice."""
        raise NotImplementedError

    def delta(self, delta: Delta) -> list[dict[str, Any]]:
        """Return what the events of a delta say of its choice."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class ChatForm(Form):
    """Chat completions."""

    asked: ChatCompletionRequest

    def opening(self, index: int) -> dict[str, Any]:
        """Return the role."""
        return {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}

    def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        """Return the message."""
        message, reason = self._message(answer)
        return {"index": index, "message": message, "logprobs": self._logprobs(answer.logprobs), "finish_reason": reason}

    def delta(self, delta: Delta) -> list[dict[str, Any]]:
        """Return the piece of text; with the last, why it has ended, and the boxes."""
        index, choices = delta.index, []
        if not self.asked.callable:
            if delta.text or delta.logprobs:
                choices.append({"index": index, "delta": {"content": delta.text}, "logprobs": self._logprobs(delta.logprobs), "finish_reason": None})
            if delta.answer is not None:
                last = {"boxes": boxes_of(delta.answer)}
                choices.append({"index": index, "delta": last, "logprobs": None, "finish_reason": delta.answer.finish_reason})
        elif delta.answer is not None:  # whether it is a call is known at its end only
            message, reason = self._message(delta.answer)
            choices.append({"index": index, "delta": numbered(message), "logprobs": self._logprobs(delta.answer.logprobs), "finish_reason": None})
            choices.append({"index": index, "delta": {}, "logprobs": None, "finish_reason": reason})
        return choices

    def _logprobs(self, tokens: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
        return {"content": [describe_token(each) for each in tokens or ()], "refusal": None} if self.asked.logprobs else None

    def _message(self, answer: Answer) -> tuple[dict[str, Any], str]:
        """Return the message of an answer, and why it has ended."""
        told = tell(answer.text, self.asked)
        message = {"role": "assistant", "content": told.content, "refusal": None, "boxes": boxes_of(answer), **told.call}
        return message, told.reason or answer.finish_reason


@dataclass(frozen=True, kw_only=True)
class CompletionForm(Form):
    """Completions."""

    asked: CompletionRequest
    num_told: dict[int, int] = field(default_factory=dict)  # characters of each choice that events have told already

    def opening(self, index: int) -> None:
        """Return nothing: text has no role."""

    def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        """Return the whole text."""
        logprobs = None if answer.logprobs is None else describe_tokens(answer.logprobs)
        boxes = boxes_of(answer)
        return {"index": index, "text": answer.text, "logprobs": logprobs, "finish_reason": answer.finish_reason, "boxes": boxes}

    def delta(self, delta: Delta) -> list[dict[str, Any]]:
        """Return the piece of text; with the last, why it has ended, and the boxes."""
        logprobs = None
        if self.asked.logprobs is not None:
            start = self.num_told.get(delta.index, 0)
            logprobs = describe_tokens(delta.logprobs, start)
            self.num_told[delta.index] = start + sum(map(len, logprobs["tokens"]))
        choice: dict[str, Any] = {"index": delta.index, "text": delta.text, "logprobs": logprobs, "finish_reason": None}
        if delta.answer is not None:
            choice |= {"finish_reason": delta.answer.finish_reason, "boxes": boxes_of(delta.answer)}
        return [choice]


async def read_chat(asked: ChatCompletionRequest, media: MediaLoader, settings: ServeSettings, owner: str) -> tuple[ChatRequest, Form]:
    """Return the request in the words of the service, and the form of its answer."""
    contents: list[str | Parts] = []
    for said in (message.content or "" for message in asked.messages):
        contents.append(said if isinstance(said, str) else await load_parts(said, media, owner))
    for number, (message, content) in enumerate(zip(asked.messages, contents, strict=True)):
        if isinstance(message, AssistantMessage) and not content and message.call is None:
            raise ServeError(400, "invalid_value", f"messages[{number}].content must be text.", f"messages[{number}].content")
    functions = asked.callable
    messages = as_conversation(asked.messages, contents, functions)
    wanted = ChatRequest(
        messages=messages,
        sampling=asked.sampling,
        stop=(*asked.stops, STOP) if functions else asked.stops,
        logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
        n=asked.num_choices,
        boxes=asked.boxes,
        confidence=bool(asked.confidence),
        as_json=asked.as_json,
        owner=owner,
    )
    return wanted, ChatForm(asked=asked.without_contents(), prefix="chatcmpl", kind="chat.completion")


async def read_completion(asked: CompletionRequest, media: MediaLoader, settings: ServeSettings, owner: str) -> tuple[ChatRequest, Form]:
    """Return the request in the words of the service, and the form of its answer."""
    wanted = ChatRequest(
        text=await load_parts(asked.parts, media, owner),
        sampling=asked.sampling,
        stop=asked.stops,
        logprobs=asked.logprobs,
        n=asked.num_choices,
        boxes=asked.boxes,
        confidence=bool(asked.confidence),
        owner=owner,
    )
    return wanted, CompletionForm(asked=asked.without_contents(), prefix="cmpl", kind="text_completion")


async def stream_events(generation: Any, form: Form) -> AsyncGenerator[bytes, None]:
    """Yield the events of an answer; whoever stops reading ends it."""
    kind = "chat.completion.chunk" if isinstance(form, ChatForm) else form.kind
    has_usage = form.asked.has_usage

    def chunk(choices: list[dict[str, Any]]) -> bytes:
        return event(form.document(kind, choices) | ({"usage": None} if has_usage else {}))

    async with generation:
        for index in range(form.asked.num_choices):
            if opening := form.opening(index):
                yield chunk([opening])
        async for delta in generation:
            for choice in form.delta(delta):
                yield chunk([choice])
        if has_usage:
            yield event(form.document(kind, [], [answer for answer in generation.answers if answer is not None]))
        yield DONE


def boxes_of(answer: Answer) -> list[dict[str, Any]]:
    """Return what an answer names and where: on the 0..999 grid, and in pixels of the picture as the client has it."""
    size = answer.pictures[-1].info.get("original_size") if answer.pictures and isinstance(answer.pictures[-1], Image) else None
    waiting = None if answer.box_scores is None else list(answer.box_scores)
    return [ref_to_dict(ref, size, waiting) for ref in answer.boxes]


def usage_of(answers: Sequence[Answer]) -> dict[str, int]:
    """Return what answers to one prompt cost: the prompt is counted once."""
    prompt, new = answers[0].usage.prompt_tokens, sum(answer.usage.completion_tokens for answer in answers)
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


def describe_token(each: TokenLogprob) -> dict[str, Any]:
    """Return a token's probability in the form of chat completions."""
    best = [_token(token, logprob) for token, logprob in each.alternatives]
    return _token(each.token, each.logprob) | {"top_logprobs": best}


def _token(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token.decode("utf-8", "replace"), "logprob": _finite(logprob), "bytes": list(token)}


def _finite(logprob: float) -> float:
    """Return a number that JSON can hold: what is impossible has the lowest that OpenAI gives."""
    return max(logprob, -9999.0)


def describe_tokens(tokens: Sequence[TokenLogprob], start: int = 0) -> dict[str, Any]:
    """Return tokens' probabilities in the form of completions. Args: start: characters before the first of them."""
    texts = [each.token.decode("utf-8", "replace") for each in tokens]
    best = [{token.decode("utf-8", "replace"): _finite(logprob) for token, logprob in each.alternatives} for each in tokens]
    offsets = list(itertools.accumulate(map(len, texts[:-1]), initial=start)) if texts else []
    return {"tokens": texts, "token_logprobs": [_finite(each.logprob) for each in tokens], "top_logprobs": best, "text_offset": offsets}
