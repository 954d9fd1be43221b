"""The caches by themselves: bounds in bytes, what is dropped first, what a digest depends on, who encodes when."""

import random
import threading
import time
from collections.abc import Callable
from unittest import mock

import pytest
import torch
from torch import Tensor

from qwen_vl.engine.features import FeatureCache
from qwen_vl.engine.kv_cache import SlotCache
from qwen_vl.engine.lru import TensorLRU
from qwen_vl.engine.prefixes import PrefixCache, Span, digest_blocks
from qwen_vl.errors import CapacityError
from qwen_vl.modeling.model import QWenLMHeadModel


class TestLRU:
    def test_the_least_recently_used_goes_first(self) -> None:
        entries = TensorLRU[str](3 * 40)
        for name in "abc":
            entries.put(name, torch.zeros(10))
        entries.get("a")
        entries.put("d", torch.zeros(10))
        assert [name in entries for name in "abcd"] == [True, False, True, True]
        assert (entries.num_bytes, entries.num_evicted, len(entries)) == (120, 1, 3)

    def test_what_is_too_large_displaces_nothing(self) -> None:
        entries = TensorLRU[str](100)
        entries.put("a", torch.zeros(10))
        entries.put("b", torch.zeros(100))
        assert "a" in entries and "b" not in entries and entries.get("b") is None

    def test_one_key_is_counted_once(self) -> None:
        entries = TensorLRU[str](100)
        entries.put("a", torch.zeros(10))
        entries.put("a", torch.ones(10))
        assert entries.num_bytes == 40
        entries.clear()
        assert (entries.num_bytes, len(entries)) == (0, 0)


class TestDigests:
    IDS = list(range(20))

    def test_one_a_whole_block_and_each_depends_on_all_before(self) -> None:
        digests = digest_blocks(self.IDS, [], 0, 8)
        assert len(digests) == 2 == len(set(digests))
        assert digest_blocks(self.IDS[:16], [], 0, 8) == digests == digest_blocks([*self.IDS[:16], 99], [], 0, 8)
        changed = digest_blocks([99, *self.IDS[1:]], [], 0, 8)
        assert not set(changed) & set(digests)
        assert digest_blocks([*self.IDS[:15], 99], [], 0, 8)[0] == digests[0]

    def test_level_and_salt_separate(self) -> None:
        plain = digest_blocks(self.IDS, [], 0, 8)
        for other in (digest_blocks(self.IDS, [], 1, 8), digest_blocks(self.IDS, [], 0, 8, salt="them")):
            assert not set(plain) & set(other)

    def test_a_picture_counts_by_its_content_and_not_by_its_name(self) -> None:
        renamed = [*self.IDS[:9], 77, *self.IDS[10:]]
        spans = [Span(8, 12, "red")]
        assert digest_blocks(self.IDS, spans, 0, 8) == digest_blocks(renamed, spans, 0, 8)
        other = digest_blocks(self.IDS, [Span(8, 12, "blue")], 0, 8)
        assert other[0] == digest_blocks(self.IDS, spans, 0, 8)[0] and other[1] != digest_blocks(self.IDS, spans, 0, 8)[1]
        assert digest_blocks(self.IDS, [], 0, 8)[1] != digest_blocks(self.IDS, spans, 0, 8)[1]

    def test_a_picture_counts_in_every_block_that_it_reaches(self) -> None:
        found, other = (digest_blocks(self.IDS, [Span(2, 18, key)], 0, 4) for key in ("red", "blue"))
        assert not set(found) & set(other)


class TestPrefixes:
    @staticmethod
    def states(num_blocks: int) -> Tensor:
        return torch.arange(num_blocks * 4.0).view(1, 1, 1, -1, 1).expand(2, 2, 3, num_blocks * 4, 5)

    def store(self, cache: PrefixCache, digests: list[bytes], states: Tensor) -> list[int]:
        """Keep blocks, and return how many of their positions were read at a time."""
        reads = list[int]()

        def read(start: int, stop: int) -> Tensor:
            reads.append(stop - start)
            return states[:, :, :, start:stop]

        cache.store(digests, read, 2 * 2 * 3 * 5 * 4)
        return reads

    def test_the_longest_known_beginning(self) -> None:
        cache, digests = PrefixCache(2**20, 4), digest_blocks(range(20), [], 0, 4)
        self.store(cache, digests[:3], self.states(3))
        blocks = cache.match(digests, 20)
        assert torch.equal(torch.cat(blocks, dim=3), self.states(3))
        assert cache.match(digests[1:], 16) != [] and cache.match(digest_blocks(range(1, 20), [], 0, 4), 19) == []
        assert (cache.statistics().num_hits, cache.statistics().num_misses) == (12 + 8, 8 + 8 + 19)

    def test_ends_are_dropped_before_beginnings(self) -> None:
        block_bytes = 2 * 2 * 3 * 4 * 5 * 4
        cache = PrefixCache(4 * block_bytes, 4)
        first, second = digest_blocks(range(12), [], 0, 4), digest_blocks(range(50, 58), [], 0, 4)
        self.store(cache, first, self.states(3))
        self.store(cache, second, self.states(2))
        assert (cache.num_known(first), cache.num_known(second)) == (2, 2)

    def test_of_one_that_is_too_long_the_beginning_is_kept(self) -> None:
        block_bytes = 2 * 2 * 3 * 4 * 5 * 4
        cache, digests = PrefixCache(3 * block_bytes, 4), digest_blocks(range(40), [], 0, 4)
        assert self.store(cache, digests, self.states(10)) == [12], "what there is no room for is not read"
        assert cache.num_known(digests) == 3 and cache.statistics().num_bytes == 3 * block_bytes

    def test_a_full_cache_takes_no_new_memory(self) -> None:
        block_bytes = 2 * 2 * 3 * 4 * 5 * 4
        cache = PrefixCache(3 * block_bytes, 4)
        first, second = digest_blocks(range(12), [], 0, 4), digest_blocks(range(50, 62), [], 0, 4)
        self.store(cache, first, self.states(3))
        places = {block.data_ptr() for block in cache.match(first, 12)}
        self.store(cache, second, -self.states(3))
        blocks = cache.match(second, 12)
        assert {block.data_ptr() for block in blocks} == places
        assert torch.equal(torch.cat(blocks, dim=3), -self.states(3)) and cache.num_known(first) == 0 and cache.statistics().num_evicted == 3

    def test_a_long_beginning_is_read_in_parts_and_what_is_known_of_it_is_not(self) -> None:
        cache, digests = PrefixCache(2**20, 4), digest_blocks(range(200), [], 0, 4)
        states = torch.arange(200.0).view(1, 1, 1, -1, 1).expand(2, 2, 3, 200, 5)
        assert self.store(cache, digests[:5], states) == [20]
        assert self.store(cache, digests, states) == [4 * 13, 4 * 16, 4 * 16]
        assert torch.equal(torch.cat(cache.match(digests, 200), dim=3), states)
        assert self.store(cache, digests, states) == []

    def test_off(self) -> None:
        assert not PrefixCache(0, 4).is_on


class Tower:
    """Makes features of pictures, which are single numbers here, and notes what it was given; 13 is a picture that it cannot take."""

    def __init__(self, most: int = 100) -> None:
        self.calls: list[list[int]] = []
        self.most = most
        self.is_encoding, self.may_go = threading.Event(), threading.Event()
        self.may_go.set()

    def __call__(self, pictures: list[Tensor]) -> Tensor:
        self.calls.append([int(picture) for picture in pictures])
        self.is_encoding.set()
        assert self.may_go.wait(60)
        if len(pictures) > self.most:
            raise MemoryError
        if 13 in self.calls[-1]:
            raise ValueError("13")
        return torch.stack(pictures)[:, None, None].expand(-1, 2, 3)


def fetch(cache: FeatureCache, *numbers: int) -> list[int]:
    """Return the numbers of which the features were made."""
    features = cache.fetch([str(number) for number in numbers], [torch.tensor(float(number)) for number in numbers])
    assert all(each.shape == (2, 3) for each in features)
    return [int(each[0, 0]) for each in features]


def start(number: int, action: Callable[[], None]) -> list[threading.Thread]:
    threads = [threading.Thread(target=action) for _ in range(number)]
    for thread in threads:
        thread.start()
    return threads


class TestFeatures:
    def test_each_picture_is_encoded_once(self) -> None:
        tower = Tower()
        cache = FeatureCache(10**6, tower)
        assert fetch(cache, 1, 2, 1) == [1, 2, 1] and fetch(cache, 3, 2) == [3, 2]
        assert tower.calls == [[1, 2], [3]]
        assert cache.statistics().num_bytes == 3 * 24 and (cache.statistics().num_hits, cache.statistics().num_misses) == (2, 3)
        assert all(each.untyped_storage().nbytes() == 24 for each in cache._entries._entries.values())

    def test_who_comes_meanwhile_waits(self) -> None:
        tower = Tower()
        cache, found = FeatureCache(10**6, tower), list[int]()
        tower.may_go.clear()
        threads = start(1, lambda: found.extend(fetch(cache, 1)))
        assert tower.is_encoding.wait(60)
        threads += start(3, lambda: found.extend(fetch(cache, 1)))
        tower.may_go.set()
        for thread in threads:
            thread.join(60)
        assert found == [1] * 4 and len(tower.calls) == 1

    def test_those_that_wait_are_encoded_together(self) -> None:
        tower = Tower()
        cache, found = FeatureCache(10**6, tower), list[int]()
        tower.may_go.clear()
        threads = start(1, lambda: found.extend(fetch(cache, 0)))
        assert tower.is_encoding.wait(60)
        for number in range(1, 12):
            threads += start(1, lambda number=number: found.extend(fetch(cache, number)))  # type: ignore[misc]
            while len(cache._queue) < number:
                time.sleep(0.001)
        tower.may_go.set()
        for thread in threads:
            thread.join(60)
        assert sorted(found) == list(range(12)) and [len(call) for call in tower.calls] == [1, 8, 2, 1]

    def test_many_threads_get_their_own(self) -> None:
        tower = Tower(most=3)
        cache, found, failed = FeatureCache(200, tower), list[list[int]](), list[int]()

        def ask_often(seed: int) -> None:
            dice = random.Random(seed)
            for _ in range(100):
                numbers = [dice.randrange(20) for _ in range(dice.randint(1, 4))]
                try:
                    assert fetch(cache, *numbers) == numbers
                except ValueError:
                    failed.append(13 in numbers)
                else:
                    found.append(numbers)

        threads = [thread for seed in range(6) for thread in start(1, lambda seed=seed: ask_often(seed))]  # type: ignore[misc]
        for thread in threads:
            thread.join(60)
        assert len(found) + len(failed) == 600 and failed and all(failed)
        assert not cache._coming and not cache._queue and cache.statistics().num_bytes <= 200

    @pytest.mark.parametrize("most", [1, 100])
    def test_one_failure_is_not_its_neighbours(self, most: int) -> None:
        """With too little memory for several, too."""
        tower = Tower(most)
        cache, found = FeatureCache(10**6, tower), list[int]()
        tower.may_go.clear()
        threads = start(1, lambda: found.extend(fetch(cache, 0)))
        assert tower.is_encoding.wait(60)

        def fails() -> None:
            with pytest.raises(ValueError, match="13"):
                fetch(cache, 13)
            found.append(13)

        threads += [*start(1, fails), *start(1, lambda: found.extend(fetch(cache, 1, 2)))]
        while len(cache._queue) < 3:
            time.sleep(0.001)
        tower.may_go.set()
        for thread in threads:
            thread.join(60)
        assert sorted(found) == [0, 1, 2, 13]
        assert cache.statistics().num_entries == 3, "a failure is not kept"

    def test_nothing_is_kept_that_was_encoded_before_a_clear(self) -> None:
        def encode(pictures: list[Tensor]) -> Tensor:
            cache.clear()
            return torch.ones(len(pictures), 2, 3)

        cache = FeatureCache(10**6, encode)
        fetch(cache, 1)
        assert cache.statistics().num_entries == 0

    def test_who_comes_after_a_clear_gets_what_is_new(self) -> None:
        tower = Tower()
        cache, found = FeatureCache(10**6, tower), list[int]()
        tower.may_go.clear()
        threads = start(1, lambda: found.extend(fetch(cache, 1)))
        assert tower.is_encoding.wait(60)
        cache.clear()
        threads += start(1, lambda: found.extend(fetch(cache, 1)))
        while not cache._queue:
            time.sleep(0.001)
        tower.may_go.set()
        for thread in threads:
            thread.join(60)
        assert found == [1, 1] and len(tower.calls) == 2 and cache.statistics().num_entries == 1

    def test_ctrl_c_leaves_nobody_waiting(self) -> None:
        cache = FeatureCache(10**6, mock.Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fetch(cache, 1, 2)
        assert not cache._coming and not cache._queue


class TestSlots:
    def test_growing_keeps_what_is_used(self, long_model: QWenLMHeadModel) -> None:
        slots = SlotCache(long_model, 2**26)
        slots.reserve(1, 100, [])
        slots.keys[1][0, :, :70] = 3.0
        slots.reserve(3, 700, [70])
        assert slots.keys[1].shape[0] >= 3 and slots.keys[1].shape[2] >= 700
        assert bool((slots.keys[1][0, :, :70] == 3).all()) and not slots.keys[1][0, :, 70:].any() and not slots.keys[1][1:].any()
        before = slots.keys[0]
        slots.reserve(2, 500, [70])
        assert slots.keys[0] is before, "what suffices is not made again"

    def test_the_bound_holds_for_every_shape(self, long_model: QWenLMHeadModel) -> None:
        slots = SlotCache(long_model, SlotCache(long_model, 0).position_bytes * 1000)
        for num_rows, length in ((1, 1000), (9, 111), (1, 1000), (5, 200)):
            slots.reserve(num_rows, length, [])
            assert slots.num_rows >= num_rows and slots.length >= length and slots.num_bytes <= slots.max_bytes
            assert slots.num_bytes == sum(states.nbytes for states in (*slots.keys, *slots.values))
        with pytest.raises(CapacityError, match="MiB"):
            slots.reserve(2, 501, [])

    def test_moving_reading_and_writing(self, long_model: QWenLMHeadModel) -> None:
        slots = SlotCache(long_model, 2**26)
        slots.reserve(3, 50, [])
        for states in (*slots.keys, *slots.values):
            states[0, :, :20] = torch.randn(states[0, :, :20].shape)
        copy = slots.read(0, 0, 20)
        slots.move(0, 2, 20)
        assert torch.equal(slots.read(2, 0, 20), copy)
        slots.wipe(2, 0)
        assert not slots.read(2, 0, 50).any()
        assert slots.write(1, copy.split(7, dim=3)) == 20 and torch.equal(slots.read(1, 0, 20), copy)
        assert slots.write(1, []) == 0
        slots.release()
        assert slots.num_bytes == 0
