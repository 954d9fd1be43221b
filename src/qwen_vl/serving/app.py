"""The application: routes, guard and life of one server, as a thing that uvicorn, Ray Serve or a test can run.

app = create_app(QwenVL.load(), ServeSettings(api_keys=("secret",)))
"""

import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPMethod
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwen_vl.api import QwenVL
from qwen_vl.processing.resolution import Resolution
from qwen_vl.serving import dashscope, openai
from qwen_vl.serving.errors import ServeError, translated, where
from qwen_vl.serving.media import MediaLimits, MediaLoader
from qwen_vl.serving.metrics import CONTENT_TYPE
from qwen_vl.serving.refusals import tell_errors
from qwen_vl.serving.schemas import ChatCompletionRequest, CompletionRequest
from qwen_vl.serving.security import Guard
from qwen_vl.serving.service import Service
from qwen_vl.serving.settings import ServeSettings
from qwen_vl.serving.stream import JSONAnswer
from qwen_vl.serving.uploads import UploadLimits, UploadStore

logger = logging.getLogger(__name__)

OPENAI_PREFIXES = ("/v1", "/compatible-mode/v1")  # the second is DashScope's name for the same
SCHEMAS = (ChatCompletionRequest, CompletionRequest, dashscope.GenerationRequest)
NO_PICTURES = {"image_size": 448}  # a text-only model takes none anyhow


def create_app(
    vl: QwenVL,
    settings: ServeSettings,
    *,
    on_failure: Callable[[], None] | None = None,
    has_page: bool = False,
    uploads: UploadStore | None = None,
) -> ASGIApp:
    """Return the application for a loaded model. Its service is `app.state.service`; it starts and ends with the application's lifespan.

    Args:
        on_failure: called when the engine is found dead or hanging; the process should end.
        has_page: a page for browsers is added, which are asked for the API key as a password.
        uploads: where pictures are that clients upload, if not in a store of its own.
    """
    uploads = uploads or UploadStore(UploadLimits.of(settings))
    service = Service(vl, settings, on_failure)
    media = MediaLoader(MediaLimits.of(settings, Resolution.of(vl.model.config.visual or NO_PICTURES)), service.bodies, uploads)

    @asynccontextmanager
    async def live(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        media.start()
        try:
            yield
        finally:
            media.close()
            await service.close()

    app = FastAPI(title="qwen-vl", docs_url=None, redoc_url=None, openapi_url="/openapi.json", redirect_slashes=False, lifespan=live)
    app.state.service, app.state.media = service, media
    for prefix in OPENAI_PREFIXES:
        app.include_router(openai.make_router(service, media), prefix=prefix)
    app.include_router(dashscope.make_router(service, media, uploads))
    add_own_routes(app, service)
    tell_errors(app)
    app.openapi = lambda: describe(app)  # type: ignore[method-assign]
    app.add_middleware(Watcher, service=service)
    app.add_middleware(Guard, settings=settings, bodies=service.bodies, has_page=has_page)
    return app


def add_own_routes(app: FastAPI, service: Service) -> None:
    """Add the routes that belong to no protocol."""

    @app.get("/health")
    async def health() -> Response:
        """Tell whether the engine works: 200, or 503 while it is down or the server stops."""
        return JSONAnswer({"status": service.status}, 200 if service.status == "ok" else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Give counts and times to Prometheus."""
        return Response(service.metrics.render(), media_type=CONTENT_TYPE)


def describe(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document, with the bodies that the routes read themselves."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version="1", routes=app.routes)
        known = document.setdefault("components", {}).setdefault("schemas", {})
        for schema in SCHEMAS:
            found = schema.model_json_schema(ref_template="#/components/schemas/{model}")
            known |= found.pop("$defs", {})
            known[schema.__name__] = found
        app.openapi_schema = document
    return app.openapi_schema


def name_route(scope: Scope) -> str:
    """Return the path of the route that took a request, without what the client filled in; "page" for all that the web page is made of."""
    if "app_root_path" in scope:  # of an application that was mounted
        return "page"
    route = scope.get("route")
    if not isinstance(route, APIRoute):
        return "other"
    # Of the request's own path nothing is kept but which prefix it has, so that there are no more names than routes.
    return next((each for each in OPENAI_PREFIXES if scope["path"].startswith(f"{each}/")), "") + route.path


class Watcher:
    """Counts requests, gives each a number, lets the service end it, and makes a plain error of what a route did not expect. It notes no contents."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started_s, status, number = time.monotonic(), 0, uuid.uuid4().hex

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", []), (b"x-request-id", number.encode())]}
            await send(message)

        async def answering(message: Message) -> None:
            if message["type"] == "http.response.start":
                note_answered()
            await noting(message)

        try:
            async with self.service.until_answered() as note_answered:
                await self.app(scope, receive, answering)
        except ClientDisconnect:  # while its body was read: nobody is left to be told
            status = status or 499
        except ServeError as error:
            if status:
                raise
            await JSONAnswer(error.to_body(scope["path"]), error.status, error.headers)(scope, receive, noting)
        except Exception as error:  # noqa: BLE001  the client is told, the log names the place, and the next request is served
            logger.error("request %s failed: %s", number, where(error))
            if status:  # the answer has begun, and cannot be taken back
                abort = scope.get("state", {}).get("abort")
                if abort is None:
                    raise
                abort()
                return
            told = translated(error)
            await JSONAnswer(told.to_body(scope["path"]), told.status, told.headers)(scope, receive, noting)
        finally:
            path, method = name_route(scope), scope["method"] if scope["method"] in HTTPMethod.__members__ else "other"
            self.service.metrics.requests.labels(path, str(status)).inc()
            logger.info("%s %s %s %d %.0f ms", number, method, path, status, 1000 * (time.monotonic() - started_s))
