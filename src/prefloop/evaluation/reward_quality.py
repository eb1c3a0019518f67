"""How well a reward model predicts held-out judgements: accuracy, calibration, and its taste for length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.special import expit
from scipy.stats import spearmanr

from prefloop.evaluation.intervals import wilson
from prefloop.models.heads import RewardModel
from prefloop.training.comparisons import PreferenceGroup, flatten

BINS = 10


@torch.no_grad()
def evaluate_reward(reward: RewardModel, groups: Sequence[PreferenceGroup], max_tokens: int = 8192) -> dict[str, Any]:
    """The content of ``reward/evaluation.json`` (see docs/run-folder.md).

    Accuracy is over pairs: the share whose majority the model's sign agrees with. Pairs without a majority (ties)
    have none to agree with and are left out of it; loss and calibration count every vote.

    Raises:
        ValueError: there is no held-out pair with a majority.
    """
    sequences, pairs = flatten(groups, reward.model.device)
    scores = reward.score(sequences, max_tokens)
    difference = (scores[pairs.first] - scores[pairs.second]).double().cpu().numpy()
    wins, losses = pairs.wins.double().cpu().numpy(), pairs.losses.double().cpu().numpy()
    lengths = [sequence.response_tokens for sequence in sequences]
    return figures(difference, wins, losses) | {
        "length_correlation": _spearman(scores.cpu().numpy(), np.asarray(lengths)),
        "pairs": len(difference),
    }


def figures(
    difference: np.ndarray[Any, Any], wins: np.ndarray[Any, Any], losses: np.ndarray[Any, Any]
) -> dict[str, Any]:
    """All figures that follow from score differences and votes of P pairs."""
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
    reliability = _reliability(predicted, observed, votes)
    return {
        "accuracy": wilson(float(correct.sum()), int(decided.sum())),
        "loss": float(loss),
        "ece": sum(abs(b["predicted"] - b["observed"]) * b["n"] for b in reliability) / float(votes.sum()),
        "brier": float((votes * (predicted - observed) ** 2).sum() / votes.sum()),
        "reliability": reliability,
        "by_margin": _by_margin(np.abs(toward[decided]), correct),
        "by_agreement": _by_agreement(majority[decided], votes[decided], correct),
    }


def _reliability(
    predicted: np.ndarray[Any, Any], observed: np.ndarray[Any, Any], votes: np.ndarray[Any, Any]
) -> list[dict[str, float]]:
    """Bins of the probability given to the side the model prefers, from ½ to 1; empty bins are left out."""
    which = np.minimum(((predicted - 0.5) * 2 * BINS).astype(int), BINS - 1)
    return [
        {
            "predicted": float(np.average(predicted[which == b], weights=votes[which == b])),
            "observed": float(np.average(observed[which == b], weights=votes[which == b])),
            "n": float(votes[which == b].sum()),
        }
        for b in range(BINS)
        if (which == b).any()
    ]


def _by_margin(margin: np.ndarray[Any, Any], correct: np.ndarray[Any, Any]) -> list[dict[str, float]]:
    """Accuracy in thirds of |Δ|, smallest margins first."""
    order = np.argsort(margin, kind="stable")
    return [
        {
            "low": float(margin[part].min()),
            "high": float(margin[part].max()),
            "accuracy": float(correct[part].mean()),
            "n": len(part),
        }
        for part in np.array_split(order, 3)
        if len(part)
    ]


def _by_agreement(
    majority: np.ndarray[Any, Any], votes: np.ndarray[Any, Any], correct: np.ndarray[Any, Any]
) -> list[dict[str, float]]:
    """Accuracy by the share of votes on the majority's side; empty where each pair has one vote."""
    if votes.max() <= 1:
        return []
    share = np.round(majority / votes, 3)
    return [
        {
            "agreement": float(level),
            "accuracy": float(correct[share == level].mean()),
            "n": int((share == level).sum()),
        }
        for level in np.unique(share)
    ]


def _spearman(scores: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any]) -> float:
    """Rank correlation; 0 where either does not vary."""
    if len(set(scores.tolist())) < 2 or len(set(lengths.tolist())) < 2:
        return 0.0
    return float(spearmanr(scores, lengths).statistic)
