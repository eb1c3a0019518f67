"""How well a reward model predicts held-out judgements: accuracy, calibration, and its taste for length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.special import expit
from scipy.stats import spearmanr

from prefloop.evaluation.intervals import clustered_wilson, effective_number
from prefloop.models.heads import RewardModel
from prefloop.training.comparisons import PreferenceGroup, flatten

BINS = 10
Array = np.ndarray[Any, Any]


@torch.no_grad()
def evaluate_reward(reward: RewardModel, groups: Sequence[PreferenceGroup], max_tokens: int = 8192) -> dict[str, Any]:
    """The content of ``reward/evaluation.json`` (see docs/run-folder.md).

    Accuracy is over pairs: the share whose majority the model's sign agrees with. Pairs without a majority (ties)
    have none to agree with and are left out of it; loss and calibration count every vote. Intervals allow for the
    pairs of one prompt, which are not independent.

    Raises:
        ValueError: there is no held-out pair with a majority.
    """
    sequences, pairs = flatten(groups, reward.model.device)
    scores = reward.score(sequences, max_tokens)
    difference = (scores[pairs.first] - scores[pairs.second]).double().cpu().numpy()
    wins, losses = pairs.wins.double().cpu().numpy(), pairs.losses.double().cpu().numpy()
    prompts = np.repeat(np.arange(len(groups)), [len(group.pairs) for group in groups])
    lengths = [sequence.response_tokens for sequence in sequences]
    return figures(difference, wins, losses, prompts) | {
        "length_correlation": _spearman(scores.cpu().numpy(), np.asarray(lengths)),
        "pairs": len(difference),
    }


def figures(difference: Array, wins: Array, losses: Array, prompts: Array) -> dict[str, Any]:
    """All figures that follow from score differences and votes of P pairs; ``prompts`` says whose pair each is."""
    decided = wins != losses
    if not decided.any():
        raise ValueError("no held-out comparison has a majority, so accuracy has no meaning. Judge more pairs")
    votes = wins + losses
    # Accuracy and margins are the same whichever side is called first; reading every pair from the majority's
    # side keeps the calibration symmetric too.
    toward = np.where(wins >= losses, difference, -difference)
    majority = np.maximum(wins, losses)
    correct = np.where(toward == 0, 0.5, toward > 0)[decided].astype(float)
    predicted = expit(np.abs(toward))
    observed = np.where(toward >= 0, majority, votes - majority) / votes
    # log σ(x) = −log(1 + e^−x), which stays finite where σ(x) is 0 in floating point.
    wrong = majority * np.logaddexp(0, -toward) + (votes - majority) * np.logaddexp(0, toward)
    loss = wrong.sum() / votes.sum()
    reliability = _reliability(predicted, observed, votes, prompts)
    whose = prompts[decided]
    return {
        "accuracy": clustered_wilson(correct, whose),
        "loss": float(loss),
        "ece": sum(abs(b["predicted"] - b["observed"]) * b["n"] for b in reliability) / float(votes.sum()),
        "brier": float((votes * (predicted - observed) ** 2).sum() / votes.sum()),
        "reliability": reliability,
        "by_margin": _by_margin(np.abs(toward[decided]), correct, whose),
        "by_agreement": _by_agreement(majority[decided], votes[decided], correct, whose),
    }


def _reliability(predicted: Array, observed: Array, votes: Array, prompts: Array) -> list[dict[str, float]]:
    """Bins of the probability given to the side the model prefers, from ½ to 1; empty bins are left out."""
    which = np.minimum(((predicted - 0.5) * 2 * BINS).astype(int), BINS - 1)
    members = [which == b for b in range(BINS) if (which == b).any()]
    return [
        {
            "predicted": float(np.average(predicted[part], weights=votes[part])),
            "observed": float(np.average(observed[part], weights=votes[part])),
            "n": float(votes[part].sum()),
            "effective_n": effective_number(observed[part], prompts[part], votes[part]),
        }
        for part in members
    ]


def _by_margin(margin: Array, correct: Array, prompts: Array) -> list[dict[str, float]]:
    """Accuracy in thirds of |Δ|, smallest margins first."""
    order = np.argsort(margin, kind="stable")
    return [
        {
            "low": float(margin[part].min()),
            "high": float(margin[part].max()),
            **_accuracy(correct[part], prompts[part]),
        }
        for part in np.array_split(order, 3)
        if len(part)
    ]


def _by_agreement(majority: Array, votes: Array, correct: Array, prompts: Array) -> list[dict[str, float]]:
    """Accuracy by the share of votes on the majority's side; empty where each pair has one vote."""
    if votes.max() <= 1:
        return []
    share = np.round(majority / votes, 3)
    return [
        {"agreement": float(level), **_accuracy(correct[share == level], prompts[share == level])}
        for level in np.unique(share)
    ]


def _accuracy(correct: Array, prompts: Array) -> dict[str, float]:
    return {
        "accuracy": float(correct.mean()),
        "n": len(correct),
        "effective_n": effective_number(correct, prompts),
    }


def _spearman(scores: Array, lengths: Array) -> float:
    """Rank correlation; 0 where either does not vary."""
    if len(set(scores.tolist())) < 2 or len(set(lengths.tolist())) < 2:
        return 0.0
    return float(spearmanr(scores, lengths).statistic)
