"""Uploaded pictures for all replicas: the gateway keeps them, and lends each request those that it names.

They travel beside the body, each once, however often the body names it: a small body cannot grow large on its way.
"""

from collections.abc import Mapping, Sequence
from contextvars import Context, ContextVar, copy_context

from qwen_vl.serving.errors import ServeError
from qwen_vl.serving.uploads import UploadStore

_lent: ContextVar[Mapping[str, bytes]] = ContextVar("lent")


def lend(handles: Sequence[str], uploads: UploadStore, owner: str, max_images: int) -> dict[str, bytes]:
    """Return the files of the handles: what is not there, or is more than a request may have, the replica refuses in its own words."""
    if len(handles) > max_images:
        return {}
    found = {}
    for handle in handles:
        try:
            found[handle] = uploads.get(handle, owner)
        except ServeError:
            return {}
    return found


def borrowing(lent: Mapping[str, bytes]) -> Context:
    """Return a context for a task that answers a request, with what was lent for it."""
    context = copy_context()
    context.run(_lent.set, lent)
    return context


class LentUploads(UploadStore):
    """A replica's uploads: those of the request that is answered, and no others."""

    def get(self, handle: str, owner: str) -> bytes:
        """Return the file, which the gateway has found to be the owner's. Raises: ServeError 400."""
        content = _lent.get({}).get(handle)
        return super().get(handle, owner) if content is None else content  # of its own a replica has none, and says so
