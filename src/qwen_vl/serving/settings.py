"""Everything that a server can be told, with the limits that it keeps by default.

ServeSettings(port=8000, api_keys=("secret",), max_running=32)
"""

import ipaddress
from dataclasses import dataclass, field

from qwen_vl.errors import ConfigError

MIB = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeSettings:
    """Settings of one server. Every limit holds for one request unless it says otherwise."""

    model_name: str = "nano"  # what clients call the model
    host: str = "127.0.0.1"
    port: int = 8000  # 0: any free one
    api_keys: tuple[str, ...] = field(default=(), repr=False)  # none: everybody who can connect may ask
    allow_open: bool = False  # bind to other addresses than this machine's own without keys
    box_tags: bool = False  # read closed <ref>, <box>, <quad> pairs in texts as the model's own tokens

    max_body_bytes: int = 32 * MIB
    max_held_bytes: int = 512 * MIB  # of all requests' bodies, and files fetched for them, that come in or are still needed
    max_image_bytes: int = 20 * MIB  # of one picture's file
    max_image_pixels: int = 50_000_000  # of one picture
    max_images: int = 8
    max_text_chars: int = 256 * 1024  # of all messages
    max_messages: int = 1024
    max_parts: int = 1024  # of content, of all messages: one for each, as DashScope's clients write them
    max_context: int | None = None  # tokens of prompt and answer; None: the model's own
    max_choices: int = 8  # `n`
    max_logprobs: int = 20
    max_stops: int = 16
    max_stop_chars: int = 256  # of one stop string
    allowed_hosts: frozenset[str] = frozenset()  # whose pictures are fetched, exact names; none: fetching is off

    max_running: int = 16  # answers that are written at once, of all requests
    max_waiting: int = 64  # requests that wait for a place; more are told to come again
    body_timeout_s: float = 10.0  # for the whole body of a request
    send_timeout_s: float = 30.0  # a reader that takes nothing for so long is dropped
    idle_timeout_s: float = 30.0  # a connection that sends nothing for so long is closed
    watchdog_s: float | None = None  # an engine that does nothing for so long, with work to do, hangs; None: what suits the machine
    grace_s: float = 10.0  # for answers in flight, once the server is told to stop

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port={self.port} must be from 0 (any free one) to 65535.")
        for name in (
            *("max_body_bytes", "max_held_bytes", "max_image_bytes", "max_image_pixels", "max_images", "max_text_chars", "max_messages", "max_parts"),
            *("max_choices", "max_running", "max_stops", "max_stop_chars", "body_timeout_s", "send_timeout_s", "idle_timeout_s", "watchdog_s"),
        ):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)!r} must be above 0.")
        for name in ("max_waiting", "max_logprobs", "grace_s"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}={getattr(self, name)!r} must not be negative.")
        if self.max_held_bytes < self.max_body_bytes:
            raise ConfigError(f"max_held_bytes={self.max_held_bytes} leaves no room for one body of max_body_bytes={self.max_body_bytes}.")
        if self.max_context is not None and self.max_context < 2:
            raise ConfigError(f"max_context={self.max_context} leaves no room for a prompt and an answer.")
        if not self.api_keys and not self.allow_open and not self.is_local:
            raise ConfigError(
                f"{self.host} can be reached from other machines, and no API key is set: everybody could use this server. "
                "Give --api-key-file (or QWEN_VL_API_KEY), bind to 127.0.0.1, or say --allow-open."
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
