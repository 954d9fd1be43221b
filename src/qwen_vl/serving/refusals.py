"""Errors as answers, in the form of the path's protocol: those that routes raise, and those that the framework finds."""

import traceback

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from qwen_vl.serving.errors import ServeError, translated
from qwen_vl.serving.stream import JSONAnswer


def tell_errors(app: FastAPI) -> None:
    """Let an application answer with our errors in place of the framework's."""
    app.add_exception_handler(ServeError, _tell_error)
    app.add_exception_handler(HTTPException, _tell_http_error)


async def _tell_error(request: Request, error: Exception) -> Response:
    """Answer with an error, and let go what the request said."""
    # Tasks and groups of tasks refer to the error and it to them by its frames, in which contents of up to 32 MiB would wait for a search for cycles.
    traceback.clear_frames(error.__traceback__)
    told = translated(error)
    return JSONAnswer(told.to_body(request.url.path), told.status, told.headers)


async def _tell_http_error(request: Request, error: Exception) -> Response:
    """Answer with an error that the framework found: a path or method that does not exist."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    known = {
        404: ServeError(404, "not_found", "This path does not exist here."),
        405: ServeError(405, "method_not_allowed", "This path takes another method."),
    }
    told = known.get(status, ServeError(status, "invalid_request", "The request cannot be read."))
    headers = error.headers if isinstance(error, HTTPException) and error.headers else {}
    return JSONAnswer(told.to_body(request.url.path), told.status, told.headers | dict(headers))
