"""What a judgement would teach: bits by definition, and by what a vote really changes."""

import math

import numpy as np
import pytest

from prefloop.feedback.priority import information


def entropy(p: float) -> float:
    return -sum(q * math.log2(q) for q in (p, 1 - p) if q > 0)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_one_model_is_asked_about_what_it_cannot_tell() -> None:
    assert information([[0.3, 0.3]]) == pytest.approx(1.0)
    assert information([[2.0, 0.5]]) == pytest.approx(entropy(sigmoid(1.5)))
    assert information([[2.0, 0.5]]) == information([[0.5, 2.0]]) == pytest.approx(information([[7.0, 5.5]]))
    assert information([[1000.0, -1000.0]]) < 1e-6


@pytest.mark.parametrize("seed", range(5))
def test_an_ensemble_is_asked_about_what_its_members_disagree_on(seed: int) -> None:
    """The mutual information of the member (drawn evenly) and the vote, counted out over their joint distribution."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 2, size=(rng.integers(2, 6), 2))
    p = [sigmoid(a - b) for a, b in scores]
    marginal = sum(p) / len(p)
    joint = 0.0
    for q in p:
        for share, total in ((q, marginal), (1 - q, 1 - marginal)):
            joint += share / len(p) * math.log2(share / total)
    assert information(scores.tolist()) == pytest.approx(joint)


def test_sure_members_who_disagree_come_before_all_who_cannot_tell() -> None:
    disagree, unsure, agree = [[4.0, 0.0], [0.0, 4.0]], [[0.1, 0.0], [0.0, 0.1]], [[4.0, 0.0], [4.0, 0.0]]
    assert information(disagree) > 0.8
    assert information(unsure) < 0.01
    assert information(agree) == pytest.approx(0.0)


def test_a_ranking_counts_as_its_pairs() -> None:
    scores = [[1.0, 0.2, -0.5], [0.0, 0.9, 0.3]]
    pairs = [[[row[i], row[j]] for row in scores] for i, j in ((0, 1), (0, 2), (1, 2))]
    assert information(scores) == pytest.approx(sum(map(information, pairs)) / 3)


@pytest.mark.parametrize("scores", [[], [[1.0]], [1.0, 2.0]])
def test_what_is_no_comparison_is_refused(scores: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="two or more answers"):
        information(scores)
