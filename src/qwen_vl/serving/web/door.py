"""The door between the network and Gradio: only the routes that the page itself uses, and headers that keep the browser to this server.

Gradio brings dozens of routes: uploads, files, proxies, histories, monitoring, an editor. The page needs none of them, so none is reachable.
"""

import re

from starlette.datastructures import MutableHeaders
from starlette.routing import Match, Mount
from starlette.types import Message, Receive, Scope, Send

PAGE_ROUTES = re.compile(
    r"/|/config|/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt|/(?:assets|static|svelte)/[\w./-]+"
    r"|/gradio_api/(?:heartbeat/\w+|queue/data|app_id|startup-events|theme\.css)"
)
EVENT_ROUTES = frozenset({"/gradio_api/queue/join", "/gradio_api/run/predict"})

# Gradio compiles templates in the browser and writes styles into elements, hence the 'unsafe' ones; texts of users and models are escaped.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'self'",
    )
)


class Door(Mount):
    """Takes what the page's own script asks for and leaves everything else to the application's other routes: they refuse it in their own words.

    A plain mount at the root takes every path, also those that another route knows by another method: 405 would be 404, in a form of Gradio's.
    """

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Tell whether the page uses what is asked for."""
        match, inner = super().matches(scope)
        if match is Match.FULL and scope["type"] == "http" and is_open(scope["method"], scope["path"].removeprefix(inner["root_path"])):
            return match, inner
        return Match.NONE, {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""

        async def adding(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                if headers.get("content-type", "").startswith("text/html"):
                    headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
            await send(message)

        await super().handle(scope, receive, adding)


def is_open(method: str, path: str) -> bool:
    """Tell whether the page uses this route."""
    if method == "POST":
        return path in EVENT_ROUTES
    return method in ("GET", "HEAD") and ".." not in path and PAGE_ROUTES.fullmatch(path or "/") is not None
