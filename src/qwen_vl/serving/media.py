"""The one way by which a picture comes into the server, and all that guards it.

    loader = MediaLoader(MediaLimits.of(settings, Resolution(image_size=448)), Bodies(settings.max_held_bytes), uploads)
    picture = await loader.load("data:image/png;base64,iVBOR..", owner)  # PIL, RGB, of the size at which the model sees it

A reference is a data URI, the handle of an upload of the same key, or, where the server's operator has listed hosts, an address on one of them.
Nothing else is read: no path, no other scheme, and no text but that of a picture part (RELIABILITY section 0, 1 to 9). What a picture costs is
bounded before it is paid: length of the text before base64 is decoded, bytes while they come in, format by the first bytes, pixels by the header,
memory and time by the process that decodes (`decoder`). Messages are fixed sentences.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from qwen_vl.errors import ImageError, ImageFormatError, ImageSizeError
from qwen_vl.processing.decoding import FORMATS, is_picture
from qwen_vl.processing.fetch import FetchPolicy, fetch
from qwen_vl.processing.resolution import Resolution
from qwen_vl.processing.sources import read_data_uri
from qwen_vl.serving.bodies import Bodies
from qwen_vl.serving.decoder import DecoderLimits, DecoderPool
from qwen_vl.serving.errors import ServeError
from qwen_vl.serving.settings import ServeSettings
from qwen_vl.serving.threads import Threads
from qwen_vl.serving.uploads import PREFIX, UploadStore

NUM_FETCHERS = 8  # addresses that are fetched at once, of all requests
FETCH_S = 10.0  # for one address: look-up, connection, redirects and all bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaLimits:
    """What pictures may be, where from, and what they may cost."""

    max_bytes: int = 20 * 2**20  # of one file
    allowed_hosts: frozenset[str] = frozenset()  # whose pictures are fetched, see FetchPolicy; none: fetching is off
    fetch_s: float = FETCH_S
    decoder: DecoderLimits = field(default_factory=DecoderLimits)

    @classmethod
    def of(cls, settings: ServeSettings, resolution: Resolution) -> "MediaLimits":
        """Return the limits of a server whose model sees pictures at this resolution."""
        return cls(
            max_bytes=settings.max_image_bytes,
            allowed_hosts=frozenset(host.lower() for host in settings.allowed_hosts),
            decoder=DecoderLimits(max_pixels=settings.max_image_pixels, resolution=resolution),
        )


class MediaLoader:
    """Loads pictures for requests, off the event loop. Close it when the server ends.

    Args: bodies: counts what requests hold; files that were fetched for them are held as their bodies are.
    """

    def __init__(self, limits: MediaLimits, bodies: Bodies, uploads: UploadStore | None = None) -> None:
        self.limits, self.bodies, self.uploads = limits, bodies, uploads
        self.decoders = DecoderPool(limits.decoder)
        self._decoding = Threads(limits.decoder.num_workers, "decode")
        self._fetching = Threads(NUM_FETCHERS, "fetch")

    async def load(self, reference: Any, owner: str = "") -> Image.Image:
        """Return the picture in RGB; `info["original_size"]` is its (width, height) before it was resized.

        Args:
            reference: what a picture part of the request says.
            owner: whose uploads may be named.
        Raises: ServeError: 400 for what is not allowed, not there or not a picture; 429 if all that is held is too much; 503 if the process that
                decoded it died.
        """
        if not isinstance(reference, str):
            raise _not_allowed()
        scheme = reference[:8].lower()
        if scheme.startswith("data:"):
            return await self._decoding.run(self._load_data_uri, reference)
        if scheme.startswith(PREFIX) and self.uploads is not None:
            content = self.uploads.get(reference, owner)
        elif scheme.startswith(("http://", "https://")):
            content = await self._fetch(reference)
            with self.bodies.hold() as fetched:
                fetched.grow(len(content))
                return await self._decoding.run(self._decode, content)
        else:
            raise _not_allowed()
        return await self._decoding.run(self._decode, content)

    def start(self) -> None:
        """Start the processes that decode, so that the first pictures need not wait for it."""
        self.decoders.start()

    def close(self) -> None:
        """End the processes that decode, and take no more pictures."""
        self.decoders.close()
        self._decoding.close()
        self._fetching.close()

    def _load_data_uri(self, uri: str) -> Image.Image:
        """Decode a data URI. Raises: ServeError."""
        try:
            content = read_data_uri(uri, self.limits.max_bytes)
        except ImageSizeError:
            raise self._too_large() from None
        except ImageFormatError:
            raise _wrong_format() from None
        except ImageError:
            message = 'A picture\'s data URI must be "data:image/png;base64," (or another format) and base64 in the standard alphabet.'
            raise ServeError(400, "invalid_image_url", message, "messages") from None
        return self.decoders.decode(content)

    def _decode(self, content: bytes) -> Image.Image:
        """Decode a file. Raises: ServeError."""
        if not is_picture(content):
            raise _wrong_format()
        return self.decoders.decode(content)

    async def _fetch(self, url: str) -> bytes:
        """Return the file at an address. Raises: ServeError, the same for all that the network says: a client must not explore it through us."""
        if not self.limits.allowed_hosts:
            message = "This server fetches no pictures. Send the picture itself: data:image/png;base64,.."
            raise ServeError(400, "remote_images_disabled", message, "messages")
        try:
            async with asyncio.timeout(self.limits.fetch_s + 1):  # also for those who wait for a thread
                return await self._fetching.run(self._fetch_now, url)
        except ImageSizeError:
            raise self._too_large() from None
        except (ImageError, TimeoutError):
            message = "A picture could not be fetched: this server may not fetch from its host, or found no picture there. Send the picture itself."
            raise ServeError(400, "image_fetch_failed", message, "messages") from None

    def _fetch_now(self, url: str) -> bytes:
        """Fetch, which takes time. Raises: ImageError."""
        limits = self.limits
        return fetch(url, FetchPolicy(timeout_s=limits.fetch_s, max_bytes=limits.max_bytes, allowed_hosts=limits.allowed_hosts, allow_private=False))

    def _too_large(self) -> ServeError:
        return ServeError(400, "image_too_large", f"A picture's file may have at most {self.limits.max_bytes} bytes. Shrink the picture.", "messages")


def _wrong_format() -> ServeError:
    return ServeError(400, "unsupported_image_format", f"A picture is not a {FORMATS} file. Convert it.", "messages")


def _not_allowed() -> ServeError:
    message = "A picture must be a data URI, the handle of an upload, or an address that this server may fetch."
    return ServeError(400, "invalid_image_url", message, "messages")
