"""The gateway as Ray Serve runs it."""

from collections.abc import Mapping
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
from starlette.types import ASGIApp

from qwen_vl.serving.errors import engine_down
from qwen_vl.serving.settings import ServeSettings

from .gateway import Gateway, Message, Messages, ReplicaLostError
from .traffic import overloaded

APPLICATION = "qwen-vl"
REPLICA = "replica"  # what Ray calls the replicas' deployment


@serve.ingress()
class GatewayDeployment:
    """The gateway, in an actor of its own. Args: replicas: Ray's handle of them; max_requests: so many are taken at once."""

    def __init__(self, settings: ServeSettings, max_requests: int, replicas: DeploymentHandle[Any]) -> None:
        self.replicas = replicas
        self.gateway = Gateway(settings, self._ask, count_ready, max_requests)

    def __serve_build_asgi_app__(self) -> ASGIApp:  # Ray asks for it, after the constructor
        return self.gateway.app

    async def drain(self) -> None:
        """Take nothing new, and return once answers in flight are complete, or cut after the grace time."""
        await self.gateway.traffic.drain(self.gateway.settings.grace_s)

    def _ask(self, key: str, scope: Message, body: bytes, lent: Mapping[str, bytes]) -> Messages:
        return Asked(self.replicas.options(stream=True, multiplexed_model_id=key).answer.remote(scope, body, lent))


class Asked:
    """The messages of a replica, with our errors in place of Ray's."""

    def __init__(self, messages: DeploymentResponseGenerator[Any]) -> None:
        self._messages = messages
        self.cancel = messages.cancel

    def __aiter__(self) -> "Asked":
        return self

    async def __anext__(self) -> Message:
        try:
            return await anext(self._messages)
        except BackPressureError:
            raise overloaded() from None
        except RayActorError:
            raise ReplicaLostError from None
        except (RayServeException, RayError):
            raise engine_down() from None


def count_ready() -> int | None:
    """Return how many replicas answer, as Ray's controller knows; None if it does not say."""
    try:
        deployments = serve.status().applications[APPLICATION].deployments
        return int(deployments[REPLICA].replica_states.get("RUNNING", 0))
    except (KeyError, RayServeException, RayError):
        return None
