"""`qwen-vl serve` without its guards, to measure what they cost. Never to be run for anything else.

Off are: keys, host names, the count and the time of bodies; strict JSON and the check of its characters; limits on texts and pictures; the processes
that decode pictures, which are decoded by a thread of the server instead.
"""

import json
import sys
from typing import Any

from PIL import Image

from qwen_vl.cli import main
from qwen_vl.processing.decoding import ORIGINAL_SIZE
from qwen_vl.processing.images import load_image
from qwen_vl.serving import app, body, media, openai
from qwen_vl.serving.decoder import DecoderPool


class NoGuard:
    """Passes everything on."""

    def __init__(self, app: Any, **_: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass it on."""
        if scope["type"] == "http":
            scope.setdefault("state", {})["owner"] = ""
        await self.app(scope, receive, send)


def decode_here(pool: DecoderPool, content: bytes) -> Image.Image:
    """Decode in this process."""
    limits = pool._workers[0].limits
    image = load_image(content)
    resized = limits.resolution.fit(image) if limits.resolution else image.copy()
    resized.info[ORIGINAL_SIZE] = image.size
    return resized


def remove_guards() -> None:
    """Take them all away."""
    instead: list[tuple[Any, str, Any]] = [
        (app, "Guard", NoGuard),
        (body, "parse", json.loads),
        (openai, "check_size", lambda *_: None),
        (openai, "check_limits", lambda *_: None),
        (media, "is_picture", lambda _: True),
        (DecoderPool, "decode", decode_here),
        (DecoderPool, "start", lambda _: None),
    ]
    for owner, name, replacement in instead:
        if not hasattr(owner, name):
            raise AttributeError(f"there is no {name} any more: mend this list")
        setattr(owner, name, replacement)


if __name__ == "__main__":
    remove_guards()
    sys.argv.insert(1, "serve")
    main()
