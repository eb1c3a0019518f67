"""Votes of annotators whose reliability is known: the model of Crowd-BT itself."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from scipy.special import expit

from prefloop.feedback.pairs import Floats, PairVotes


def make_votes(
    rows: Sequence[tuple[int, int, int, int, float]],
    annotators: int,
    left: Sequence[bool] | None = None,
    gold: Sequence[int] | None = None,
) -> PairVotes:
    """Rows of (prompt, annotator, first answer, second answer, value)."""
    prompt, who, first, second = (np.array([row[k] for row in rows], np.int64) for k in range(4))
    first_left = np.ones(len(rows), bool) if left is None else np.array(left)
    return PairVotes(
        annotators=tuple(f"annotator {k}" for k in range(annotators)),
        prompt=prompt,
        pair=np.unique(first * 10**6 + second, return_inverse=True)[1],
        annotator=who,
        judgement=np.arange(len(rows)),
        first=first,
        second=second,
        value=np.array([row[4] for row in rows], float),
        first_left=first_left,
        gold=np.zeros(len(rows), np.int8) if gold is None else np.array(gold, np.int8),
        shown=np.where(first_left[:, None], np.column_stack([first, second]), np.column_stack([second, first])),
    )


def simulate(
    seed: int,
    eta: Sequence[float],
    prompts: int,
    overlap: int,
    spread: float = 2.0,
    answers: int = 2,
    gold: float = 0.0,
    ties: float = 0.0,
) -> tuple[PairVotes, Floats]:
    """Votes of P = η σ(Δ) + (1 − η) σ(−Δ), Δ ~ N(0, spread²); and the scores behind them, [prompts, answers].

    ``gold`` and ``ties`` are the shares of prompts whose right order is known, and of votes that say it is a tie.
    """
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((prompts, answers)) * spread / np.sqrt(2)
    rows, known, left = [], [], []
    for prompt in range(prompts):
        is_gold = rng.random() < gold
        for who in rng.choice(len(eta), overlap, replace=False):
            for i, j in combinations(range(answers), 2):
                difference = scores[prompt, i] - scores[prompt, j]
                p = eta[who] * expit(difference) + (1 - eta[who]) * expit(-difference)
                value = 0.5 if rng.random() < ties else float(rng.random() < p)
                rows.append((prompt, int(who), prompt * answers + i, prompt * answers + j, value))
                known.append(int(np.sign(difference)) if is_gold else 0)
                left.append(bool(rng.random() < 0.5))
    return make_votes(rows, len(eta), left, known), scores
