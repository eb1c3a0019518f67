"""How well a reward model predicts held-out judgements: accuracy, calibration, and its taste for length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import expit
from scipy.stats import spearmanr

from prefloop.feedback.intervals import clustered_wilson, effective_number
from prefloop.models.heads import RewardModel
from prefloop.training.comparisons import PreferenceGroup, flatten, in_memory

BINS = 10
Array = np.ndarray[Any, Any]


@torch.no_grad()
def evaluate_reward(
    reward: RewardModel,
    groups: Sequence[PreferenceGroup],
    max_tokens: int = 8192,
    random_answers: float = 0.0,
) -> dict[str, Any]:
    """The content of ``reward/evaluation.json`` (see docs/run-folder.md).

    Accuracy is over pairs: the share whose majority the model's sign agrees with. Pairs without a majority (ties)
    have none to agree with and are left out of it; loss and calibration count every vote. Intervals allow for the
    pairs of one prompt, which are not independent. Of several criteria, each pair is read by its own head. An
    ensemble's figures are those of its members' mean.

    Raises:
        ValueError: there is no held-out pair with a majority.
    """
    read = [_read(reward, part, max_tokens) for part in in_memory(groups)]
    by_member = np.concatenate([part.by_member for part in read], axis=1)
    difference, wins, losses, whose, counts, scores, lengths = (
        np.concatenate([getattr(part, name) for part in read])
        for name in ("difference", "wins", "losses", "criterion", "counts", "scores", "lengths")
    )
    prompts = np.repeat(np.arange(len(groups)), counts)
    found = figures(difference, wins, losses, prompts, random_answers) | {
        "length_correlation": _spearman(scores, lengths),
        "pairs": len(difference),
    }
    if len(reward.criteria) > 1:
        parts = {name: whose == number for number, name in enumerate(reward.criteria)}
        found["criteria"] = {
            name: figures(difference[part], wins[part], losses[part], prompts[part], random_answers)
            | {"pairs": int(part.sum())}
            for name, part in parts.items()
            if (wins[part] != losses[part]).any()
        }
    if len(by_member) > 1:
        found |= disagreement_figures(by_member, wins, losses, prompts)
    return found


@dataclass(frozen=True)
class _Read:
    """What M members make of G groups with B answers and P pairs."""

    by_member: Array
    """(M, P) Their own score differences: what they add to all answers of a prompt says nothing."""
    difference: Array
    """(P,) Of their mean."""
    wins: Array
    losses: Array
    criterion: Array
    """(P,) The number of each pair's."""
    counts: Array
    """(G,) Pairs of each group."""
    scores: Array
    """(B,)"""
    lengths: Array
    """(B,) Response tokens."""


def _read(reward: RewardModel, groups: Sequence[PreferenceGroup], max_tokens: int) -> _Read:
    sequences, pairs = flatten(groups, reward.device)
    members = torch.stack([member.criterion_scores(sequences, max_tokens) for member in reward.members])
    scores = members.mean(0)
    flat, mean = members.flatten(1), scores.flatten()
    return _Read(
        by_member=(flat[:, pairs.first] - flat[:, pairs.second]).double().cpu().numpy(),
        difference=(mean[pairs.first] - mean[pairs.second]).double().cpu().numpy(),
        wins=pairs.wins.double().cpu().numpy(),
        losses=pairs.losses.double().cpu().numpy(),
        criterion=pairs.first.cpu().numpy() % len(reward.criteria),
        counts=np.array([len(group.pairs) for group in groups]),
        scores=reward.weigh(scores).cpu().numpy(),
        lengths=np.array([sequence.response_tokens for sequence in sequences]),
    )


def disagreement_figures(by_member: Array, wins: Array, losses: Array, prompts: Array) -> dict[str, Any]:
    """What M members make of P pairs: ``by_member`` is their score differences, (M, P)."""
    decided = wins != losses
    difference, toward = by_member[:, decided], np.where(wins > losses, 1, -1)[decided]
    whose, spread = prompts[decided], difference.std(0)
    return {
        "members": [clustered_wilson(_correct(one * toward), whose) for one in difference],
        "disagreement": float(by_member.std(0).mean()),
        "by_disagreement": _in_thirds(spread, _correct(difference.mean(0) * toward), whose),
    }


def _correct(toward: Array) -> Array:
    """Whether each pair is right, from the score difference towards its majority; half of it where that is 0."""
    return np.where(toward == 0, 0.5, toward > 0).astype(float)


def figures(
    difference: Array, wins: Array, losses: Array, prompts: Array, random_answers: float = 0.0
) -> dict[str, Any]:
    """All figures that follow from score differences and votes of P pairs; ``prompts`` says whose pair each is.

    With a share ε of ``random_answers`` the model claims (1−ε)·σ(Δ) + ε/2, and is measured by that.
    """
    decided = wins != losses
    if not decided.any():
        raise ValueError("no held-out comparison has a majority, so accuracy has no meaning. Judge more pairs")
    votes = wins + losses
    # Accuracy and margins are the same whichever side is called first; reading every pair from the majority's
    # side keeps the calibration symmetric too.
    toward = np.where(wins >= losses, difference, -difference)
    majority = np.maximum(wins, losses)
    correct = _correct(toward[decided])
    predicted = (1 - random_answers) * expit(np.abs(toward)) + random_answers / 2
    observed = np.where(toward >= 0, majority, votes - majority) / votes
    wrong = -majority * _log_claim(toward, random_answers) - (votes - majority) * _log_claim(-toward, random_answers)
    loss = wrong.sum() / votes.sum()
    reliability = _reliability(predicted, observed, votes, prompts)
    whose = prompts[decided]
    return {
        "accuracy": clustered_wilson(correct, whose),
        "loss": float(loss),
        "ece": sum(abs(b["predicted"] - b["observed"]) * b["n"] for b in reliability) / float(votes.sum()),
        "brier": float((votes * (predicted - observed) ** 2).sum() / votes.sum()),
        "reliability": reliability,
        "by_margin": _in_thirds(np.abs(toward[decided]), correct, whose),
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


def _log_claim(x: Array, random_answers: float) -> Array:
    """log((1−ε)·σ(x) + ε/2), by log σ(x) = −log(1 + e^−x), which stays finite where σ(x) is 0 in floating point."""
    log_sigmoid = -np.logaddexp(0, -x)
    if not random_answers:
        return log_sigmoid
    return np.logaddexp(np.log1p(-random_answers) + log_sigmoid, np.log(random_answers / 2))


def _in_thirds(by: Array, correct: Array, prompts: Array) -> list[dict[str, float]]:
    """Accuracy in thirds of ``by`` (|Δ|, or the members' disagreement), smallest first."""
    order = np.argsort(by, kind="stable")
    return [
        {
            "low": float(by[part].min()),
            "high": float(by[part].max()),
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
