"""What Ray is told, and what a replica tells it. Needs the package, but starts no Ray."""

import asyncio
import signal
import warnings
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what Ray does to pydantic is Ray's
    pytest.importorskip("ray.serve")

from qwen_vl.errors import CapacityError, ConfigError
from qwen_vl.serving.errors import engine_down
from qwen_vl.serving.run import FAILED, FLUSH_S, FORCED, with_patience
from qwen_vl.serving.scale import run
from qwen_vl.serving.scale.lending import LentUploads
from qwen_vl.serving.scale.replica import Replica
from qwen_vl.serving.scale.run import ScaleSettings, Stop, make_app
from qwen_vl.serving.settings import ServeSettings


def test_the_load_starts_more_replicas_up_to_a_bound() -> None:
    settings = ServeSettings(max_running=16, max_waiting=64, grace_s=7)
    fixed = ScaleSettings(replicas=3, cpus=2, gpus=0.5).options(settings)
    assert (fixed["num_replicas"], fixed["max_ongoing_requests"], fixed["max_queued_requests"]) == (3, 20, 64) and "autoscaling_config" not in fixed
    assert fixed["ray_actor_options"] == {"num_cpus": 2, "num_gpus": 0.5} and fixed["graceful_shutdown_timeout_s"] == 7
    growing = ScaleSettings(replicas=2, max_replicas=5)
    found = growing.options(settings)["autoscaling_config"]
    assert (found.min_replicas, found.initial_replicas, found.max_replicas, found.target_ongoing_requests) == (2, 2, 5, 12)
    assert "num_replicas" not in growing.options(settings)
    assert (ScaleSettings(replicas=2).max_requests(settings), growing.max_requests(settings)) == (2 * 20 + 64, 5 * 20 + 64)


@pytest.mark.parametrize("wrong", [{"replicas": 0}, {"replicas": 3, "max_replicas": 2}, {"cpus": -1}, {"gpus": float("nan")}])
def test_impossible_numbers_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must be from"):
        ScaleSettings(**wrong)


def test_a_replica_has_the_patience_of_its_machine_and_ends_with_its_engine() -> None:
    settings = ServeSettings(api_keys=("key",))
    with (
        mock.patch.object(run, "warm_up", return_value=3.0),
        mock.patch.object(run, "freeze_garbage"),
        mock.patch.object(run, "create_app") as create,
        mock.patch.object(run, "end_within") as end,
    ):
        make_app(mock.Mock(), settings)
        (_, given), named = create.call_args
        assert given == with_patience(settings, 3.0) != settings and given.api_keys == ("key",)  # which name the owner of what its caches keep
        assert isinstance(named["uploads"], LentUploads)
        named["on_failure"]()
        end.assert_called_once_with(FLUSH_S, FAILED)


def replica_of(app: Any) -> Any:
    """Return a replica that runs an application."""
    played = type("Played", (Replica,), {"__del__": lambda self: None})  # Ray awaits the replica's own
    found: Any = object.__new__(played)
    found.name, found.app = "one", app
    return found


def test_a_replica_is_unhealthy_once_its_engine_is_gone() -> None:
    app = SimpleNamespace(state=SimpleNamespace(service=SimpleNamespace(failure=None)))
    asyncio.run(replica_of(app).check_health())
    app.state.service.failure = engine_down()
    with pytest.raises(CapacityError):
        asyncio.run(replica_of(app).check_health())


class Down:
    """An application whose engine dies while it is asked. Args: status: of its answer."""

    def __init__(self, status: int) -> None:
        self.status, self.state = status, SimpleNamespace(service=SimpleNamespace(failure=None))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.state.service.failure = engine_down()
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": b"a last event"})


def test_a_replica_without_an_engine_says_nothing_that_another_can_say_better() -> None:
    async def first(status: int) -> Any:
        with mock.patch("ray.serve.get_multiplexed_model_id", return_value=""):
            return await asyncio.wait_for(anext(replica_of(Down(status)).answer({"type": "http"}, b"", {})), 0.3)

    assert asyncio.run(first(200))["status"] == 200  # it had begun
    with pytest.raises(TimeoutError):
        asyncio.run(first(503))


def test_a_second_signal_ends_the_process() -> None:
    with mock.patch("signal.signal") as handle, mock.patch("os._exit", side_effect=SystemExit) as end:
        stop = Stop()
        notes = {call.args[0]: call.args[1] for call in handle.call_args_list}
        notes[signal.SIGTERM](signal.SIGTERM, None)
        stop.wait()
        assert not end.called
        with pytest.raises(SystemExit):
            notes[signal.SIGINT](signal.SIGINT, None)
        end.assert_called_once_with(FORCED)
