"""Deploy gateway and replicas on Ray Serve, and wait until somebody says stop.

One machine needs no preparation: a Ray of its own is started and ended with the command. With RAY_ADDRESS, or `ray start` before, the replicas
are spread over the machines of that cluster.
"""

import logging
import math
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any, cast

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.config import AutoscalingConfig, HTTPOptions
from ray.serve.exceptions import RayServeException
from ray.serve.schema import LoggingConfig

from qwen_vl.api import QwenVL
from qwen_vl.errors import CapacityError, ConfigError
from qwen_vl.serving.app import create_app
from qwen_vl.serving.run import FAILED, FLUSH_S, FORCED, end_within, freeze_garbage, listen, url_of, warm_up, with_patience
from qwen_vl.serving.settings import ServeSettings
from qwen_vl.serving.uploads import UploadLimits

from . import door
from .deployment import APPLICATION, REPLICA, GatewayDeployment
from .lending import LentUploads
from .replica import Replica

logger = logging.getLogger(__name__)

ROOM = 1.25  # a replica holds a few requests more than it writes answers, so that it never waits for the next one
TARGET = 0.75  # of its places: above, another replica is started
HEALTH_S, HEALTH_TIMEOUT_S = 2.0, 10.0
MORE = 256  # requests that the gateway refuses, or answers by itself, at once


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleSettings:
    """How many replicas, and what each of them is given."""

    replicas: int = 2
    max_replicas: int | None = None  # more than `replicas`: up to so many, as the load asks for
    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.replicas <= 1024:
            raise ConfigError(f"replicas={self.replicas} must be from 1 to 1024.")
        if self.max_replicas is not None and not self.replicas <= self.max_replicas <= 1024:
            raise ConfigError(f"max_replicas={self.max_replicas} must be from replicas={self.replicas} to 1024.")
        for name in ("cpus", "gpus"):
            if not 0 <= getattr(self, name) <= 1024:
                raise ConfigError(f"{name}={getattr(self, name)!r} must be from 0 to 1024.")

    def max_requests(self, settings: ServeSettings) -> int:
        """Return how many requests may be in: those that the replicas take, and those that wait for them."""
        return (self.max_replicas or self.replicas) * _room(settings) + settings.max_waiting

    def options(self, settings: ServeSettings) -> dict[str, Any]:
        """Return the options of the replicas' deployment."""
        options: dict[str, Any] = {
            "max_ongoing_requests": _room(settings),
            "max_queued_requests": settings.max_waiting,
            "graceful_shutdown_timeout_s": settings.grace_s,
            "health_check_period_s": HEALTH_S,
            "health_check_timeout_s": HEALTH_TIMEOUT_S,
            "ray_actor_options": {"num_cpus": self.cpus, "num_gpus": self.gpus},
        }
        if self.max_replicas is None or self.max_replicas == self.replicas:
            return options | {"num_replicas": self.replicas}
        wanted = max(1.0, settings.max_running * TARGET)
        return options | {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=self.replicas, initial_replicas=self.replicas, max_replicas=self.max_replicas, target_ongoing_requests=wanted
            )
        }


def _room(settings: ServeSettings) -> int:
    """Return how many requests a replica takes."""
    return round(settings.max_running * ROOM)


def make_app(load: Callable[[], QwenVL], settings: ServeSettings) -> FastAPI:
    """Return a replica's application, whose process ends when its engine has: Ray notices that at once, and starts another replica.

    The gateway has asked for the key already. The replica asks again, as the key says whose work its caches may show.
    """
    vl = load()
    patient = with_patience(settings, warm_up(vl))
    app = create_app(vl, patient, on_failure=lambda: end_within(FLUSH_S, FAILED), uploads=LentUploads(UploadLimits.of(settings)))
    freeze_garbage()
    return cast(FastAPI, app)


def serve_replicas(load: Callable[[], QwenVL], settings: ServeSettings, scale: ScaleSettings, *, greet: Callable[[str], None]) -> int:
    """Serve a model with several replicas until a signal comes, and return the exit code.

    Args:
        load: loads the model, in each replica.
        greet: called with the address once all answer.
    Raises: ConfigError for an address that cannot be used; CapacityError if the machines have no room for the replicas, or a replica cannot load.
    """
    with listen(settings) as found:  # a mistake is told at once; the port is Ray's afterwards
        port, url = found.getsockname()[1], url_of(found)
    start_ray(scale)
    stop = Stop()  # after Ray, which has handlers of its own
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        serve.start(
            http_options=HTTPOptions(host=settings.host, port=port, keep_alive_timeout_s=int(settings.idle_timeout_s) or 1),
            logging_config=quiet,
        )
        replicas = serve.deployment(Replica).options(name=REPLICA, logging_config=quiet, **scale.options(settings))
        max_requests = scale.max_requests(settings)
        gateway = serve.deployment(GatewayDeployment).options(
            name="gateway",
            logging_config=quiet,
            max_ongoing_requests=2 * max_requests + MORE,  # beyond its own bound, so that it can refuse, and tell its health
            graceful_shutdown_timeout_s=1.0,  # it has drained before
            ray_actor_options={"num_cpus": 0},
        )
        try:
            bound = gateway.bind(settings, max_requests, replicas.bind(partial(make_app, load, settings)))
            deployed = serve.run(bound, name=APPLICATION, route_prefix="/")
        except (RuntimeError, RayServeException):
            raise CapacityError("the replicas did not start; what they wrote above says why") from None
        greet(url)
        stop.wait()
        logger.warning("stopping: answers in flight have %g s; a second signal ends them now", settings.grace_s)
        deployed.drain.remote().result()
    finally:
        if "RAY_ADDRESS" in os.environ:
            serve.delete(APPLICATION)  # the cluster, and what else it serves, go on
        ray.shutdown()
    return 0


def start_ray(scale: ScaleSettings) -> None:
    """Join the cluster that RAY_ADDRESS names, or start a Ray of one's own, for this machine alone."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    os.environ.setdefault(door.VARIABLE, door.VALUE)  # for a Ray of one's own: a cluster's proxies have what `ray start` was given
    if "RAY_ADDRESS" in os.environ:
        ray.init(configure_logging=False)
        return
    needed = math.ceil(scale.cpus * (scale.max_replicas or scale.replicas))  # more than there are: nano's replicas may share a processor
    ray.init(include_dashboard=False, num_cpus=max(os.cpu_count() or 1, needed), configure_logging=False)


class Stop:
    """Waits for SIGTERM or SIGINT; the second of them ends the process."""

    def __init__(self) -> None:
        self._event = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._event.is_set():
            os._exit(FORCED)
        self._event.set()

    def wait(self) -> None:
        """Wait until a signal came."""
        while not self._event.wait(1.0):
            pass
