"""Agreement against the krippendorff package, slow loops, a plain bootstrap, and simulated annotators."""

from __future__ import annotations

import time
from itertools import combinations

import krippendorff
import numpy as np
import pytest
from tests.feedback.simulation import make_votes, simulate

from prefloop.feedback.agreement import accuracy_from_agreement, agreement, following, resampled
from prefloop.feedback.pairs import PairVotes


def annotated(seed: int, prompts: int = 40, answers: int = 3, annotators: int = 5) -> PairVotes:
    """Some pairs judged by nobody, some by one, some by all; a fifth of the values are ties."""
    rng = np.random.default_rng(seed)
    rows = []
    for prompt in range(prompts):
        for i, j in combinations(range(answers), 2):
            mean = rng.random()
            for who in np.flatnonzero(rng.random(annotators) < rng.choice([0.2, 0.5, 0.9])):
                value = 0.5 if rng.random() < 0.2 else float(rng.random() < mean)
                rows.append((prompt, int(who), prompt * answers + i, prompt * answers + j, value))
    return make_votes(rows, annotators)


def table(votes: PairVotes, turned: bool) -> np.ndarray:  # type: ignore[type-arg]
    """[annotators, pairs] of 0, 1, 2 with NaN for nothing."""
    found = np.full((len(votes.annotators), votes.n_pairs), np.nan)
    found[votes.annotator, votes.pair] = 2 * (1 - votes.value if turned else votes.value)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_alpha_is_that_of_the_krippendorff_package(seed: int) -> None:
    votes = annotated(seed)
    found = agreement(votes)
    both = np.hstack([table(votes, False), table(votes, True)])
    for level, estimate in (("nominal", found.alpha), ("ordinal", found.alpha_ordinal)):
        assert estimate is not None
        assert estimate["value"] == pytest.approx(krippendorff.alpha(both, level_of_measurement=level), abs=1e-12)
        assert estimate["low"] < estimate["value"] < estimate["high"]


def test_how_answers_are_numbered_does_not_matter() -> None:
    votes = annotated(7)
    turn = np.random.default_rng(0).random(votes.n_pairs) < 0.5
    rows = [
        (p, k, *((j, i, 1 - v) if turn[u] else (i, j, v)))
        for p, k, i, j, v, u in zip(
            votes.prompt, votes.annotator, votes.first, votes.second, votes.value, votes.pair, strict=True
        )
    ]
    turned = make_votes(rows, len(votes.annotators))  # type: ignore[arg-type]
    one, other = agreement(votes), agreement(turned)
    for key in ("alpha", "alpha_ordinal", "raw", "decided", "leave_one_out"):
        assert getattr(one, key)["value"] == pytest.approx(getattr(other, key)["value"])


@pytest.mark.parametrize("seed", range(3))
def test_shares_are_counted_pair_by_pair(seed: int) -> None:
    votes = annotated(seed)
    same, decided, followed = [], [], []
    for pair in range(votes.n_pairs):
        values = votes.value[votes.pair == pair]
        same += [float(a == b) for a, b in combinations(values, 2)]
        decided += [float(a == b) for a, b in combinations(values, 2) if 0.5 not in (a, b)]
        for k, value in enumerate(values):
            others = np.delete(values, k).sum() - (len(values) - 1) / 2
            if others:
                followed.append(0.5 + np.sign(others) * (value - 0.5))
    found = agreement(votes)
    for estimate, expected in ((found.raw, same), (found.decided, decided), (found.leave_one_out, followed)):
        assert estimate is not None
        assert estimate["value"] == pytest.approx(np.mean(expected))
        assert estimate["n"] == len(expected)
    assert found.pairs == (np.bincount(votes.pair) > 1).sum()
    assert found.accuracy_of_one is not None
    assert found.accuracy_of_one["value"] == pytest.approx(accuracy_from_agreement(np.mean(decided)))


def test_following_the_others() -> None:
    rows = [(0, k, 0, 1, v) for k, v in enumerate((1.0, 1.0, 0.0))] + [(1, 0, 2, 3, 0.5), (1, 1, 2, 3, 0.0)]
    found, score, lead = following(make_votes(rows, 3))
    assert found.tolist() == [2, 3]  # one against one is no majority, and neither is a tie
    assert score.tolist() == [0.0, 0.5]
    assert lead.tolist() == [2, 1]


def test_resampling_distinct_rows_is_the_bootstrap() -> None:
    """Mean, deviation and skewness of the sums are those of drawing rows one by one."""
    rng = np.random.default_rng(0)
    rows = rng.choice([0.0, 1.0, 5.0], (300, 2), p=[0.7, 0.2, 0.1])
    rows[:, 1] += rows[:, 0]
    plain = np.array([rows[rng.integers(300, size=300)].sum(0) for _ in range(4000)])
    found = resampled(rows, 4000, seed=1)
    assert found.shape == (4000, 2)
    assert np.abs(found.mean(0) - rows.sum(0)).max() < 4 * plain.std(0).max() / np.sqrt(4000)
    assert found.std(0) == pytest.approx(plain.std(0), rel=0.05)
    assert np.corrcoef(found.T)[0, 1] == pytest.approx(np.corrcoef(plain.T)[0, 1], abs=0.03)


def test_intervals_hold_the_truth_though_the_pairs_of_a_prompt_depend_on_each_other() -> None:
    """Rankings of four by three annotators, 100 prompts; the truth is the mean over many."""
    eta = [0.95, 0.9, 0.8, 0.7]
    truth = agreement(simulate(99, eta, 6000, 3, answers=4)[0])
    keys, covered = ("alpha", "raw", "leave_one_out"), []
    for seed in range(60):
        found = agreement(simulate(seed, eta, 100, 3, answers=4)[0])
        pairs = [(getattr(found, key), getattr(truth, key)["value"]) for key in keys]
        covered.append([one["low"] <= value <= one["high"] for one, value in pairs])
    assert np.mean(covered) >= 0.9
    assert np.mean(covered, 0).min() >= 0.85


def test_published_agreement_means_this_accuracy() -> None:
    assert accuracy_from_agreement(0.726) == pytest.approx(0.84, abs=0.005)
    assert accuracy_from_agreement(1) == 1
    assert accuracy_from_agreement(0.5) == accuracy_from_agreement(0.3) == 0.5


def test_full_agreement_is_not_certainty() -> None:
    votes = make_votes([(p, k, 2 * p, 2 * p + 1, 1.0) for p in range(20) for k in range(2)], 2)
    found = agreement(votes)
    for estimate in (found.alpha, found.raw, found.decided):
        assert estimate is not None
        assert estimate["value"] == estimate["high"] == 1
        assert estimate["low"] < 0.9
    ties = agreement(make_votes([(p, k, 2 * p, 2 * p + 1, 0.5) for p in range(5) for k in range(2)], 2))
    assert ties.alpha is None  # nothing varies: chance would agree as well
    assert ties.decided is None
    assert ties.accuracy_of_one is None
    assert ties.raw is not None
    assert ties.raw["value"] == 1


def test_nobody_agrees_with_himself() -> None:
    found = agreement(make_votes([(0, 0, 0, 1, 1.0), (0, 0, 0, 1, 1.0), (1, 1, 2, 3, 1.0)], 2))
    assert found.pairs == 0
    assert found.alpha is None
    assert found.raw is None


def test_a_hundred_thousand_judgements_take_seconds() -> None:
    rng = np.random.default_rng(0)
    n = 50_000
    prompt = np.repeat(np.arange(n), 2)
    who = np.concatenate(
        [[k, k + 1 + r] for k, r in zip(rng.integers(30, size=n), rng.integers(20, size=n), strict=True)]
    )
    columns = (prompt, who, 2 * prompt, 2 * prompt + 1, rng.choice([0, 0.5, 1], 2 * n))
    rows = list(zip(*(column.tolist() for column in columns), strict=True))
    votes = make_votes(rows, 60)
    started = time.process_time()
    found = agreement(votes)
    assert time.process_time() - started < 10
    assert found.alpha is not None
    assert found.alpha["low"] < 0 < found.alpha["high"]
