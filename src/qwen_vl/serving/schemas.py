"""OpenAI's requests as they are accepted here: every field known, typed and bounded.

What is known and harmless is ignored, by list; what is known and cannot be done is refused by name; anything else is refused.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from qwen_vl.errors import ConfigError
from qwen_vl.grounding.grammar import BoxRule
from qwen_vl.serving.body import FieldError, unsupported

MAX_TOKENS = 1_000_000
MAX_SEED = 2**63 - 1
MAX_NAME_CHARS = 64
MAX_TOOLS = 64

Text = Annotated[str, Field(max_length=2**20)]
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS, pattern=r"^[^\s\x00-\x1f]+$")]


class Strict(BaseModel):
    """No unknown fields, no conversions."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class TextPart(Strict):
    """Text of a message."""

    type: Literal["text"]
    text: Text


class ImageURL(Strict):
    """Where a picture is: a data URI, or what the server's media loader takes."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None  # one size is all that this model has


class ImagePart(Strict):
    """A picture of a message."""

    type: Literal["image_url"]
    image_url: ImageURL


class OtherPart(Strict):
    """A part that the model cannot take."""

    type: Literal["input_audio", "file", "video_url", "refusal"]

    model_config = ConfigDict(extra="ignore")

    @model_validator(mode="after")
    def _refuse(self) -> "OtherPart":
        raise unsupported(f"Parts of the type {self.type} are not supported: this model takes text and image_url.")


def _kind(value: Any) -> str:
    return "<text>" if isinstance(value, str) else "<list>"


Part = Annotated[TextPart | ImagePart | OtherPart, Field(discriminator="type")]
TextOnly = Annotated[TextPart | OtherPart, Field(discriminator="type")]
Content = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[list[Part], Field(min_length=1), Tag("<list>")],
    Discriminator(_kind),
]
TextContent = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[list[TextOnly], Field(min_length=1), Tag("<list>")],
    Discriminator(_kind),
]


class SystemMessage(Strict):
    """What the model is told to be; only the first message may be one."""

    role: Literal["system", "developer"]
    content: TextContent
    name: str | None = None


class UserMessage(Strict):
    """What the user says and shows."""

    role: Literal["user"]
    content: Content
    name: str | None = None

    @field_validator("content")
    @classmethod
    def _asks(cls, content: Any) -> Any:
        is_empty = not content.strip() if isinstance(content, str) else all(isinstance(part, TextPart) and not part.text.strip() for part in content)
        if is_empty:
            raise ValueError("is an empty question. Ask something, or show a picture.")
        return content


class FunctionCall(Strict):
    """A function that the assistant called."""

    name: Name
    arguments: Text


class ToolCall(Strict):
    """A call in today's form."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None  # of a stream's call that is sent back as it came


class AssistantMessage(Strict):
    """What the assistant said before; as the last message, what it is to go on with."""

    role: Literal["assistant"]
    content: TextContent | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=1)] | None = None  # the model calls one at a time
    function_call: FunctionCall | None = None
    name: str | None = None
    refusal: None = None
    boxes: Any = None  # of an answer that is sent back as it came

    @property
    def call(self) -> FunctionCall | None:
        """The function that was called."""
        return self.tool_calls[0].function if self.tool_calls else self.function_call


class ToolMessage(Strict):
    """What a function gave back."""

    role: Literal["tool", "function"]
    content: TextContent
    tool_call_id: str | None = None
    name: str | None = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class Function(Strict):
    """A function that the model may call."""

    name: Name
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    name_for_human: Text | None = None  # of the release's form
    name_for_model: Name | None = None
    description_for_model: Text | None = None

    @field_validator("strict")
    @classmethod
    def _not_strict(cls, value: bool | None) -> bool | None:
        if value:
            raise unsupported("strict is not supported: the model writes a call's arguments as it likes.")
        return value


class Tool(Strict):
    """A tool in today's form."""

    type: Literal["function"]
    function: Function


class ResponseFormat(Strict):
    """What form the answer must have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: Any = None

    @model_validator(mode="after")
    def _check(self) -> "ResponseFormat":
        if self.type == "json_schema":
            raise unsupported("response_format json_schema is not supported; json_object is.")
        return self


class StreamOptions(Strict):
    """What a stream tells besides the answer."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Sampled(Strict):
    """What chat and completion requests have in common."""

    model: Annotated[str, Field(max_length=256)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None  # 0 is off
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None
    stop: Annotated[Annotated[str, Tag("<text>")] | Annotated[list[str], Tag("<list>")], Discriminator(_kind)] | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, Any] | None = None
    boxes: Annotated[str, Field(max_length=32)] | None = None  # off, or a rule of the box grammar: any, required, none, 2, 1..4
    confidence: bool | None = None

    # Known, and without a meaning here.
    user: str | None = None
    metadata: Annotated[dict[str, Any], Field(max_length=16)] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @field_validator("presence_penalty", "frequency_penalty")
    @classmethod
    def _neutral(cls, value: float | None) -> float | None:
        if value:
            raise unsupported("presence_penalty and frequency_penalty are not supported; repetition_penalty is.")
        return value

    @field_validator("logit_bias")
    @classmethod
    def _empty(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value:
            raise unsupported("logit_bias is not supported.")
        return value

    @field_validator("store")
    @classmethod
    def _not_kept(cls, value: bool | None) -> bool | None:
        if value:
            raise unsupported("store is not supported: this server keeps nothing.")
        return value

    @field_validator("boxes")
    @classmethod
    def _is_rule(cls, value: str | None) -> str | None:
        try:
            if value not in (None, "off"):
                BoxRule.parse(value)
        except ConfigError:
            raise ValueError("must be any, required, none, off, or how many: 2, 1.. or 1..4.") from None
        return value

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def num_choices(self) -> int:
        """How many answers are wanted."""
        return self.n or 1

    @property
    def has_usage(self) -> bool:
        """Whether a stream tells what it cost."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def max_new_tokens(self) -> int | None:
        """The longest answer that is wanted."""
        return self.max_tokens

    @property
    def sampling(self) -> dict[str, Any]:
        """The settings by the names of `QwenVL.begin`."""
        named = {
            "max_new_tokens": self.max_new_tokens,
            "min_new_tokens": self.min_tokens,
            **{name: getattr(self, name) for name in ("temperature", "top_p", "top_k", "repetition_penalty", "seed")},
        }
        return {name: value for name, value in named.items() if value is not None}

    def without_contents(self) -> Self:
        """Return what is needed to tell the answer, without what was said and shown, which may be large."""
        return self.model_construct(**self._told)

    @property
    def _told(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("model", "n", "stream", "stream_options", "logprobs")}

    @model_validator(mode="after")
    def _check_lengths(self) -> "Sampled":
        least, most = self.min_tokens or 0, self.max_new_tokens
        if most is not None and least > most:
            raise FieldError("min_tokens must not be more than max_tokens.", param="min_tokens")
        if self.stream_options is not None and not self.stream:
            raise FieldError("stream_options goes with stream: true only.", param="stream_options")
        return self


class ChatCompletionRequest(Sampled):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["auto", "none", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None  # the model calls one at a time anyhow
    functions: Annotated[list[Function], Field(max_length=MAX_TOOLS)] | None = None
    function_call: Literal["auto", "none"] | dict[str, Any] | None = None
    max_length: int | None = None  # of the release's form, where it had no effect either

    @field_validator("tool_choice", "function_call")
    @classmethod
    def _not_forced(cls, value: Any) -> Any:
        if value not in (None, "auto", "none"):
            raise unsupported("A call cannot be forced: tool_choice may be auto or none.")
        return value

    @model_validator(mode="after")
    def _check(self) -> "ChatCompletionRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise FieldError("top_logprobs goes with logprobs: true only.", param="top_logprobs")
        if self.tools and self.functions:
            raise FieldError("Give tools or functions, not both.", param="functions")
        if self.as_json:
            others = {"tools" if self.tools else "functions": self.callable, "stop": self.stop, "boxes": self.boxes not in (None, "off")}
            for name, given in others.items():
                if given:
                    raise unsupported(f"response_format json_object goes without {name} only.", name)
        return self

    @property
    def max_new_tokens(self) -> int | None:
        """The longest answer that is wanted; the newer name counts more."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def callable(self) -> list[Function]:
        """The functions that the model may call."""
        if "none" in (self.tool_choice, self.function_call):
            return []
        return [tool.function for tool in self.tools] if self.tools else list(self.functions or ())

    @property
    def _told(self) -> dict[str, Any]:
        functions = [Function(name=each.name) for each in self.callable]
        return super()._told | ({"tools": [Tool(type="function", function=each) for each in functions]} if self.tools else {"functions": functions})

    @property
    def as_json(self) -> bool:
        """Whether the answer must be a JSON object."""
        return self.response_format is not None and self.response_format.type == "json_object"


def _prompt_kind(value: Any) -> str:
    if isinstance(value, str):
        return "<text>"
    return "<parts>" if isinstance(value, list) and value and isinstance(value[0], dict) else "<list>"


class CompletionRequest(Sampled):
    """The body of POST /v1/completions. Parts in the prompt, pictures among them, are this server's own extension."""

    prompt: Annotated[
        Annotated[Text, Field(min_length=1), Tag("<text>")]
        | Annotated[list[Text], Field(min_length=1, max_length=1), Tag("<list>")]
        | Annotated[list[Part], Field(min_length=1), Tag("<parts>")],
        Discriminator(_prompt_kind),
    ]
    logprobs: Annotated[int, Field(ge=0)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None

    @model_validator(mode="after")
    def _check(self) -> "CompletionRequest":
        if self.echo:
            raise unsupported("echo is not supported.")
        if self.suffix:
            raise unsupported("suffix is not supported.")
        if self.best_of not in (None, 1, self.num_choices):
            raise unsupported("best_of is not supported; n is.")
        return self

    @property
    def parts(self) -> list[TextPart | ImagePart | OtherPart]:
        """The prompt in parts."""
        if isinstance(self.prompt, str):
            return [TextPart(type="text", text=self.prompt)]
        return [TextPart(type="text", text=part) if isinstance(part, str) else part for part in self.prompt]
