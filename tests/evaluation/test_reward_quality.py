"""Figures of a reward model against sums written out pair by pair."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from tests.toys import byte_tokenizer, llama, random_sequences

from prefloop.evaluation.reward_quality import evaluate_reward, figures
from prefloop.feedback.intervals import clustered_wilson, effective_number, wilson
from prefloop.models.heads import RewardEnsemble, RewardModel
from prefloop.training import comparisons
from prefloop.training.comparisons import PreferenceGroup

Pair = tuple[float, float, float]
"""Score difference, votes for the first, votes for the second."""


def pairs(seed: int, count: int, votes: int) -> list[Pair]:
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        first = sum(rng.random() < 0.6 for _ in range(votes))
        found.append((rng.gauss(0, 1.5), float(first), float(votes - first)))
    return found


def of(found: list[Pair], prompts: list[int] | None = None) -> dict[str, Any]:
    """Of pairs of as many prompts, where nothing else is said."""
    whose = np.array(prompts or range(len(found)))
    return figures(*(np.array(column) for column in zip(*found, strict=True)), whose)


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def brute_force(found: list[Pair]) -> dict[str, Any]:
    """One vote after another: who won, how sure was the model of the side that it prefers?"""
    right, decided, loss, brier, total = 0, 0, 0.0, 0.0, 0.0
    bins: dict[int, list[tuple[float, float, float]]] = {}
    for difference, first, second in found:
        if first != second:
            decided += 1
            right += (difference > 0) == (first > second)
        loss -= first * math.log(sigma(difference)) + second * math.log(sigma(-difference))
        sure, votes = sigma(abs(difference)), first + second
        agreed = (first if difference > 0 else second) / votes
        brier += votes * (sure - agreed) ** 2
        total += votes
        bins.setdefault(min(9, int((sure - 0.5) * 20)), []).append((sure, agreed, votes))
    ece = 0.0
    for members in bins.values():
        weight = sum(votes for _, _, votes in members)
        gap = sum(sure * votes - agreed * votes for sure, agreed, votes in members) / weight
        ece += weight / total * abs(gap)
    return {
        "accuracy": wilson(right, decided),
        "loss": loss / total,
        "brier": brier / total,
        "ece": ece,
        "bins": len(bins),
        "votes": total,
    }


@pytest.mark.parametrize("votes", [(1,), (4,), (1, 2, 5)])
def test_figures_are_what_counting_gives(votes: tuple[int, ...]) -> None:
    data = [pair for seed, number in enumerate(votes) for pair in pairs(seed, 200, number)]
    found, expected = of(data), brute_force(data)
    assert found["accuracy"] == pytest.approx(expected["accuracy"])
    for name in ("loss", "brier", "ece"):
        assert found[name] == pytest.approx(expected[name], rel=1e-12), name
    assert len(found["reliability"]) == expected["bins"]
    assert sum(b["n"] for b in found["reliability"]) == expected["votes"]
    assert all(0.5 <= b["predicted"] <= 1 and 0 <= b["observed"] <= 1 for b in found["reliability"])
    json.dumps(found, allow_nan=False)


def test_which_side_is_first_does_not_matter() -> None:
    data = pairs(5, 200, 3)
    turned = [(-d, b, a) if i % 3 else (d, a, b) for i, (d, a, b) in enumerate(data)]
    one, other = of(data), of(turned)
    for name in ("loss", "ece", "brier"):
        assert one[name] == pytest.approx(other[name], rel=1e-12)
    assert one["accuracy"] == other["accuracy"]
    assert one["by_margin"] == other["by_margin"]
    assert one["by_agreement"] == other["by_agreement"]


def test_ties_count_for_loss_and_calibration_but_not_for_accuracy() -> None:
    data = [(1.0, 1.0, 0.0), (-2.0, 1.0, 0.0), (0.7, 0.5, 0.5)]
    found = of(data)
    assert (found["accuracy"]["value"], found["accuracy"]["n"]) == (0.5, 2)
    assert found["loss"] == pytest.approx(brute_force(data)["loss"])
    with pytest.raises(ValueError, match=r"no held-out comparison has a majority.*Judge more"):
        of([(1.0, 0.5, 0.5)])


def test_a_model_that_cannot_decide_is_right_half_of_the_time() -> None:
    found = of([(0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 1.0, 0.0)])
    assert found["accuracy"]["value"] == pytest.approx(2 / 3)


def test_margins_are_in_thirds_smallest_first() -> None:
    data = [(0.1, 0.0, 1.0), (-0.2, 1.0, 0.0), (0.5, 1.0, 0.0), (-0.6, 1.0, 0.0), (2.0, 1.0, 0.0), (-3.0, 0.0, 1.0)]
    found = of(data)["by_margin"]
    assert [b["n"] for b in found] == [2, 2, 2]
    assert [(b["low"], b["high"]) for b in found] == [(0.1, 0.2), (0.5, 0.6), (2.0, 3.0)]
    assert [b["accuracy"] for b in found] == [0.0, 0.5, 1.0]


def test_agreement_is_the_share_on_the_majoritys_side() -> None:
    data = [(1.0, 3.0, 0.0), (-1.0, 2.0, 1.0), (1.0, 1.0, 2.0), (-1.0, 1.0, 2.0), (1.0, 2.0, 1.0)]
    found = of(data)["by_agreement"]
    assert [(b["agreement"], b["accuracy"], b["n"]) for b in found] == [(0.667, 0.5, 4), (1.0, 1.0, 1)]
    assert of([(1.0, 1.0, 0.0)])["by_agreement"] == []


def test_every_share_says_what_its_pairs_are_worth() -> None:
    """Each row of each table, from the pairs that are in it and their prompts."""
    data, prompts = pairs(7, 240, 3), [i // 6 for i in range(240)]
    found = of(data, prompts)
    right = np.array([(d > 0) == (a > b) for d, a, b in data], float)
    margin, agreement = np.array([abs(d) for d, _, _ in data]), np.array([max(a, b) / 3 for _, a, b in data])
    assert found["accuracy"] == clustered_wilson(right, prompts)
    assert found["accuracy"]["n"] == 240
    tables = [(row, (margin >= row["low"]) & (margin <= row["high"])) for row in found["by_margin"]]
    tables += [(row, np.abs(agreement - row["agreement"]) < 0.01) for row in found["by_agreement"]]
    assert len(tables) == 5
    for row, part in tables:
        assert row["accuracy"] == pytest.approx(right[part].mean())
        assert row["effective_n"] == pytest.approx(effective_number(right[part], np.array(prompts)[part]))
    observed = np.array([(a if d > 0 else b) / 3 for d, a, b in data])
    for row in found["reliability"]:
        part = np.array([int((sigma(abs(d)) - 0.5) * 20) == int((row["predicted"] - 0.5) * 20) for d, _, _ in data])
        expected = effective_number(observed[part], np.array(prompts)[part], np.full(part.sum(), 3.0))
        assert row["effective_n"] == pytest.approx(expected)
        assert row["effective_n"] < row["n"] == 3 * part.sum()


def test_a_calibrated_model_has_no_calibration_error() -> None:
    rng = random.Random(0)
    draws = [rng.gauss(0, 1.5) for _ in range(40_000)]
    calibrated = [(d, *((1.0, 0.0) if rng.random() < sigma(d) else (0.0, 1.0))) for d in draws]
    assert of(calibrated)["ece"] < 0.01
    assert of([(3 * d, a, b) for d, a, b in calibrated])["ece"] > 0.08


@pytest.mark.parametrize("size", [50.0, 1000.0])
def test_enormous_differences_give_finite_figures(size: float) -> None:
    found = of([(size, 1.0, 0.0), (-size, 1.0, 0.0), (size, 1.0, 2.0)])
    assert found["loss"] == pytest.approx((size + 2 * size) / 5)
    json.dumps(found, allow_nan=False)


# With a model


def toy() -> RewardModel:
    tokenizer = byte_tokenizer()
    return RewardModel.from_policy(llama(len(tokenizer)), tokenizer, seed=0)


def groups() -> list[PreferenceGroup]:
    """Groups of two and three answers of different lengths."""
    sequences = random_sequences(1, [(4, 2 + i % 7) for i in range(25)])
    three = tuple(sequences[:3]), ((0, 1, 1.0, 0.0), (0, 2, 2.0, 1.0), (1, 2, 0.5, 0.5))
    return [
        PreferenceGroup(*three),
        *(PreferenceGroup(tuple(sequences[i : i + 2]), ((0, 1, 1.0, 0.0),)) for i in range(3, 25, 2)),
    ]


def test_a_model_is_measured_by_its_scores_pair_by_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    reward, data = toy(), groups()
    with torch.no_grad():
        scores = [[float(reward.score([s])[0]) for s in group.sequences] for group in data]
    found = [(own[i] - own[j], a, b) for own, g in zip(scores, data, strict=True) for i, j, a, b in g.pairs]
    expected = brute_force(found)
    result = evaluate_reward(reward, data, max_tokens=40)
    right = [float((d > 0) == (a > b)) for d, a, b in found if a != b]
    assert result["accuracy"] == clustered_wilson(right, [0, 0, *range(1, 12)])  # the third pair is a tie
    assert result["accuracy"]["value"] == expected["accuracy"]["value"]
    assert result["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert result["pairs"] == len(found) == 14
    lengths = [s.response_tokens for group in data for s in group.sequences]
    flat = [score for own in scores for score in own]
    assert result["length_correlation"] == pytest.approx(spearmanr(flat, lengths).statistic)
    assert result == evaluate_reward(reward, data, max_tokens=40)
    monkeypatch.setattr(comparisons, "AT_ONCE", 5)
    assert evaluate_reward(reward, data, max_tokens=1000) == approximately(result), "of many groups part by part"


def approximately(figures: Any) -> Any:
    if isinstance(figures, dict):
        return {key: approximately(value) for key, value in figures.items()}
    if isinstance(figures, list):
        return [approximately(value) for value in figures]
    return pytest.approx(figures, rel=1e-4)


def test_a_floor_is_part_of_what_the_model_claims() -> None:
    """One vote after another, with P = (1−ε)·σ(Δ) + ε/2."""
    data, epsilon = pairs(3, 300, 3), 0.2
    found = figures(*(np.array(column) for column in zip(*data, strict=True)), np.arange(300), epsilon)
    loss = brier = 0.0
    for difference, first, second in data:
        p = (1 - epsilon) * sigma(difference) + epsilon / 2
        loss -= first * math.log(p) + second * math.log(1 - p)
        brier += 3 * (p - first / 3) ** 2
    assert found["loss"] == pytest.approx(loss / 900)
    assert found["brier"] == pytest.approx(brier / 900)
    assert found["accuracy"] == of(data)["accuracy"]
    assert max(row["predicted"] for row in found["reliability"]) <= 0.9


@pytest.mark.parametrize("size", [50.0, 1000.0])
def test_enormous_differences_give_finite_figures_with_a_floor(size: float) -> None:
    found = figures(np.array([size, -size]), np.array([1.0, 1.0]), np.zeros(2), np.arange(2), 0.1)
    assert found["loss"] == pytest.approx(-(math.log(0.95) + math.log(0.05)) / 2)


def test_each_criterion_is_measured_by_its_own_head() -> None:
    tokenizer = byte_tokenizer()
    reward = RewardModel.from_policy(llama(len(tokenizer)), tokenizer, 0, {"a": 1.0, "b": 3.0})
    sequences = random_sequences(1, [(4, 2 + i % 7) for i in range(24)])
    data = [
        PreferenceGroup(tuple(sequences[i : i + 2]), ((0, 2, 1.0, 0.0), (1, 3, 0.0, 2.0)), criteria=2)
        for i in range(0, 24, 2)
    ]
    heads = reward.criterion_scores(sequences)
    result = evaluate_reward(reward, data, max_tokens=40)
    for name, head, votes in (("a", 0, (1.0, 0.0)), ("b", 1, (0.0, 2.0))):
        expected = brute_force([(float(heads[i, head] - heads[i + 1, head]), *votes) for i in range(0, 24, 2)])
        part = result["criteria"][name]
        assert part["accuracy"]["value"] == expected["accuracy"]["value"]
        assert part["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert part["pairs"] == 12
    assert list(result["criteria"]) == ["a", "b"]
    share = [result["criteria"][name]["accuracy"]["value"] for name in "ab"]
    assert result["accuracy"]["value"] == pytest.approx(sum(share) / 2)
    assert result["pairs"] == 24
    lengths = [s.response_tokens for s in sequences]
    assert result["length_correlation"] == pytest.approx(
        spearmanr((heads[:, 0] + 3 * heads[:, 1]).tolist(), lengths).statistic
    )
    undecided = [PreferenceGroup(g.sequences, ((0, 2, 1.0, 0.0), (1, 3, 1.0, 1.0)), criteria=2) for g in data]
    assert list(evaluate_reward(reward, undecided)["criteria"]) == ["a"]


def test_an_ensemble_says_where_its_members_disagree() -> None:
    tokenizer = byte_tokenizer()
    parts = [RewardModel.from_policy(llama(len(tokenizer)), tokenizer, seed) for seed in range(3)]
    parts[1].shift_scores(5.0)  # a level of its own is no disagreement about a pair
    data = groups()
    by_member = []
    for part in parts:
        own = [part.score(list(group.sequences)) for group in data]
        by_member.append([float(s[i] - s[j]) for s, g in zip(own, data, strict=True) for i, j, _, _ in g.pairs])
    spread = [float(np.std(column)) for column in zip(*by_member, strict=True)]
    mean = [float(np.mean(column)) for column in zip(*by_member, strict=True)]
    result = evaluate_reward(RewardEnsemble(parts, pessimism=9.0), data, max_tokens=40)
    assert result["disagreement"] == pytest.approx(np.mean(spread), rel=1e-4)
    votes = [(a, b) for g in data for _, _, a, b in g.pairs]
    assert result["loss"] == pytest.approx(
        brute_force([(d, *v) for d, v in zip(mean, votes, strict=True)])["loss"], rel=1e-4
    ), "of the mean, whatever the pessimism"
    for part, interval in zip(parts, result["members"], strict=True):
        assert interval == evaluate_reward(part, data)["accuracy"]
    decided = [(s, float((d > 0) == (a > b))) for s, d, (a, b) in zip(spread, mean, votes, strict=True) if a != b]
    decided.sort(key=lambda row: row[0])
    rows = result["by_disagreement"]
    assert [row["n"] for row in rows] == [5, 4, 4]
    start = 0
    for row in rows:
        inside = decided[start : start + row["n"]]
        start += row["n"]
        assert row["accuracy"] == pytest.approx(np.mean([right for _, right in inside]))
        assert (row["low"], row["high"]) == pytest.approx((inside[0][0], inside[-1][0]), rel=1e-4)
    assert "disagreement" not in evaluate_reward(parts[0], data)
    json.dumps(result, allow_nan=False)


def test_equal_lengths_have_no_correlation_with_anything() -> None:
    sequences = random_sequences(1, [(4, 3)] * 4)
    data = [PreferenceGroup(tuple(sequences[i : i + 2]), ((0, 1, 1.0, 0.0),)) for i in (0, 2)]
    assert evaluate_reward(toy(), data)["length_correlation"] == 0.0
