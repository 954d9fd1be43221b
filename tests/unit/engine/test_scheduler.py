"""Who is let in, who has to make way, and that rows stay without gaps."""

import random

import torch

from qwen_vl.engine import Handle, Request, SamplingParams
from qwen_vl.engine.sampling import Sampler
from qwen_vl.engine.scheduler import Job, Scheduler


class Nobody:
    is_working = False

    def step(self) -> bool:
        return False

    def notice_cancelled(self) -> None: ...


def make_job(num_prompt: int = 10, max_new_tokens: int = 5, priority: int = 0, arrival: int = 0) -> Job:
    params = SamplingParams(max_new_tokens=max_new_tokens)
    ids = [1] * num_prompt
    sampler = Sampler(params, ids, 100, torch.device("cpu"))
    request = Request(input_ids=ids, sampling=params, priority=priority)
    return Job(request=request, handle=Handle(Nobody()), sampler=sampler, ids=ids, spans=[], level=0, generation=0, arrival=arrival)


def nobody(job: Job) -> bool:
    return False


def end(scheduler: Scheduler, *jobs: Job) -> None:
    """Let jobs leave."""
    for job in jobs:
        job.reason = "stop"
    assert set(map(id, scheduler.remove_ended())) == set(map(id, jobs))
    for job in jobs:
        job.leave_row()
    for job, row in scheduler.moves():
        job.row = row
    scheduler.sort_rows()


def test_first_come_first_served_by_worst_case() -> None:
    scheduler = Scheduler(8, lambda num_rows, length: num_rows * length <= 60)
    first, long, short = make_job(arrival=0), make_job(50, arrival=1), make_job(1, arrival=2)
    for job in (short, first, long):
        scheduler.add(job)
    assert scheduler.admit(nobody) is first
    assert scheduler.admit(nobody) is None, "two rows of 55 are too many, and nobody overtakes"
    end(scheduler, first)
    assert scheduler.admit(nobody) is long


def test_no_more_than_the_batch() -> None:
    scheduler = Scheduler(2, lambda num_rows, length: True)
    for arrival in range(3):
        scheduler.add(make_job(arrival=arrival))
    jobs = [scheduler.admit(nobody) for _ in range(3)]
    assert [job.row if job else None for job in jobs] == [0, 1, None] and [job.arrival for job in scheduler.reading] == [0, 1]


def test_who_is_put_off_keeps_a_place() -> None:
    scheduler = Scheduler(2, lambda num_rows, length: True)
    jobs = [make_job(arrival=arrival) for arrival in range(3)]
    for job in jobs:
        scheduler.add(job)
    assert scheduler.admit(lambda job: job is jobs[0]) is jobs[1]
    assert scheduler.admit(lambda job: job is jobs[0]) is None, "the second place is the first one's"
    assert scheduler.admit(nobody) is jobs[0]


def test_the_higher_priority_first() -> None:
    scheduler = Scheduler(8, lambda num_rows, length: True)
    jobs = [make_job(priority=priority, arrival=arrival) for arrival, priority in enumerate((0, 1, 0, 2, 1))]
    for job in jobs:
        scheduler.add(job)
    admitted = [scheduler.admit(nobody) for _ in jobs]
    assert [job.arrival for job in admitted if job] == [3, 1, 4, 0, 2]


class TestVictims:
    """Who makes way for the first of those that wait."""

    def fill(self, *priorities: int, most: int = 100) -> Scheduler:
        scheduler = Scheduler(len(priorities), lambda num_rows, length: num_rows * length <= most)
        for arrival, priority in enumerate(priorities):
            scheduler.add(make_job(priority=priority, arrival=arrival))
            assert scheduler.admit(nobody)
        return scheduler

    def arrivals(self, scheduler: Scheduler) -> list[int]:
        return [job.arrival for job in scheduler.victims()]

    def test_the_lowest_and_last(self) -> None:
        scheduler = self.fill(1, 0, 0, 1)
        assert self.arrivals(scheduler) == []
        scheduler.add(make_job(priority=2, arrival=9))
        assert self.arrivals(scheduler) == [2]

    def test_nobody_for_an_equal(self) -> None:
        scheduler = self.fill(1, 1)
        scheduler.add(make_job(priority=1, arrival=9))
        assert self.arrivals(scheduler) == []

    def test_as_many_as_memory_needs(self) -> None:
        scheduler = self.fill(0, 0, 0, 5)
        scheduler.add(make_job(num_prompt=28, priority=5, arrival=9))
        assert self.arrivals(scheduler) == [2, 1], "three rows of 33 fit"
        scheduler.waiting.clear()
        scheduler.add(make_job(num_prompt=45, priority=5, arrival=9))
        assert self.arrivals(scheduler) == [2, 1, 0]

    def test_nobody_if_that_is_not_enough(self) -> None:
        scheduler = self.fill(0, 5)
        scheduler.add(make_job(num_prompt=60, priority=5, arrival=9))
        assert self.arrivals(scheduler) == []

    def test_who_made_way_is_next_among_its_like(self) -> None:
        scheduler = self.fill(0, 0)
        scheduler.add(make_job(arrival=5))
        scheduler.add(make_job(priority=1, arrival=9))
        for victim in scheduler.victims():
            scheduler.put_back(victim)
            victim.leave_row()
        assert [job.arrival for job in scheduler.waiting] == [9, 1, 5]


def test_rows_have_no_gaps() -> None:
    """Random comings and goings: row i is the i-th active job's, and a move never overwrites one that is still needed."""
    dice, scheduler = random.Random(1), Scheduler(6, lambda num_rows, length: True)
    content: dict[int, Job] = {}  # what each row of an imagined cache holds
    num_moves = 0
    for arrival in range(3000):
        act = dice.random()
        if act < 0.3:
            scheduler.add(make_job(priority=dice.randrange(3), arrival=arrival))
        if act < 0.6 and (job := scheduler.admit(nobody)):
            content[job.row] = job
        elif act < 0.75 and scheduler.reading:
            scheduler.begin_writing(scheduler.reading[0])
        elif act < 0.8:
            for job in scheduler.victims():
                scheduler.put_back(job)
                job.leave_row()
        elif everybody := [*scheduler.waiting, *scheduler.active]:
            for job in dice.sample(everybody, dice.randint(1, len(everybody))) if act > 0.95 else [dice.choice(everybody)]:
                job.reason = "stop"
        if dice.random() < 0.1 and len(scheduler.reading) > 1:  # the first has failed, the second begins to write before the first has left
            scheduler.reading[0].error = ValueError()
            scheduler.begin_writing(scheduler.reading[1])
        for job in scheduler.remove_ended():
            job.leave_row()
        for job, row in scheduler.moves():
            content[row] = content[job.row]
            job.row = row
            num_moves += 1
        scheduler.sort_rows()
        assert [job.row for job in scheduler.active] == list(range(len(scheduler.active)))
        assert all(content[job.row] is job for job in scheduler.active)
        assert all(job.row == -1 for job in scheduler.waiting)
    assert num_moves > 100
