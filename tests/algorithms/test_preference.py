"""Bradley–Terry and DPO against their formulas, and against an independent fit of the same data."""

from __future__ import annotations

import math

import choix
import numpy as np
import pytest
import torch
from torch import Tensor

from prefloop.algorithms.dpo import dpo_loss
from prefloop.algorithms.preference import bradley_terry_loss, centring_penalty

D = torch.float64


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.fixture
def pairs() -> tuple[Tensor, Tensor, Tensor]:
    """Differences, votes for, votes against: clear, split, tied and weighted ones."""
    return (
        torch.tensor([2.0, -1.0, 0.0, 0.3, -4.0], dtype=D),
        torch.tensor([1.0, 2.0, 0.5, 0.0, 0.7], dtype=D),
        torch.tensor([0.0, 1.0, 0.5, 1.0, 0.1], dtype=D),
    )


def test_line_22_bradley_terry_is_minus_log_sigmoid_for_every_vote(pairs: tuple[Tensor, Tensor, Tensor]) -> None:
    loss, _ = bradley_terry_loss(*pairs)
    for found, d, w, v in zip(loss.tolist(), *(part.tolist() for part in pairs), strict=True):
        assert found == pytest.approx(-w * math.log(sigmoid(d)) - v * math.log(sigmoid(-d)))


def test_line_22_gradient_pushes_the_winner_up_by_its_surprise() -> None:
    difference = torch.tensor([0.4], dtype=D, requires_grad=True)
    bradley_terry_loss(difference, torch.ones(1, dtype=D), torch.zeros(1, dtype=D))[0].sum().backward()
    assert difference.grad is not None
    assert float(difference.grad) == pytest.approx(-(1 - sigmoid(0.4)))


def test_line_22_a_tie_pulls_scores_together_and_is_best_at_equality() -> None:
    half = torch.full((3,), 0.5, dtype=D)
    difference = torch.tensor([-1.0, 0.0, 1.0], dtype=D, requires_grad=True)
    loss, stats = bradley_terry_loss(difference, half, half)
    loss.sum().backward()
    assert difference.grad is not None
    assert loss[1].item() == pytest.approx(math.log(2))
    assert loss[0].item() == pytest.approx(loss[2].item())
    assert loss[0] > loss[1]
    assert difference.grad.sign().tolist() == [-1.0, 0.0, 1.0]
    assert stats["accuracy"].tolist() == [0.5, 0.5, 0.5]


def test_bradley_terry_counts_the_votes_that_the_sign_gets_right(pairs: tuple[Tensor, Tensor, Tensor]) -> None:
    _, stats = bradley_terry_loss(*pairs)
    assert stats["accuracy"].tolist() == pytest.approx([1.0, 1.0, 0.5, 0.0, 0.1])


def test_bradley_terry_of_enormous_differences_is_finite() -> None:
    difference = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss, _ = bradley_terry_loss(difference, torch.ones(2), torch.zeros(2))
    loss.sum().backward()
    assert difference.grad is not None
    assert loss.tolist() == [1e4, 0.0]
    assert difference.grad.tolist() == [-1.0, 0.0]


@pytest.mark.parametrize("seed", range(3))
def test_line_22_minimising_the_loss_gives_the_scores_that_choix_gives(seed: int) -> None:
    """400 votes over 5 items: the maximum-likelihood scores of an independent implementation, to 1e-4."""
    generator = np.random.default_rng(seed)
    true = generator.normal(size=5)
    data = []
    for _ in range(400):
        i, j = generator.choice(5, 2, replace=False)
        data.append((i, j) if generator.random() < sigmoid(true[i] - true[j]) else (j, i))
    expected = torch.from_numpy(choix.opt_pairwise(5, data))

    scores = torch.zeros(5, dtype=D, requires_grad=True)
    counts = torch.zeros(5, 5, dtype=D)
    for i, j in data:
        counts[i, j] += 1
    first, second = torch.triu_indices(5, 5, 1)
    optimiser = torch.optim.LBFGS([scores], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimiser.zero_grad()
        wins, losses = counts[first, second], counts[second, first]
        loss = bradley_terry_loss(scores[first] - scores[second], wins, losses)[0].sum()
        loss.backward()
        return float(loss.detach())

    optimiser.step(closure)
    found = scores.detach() - scores.detach().mean()
    torch.testing.assert_close(found, expected - expected.mean(), atol=1e-4, rtol=0)


def test_line_25_centring_penalises_the_square_of_the_sum() -> None:
    first, second = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([2.0, 2.0, -1.0])
    assert centring_penalty(first, second).tolist() == [9.0, 0.0, 4.0]


@pytest.mark.parametrize("beta", [0.1, 0.5])
@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_line_28_dpo_is_its_formula(pairs: tuple[Tensor, Tensor, Tensor], beta: float, epsilon: float) -> None:
    """Eq. 7 for each vote; conservative DPO takes a share ε of the votes as flipped."""
    loss, _ = dpo_loss(*pairs, beta, epsilon)
    for found, d, w, v in zip(loss.tolist(), *(part.tolist() for part in pairs), strict=True):
        right, wrong = -math.log(sigmoid(beta * d)), -math.log(sigmoid(-beta * d))
        expected = w * ((1 - epsilon) * right + epsilon * wrong) + v * ((1 - epsilon) * wrong + epsilon * right)
        assert found == pytest.approx(expected)


def test_line_28_dpo_gradient_is_beta_times_the_surprise() -> None:
    difference = torch.tensor([3.0], dtype=D, requires_grad=True)
    dpo_loss(difference, torch.ones(1, dtype=D), torch.zeros(1, dtype=D), 0.2)[0].sum().backward()
    assert difference.grad is not None
    assert float(difference.grad) == pytest.approx(-0.2 * sigmoid(-0.6))


def test_line_28_label_smoothing_has_its_optimum_at_a_finite_margin() -> None:
    """σ(βΔ*) = 1 − ε, so the slope is 0 there; without smoothing it never is."""
    beta, epsilon = 0.1, 0.2
    best = math.log((1 - epsilon) / epsilon) / beta
    difference = torch.tensor([best], dtype=D, requires_grad=True)
    one, none = torch.ones(1, dtype=D), torch.zeros(1, dtype=D)
    (slope,) = torch.autograd.grad(dpo_loss(difference, one, none, beta, epsilon)[0].sum(), difference)
    assert float(slope) == pytest.approx(0.0, abs=1e-12)


def test_line_29_dpo_counts_accuracy_and_margin_by_votes(pairs: tuple[Tensor, Tensor, Tensor]) -> None:
    _, stats = dpo_loss(*pairs, beta=0.5)
    assert stats["accuracy"].tolist() == pytest.approx([1.0, 1.0, 0.5, 0.0, 0.1])
    assert stats["margin"].tolist() == pytest.approx([1.0, -0.5, 0.0, -0.15, -1.2])
