"""Proportions and their intervals, against formulas written down a second time and against simulated truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from prefloop.feedback.intervals import clustered_wilson, effective_number, wilson


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 10), (10, 10), (3, 7), (50, 100), (499, 500)])
def test_wilson_agrees_with_scipy(successes: int, n: int) -> None:
    found = wilson(successes, n)
    expected = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert found["low"] == pytest.approx(expected.low, abs=1e-12)
    assert found["high"] == pytest.approx(expected.high, abs=1e-12)
    assert found["value"] == successes / n
    assert found["n"] == n


def test_wilsons_limits_are_where_the_score_test_says_so() -> None:
    """Both ends solve |p̂ − p| = z·√(p(1−p)/n), with half a success for a tie."""
    found = wilson(12.5, 40)
    for end in (found["low"], found["high"]):
        assert abs(12.5 / 40 - end) == pytest.approx(1.959963984540054 * math.sqrt(end * (1 - end) / 40), rel=1e-12)


def test_wilson_stays_in_its_bounds_and_needs_data() -> None:
    for n in (1, 3, 100, 10_000):
        for successes in (0, n / 2, n):
            found = wilson(successes, n)
            assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1
    with pytest.raises(ValueError, match="at least one"):
        wilson(0, 0)


@pytest.mark.parametrize(("p", "n"), [(0.5, 30), (0.9, 50), (0.65, 300)])
def test_wilson_covers_the_truth_nineteen_times_in_twenty(p: float, n: int) -> None:
    draws = np.random.default_rng(0).binomial(n, p, 4000)
    covered = np.mean([found["low"] <= p <= found["high"] for found in (wilson(int(k), n) for k in draws)])
    assert 0.93 < covered < 0.975


# Pairs that depend on each other


def ranked(seed: int, runs: int, prompts: int, answers: int, noise: tuple[float, ...]) -> tuple[np.ndarray, float]:  # type: ignore[type-arg]
    """Whether a model orders every pair of each prompt's answers as people do, [runs, prompts, pairs], and how often
    it does in truth. Its score is the answer's worth plus an error; some prompts are harder than others."""
    rng = np.random.default_rng(seed)
    worth = rng.standard_normal((runs, prompts, answers))
    error = rng.choice(noise, size=(runs, prompts, 1)) * rng.standard_normal((runs, prompts, answers))
    i, j = np.triu_indices(answers, 1)
    right = (worth[..., i] > worth[..., j]) == (worth[..., i] + error[..., i] > worth[..., j] + error[..., j])
    # Two normal variables with correlation ρ have the same sign with probability ½ + arcsin(ρ)/π [Sheppard 1899].
    return right, float(np.mean([0.5 + math.asin(1 / math.hypot(1, size)) / math.pi for size in noise]))


@pytest.mark.parametrize(
    ("prompts", "answers", "noise"),
    [(200, 4, (1.5,)), (60, 4, (0.3, 3.0)), (12, 4, (0.3, 3.0)), (100, 6, (1.0,))],
    ids=["a ranking of four", "hard and easy prompts", "few prompts", "a ranking of six"],
)
def test_pairs_of_one_prompt_are_no_independent_observations(
    prompts: int, answers: int, noise: tuple[float, ...]
) -> None:
    plain, clustered = [], []
    for seed in range(5):
        runs, truth = ranked(seed, 1000, prompts, answers, noise)
        whose = np.repeat(np.arange(prompts), runs.shape[2])
        for right in runs.reshape(len(runs), -1):
            for covered, found in (
                (plain, wilson(right.sum(), right.size)),
                (clustered, clustered_wilson(right, whose)),
            ):
                covered.append(found["low"] <= truth <= found["high"])
    assert np.mean(plain) < 0.92
    assert 0.94 <= np.mean(clustered) < 0.97


@pytest.mark.parametrize("right", [0, 1, 7, 20, 39, 40])
def test_one_pair_of_each_prompt_has_wilsons_interval(right: int) -> None:
    values = [1.0] * right + [0.0] * (40 - right)
    assert clustered_wilson(values, range(40)) == pytest.approx(wilson(right, 40))


def test_pairs_that_say_the_same_count_once() -> None:
    """Three copies of each prompt's pair: about as many observations as prompts; n is still the number of pairs."""
    values, prompts = np.repeat([1.0] * 30 + [0.0] * 10, 3), np.repeat(np.arange(40), 3)
    found, expected = clustered_wilson(values, prompts), wilson(30, 40)
    assert (found["value"], found["n"]) == (0.75, 120)
    assert (found["low"], found["high"]) == pytest.approx((expected["low"], expected["high"]), abs=0.006)
    quantiles = 1.9801 / 2.0227  # of Student's t with 119 and 39 degrees of freedom, from a table
    assert effective_number(values, prompts) == pytest.approx(39 * 120 / 119 * quantiles**2, rel=1e-4)


def test_the_effective_number_against_the_formula_written_out() -> None:
    """Prompts of 3, 2 and 1 pairs; the quantiles are from a table of Student's t, 5 and 2 degrees of freedom."""
    values, clusters = [1, 1, 0, 1, 0, 1], [4, 4, 4, 9, 9, 7]
    p = 4 / 6
    sums = (2 - 3 * p) ** 2 + (1 - 2 * p) ** 2 + (1 - p) ** 2
    effect = (3 / 2 * sums / 36) / (p * (1 - p) / 5)
    assert effect < 1  # pairs that make up for each other are not worth more than independent ones
    assert effective_number(values, clusters) == pytest.approx(6 * (2.5706 / 4.3027) ** 2, rel=1e-4)
    values = [1, 1, 1, 0, 0, 1]
    sums = (3 - 3 * p) ** 2 + (0 - 2 * p) ** 2 + (1 - p) ** 2
    effect = (3 / 2 * sums / 36) / (p * (1 - p) / 5)
    assert effective_number(values, clusters) == pytest.approx(6 / effect * (2.5706 / 4.3027) ** 2, rel=1e-4)


def test_a_vote_counts_as_a_value_of_the_same_prompt() -> None:
    values, clusters, votes = [1.0, 0.5, 0.0, 1.0, 0.75], [0, 0, 1, 2, 2], [3, 1, 2, 5, 4]
    found = effective_number(values, clusters, votes)
    assert found == pytest.approx(effective_number(np.repeat(values, votes), np.repeat(clusters, votes)))
    assert found < len(values)


@pytest.mark.parametrize(
    ("values", "clusters", "worth"),
    [([1.0, 0.0, 1.0], [5, 5, 5], 1), ([1.0] * 6, [0, 0, 1, 1, 2, 2], 3), ([0.0], [0], 1), ([0.5, 0.5], [0, 1], 2)],
    ids=["one prompt", "all right", "one pair", "all undecided"],
)
def test_where_no_variance_can_be_seen_a_prompt_is_one_observation(
    values: list[float], clusters: list[int], worth: int
) -> None:
    assert effective_number(values, clusters) == worth
    found, expected = clustered_wilson(values, clusters), wilson(worth * sum(values) / len(values), worth)
    assert (found["low"], found["high"]) == pytest.approx((expected["low"], expected["high"]))


def test_no_pairs_have_no_share() -> None:
    with pytest.raises(ValueError, match="at least one"):
        clustered_wilson([], [])
