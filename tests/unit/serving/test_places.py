"""Places go in the order of arrival, several at once where several are wanted, and come back whatever happens."""

import asyncio
import random

import pytest

from qwen_vl.serving.errors import ServeError
from qwen_vl.serving.places import Places


def test_first_come_first_served_also_for_those_who_want_several() -> None:
    async def play() -> list[int]:
        places, order = Places(4), list[int]()

        async def guest(number: int, count: int) -> None:
            await places.take(count)
            order.append(number)
            await asyncio.sleep(0)
            places.give_back(count)

        wanted = [3, 2, 1, 4, 1, 1, 2]
        await asyncio.gather(*(guest(number, count) for number, count in enumerate(wanted)))
        assert (places.num_free, places.num_waiting) == (4, 0)
        return order

    assert asyncio.run(play()) == list(range(7))


def test_those_who_leave_hold_nobody_up_and_take_nothing_along() -> None:
    async def play(dice: random.Random) -> None:
        places = Places(3)

        async def guest(count: int) -> None:
            await places.take(count)
            try:
                for _ in range(dice.randint(0, 3)):
                    await asyncio.sleep(0)
            finally:
                places.give_back(count)

        tasks = []
        for _ in range(40):
            tasks.append(asyncio.create_task(guest(dice.randint(1, 3))))
            if dice.random() < 0.5:
                await asyncio.sleep(0)
            if dice.random() < 0.4:
                dice.choice(tasks).cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
        assert (places.num_free, places.num_waiting) == (3, 0)

    for seed in range(50):
        asyncio.run(play(random.Random(seed)))


def test_a_large_request_at_the_head_keeps_its_turn() -> None:
    async def play() -> None:
        places = Places(2)
        await places.take(1)
        large = asyncio.create_task(places.take(2))
        await asyncio.sleep(0)
        small = asyncio.create_task(places.take(1))
        await asyncio.sleep(0)
        assert places.num_waiting == 2 and not small.done()
        large.cancel()
        await asyncio.sleep(0)
        await asyncio.wait_for(small, 60)

    asyncio.run(play())


def test_a_refusal_ends_those_who_wait_and_leaves_the_places_as_they_were() -> None:
    """Whoever is given places in the same moment gets the error too, and whoever leaves then leaves nothing behind."""

    async def play() -> None:
        places, error = Places(2), ServeError(503, "shutting_down", "")
        await places.take(2)
        waiting = [asyncio.create_task(places.take(count)) for count in (1, 2, 1)]
        await asyncio.sleep(0)
        places.give_back(1)  # to the first of them, who has not gone on yet
        places.refuse(error)
        waiting[2].cancel()
        assert await asyncio.gather(*waiting[:2], return_exceptions=True) == [error, error]
        with pytest.raises(asyncio.CancelledError):
            await waiting[2]
        with pytest.raises(ServeError):
            await places.take(1)
        assert (places.num_free, places.num_waiting) == (1, 0)

    asyncio.run(asyncio.wait_for(play(), 60))
