"""How far a score can be trusted, and whether two runs differ: bootstrap intervals, the paired bootstrap, McNemar's test.

What is drawn anew are groups, not samples: questions about one picture are right or wrong together, and taking them for independent would promise an
interval that is too narrow.

    interval = bootstrap(group_values(scores, pictures))   # of the mean
    interval.low, interval.high
    test = compare_paired(score_a.strata, score_b.strata, pictures)
    test.difference, test.interval, test.p_bootstrap, test.p_mcnemar

Source: Efron and Tibshirani, An Introduction to the Bootstrap, chapters 13 (percentile interval) and 16 (tests); McNemar, Psychometrika 12 (1947), in
its exact form.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen_vl.errors import DataError

LEVEL = 0.95
NUM_RESAMPLES = 10_000
SEED = 20230824
MAX_DRAWS = 4_000_000  # numbers in memory at once

Array = NDArray[np.float64]
Strata = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Interval:
    """The middle 95 % of what the same model could have scored on another draw of samples."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True, slots=True)
class Groups:
    """What is drawn as one: for each group the sum of its samples' values and their number."""

    sums: Array  # [num_groups]
    sizes: Array  # [num_groups]

    @property
    def mean(self) -> float:
        return float(self.sums.sum() / self.sizes.sum())


@dataclass(frozen=True, slots=True)
class PairedTest:
    """Run B against run A, on the samples that both have; all values in the unit of the samples' scores."""

    num_samples: int
    value_a: float  # on these samples
    value_b: float
    interval: Interval  # of value_b - value_a
    p_bootstrap: float  # how often chance alone gives a difference of this size, from the paired bootstrap
    p_mcnemar: float | None  # the same from McNemar's exact test; None unless every sample is right or wrong
    num_only_a: int  # samples that A has better
    num_only_b: int  # samples that B has better

    @property
    def difference(self) -> float:
        return self.value_b - self.value_a

    @property
    def p_value(self) -> float:
        """The larger of the two: what both tests vouch for."""
        return max(self.p_bootstrap, self.p_mcnemar or 0.0)

    @property
    def is_significant(self) -> bool:
        return self.p_value < 1 - LEVEL


def group_values(scores: Mapping[str, float], group_of: Mapping[str, Hashable] | None = None) -> Groups:
    """Gather the samples' scores by group.

    Args: group_of: from a sample's id to what is drawn with it, a picture say; a sample that it does not name is drawn alone.
    Raises: DataError for a score that is no finite number, and if there is none.
    """
    if not scores:
        raise DataError("There is no score to compute an interval from.")
    sums: dict[Hashable, float] = {}
    sizes: dict[Hashable, int] = {}
    for sample_id, score in scores.items():
        if not math.isfinite(score):
            raise DataError(f"The score of sample {sample_id!r} is {score}, which is no finite number.")
        group: Hashable = ("sample", sample_id)
        if group_of is not None and sample_id in group_of:
            group = ("group", group_of[sample_id])
        sums[group] = sums.get(group, 0.0) + score
        sizes[group] = sizes.get(group, 0) + 1
    return Groups(np.array(list(sums.values()), dtype=np.float64), np.array(list(sizes.values()), dtype=np.float64))


def interval_of(strata: Strata, group_of: Mapping[str, str], bounds: Sequence[float] | None) -> Interval:
    """Return the interval of a score: samples about one picture are drawn together."""
    groups = [group_values(scores, group_of) for scores in strata.values() if scores]
    return bootstrap(groups, bounds=None if bounds is None else (bounds[0], bounds[1]))


def count_groups(strata: Strata, group_of: Mapping[str, str]) -> int:
    """Count what is drawn for an interval."""
    return sum(len(group_values(scores, group_of).sums) for scores in strata.values() if scores)


def resample_means(groups: Groups, *, num_resamples: int = NUM_RESAMPLES, seed: int = SEED) -> Array:
    """Return the means of as many draws of the groups with replacement, [num_resamples].

    Groups of equal sum and size are one kind, and how often each kind is drawn is multinomial: the same distribution as drawing one by one, at a cost
    that does not grow with the number of samples where scores take few values.
    """
    kinds, counts = np.unique(np.stack((groups.sums, groups.sizes)), axis=1, return_counts=True)  # [2, num_kinds], [num_kinds]
    num_groups = int(counts.sum())
    generator = np.random.default_rng(seed)
    at_once = max(1, MAX_DRAWS // len(counts))
    means = []
    for start in range(0, num_resamples, at_once):
        drawn = generator.multinomial(num_groups, counts / num_groups, size=min(at_once, num_resamples - start))  # [resamples, num_kinds]
        means.append((drawn @ kinds[0]) / (drawn @ kinds[1]))
    return np.concatenate(means)


def bootstrap(
    groups: Groups | Sequence[Groups], *, bounds: tuple[float, float] | None = None, num_resamples: int = NUM_RESAMPLES, seed: int = SEED
) -> Interval:
    """Return the 95 % percentile interval of the mean; for several strata, drawn each on its own, that of the sum of their means.

    Args: bounds: what a group can score, in any stratum. Where all have the least or all the most, draws say nothing: the interval is then that of
        coins that fell on one side each time, which holds for any scores within the bounds.
    """
    strata = [groups] if isinstance(groups, Groups) else list(groups)
    if not strata:
        raise DataError("There is no score to compute an interval from.")
    if bounds is not None and (one_sided := _all_at_a_bound(strata, *bounds)):
        return one_sided
    return _middle(sum_of_means(strata, num_resamples=num_resamples, seed=seed))


def _all_at_a_bound(strata: Sequence[Groups], least: float, most: float) -> Interval | None:
    """Return the interval of scores that are all the least or all the most; None for others."""
    means = np.concatenate([groups.sums / groups.sizes for groups in strata])
    reach = (most - least) * _one_sided([len(groups.sums) for groups in strata])
    low, high = least * len(strata), most * len(strata)
    if bool((means == least).all()):
        return Interval(low, low + reach)
    return Interval(high - reach, high) if bool((means == most).all()) else None


def _one_sided(sizes: Sequence[int]) -> float:
    """Return the largest sum of chances, one for each stratum, with which no group of any stratum shows a thing as often as once in forty draws.

    With chances x that is the largest sum(x) with prod((1 - x) ** size) = 0.025, which is where all (1 - x) / size are equal, none of them below 0.
    For one stratum it is 1 - 0.025 ** (1 / size).
    """
    goal = math.log((1 - LEVEL) / 2)
    low, high = 0.0, 1 / min(sizes)  # of (1 - x) / size
    for _ in range(100):  # halved until no number lies between
        middle = (low + high) / 2
        low, high = (middle, high) if sum(size * math.log(min(1.0, middle * size)) for size in sizes) < goal else (low, middle)
    return sum(1 - min(1.0, high * size) for size in sizes)


def sum_of_means(strata: Sequence[Groups], *, num_resamples: int, seed: int) -> Array:
    """Return the sums of the strata's resampled means, [num_resamples]."""
    return np.sum([resample_means(each, num_resamples=num_resamples, seed=seed + index) for index, each in enumerate(strata)], axis=0)


def compare_paired(
    strata_a: Strata, strata_b: Strata, group_of: Mapping[str, Hashable] | None = None, *, num_resamples: int = NUM_RESAMPLES, seed: int = SEED
) -> PairedTest:
    """Compare two runs on the samples that both have.

    Args: strata_a, strata_b: their scores by stratum and sample; the sum of the strata's means is compared.
    Raises: DataError if they have no sample in common, or a score is no finite number.
    """
    a, b = (_only_common(*pair) for pair in ((strata_a, strata_b), (strata_b, strata_a)))
    if not a:
        raise DataError("The two runs have no sample in common.")
    groups = [group_values({each: b[name][each] - score for each, score in scores.items()}, group_of) for name, scores in a.items()]
    differences = sum_of_means(groups, num_resamples=num_resamples, seed=seed)
    pairs = [(score, b[name][each]) for name, scores in a.items() for each, score in scores.items()]
    only_a, only_b = sum(one > other for one, other in pairs), sum(one < other for one, other in pairs)
    is_binary = len({score for pair in pairs for score in pair} - {0.0}) <= 1
    return PairedTest(
        num_samples=len(pairs),
        value_a=_value(a),
        value_b=_value(b),
        interval=_middle(differences),
        p_bootstrap=_two_sided(differences),
        p_mcnemar=mcnemar(only_a, only_b) if is_binary else None,
        num_only_a=only_a,
        num_only_b=only_b,
    )


def _only_common(strata: Strata, others: Strata) -> dict[str, dict[str, float]]:
    """Return what the others have too, without strata that are then empty."""
    kept = {name: {each: score for each, score in scores.items() if each in others.get(name, {})} for name, scores in strata.items()}
    return {name: scores for name, scores in kept.items() if scores}


def _value(strata: Strata) -> float:
    return math.fsum(math.fsum(scores.values()) / len(scores) for scores in strata.values())


def mcnemar(num_only_a: int, num_only_b: int) -> float:
    """Return the two-sided p-value of McNemar's exact test: were the samples that one run alone has right shared out by a fair coin?"""
    total, fewer = num_only_a + num_only_b, min(num_only_a, num_only_b)
    if total == 0:
        return 1.0
    steps = np.arange(1, fewer + 1, dtype=np.float64)
    logs = np.concatenate(([0.0], np.cumsum(np.log(total - steps + 1) - np.log(steps)))) - total * math.log(2)  # of C(total, k) / 2^total
    largest = logs.max()
    return min(1.0, 2 * math.exp(largest) * float(np.exp(logs - largest).sum()))


def _middle(values: Array) -> Interval:
    low, high = np.quantile(values, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(float(low), float(high))


def _two_sided(differences: Array) -> float:
    """Return how often chance reaches the other side of zero, both ways; one more draw is counted than there were, so that it is never 0."""
    fewer = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return min(1.0, 2 * (fewer + 1) / (len(differences) + 1))
