"""The service on a tiny model: admission, cancelled clients, slow readers, drains and engines that die."""

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qwen_vl.api import QwenVL
from qwen_vl.modeling.model import QWenLMHeadModel
from qwen_vl.serving.errors import ServeError, translated, where
from qwen_vl.serving.service import ChatRequest, Service
from qwen_vl.serving.settings import ServeSettings
from tests.tiny import make_checkpoint

Play = Callable[[Service], Awaitable[Any]]
LONG = {"max_new_tokens": 700, "min_new_tokens": 700}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny") / "chat")


@pytest.fixture
def run(folder: Path) -> Iterator[Callable[..., Any]]:
    """Play something with a service of its own."""

    def play(what: Play, **settings: Any) -> Any:
        async def live() -> Any:
            service = Service(QwenVL.load(folder, device="cpu"), ServeSettings(**{"max_running": 3, "max_choices": 3, "max_waiting": 2, **settings}))
            await service.start()
            try:
                async with asyncio.timeout(120):
                    return await what(service)
            finally:
                await service.close()

        return asyncio.run(live())

    yield play


def request(text: str = "what?", **fields: Any) -> ChatRequest:
    sampling = fields.pop("sampling", {"max_new_tokens": 12})
    return ChatRequest(messages=[{"role": "user", "content": text}], sampling=sampling, **fields)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


def is_free(service: Service) -> bool:
    statistics = service.vl.engine.statistics()
    return service.places.num_free == 3 and not statistics.num_waiting + statistics.num_reading + statistics.num_writing


def test_deltas_are_the_answers(run: Callable[..., Any]) -> None:
    async def play(service: Service) -> None:
        async with await service.open(request(n=3, sampling={"max_new_tokens": 12, "temperature": 1.0, "seed": 1})) as generation:
            texts, lasts = ["", "", ""], []
            async for delta in generation:
                texts[delta.index] += delta.text
                lasts += [delta.index] if delta.answer else []
        answers = [answer.text for answer in generation.answers if answer]
        assert texts == answers and sorted(lasts) == [0, 1, 2] and len(set(answers)) == 3
        await until(lambda: is_free(service))

    run(play)


def test_a_generation_that_is_over_is_gone_at_once(run: Callable[..., Any]) -> None:
    """Without the garbage collector, which comes after thousands of requests: its streams hold pictures."""

    async def play(service: Service) -> None:
        gc.disable()
        try:
            left: list[weakref.ref[Any]] = []
            for is_read in (True, False):
                generation = await service.open(request(n=2))
                left += [weakref.ref(generation), *(weakref.ref(stream) for stream in generation._streams)]
                async with generation:
                    async for _ in generation:
                        if not is_read:
                            break
                del generation
                await until(lambda: is_free(service))
            await until(lambda: [each() for each in left] == [None] * 6)
        finally:
            gc.enable()

    run(play)


def test_more_than_may_wait_are_told_to_come_again(run: Callable[..., Any]) -> None:
    async def play(service: Service) -> None:
        admitted = [service.admit() for _ in range(5)]
        for each in admitted:
            each.__enter__()
        with pytest.raises(ServeError) as caught, service.admit():
            pass
        assert (caught.value.status, caught.value.code) == (429, "overloaded") and caught.value.headers["Retry-After"] == "1"
        for each in admitted:
            each.__exit__(None, None, None)
        with service.admit():
            pass
        assert service.num_admitted == 0

    run(play)


def test_owners_share_nothing_that_is_kept_of_prompts(run: Callable[..., Any]) -> None:
    async def play(service: Service) -> None:
        hits = list[int]()
        for owner in ("ann", "ben", "ann"):
            async with await service.open(request("what? " * 40, owner=owner)) as generation:
                await generation.whole()
            hits.append(service.vl.engine.statistics().prefixes.num_hits)
        assert hits[0] == hits[1] == 0 < hits[2]

    run(play)


def test_who_leaves_at_any_moment_leaves_nothing_behind(run: Callable[..., Any]) -> None:
    async def play(service: Service) -> None:
        async def client(number: int) -> None:
            async with await service.open(request(n=1 + number % 3, sampling=LONG)) as generation:
                async for _ in generation:
                    pass

        for number in range(24):
            tasks = [asyncio.create_task(client(number + each)) for each in range(4)]
            await asyncio.sleep(0.002 * (number % 7))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await until(lambda: is_free(service))
        assert service.places.num_waiting == 0 and not service._generations

    run(play)


def test_a_client_that_leaves_while_it_is_prepared_holds_its_place_until_the_thread_is_done(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    original = QwenVL.begin

    def slow(self: QwenVL, *arguments: Any, **named: Any) -> Any:
        assert gate.wait(60)
        return original(self, *arguments, **named)

    async def play(service: Service) -> None:
        monkeypatch.setattr(QwenVL, "begin", slow)
        task = asyncio.create_task(service.open(request(sampling=LONG)))
        await until(lambda: service.places.num_free == 2)
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert service.places.num_free == 2
        gate.set()
        await until(lambda: is_free(service))

    run(play)


def test_what_a_slow_reader_missed_is_one_piece(run: Callable[..., Any]) -> None:
    async def play(service: Service) -> None:
        async with await service.open(request(sampling=LONG)) as generation:
            await until(lambda: service.vl.engine.statistics().num_new_tokens >= 700)
            deltas = [delta async for delta in generation]
            assert len(deltas) <= 2 and "".join(delta.text for delta in deltas) == generation.answer.text  # the end may come on its own

    run(play)


def test_a_drain_ends_what_is_not_finished_in_time(run: Callable[..., Any]) -> None:
    async def play(service: Service) -> None:
        with service.admit():
            generation = await service.open(request(sampling=LONG))
            await service.drain()
            with pytest.raises(ServeError) as caught, service.admit():
                pass
            assert caught.value.status == 503 and service.status == "draining"
            with pytest.raises(ServeError) as cut:
                await generation.whole()
            assert cut.value.code == "shutting_down"
            await generation.close()
        await until(lambda: is_free(service))

    run(play, grace_s=0)


def test_an_answer_that_begins_after_the_end_does_not_begin(run: Callable[..., Any]) -> None:
    """A request is several tasks, some of which may go on for a moment; one that was answered in time is left to itself."""
    told: list[str] = []

    async def begin(service: Service, in_time: bool) -> None:
        async with service.until_answered() as note_answered:
            if in_time:
                note_answered()
            try:
                await asyncio.sleep(0)
                await asyncio.sleep(0.01)
            finally:
                if not in_time:
                    note_answered()
            told.append("answered")

    async def play(service: Service) -> None:
        requests = [asyncio.create_task(begin(service, in_time)) for in_time in (True, False)]
        await asyncio.sleep(0)
        await service.drain()
        await requests[0]
        with pytest.raises(ServeError, match="stops"):
            await requests[1]
        assert told == ["answered"]

    run(play, grace_s=0)


def test_an_engine_that_dies_fails_everything_at_once(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    class Fatal(BaseException):
        pass

    def die(*_: Any) -> None:
        raise Fatal

    async def play(service: Service) -> None:
        failures: list[bool] = []
        service.on_failure = lambda: failures.append(True)
        generation = await service.open(request(sampling=LONG))
        waiting = [asyncio.create_task(service.open(request(n=3))) for _ in range(2)]
        await asyncio.sleep(0.01)
        monkeypatch.setattr(service.vl.engine, "step", die)
        for failing in (generation.whole(), *waiting):
            with pytest.raises(ServeError) as caught:
                await failing
            assert (caught.value.status, caught.value.code) == (503, "engine_down")
            await generation.close()
        assert failures == [True] and service.status == "down"
        with pytest.raises(ServeError), service.admit():
            pass

    run(play)


class SlowTower:
    """The vision tower of a slow machine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.original, self.pass_s, self.num_passes = QWenLMHeadModel.get_image_features, 0.4, 0
        monkeypatch.setattr(QWenLMHeadModel, "get_image_features", lambda model, pictures: self.see(model, pictures))
        monkeypatch.setattr("qwen_vl.engine.features.ENCODE_AT_ONCE", 1)

    def see(self, model: QWenLMHeadModel, pictures: Any) -> Any:
        time.sleep(self.pass_s)
        self.num_passes += 1
        return self.original(model, pictures)


def shown(*colours: tuple[int, int, int]) -> ChatRequest:
    pictures = [{"type": "image", "image": Image.new("RGB", (42, 42), colour)} for colour in colours]
    return ChatRequest(messages=[{"role": "user", "content": [*pictures, {"type": "text", "text": "what?"}]}], sampling={"max_new_tokens": 2})


def test_many_pictures_on_a_slow_machine_are_no_engine_that_hangs(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits behind others' pictures waits for longer than the watchdog's patience; a tower that ends no pass hangs all the same."""
    tower = SlowTower(monkeypatch)

    async def play(service: Service) -> None:
        async def ask(number: int) -> Any:
            async with await service.open(shown((number, 0, 0), (number, 1, 0), (number, 2, 0))) as generation:
                return await generation.whole()

        answers = await asyncio.gather(*(ask(number) for number in range(3)))
        assert len(answers) == 3 and tower.num_passes == 9 and service.status == "ok"
        tower.pass_s = 5.0
        with pytest.raises(ServeError) as caught:
            await ask(3)
        assert caught.value.code == "engine_down" and tower.num_passes == 9
        await asyncio.to_thread(service.vl.engine.close)

    run(play, watchdog_s=2.0)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"sampling": {"max_new_tokens": 5000}}, "context_length_exceeded"),
        ({"text": ""}, "invalid_messages"),
        ({"boxes": "many"}, "invalid_value"),
        ({"sampling": {"max_new_tokens": 2}, "as_json": True}, "invalid_value"),
    ],
)
def test_what_cannot_be_asked_is_refused_and_leaves_nothing(run: Callable[..., Any], fields: dict[str, Any], code: str) -> None:
    async def play(service: Service) -> None:
        with pytest.raises(ServeError) as caught:
            await service.open(request(**fields))
        assert (caught.value.status, caught.value.code) == (400, code)
        await until(lambda: is_free(service))

    run(play)


def test_an_error_that_nobody_raised_on_purpose_is_told_to_nobody() -> None:
    try:
        raise ValueError("secret at /home/somebody 0xdeadbeef")
    except ValueError as error:
        told, logged = translated(error), where(error)
    assert (told.status, told.code) == (500, "internal_error") and "secret" not in told.message
    assert logged.startswith("ValueError at test_an_error_that_nobody") and "secret" not in logged and "/" not in logged
