"""The upload of local files as DashScope's SDK does it: it asks for a permission with its key, then sends the file where it was told to."""

import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager

from fastapi import APIRouter, Request
from starlette.responses import Response

from qwen_vl.serving.errors import DASHSCOPE, ServeError
from qwen_vl.serving.forms import read_form
from qwen_vl.serving.stream import JSONAnswer
from qwen_vl.serving.uploads import UploadStore

UPLOADS = f"{DASHSCOPE}uploads"
FORM_BYTES = 64 * 1024  # of an upload's form, besides the file


def make_upload_router(uploads: UploadStore, admit: Callable[[], AbstractContextManager[None]]) -> APIRouter:
    """Return the two routes. Args: admit: holds a place for a request whose body is read."""
    router = APIRouter()

    @router.get(UPLOADS)
    async def permit(request: Request, action: str = "") -> Response:
        """Give a permission to upload files, in the form that the SDK knows."""
        if action != "getPolicy":
            raise ServeError(400, "invalid_value", "action must be getPolicy.", "action")
        token, given = uploads.permit(owner_of(request))
        data = {
            "policy": "see upload_host",  # where the permission stands, so that it is checked before a body is read
            "signature": "see upload_host",
            "upload_dir": given.folder,
            "upload_host": f"{str(request.base_url).rstrip('/')}{UPLOADS}/{token}",
            "expire_in_seconds": int(uploads.limits.permit_s),
            "max_file_size_mb": uploads.limits.max_bytes // 2**20,
            "capacity_limit_mb": uploads.limits.max_owner_bytes // 2**20,
            "oss_access_key_id": "none",
            "x_oss_object_acl": "private",
            "x_oss_forbid_overwrite": "true",
        }
        return JSONAnswer({"request_id": str(uuid.uuid4()), "data": data})

    @router.post(f"{UPLOADS}/{{token}}", openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": FILE_FORM}}}})
    async def upload(request: Request, token: str) -> Response:
        """Take a file from whoever has a permission; it is what lets in here, not a key."""
        permit = uploads.read(token)  # before anything of the body is read
        with admit():
            fields = read_form(request.headers.get("content-type", ""), await read_body(request, uploads.limits.max_bytes + FORM_BYTES))
            folder, slash, name = fields.get("key", b"").decode("utf-8", "replace").partition("/")
            if folder != permit.folder or not slash or "file" not in fields:
                raise ServeError(400, "invalid_form", "The form must have the fields key, as <upload_dir>/<file name>, and file.")
            uploads.put(permit, name, fields["file"])
        return Response(status_code=200)

    return router


FILE_FORM = {
    "type": "object",
    "required": ["key", "file"],
    "properties": {"key": {"type": "string"}, "file": {"type": "string", "format": "binary"}},
}


def owner_of(request: Request) -> str:
    """Return whose key came with the request."""
    return str(request.scope.get("state", {}).get("owner", ""))


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Read a body that may be shorter than those of other routes. Raises: ServeError 413, and what the guard raises of a body."""
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > max_bytes:
            raise ServeError(413, "request_too_large", "The uploaded file is too large.")
    return bytes(content)
