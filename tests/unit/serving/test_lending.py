"""Uploaded pictures that travel beside a request."""

import asyncio
import io

import pytest
from PIL import Image

from qwen_vl.serving.errors import ServeError
from qwen_vl.serving.scale.lending import LentUploads, borrowing, lend
from qwen_vl.serving.uploads import UploadLimits, UploadStore


@pytest.fixture
def uploads() -> UploadStore:
    return UploadStore(UploadLimits())


def upload(uploads: UploadStore, name: str) -> tuple[str, bytes]:
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(buffer, "PNG")
    return uploads.put(uploads.read(uploads.permit("me")[0]), name, buffer.getvalue()), buffer.getvalue()


def test_what_a_request_names_is_lent_to_it_and_to_no_other(uploads: UploadStore) -> None:
    handle, content = upload(uploads, "a.png")
    at_replica = LentUploads(UploadLimits())

    async def answer() -> bytes:
        await asyncio.sleep(0)
        return at_replica.get(handle, "me")

    async def answer_both() -> tuple[bytes | BaseException, ...]:
        lent = asyncio.create_task(answer(), context=borrowing(lend([handle], uploads, "me", 8)))
        return await asyncio.gather(lent, asyncio.create_task(answer(), context=borrowing({})), return_exceptions=True)

    found, refused = asyncio.run(answer_both())
    assert found == content
    assert isinstance(refused, ServeError) and refused.code == "upload_not_found"


def test_what_the_replica_will_refuse_is_not_lent(uploads: UploadStore) -> None:
    handles = [upload(uploads, f"{number}.png")[0] for number in range(3)]
    assert list(lend(handles, uploads, "me", 3)) == handles
    assert lend(handles, uploads, "me", 2) == lend(handles, uploads, "somebody else", 3) == lend(["oss://0/none.png"], uploads, "me", 3) == {}
