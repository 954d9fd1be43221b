"""The body of a request, which the guard counts and times (security), from bytes to a checked object of strict JSON.

asked = await read_checked(request, lambda fields: validate(ChatCompletionRequest, fields))
"""

import asyncio
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from qwen_vl.serving.errors import ServeError

Model = TypeVar("Model", bound=BaseModel)
Checked = TypeVar("Checked")

SMALL_BYTES = 64 * 1024  # parsed in the event loop; more goes to a thread
MAX_FIELDS = 2**15  # of all objects of a body: pydantic takes some microseconds to tell of one that is wrong, and lets nobody else run meanwhile
MAX_MARKS = 2**19  # commas and brackets, half of them for texts: they bound the number of values, and to parse ten million lists takes seconds
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

# What is wrong with a value, by pydantic's name for it.
_REASONS = {
    "missing": "is missing",
    "extra_forbidden": "is not a field that this server knows",
    "string_type": "must be text",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "none_required": "must be null",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "literal_error": "must be one of {expected}",
    "union_tag_invalid": "must be one of {expected_tags}",
    "union_tag_not_found": "is missing",
}
_LISTS_OF_KINDS = {("messages",), ("messages", "content"), ("prompt",)}  # whose entries are told apart by a field of theirs, which pydantic names too


class FieldError(ValueError):
    """What a validator says of a value that is not to be told as "<field> <message>".

    Args: param: the field at fault, where the validator is not that field's own.
    """

    def __init__(self, message: str, code: str = "invalid_value", param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.param = code, param


def unsupported(message: str, param: str | None = None) -> FieldError:
    """Return the error that a validator raises for what is known but cannot be done here."""
    return FieldError(message, "unsupported", param)


async def read_checked(request: Request, check: Callable[[dict[str, Any]], Checked]) -> Checked:
    """Read the body of a request and return what `check` makes of its fields; of a large body in a thread.

    Raises: ServeError 400 or 415, what the guard raises of a body, and what `check` raises.
    """
    content = await _read(request)
    return check(parse(content)) if len(content) <= SMALL_BYTES else await asyncio.to_thread(lambda: check(parse(content)))


async def _read(request: Request) -> bytearray:
    """Return the body of a request. Raises: ServeError 415, and what the guard raises of a body."""
    _check_kind(request.headers)
    _check_encoding(request.headers)
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
    return content


def _check_kind(headers: Mapping[str, str]) -> None:
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ServeError(415, "unsupported_media_type", "The body must be JSON: send Content-Type: application/json.")


def _check_encoding(headers: Mapping[str, str]) -> None:
    if headers.get("content-encoding", "identity").strip().lower() not in ("identity", ""):
        raise ServeError(415, "unsupported_content_encoding", "Compressed bodies are not read: send the body as it is.")


def parse(content: bytes | bytearray) -> dict[str, Any]:
    """Parse a JSON object: no NaN, no infinity, no key twice, no half characters, not too many values. Raises: ServeError 400."""
    if sum(map(content.count, (b",", b"[", b"{"))) > MAX_MARKS:
        message = f"A body may have at most {MAX_MARKS} commas and brackets, those of texts among them."
        raise ServeError(400, "too_many_values", message)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise ServeError(400, "invalid_encoding", "The body is not UTF-8.") from None
    try:
        found = json.loads(text, object_pairs_hook=_Objects().make, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError):
        raise ServeError(400, "invalid_json", "The body is not valid JSON.") from None
    if not isinstance(found, dict):
        raise ServeError(400, "invalid_type", "The body must be a JSON object.")
    if _SURROGATE.search(content):  # pairs are characters; a half one is none, and cannot be written as UTF-8
        try:
            json.dumps(found, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise ServeError(400, "invalid_encoding", "The body holds one half of a surrogate pair, which is no character.") from None
    return found


class _Objects:
    """Makes the objects of one body, and counts their fields."""

    def __init__(self) -> None:
        self.num_fields = 0

    def make(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Return an object. Raises: ServeError 400."""
        self.num_fields += len(pairs)
        if self.num_fields > MAX_FIELDS:
            raise ServeError(400, "too_many_values", f"The objects of a body may have at most {MAX_FIELDS} fields.")
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ServeError(400, "duplicate_key", "The body gives a field twice.")
        return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(digits)
    return number


def validate(model: type[Model], fields: dict[str, Any]) -> Model:
    """Return the fields as a checked object. Raises: ServeError 400 naming the first field that is wrong."""
    try:
        return model.model_validate(fields, strict=True)
    except ValidationError as error:
        raise explain(error) from None


def explain(error: ValidationError) -> ServeError:
    """Return what a client is told of fields that are wrong: the first of them, in our words."""
    first = error.errors(include_url=False, include_input=False)[0]
    param = name_field(first["loc"])
    if first["type"] == "value_error":
        found = first["ctx"]["error"]
        if isinstance(found, FieldError):
            return ServeError(400, found.code, str(found), found.param or param)
        return ServeError(400, "invalid_value", f"{param} {found}" if param else str(found), param)
    if first["type"].startswith("union_tag"):
        param = f"{param}.{first['ctx']['discriminator'].strip(chr(39))}"
    is_either = first["type"] == "list_type" and first["loc"][-1] == "<list>"
    reason = (
        "must be text or a list" if is_either else _REASONS.get(first["type"], "has a value that is not accepted").format_map(first.get("ctx", {}))
    )
    code = {"missing": "missing_field", "extra_forbidden": "unknown_field"}.get(first["type"], "invalid_value")
    return ServeError(400, code, f"{param or 'The body'} {reason}.", param)


def name_field(place: tuple[int | str, ...]) -> str | None:
    """Return a field's name as messages[0].content, without pydantic's names of alternatives; keys that a client made up are left out."""
    kept: list[int | str] = []
    for before, step in zip((None, *place), place, strict=False):
        is_kind = isinstance(before, int) and tuple(name for name in kept if isinstance(name, str)) in _LISTS_OF_KINDS
        if isinstance(step, int) or (step.isidentifier() and len(step) <= 64 and not is_kind):
            kept.append(step)
    name = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in kept)
    return name.removeprefix(".") or None
