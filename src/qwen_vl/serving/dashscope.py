"""DashScope's protocol: the multimodal-generation route, plain and as server-sent events, and the upload of local files that its SDK does.

A request is rewritten in the words of the OpenAI protocol, whose one check then holds for both; answers and errors are written in DashScope's form.

    dashscope.base_http_api_url = "http://127.0.0.1:8000/api/v1"
    dashscope.MultiModalConversation.call(model="nano", messages=[{"role": "user", "content": [{"image": "dog.jpg"}, {"text": "What is it?"}]}])
"""

import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator
from starlette.responses import Response

from qwen_vl.api import Answer, TokenLogprob
from qwen_vl.serving.bodies import let_go
from qwen_vl.serving.body import read_checked, unsupported, validate
from qwen_vl.serving.errors import DASHSCOPE, ServeError
from qwen_vl.serving.media import MediaLoader
from qwen_vl.serving.openai import body_of, check, check_size, describe_token, read_chat
from qwen_vl.serving.schemas import ChatCompletionRequest
from qwen_vl.serving.service import Delta, Generation, Service
from qwen_vl.serving.settings import ServeSettings
from qwen_vl.serving.stream import ClientLeftError, EventStream, JSONAnswer, dashscope_event, while_connected
from qwen_vl.serving.tools import Told, numbered, tell
from qwen_vl.serving.upload_routes import make_upload_router, owner_of
from qwen_vl.serving.uploads import UploadStore

GENERATION = f"{DASHSCOPE}services/aigc/multimodal-generation/generation"

_FORWARDED = (
    *("temperature", "top_p", "top_k", "seed", "max_tokens", "min_tokens", "stop", "repetition_penalty", "presence_penalty", "frequency_penalty"),
    *("n", "logprobs", "top_logprobs", "response_format", "tools", "tool_choice", "boxes", "confidence"),
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Part(_Strict):
    """A piece of a message: a text or a picture, by the name of its only field."""

    text: str | None = None
    image: str | None = None
    video: Any = None
    audio: Any = None

    @model_validator(mode="after")
    def _check(self) -> "Part":
        if self.video is not None or self.audio is not None:
            raise unsupported("This model sees pictures; it takes no video and no audio.")
        if (self.text is None) == (self.image is None):
            raise ValueError("must be either {'text': ..} or {'image': ..}.")
        return self

    def to_openai(self) -> dict[str, Any]:
        """Return the part in OpenAI's form."""
        return {"type": "text", "text": self.text} if self.text is not None else {"type": "image_url", "image_url": {"url": self.image}}


def _kind(value: Any) -> str:
    return "<text>" if isinstance(value, str) else "<list>"


class Message(_Strict):
    """One turn. Calls are in OpenAI's form, whose check judges them."""

    role: Literal["system", "user", "assistant", "tool"]
    content: Annotated[Annotated[str, Tag("<text>")] | Annotated[list[Part], Tag("<list>")], Discriminator(_kind)] | None = None
    tool_calls: Any = None
    tool_call_id: Any = None
    name: Any = None

    @model_validator(mode="after")
    def _check(self) -> "Message":
        if self.role != "user" and any(part.image is not None for part in self.content or () if isinstance(part, Part)):
            raise ValueError("shows a picture, which only messages of the user may.")
        return self

    def to_openai(self) -> dict[str, Any]:
        """Return the message in OpenAI's form; texts of all but the user as plain text, which is all that they may be."""
        given = {name: value for name in ("tool_calls", "tool_call_id", "name") if (value := getattr(self, name)) is not None}
        if self.content is None or isinstance(self.content, str):
            content: Any = self.content or ""
        elif self.role == "user":
            content = [part.to_openai() for part in self.content]
        else:
            content = "".join(part.text or "" for part in self.content)
        return {"role": self.role, "content": content, **given}


class Input(_Strict):
    """What is asked."""

    messages: list[Message]


class Parameters(_Strict):
    """How it is answered. Fields whose values the one check of the OpenAI protocol judges are passed on as they are."""

    temperature: Any = None
    top_p: Any = None
    top_k: Any = None
    seed: Any = None
    max_tokens: Any = None
    min_tokens: Any = None
    stop: Any = None
    repetition_penalty: Any = None
    presence_penalty: Any = None
    frequency_penalty: Any = None
    n: Any = None
    logprobs: Any = None
    top_logprobs: Any = None
    response_format: Any = None
    tools: Any = None
    tool_choice: Any = None
    boxes: Any = None
    confidence: Any = None
    incremental_output: bool | None = None  # a stream's events bring what is new, not the whole text so far
    stream: bool | None = None  # said by a header; some clients say it here too
    result_format: Literal["message"] | None = None
    enable_search: bool | None = None
    enable_thinking: bool | None = None

    @field_validator("enable_search", "enable_thinking")
    @classmethod
    def _not_enabled(cls, value: bool | None) -> bool | None:
        if value:
            raise unsupported("This model neither searches nor thinks: enable_search and enable_thinking are not supported.")
        return value


class GenerationRequest(_Strict):
    """The body of a request."""

    model: str
    input: Input
    parameters: Parameters = Field(default_factory=Parameters)

    def to_openai(self) -> dict[str, Any]:
        """Return the fields of the same request in the OpenAI protocol."""
        given = {name: value for name in _FORWARDED if (value := getattr(self.parameters, name)) is not None}
        return {"model": self.model, "messages": [message.to_openai() for message in self.input.messages], **given}


class Form:
    """How the answers to one request are told.

    Args:
        asked: without contents.
        is_cumulative: each event of a stream brings the whole text so far.
    """

    def __init__(self, asked: ChatCompletionRequest, is_cumulative: bool) -> None:
        self.request_id = str(uuid.uuid4())
        self.asked, self.is_cumulative = asked, is_cumulative
        self.num_events = 0
        self._texts = [""] * asked.num_choices

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Return the whole response."""
        choices = [self._choice(index, answer.text, answer, answer.logprobs) for index, answer in enumerate(answers)]
        return self._document(choices, answers)

    def delta(self, delta: Delta, answers: Sequence[Answer]) -> bytes | None:
        """Return the event of a piece of one answer, None for one that says nothing yet.

        Args: answers: those that are complete, for what they cost so far.
        """
        text, logprobs = delta.text, delta.logprobs or None
        if self.asked.callable:  # whether it is a call is known at its end only
            if delta.answer is None:
                return None
            text, logprobs = delta.answer.text, delta.answer.logprobs
        elif self.is_cumulative:
            self._texts[delta.index] += text
            text = self._texts[delta.index]
        return self._event("result", 200, self._document([self._choice(delta.index, text, delta.answer, logprobs)], answers))

    def error(self, error: ServeError) -> bytes:
        """Return the event of an error."""
        return self._event("error", error.status, error.to_dashscope(self.request_id))

    def _document(self, choices: list[dict[str, Any]], answers: Sequence[Answer]) -> dict[str, Any]:
        found: dict[str, Any] = {"request_id": self.request_id, "output": {"choices": choices}}
        if answers:
            read, written = answers[0].usage.prompt_tokens, sum(answer.usage.completion_tokens for answer in answers)
            found["usage"] = {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}
        return found

    def _choice(self, index: int, text: str, answer: Answer | None, logprobs: Sequence[TokenLogprob] | None) -> dict[str, Any]:
        told = Told(text) if answer is None else tell(text, self.asked)
        found: dict[str, Any] = {"index": index, "message": numbered({"role": "assistant", "content": [{"text": told.content}], **told.call})}
        # "null" is how this protocol says that more will come.
        found["finish_reason"] = "null" if answer is None else told.reason or answer.finish_reason
        if logprobs is not None:
            found["logprobs"] = {"content": [describe_token(each) for each in logprobs]}
        if answer is not None:
            found["boxes"] = answer.to_dict()["boxes"]
        return found

    def _event(self, kind: str, status: int, document: dict[str, Any]) -> bytes:
        self.num_events += 1
        return dashscope_event(self.num_events, kind, status, document)


async def stream_events(generation: Generation, form: Form) -> AsyncGenerator[bytes, None]:
    """Yield the events of an answer; whoever stops reading ends it."""
    async with generation:
        async for delta in generation:
            if told := form.delta(delta, [answer for answer in generation.answers if answer is not None]):
                yield told


def check_generation(fields: dict[str, Any], settings: ServeSettings) -> tuple[ChatCompletionRequest, bool]:
    """Return the request in the OpenAI protocol that a body's fields are, and whether its events bring only what is new. Raises: ServeError."""
    given = fields.get("input")
    check_size(given if isinstance(given, dict) else {}, settings)
    wanted = validate(GenerationRequest, fields)
    try:
        asked = check(ChatCompletionRequest, wanted.to_openai(), settings)
    except ServeError as error:  # whose message begins with the field, where there is one
        place = "input." if error.message.startswith("messages[") else ""
        raise ServeError(error.status, error.code, f"{place}{error.message}", error.param) from None
    return asked, bool(wanted.parameters.incremental_output)


def make_router(service: Service, media: MediaLoader, uploads: UploadStore) -> APIRouter:
    """Return the routes, whose paths are DashScope's."""
    router = APIRouter()
    settings = service.settings

    @router.post(GENERATION, openapi_extra=body_of(GenerationRequest))
    async def generate(request: Request) -> Response:
        """Answer a conversation."""
        with ExitStack() as held:
            held.enter_context(service.admit())

            async def begin(asked: ChatCompletionRequest, is_incremental: bool) -> tuple[Form, Generation]:
                wanted, _ = await read_chat(asked, media, settings, owner_of(request))
                form = Form(asked.without_contents(), is_cumulative=not is_incremental)
                del asked  # nobody needs the texts of pictures while it waits for a place and is answered
                let_go(request)
                return form, await service.open(wanted)

            try:
                asking = begin(*await read_checked(request, lambda fields: check_generation(fields, settings)))
                form, generation = await while_connected(request, asking)
                if request.headers.get("x-dashscope-sse") == "enable":
                    return EventStream(stream_events(generation, form), held.pop_all(), service.metrics, form.error)
                async with generation:
                    answers = await while_connected(request, generation.whole())
            except ClientLeftError:
                service.metrics.dropped.labels("client left").inc()
                return Response(status_code=499)  # nobody reads it
            return JSONAnswer(form.whole(answers))

    router.include_router(make_upload_router(uploads, service.admit))
    return router
