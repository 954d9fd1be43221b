"""The program that decodes other people's pictures: a process of its own, small, and with nothing to steal or break.

It reads requests from stdin and writes replies to stdout, in a form so plain that nothing has to be trusted in it: what comes back is numbers and
pixels, never an object. Decoders have been taken over by pictures before; here that gains a process without secrets, which cannot write files
and whose memory is limited. Torch is not loaded.

    python -m qwen_vl.processing.decode_worker MEMORY_BYTES MAX_PIXELS MAX_ASPECT IMAGE_SIZE PATCH_SIZE MAX_PATCHES

The last three are the model's resolution: no IMAGE_SIZE (0) leaves pictures as they are, no MAX_PATCHES (0) makes squares.

Request: its length (8 bytes), the file. Reply: `REPLY`, then the pixels of a decoded picture, RGB, row by row.
"""

import os
import struct
import sys
from typing import BinaryIO

from qwen_vl.errors import ImageError, ImageFormatError, ImageSizeError
from qwen_vl.processing.decoding import decode_picture
from qwen_vl.processing.resolution import Resolution

LENGTH = struct.Struct("<Q")
REPLY = struct.Struct("<BIIII")  # what became of it; (width, height) of the file's picture; (width, height) of the pixels that follow
DECODED, DAMAGED, WRONG_FORMAT, WRONG_SIZE = range(4)


def confine(memory_bytes: int) -> None:
    """Limit this process for good: its memory, and no files written. Does nothing where the system has no such limits."""
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


def answer(content: bytes, max_pixels: int, max_aspect: int, resolution: Resolution | None) -> tuple[bytes, bytes]:
    """Decode one picture to the size that a model sees, or leave it at its own. Returns: the reply's head and its pixels."""
    try:
        image = decode_picture(content, "The picture", max_pixels, max_aspect)
        resized = resolution.fit(image) if resolution else image
        return REPLY.pack(DECODED, *image.size, *resized.size), resized.tobytes()
    except ImageFormatError:
        return REPLY.pack(WRONG_FORMAT, 0, 0, 0, 0), b""
    except (ImageSizeError, MemoryError):
        return REPLY.pack(WRONG_SIZE, 0, 0, 0, 0), b""
    except ImageError:
        return REPLY.pack(DAMAGED, 0, 0, 0, 0), b""


def serve(requests: BinaryIO, replies: BinaryIO, max_pixels: int, max_aspect: int, resolution: Resolution | None) -> None:
    """Answer requests until there are no more."""
    while len(head := requests.read(LENGTH.size)) == LENGTH.size:
        (length,) = LENGTH.unpack(head)
        content = requests.read(length)
        if len(content) < length:
            return
        for part in answer(content, max_pixels, max_aspect, resolution):
            replies.write(part)
        replies.flush()
        del content, part  # not until the next request, which may be hours away


def main(memory_bytes: int, max_pixels: int, max_aspect: int, image_size: int, patch_size: int, max_patches: int) -> None:
    """Confine the process, then serve what the pipes bring."""
    resolution = Resolution(image_size=image_size, patch_size=patch_size, max_patches=max_patches or None) if image_size else None
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = open(os.devnull, "w")  # what a library prints must not get among the replies
    confine(memory_bytes)
    serve(requests, replies, max_pixels, max_aspect, resolution)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
