"""Whose answers win: policies, checkpoints, files, compared by the votes between their answers.

One Bradley–Terry model [Bradley & Terry 1952] with a strength for each origin: P(an answer of i ≻ one of j) =
σ(s_i − s_j), a tie is half a vote for each, s ~ N(0, τ²) with τ as in `prefloop.feedback.scores`. It allows for who
met whom, which the share of votes won does not. Strengths are compared where a chain of comparisons leads from one
to the other: each such *field* is a table of its own, and a score is what an origin has above the field's mean.

Intervals are Wald's with Student's t for the number of prompts, of the sandwich (H+Λ)⁻¹ (J+Λ) (H+Λ)⁻¹ clustered by
prompt, but no narrower than those of independent votes, (H+Λ)⁻¹: where one always wins, residuals are small.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.special import expit, stdtrit

from .intervals import Estimate, clustered_wilson
from .keys import Ints
from .pairs import Floats, PairVotes, sums
from .scores import PRIOR_SD

MOST_ORIGINS = 100
"""Origins that are compared; of more, those with the most votes."""
MOST_FIELDS = 5
"""Of more, those with the most origins: where every answer has an origin of its own there is nothing to tell."""
_LONG = 28
"""Characters from which on a name is shortened."""


@dataclass(frozen=True)
class Origin:
    """One origin of answers among those that it was compared with."""

    name: str
    short: str
    """Without what does not tell it from the others."""
    win_rate: Estimate
    """Share of votes against answers of others that it won, whoever they were; ``n`` is the number of these votes."""
    score: Estimate
    """In logits, above the mean of the field."""


def compare_origins(votes: PairVotes, origin: Ints, names: tuple[str, ...]) -> tuple[tuple[Origin, ...], ...]:
    """The fields, that with the most origins first, each from the best origin to the worst.

    Args:
        origin: [completions] of each, by number in ``names``.
    """
    left, right = origin[votes.shown].T
    most = np.argsort(-np.bincount(np.concatenate([left, right])[np.tile(left != right, 2)]), kind="stable")
    rows = np.flatnonzero((left != right) & np.isin(left, most[:MOST_ORIGINS]) & np.isin(right, most[:MOST_ORIGINS]))
    if not len(rows):
        return ()
    met, number = np.unique(np.concatenate([left[rows], right[rows]]), return_inverse=True)
    sides, value, prompt = number.reshape(2, -1), votes.left[rows], votes.prompt[rows]
    strength, covariances = _strengths(sides, value, prompt, len(met))
    field = connected_components(csr_matrix((np.ones(len(rows)), sides), (len(met), len(met))), directed=False)[1]
    short = short_names(names[k] for k in met)

    def one(k: int, members: Ints, t: float) -> Origin:
        won = np.concatenate([value[sides[0] == k], 1 - value[sides[1] == k]])
        whose = np.concatenate([prompt[sides[0] == k], prompt[sides[1] == k]])
        above = np.zeros(len(met))
        above[members] = -1 / len(members)
        above[k] += 1
        score, error = float(above @ strength), math.sqrt(max(above @ c @ above for c in covariances))
        n = len(won)
        estimate = Estimate(value=score, low=score - t * error, high=score + t * error, n=n)
        return Origin(names[met[k]], short[names[met[k]]], clustered_wilson(won, whose), estimate)

    fields = []
    for number_of in range(int(field.max()) + 1):
        members = np.flatnonzero(field == number_of)
        prompts = len(np.unique(prompt[field[sides[0]] == number_of]))
        t = float(stdtrit(max(1, prompts - 1), 0.975))
        fields.append(
            tuple(sorted((one(int(k), members, t) for k in members), key=lambda each: -each.score["value"]))
        )
    return tuple(sorted(fields, key=len, reverse=True)[:MOST_FIELDS])


def _strengths(sides: Ints, value: Floats, prompt: Ints, origins: int) -> tuple[Floats, tuple[Floats, Floats]]:
    """[O] Strengths; and two [O, O] covariances, for votes that depend on each other within prompts and for
    independent ones."""
    key, pair, n = np.unique(sides[0] * origins + sides[1], return_inverse=True, return_counts=True)
    met, won = np.zeros((len(key), origins)), sums(pair, value, len(key))
    met[np.arange(len(key)), key // origins], met[np.arange(len(key)), key % origins] = 1, -1
    prior, strength = np.eye(origins) / PRIOR_SD**2, np.zeros(origins)
    for _ in range(50):
        p = expit(met @ strength)
        independent = np.linalg.inv(met.T @ ((n * p * (1 - p))[:, None] * met) + prior)
        step = independent @ (met.T @ (won - n * p) - prior @ strength)
        strength = strength + step / max(1.0, np.abs(step).max() / 2)
        if np.abs(step).max() < 1e-9:
            break
    whose = np.unique(prompt, return_inverse=True)[1]
    residual, clusters = value - expit(met @ strength)[pair], int(whose.max()) + 1
    rows = (np.concatenate([residual, -residual]), (np.tile(whose, 2), sides.reshape(-1)))
    gradients = csr_matrix(rows, (clusters, origins))
    squares = (gradients.T @ gradients).toarray() * clusters / max(1, clusters - 1)
    return strength, (independent @ (squares + prior) @ independent, independent)


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Names → the ends of their paths and the beginnings of their hashes, with as much as tells them apart."""
    all_names = set(names)
    found = {name: name for name in all_names if len(name) <= _LONG}
    for parts, digits in ((2, 8), (2, 16), (4, 16)):
        tried = {name: _shortened(name, parts, digits) for name in sorted(all_names - found.keys())}
        often = Counter([*tried.values(), *found.values()])
        fit = {name: short for name, short in tried.items() if often[short] == 1}
        found |= fit
    return found | {name: name for name in all_names - found.keys()}


def _shortened(name: str, parts: int, digits: int) -> str:
    path, at, digest = name.rpartition("@")
    if not at or not re.fullmatch("[0-9a-f]{8,}", digest):
        path, digest = name, ""
    return "/".join(path.rstrip("/").split("/")[-parts:]) + ("@" + digest[:digits] if digest else "")
