"""What a client is told when something goes wrong: a status, a stable code and a fixed sentence.

Messages never hold paths, addresses or text of libraries; whatever was not raised on purpose is "internal_error" and nothing more.
"""

import traceback
import uuid
from typing import Any

from qwen_vl.errors import CapacityError, ConfigError, ContextLengthError, ImageError, PromptError, is_out_of_memory

OUT_OF_MEMORY = "The server lacks the memory for this request. Shorten it, or try again later."
DASHSCOPE = "/api/v1/"  # begins the paths of DashScope's protocol, whose errors have a form of their own
ENGINE_DOWN = "The engine of this server has stopped. Try again in a moment."


# What DashScope calls an error, by status; those of a request's fields carry our own code behind a dot.
_FAMILIES = {
    400: "InvalidParameter",
    401: "InvalidApiKey",
    403: "AccessDenied",
    404: "NotFound",
    408: "RequestTimeOut",
    409: "Conflict",
    413: "BadRequest.TooLarge",
    415: "BadRequest.UnsupportedMediaType",
    429: "Throttling",
    500: "InternalError",
    503: "ServiceUnavailable",
}


# What clients call the engine's settings.
_CLIENTS_NAMES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}


class ServeError(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP.
        code: stable, for programs.
        message: one sentence or two, for people; nothing of libraries, files or other requests in it.
        param: the field of the request that is at fault, as `messages[0].content`.
        retry_after_s: when to come again, for 429 and 503.
    """

    def __init__(self, status: int, code: str, message: str, param: str | None = None, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param, self.retry_after_s = status, code, message, param, retry_after_s

    @property
    def kind(self) -> str:
        """OpenAI's name of the error's class."""
        named = {401: "authentication_error", 429: "rate_limit_error"}
        return named.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to the error."""
        found = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        return found | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})

    def to_openai(self) -> dict[str, Any]:
        """Return the body in OpenAI's form."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def to_dashscope(self, request_id: str) -> dict[str, Any]:
        """Return the body in DashScope's form."""
        family = _FAMILIES.get(self.status, "BadRequest" if self.status < 500 else "InternalError")
        words = "".join(word.capitalize() for word in self.code.split("_"))
        code = f"{family}.{words}" if self.status == 400 else words if self.code == "model_not_found" else family
        return {"request_id": request_id, "code": code, "message": self.message}

    def to_body(self, path: str) -> dict[str, Any]:
        """Return the body in the form of the protocol that a path belongs to."""
        return self.to_dashscope(str(uuid.uuid4())) if path.startswith(DASHSCOPE) else self.to_openai()


def engine_down() -> ServeError:
    """Return the error of everything that an engine which is gone cannot answer."""
    return ServeError(503, "engine_down", ENGINE_DOWN, retry_after_s=5)


def where(error: BaseException) -> str:
    """Return an exception's type and the places that it came through, innermost first: what may be logged of it, as its text may quote a request."""
    places = [f"{frame.name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
    return f"{type(error).__name__} at {' < '.join(reversed(places))}"


def _in_clients_words(error: BaseException) -> tuple[str, str | None]:
    """Return an error's text with the setting that it begins with by the client's name, and that name."""
    message = str(error)
    for name, told in _CLIENTS_NAMES.items():
        if message.startswith(f"{name}="):
            return told + message.removeprefix(name), told
    return message, None


def translated(error: BaseException) -> ServeError:
    """Return what a client is told of an exception; of one that nobody raised on purpose, nothing."""
    if isinstance(error, ServeError):
        return error
    if isinstance(error, ContextLengthError):
        message, name = _in_clients_words(error)
        return ServeError(400, "context_length_exceeded", message, name or "messages")
    if isinstance(error, CapacityError) or is_out_of_memory(error):
        return ServeError(503, "out_of_memory", OUT_OF_MEMORY, retry_after_s=1)
    if isinstance(error, PromptError):
        return ServeError(400, "invalid_messages", str(error), "messages")
    if isinstance(error, ConfigError):
        message, name = _in_clients_words(error)
        return ServeError(400, "invalid_value", message, name)
    if isinstance(error, ImageError):
        return ServeError(400, "invalid_image", "A picture cannot be used.", "messages")
    return ServeError(500, "internal_error", "The server failed on this request.")
