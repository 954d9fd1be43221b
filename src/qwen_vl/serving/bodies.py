"""What the bodies of all requests together may hold of the memory, counted while they come.

bodies = Bodies(512 * 2**20)
with bodies.hold() as body:
    body.grow(len(chunk))   # 429 if there is no room
    ...
    body.let_go()           # earlier than the block's end, if nothing is kept any more of what came
"""

from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import Request

from qwen_vl.serving.errors import ServeError

BODY = "body"  # in the state of a request's scope: its `HeldBody`


class Bodies:
    """Bytes of bodies, and of files fetched for requests, that come in or are still needed. For one event loop."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.num_bytes = max_bytes, 0

    @contextmanager
    def hold(self) -> Iterator["HeldBody"]:
        """Count one request's body until it lets go, at the end of the block at the latest."""
        body = HeldBody(self)
        try:
            yield body
        finally:
            body.let_go()


class HeldBody:
    """The body of one request."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies, self._num_bytes = bodies, 0

    def grow(self, num_bytes: int) -> None:
        """Count bytes that came. Raises: ServeError 429 if all bodies together are too large; these bytes are not to be kept."""
        if self._bodies.num_bytes + num_bytes > self._bodies.max_bytes:
            raise ServeError(429, "overloaded", "The requests that are in work hold as much as they may. Try again in a moment.", retry_after_s=1)
        self._bodies.num_bytes += num_bytes
        self._num_bytes += num_bytes

    def let_go(self) -> None:
        """Count it no more; any number of times."""
        self._bodies.num_bytes -= self._num_bytes
        self._num_bytes = 0


def let_go(request: Request) -> None:
    """Note that nothing large is kept any more of what a request's body said."""
    body = request.scope.get("state", {}).get(BODY)
    if body is not None:
        body.let_go()
