"""A door in Ray's proxy, in front of its own addresses: they answer without a key, and name the application.

Ray's proxies load it by its name, from RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH.
"""

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

RAYS = "/-/"  # begins them
VARIABLE, VALUE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", f"{__name__}.middlewares"


class Door:
    """Makes Ray's own addresses addresses like all others, which the gateway refuses: the proxy knows them by their exact names."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        path = scope.get("path", "")
        await self.app({**scope, "path": f"{path}/"} if path.startswith(RAYS) else scope, receive, send)


def middlewares() -> list[Middleware]:
    """Return what a proxy puts before itself."""
    return [Middleware(Door)]
