"""Several prompts in one round, and one whose pass fails among others that do not; who makes way for whom."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch

from qwen_vl.engine import Engine, Handle, Request, SamplingParams
from qwen_vl.engine.passes import Passes
from qwen_vl.errors import CapacityError
from qwen_vl.modeling.model import QWenLMHeadModel
from tests.schedules import Case, assert_all_accounted_for, assert_schedule_changes_nothing, make_case, make_cases, random_picture, span_ids
from tests.unit.engine.conftest import MakeEngine, random_ids


@contextmanager
def counted() -> Iterator[list[int]]:
    """Note how many prompts each reading pass is about."""
    sizes, read = list[int](), Passes.read

    def noted(passes: Passes, jobs: Any) -> Any:
        sizes.append(len(jobs))
        return read(passes, jobs)

    with mock.patch.object(Passes, "read", noted):
        yield sizes


def submit_all(engine: Engine, cases: list[Case], count: int) -> list[Handle]:
    return [engine.submit(case.request(count)) for case in cases]


class TestReading:
    def test_short_prompts_are_read_in_one_pass(self, long_model: QWenLMHeadModel, make_engine: MakeEngine) -> None:
        engine, cases = make_engine(chunk_tokens=128), [make_case(long_model, random_ids(length, length), 8) for length in (5, 1, 30, 17)]
        handles = submit_all(engine, cases, 8)
        with counted() as sizes:
            engine.step()
        assert sizes == [4] and engine.statistics().num_writing == 4
        assert [list(handle) for handle in handles] == [case.expected for case in cases]
        assert_all_accounted_for(engine)

    @pytest.mark.parametrize("implementation", ["sdpa", "eager"])
    def test_chunks_begin_and_end_anywhere(self, long_model: QWenLMHeadModel, make_engine: MakeEngine, implementation: str) -> None:
        """Of every prompt some chunk begins in the middle, beside the end of the one before."""
        cases = [make_case(long_model, random_ids(length, length), 6) for length in (30, 45, 70, 33)]
        long_model.set_attn_implementation(implementation)
        try:
            engine = make_engine(chunk_tokens=40)
            with counted() as sizes:
                assert [list(handle) for handle in submit_all(engine, cases, 6)] == [case.expected for case in cases]
        finally:
            long_model.set_attn_implementation("sdpa")
        assert 2 in sizes and engine.statistics().num_prompt_tokens == 30 + 45 + 70 + 33
        assert_all_accounted_for(engine)

    def test_levels_are_read_apart(self, long_model: QWenLMHeadModel, make_engine: MakeEngine) -> None:
        engine, cases = make_engine(chunk_tokens=1000), [make_case(long_model, random_ids(length, length), 6) for length in (20, 30, 140, 40)]
        handles = submit_all(engine, cases, 6)
        with counted() as sizes:
            engine.step()
        assert sizes == [2, 1, 1]
        assert [list(handle) for handle in handles] == [case.expected for case in cases]

    def test_a_shared_beginning_is_read_once(self, long_model: QWenLMHeadModel, make_engine: MakeEngine) -> None:
        picture = random_picture(long_model, 1)
        head = [*random_ids(10, 1), *span_ids(long_model, b"a.png")]
        cases = [make_case(long_model, [*head, *random_ids(12, seed)], 6, [picture]) for seed in (2, 3, 4)]
        other = make_case(long_model, random_ids(25, 9), 6)
        engine = make_engine(chunk_tokens=1000)
        handles = submit_all(engine, [*cases, other], 6)
        with counted() as sizes:
            engine.step()
        assert sum(sizes) == 4 and engine.statistics().num_writing == 4, "all in one round"
        assert [handle.num_cached_tokens for handle in handles] == [0, 256, 256, 0]
        assert [list(handle) for handle in handles] == [case.expected for case in (*cases, other)]

    def test_one_token_answers_make_room_within_a_round(self, long_model: QWenLMHeadModel, make_engine: MakeEngine) -> None:
        engine, cases = make_engine(max_batch=2, chunk_tokens=100), [make_case(long_model, random_ids(9, seed), 1) for seed in range(6)]
        handles = submit_all(engine, cases, 1)
        engine.step()
        assert [list(handle) for handle in handles] == [case.expected for case in cases] and engine.statistics().num_rounds == 1
        assert_all_accounted_for(engine)


class Culprit:
    """Lets every pass fail, after it has written its keys and values, in which one request takes part."""

    def __init__(self, engine: Engine, seq_is_one: bool, error: Exception) -> None:
        self.engine, self.seq_is_one, self.error, self.num_failed = engine, seq_is_one, error, 0
        self.handle: Handle | None = None
        self._forward = engine.model.transformer.forward

    def forward(self, **arguments: Any) -> Any:
        states, view = self._forward(**arguments), arguments["past_key_values"]
        rows = range(view.rows.start, view.rows.stop) if arguments.get("input_ids") is not None else [each.row for each in view.segments]
        row = next((job.row for job in self.engine._scheduler.active if job.handle is self.handle), None)
        if row is not None and row in rows and (arguments.get("input_ids") is not None) == self.seq_is_one:
            self.num_failed += 1
            slots = self.engine.slots
            slots.keys[0][row, :, : slots.ends[row]] = float("nan")  # what it leaves behind in its row must not be met by the next there
            raise self.error
        return states

    def installed(self) -> Any:
        return mock.patch.object(self.engine.model.transformer, "forward", self.forward)


class TestFailing:
    @pytest.mark.parametrize("error", [RuntimeError("mine"), MemoryError(), torch.OutOfMemoryError()], ids=lambda error: type(error).__name__)
    @pytest.mark.parametrize("is_writing", [False, True], ids=["reading", "writing"])
    @pytest.mark.parametrize("place", [0, 3, 7])
    def test_one_of_eight_fails(self, long_model: QWenLMHeadModel, make_engine: MakeEngine, is_writing: bool, error: Exception, place: int) -> None:
        engine = make_engine(max_batch=8, chunk_tokens=300)
        cases = [make_case(long_model, random_ids(length, length), 10) for length in (5, 12, 30, 41, 100, 8, 16, 3)]
        culprit = Culprit(engine, is_writing, error)
        handles = submit_all(engine, cases, 10)
        culprit.handle = handles[place]
        with culprit.installed():
            for index, (handle, case) in enumerate(zip(handles, cases, strict=True)):
                if index != place:
                    assert list(handle) == case.expected
                else:
                    with pytest.raises(
                        RuntimeError if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError) else CapacityError
                    ):
                        list(handle)
        assert culprit.num_failed == 2, "once among the others, once alone"
        assert handles[place].finish_reason is None
        again = make_case(long_model, cases[place].input_ids, 10)
        assert list(engine.submit(again.request(10))) == again.expected
        assert_all_accounted_for(engine)

    def test_two_of_six_fail_in_one_pass(self, long_model: QWenLMHeadModel, make_engine: MakeEngine) -> None:
        """Those after them in the rows move up, with what they have read in the same round."""
        engine = make_engine(max_batch=8, chunk_tokens=1000)
        cases = [make_case(long_model, random_ids(length, length), 8) for length in (5, 12, 30, 41, 20, 9)]

        class Refuses:
            def allowed(self, generated_ids: list[int]) -> None:
                raise ValueError("mine")

        handles = []
        for index, case in enumerate(cases):
            constraint = Refuses() if index in (1, 3) else None
            sampling = SamplingParams(max_new_tokens=8, constraint=constraint)
            handles.append(engine.submit(Request(input_ids=case.input_ids, sampling=sampling)))
        for index, (handle, case) in enumerate(zip(handles, cases, strict=True)):
            if index in (1, 3):
                with pytest.raises(ValueError, match="mine"):
                    list(handle)
            else:
                assert list(handle) == case.expected
        assert_all_accounted_for(engine)

    @pytest.mark.parametrize("error", [MemoryError(), RuntimeError("mine")], ids=lambda error: type(error).__name__)
    def test_what_fails_only_together_fails_nobody(self, long_model: QWenLMHeadModel, make_engine: MakeEngine, error: Exception) -> None:
        engine, cases = make_engine(), [make_case(long_model, random_ids(length, length), 8) for length in (5, 30, 60, 9)]
        forward = long_model.transformer.forward

        def limited(**arguments: Any) -> Any:
            view = arguments["past_key_values"]
            if len(getattr(view, "segments", ())) > 1 or getattr(view, "rows", slice(0, 1)).stop - getattr(view, "rows", slice(0, 1)).start > 1:
                raise error
            return forward(**arguments)

        with mock.patch.object(long_model.transformer, "forward", limited):
            assert [list(handle) for handle in submit_all(engine, cases, 8)] == [case.expected for case in cases]
        assert_all_accounted_for(engine)

    def test_a_caller_whose_callback_fails_disturbs_nobody(self, long_model: QWenLMHeadModel, make_engine: MakeEngine) -> None:
        engine, cases = make_engine(), [make_case(long_model, random_ids(length, length), 8) for length in (5, 30)]
        handles = submit_all(engine, cases, 8)
        handles[0].on_news = mock.Mock(side_effect=ValueError("mine"))
        assert [list(handle) for handle in handles] == [case.expected for case in cases]
        assert handles[0].on_news.call_count == 9
        assert_all_accounted_for(engine)


class TestPriorities:
    def make(self, engine: Engine, case: Case, count: int, priority: int, **settings: Any) -> Handle:
        sampling = SamplingParams(max_new_tokens=count, **settings)
        return engine.submit(Request(input_ids=case.input_ids, pictures=case.pictures, sampling=sampling, priority=priority))

    @pytest.mark.parametrize("prefix_bytes", [0, 2**24])
    def test_a_higher_one_takes_the_place_and_nothing_changes(self, long_model: QWenLMHeadModel, make_engine: MakeEngine, prefix_bytes: int) -> None:
        """The lower one's prompt is below a change of NTK level, and what it has written by then beyond it."""
        low, high = make_case(long_model, random_ids(120, 1), 30), make_case(long_model, random_ids(20, 2), 5)
        engine = make_engine(max_batch=1, prefix_bytes=prefix_bytes)
        slow = self.make(engine, low, 30, 0)
        first = [next(slow) for _ in range(15)]
        quick = self.make(engine, high, 5, 1)
        assert list(quick) == high.expected and engine.statistics().num_preempted == 1
        assert slow.finish_reason is None and len(first) == 15
        assert [*first, *slow] == low.expected
        num_read = 120 + 20 + (15 + 120 if prefix_bytes == 0 else 7)
        assert engine.statistics().num_prompt_tokens == num_read, "blocks of 16 that were kept are not read again"
        assert slow.num_cached_tokens == 0, "of its prompt, when it was first read"
        assert_all_accounted_for(engine)

    def test_samples_go_on_where_they_were(self, long_model: QWenLMHeadModel, make_engine: MakeEngine) -> None:
        case, high = Case(random_ids(40, 1), []), make_case(long_model, random_ids(20, 2), 5)
        settings: dict[str, Any] = {"temperature": 1.5, "top_p": 0.9, "seed": 5, "repetition_penalty": 1.2, "logprobs": 1}
        alone = self.make(make_engine(), case, 12, 0, **settings)
        expected = list(alone)
        engine = make_engine(max_batch=1)
        slow = self.make(engine, case, 12, 0, **settings)
        first = [next(slow) for _ in range(4)]
        list(self.make(engine, high, 5, 1))
        assert [*first, *slow] == expected and engine.statistics().num_preempted == 1
        assert [each.token_id for each in slow.logprobs] == expected
        for found, wanted in zip(slow.logprobs, alone.logprobs, strict=True):
            assert found.logprob == pytest.approx(wanted.logprob, abs=1e-4)

    def test_one_whose_prompt_is_half_read_makes_way(self, long_model: QWenLMHeadModel, make_engine: MakeEngine) -> None:
        picture = random_picture(long_model, 1)
        low = make_case(long_model, [*random_ids(10, 1), *span_ids(long_model, b"a"), *random_ids(50, 2)], 6, [picture])
        high = make_case(long_model, random_ids(20, 2), 5)
        engine = make_engine(max_batch=1, chunk_tokens=40)
        slow = self.make(engine, low, 6, 0)
        for _ in range(3):
            engine.step()
        assert engine.statistics().num_reading == 1
        assert list(self.make(engine, high, 5, 1)) == high.expected
        assert list(slow) == low.expected and engine.statistics().num_preempted == 1
        assert slow.num_cached_tokens == 0, "what it finds of itself was not there before"
        assert_all_accounted_for(engine)

    def test_it_waits_for_its_equals(self, long_model: QWenLMHeadModel, make_engine: MakeEngine) -> None:
        engine, cases = make_engine(max_batch=1), [make_case(long_model, random_ids(20, seed), 5) for seed in range(3)]
        order: list[int] = []
        handles = []
        for index, (case, priority) in enumerate(zip(cases, (1, 0, 1), strict=True)):
            handle = self.make(engine, case, 5, priority)
            handle.on_news = self.noting(order, index)
            handles.append(handle)
        assert [list(handle) for handle in handles] == [case.expected for case in cases]
        assert list(dict.fromkeys(order)) == [0, 2, 1] and engine.statistics().num_preempted == 0

    @staticmethod
    def noting(order: list[int], index: int) -> Callable[[], None]:
        return lambda: order.append(index)

    def test_random_schedules_put_requests_back(self, long_model: QWenLMHeadModel) -> None:
        """F23: that the schedules with priorities, which are looked at elsewhere, do what they are there for."""
        cases = make_cases(long_model, (5, 60, 130), 8, random.Random(3))
        assert sum(assert_schedule_changes_nothing(long_model, cases, seed, num_requests=12).num_preempted for seed in (1, 3, 5)) > 0
