"""Bradley–Terry, Plackett–Luce and DPO against their formulas, and against independent fits of the same data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import permutations, product

import choix
import numpy as np
import pytest
import torch
from torch import Tensor

from prefloop.algorithms.dpo import dpo_loss
from prefloop.algorithms.preference import bradley_terry_loss, centring_penalty, plackett_luce_loss
from prefloop.feedback.scores import MAX_TIED, choices

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


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_line_22_the_margin_is_taken_off_each_votes_winner_and_the_floor_is_added(
    pairs: tuple[Tensor, Tensor, Tensor], epsilon: float
) -> None:
    margin = torch.tensor([1.0, 0.5, 0.0, 2.0, 0.3], dtype=D)
    loss, stats = bradley_terry_loss(*pairs, margin, epsilon)
    for found, d, w, v, m in zip(loss.tolist(), *(part.tolist() for part in (*pairs, margin)), strict=True):
        first, second = ((1 - epsilon) * sigmoid(x) + epsilon / 2 for x in (d - m, -d - m))
        assert found == pytest.approx(-w * math.log(first) - v * math.log(second))
    assert stats["accuracy"].tolist() == bradley_terry_loss(*pairs)[1]["accuracy"].tolist()


def test_no_margin_and_no_floor_is_the_plain_loss_bit_for_bit() -> None:
    """Runs of the defaults keep their figures: the formula that stood here before."""
    generator = torch.Generator().manual_seed(5)
    difference, wins, losses = (torch.randn(1000, generator=generator) for _ in range(3))
    before = -wins * torch.nn.functional.logsigmoid(difference) - losses * torch.nn.functional.logsigmoid(-difference)
    assert torch.equal(bradley_terry_loss(difference, wins, losses)[0], before)
    assert torch.equal(bradley_terry_loss(difference, wins, losses, torch.zeros(1000))[0], before)


def test_the_floor_bounds_what_a_vote_can_cost() -> None:
    """One wrong click cannot pull without end: the loss stays below −log(ε/2), and its slope goes to 0."""
    difference = torch.tensor([-1e4, -30.0, 0.0, 1e4], requires_grad=True)
    loss, _ = bradley_terry_loss(difference, torch.ones(4), torch.zeros(4), random_answers=0.1)
    loss.sum().backward()
    assert difference.grad is not None
    assert loss.tolist() == pytest.approx([-math.log(0.05), -math.log(0.05), math.log(2), -math.log(0.95)])
    assert difference.grad[:2].tolist() == pytest.approx([0.0, 0.0], abs=1e-9)
    assert difference.grad[2] < -0.1


# Plackett–Luce

Tiers = tuple[tuple[int, ...], ...]


def log_pl(scores: Sequence[float], order: Sequence[int]) -> float:
    """log ∏_k e^{s_k} / Σ_{l ≥ k} e^{s_l}, term by term."""
    return sum(scores[one] - math.log(sum(math.exp(scores[i]) for i in order[k:])) for k, one in enumerate(order))


def mean_over_orders(scores: Sequence[float], tiers: Tiers) -> float:
    """−log P, the mean over every order that the ties allow."""
    orders = [sum(parts, ()) for parts in product(*(permutations(tier) for tier in tiers))]
    return -sum(log_pl(scores, order) for order in orders) / len(orders)


Prepared = tuple[Tensor, Tensor, Tensor, Tensor]


def prepare(rankings: Iterable[tuple[Tiers, bool]], width: int) -> Prepared:
    """Places, shown, chosen and weights of the choices of (tiers, whether only the best was chosen)."""
    rows = [choice for tiers, best_only in rankings for choice in choices(tiers, best_only)]
    places = torch.tensor([[*among, *[0] * (width - len(among))] for among, _, _ in rows])
    shown = torch.tensor([[True] * len(among) + [False] * (width - len(among)) for among, _, _ in rows])
    chosen = torch.tensor([[1 / m] * m + [0.0] * (width - m) for _, m, _ in rows], dtype=D)
    return places, shown, chosen, torch.tensor([weight for _, _, weight in rows], dtype=D)


def of(scores: Tensor, prepared: Prepared, epsilon: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of each choice, its weight, and what it gets right."""
    places, shown, chosen, weights = prepared
    loss, stats = plackett_luce_loss(scores[places], shown, chosen, weights, epsilon)
    return loss, weights, stats["accuracy"]


def pl(scores: Tensor, rankings: Iterable[tuple[Tiers, bool]], epsilon: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    return of(scores, prepare(rankings, len(scores)), epsilon)


SCORES = [0.3, -1.2, 2.0, 0.0, 0.9, -0.4]
TIERS: list[Tiers] = [
    ((0,), (1,)),
    ((0, 1),),
    ((2,), (0,), (1,), (3,)),
    ((2,), (0, 1), (3,)),
    ((0, 1), (2, 3, 4), (5,)),
    ((4, 2, 0, 1, 3, 5),),
    ((1,), (5, 0, 2)),
]


@pytest.mark.parametrize("tiers", TIERS)
def test_line_22_a_ranking_costs_the_mean_over_the_orders_of_its_ties(tiers: Tiers) -> None:
    loss, weights, _ = pl(torch.tensor(SCORES, dtype=D), [(tiers, False)])
    assert float(loss.sum()) == pytest.approx(mean_over_orders(SCORES, tiers), rel=1e-12)
    assert float(weights.sum()) == pytest.approx(sum(map(len, tiers)) - 1)


@pytest.mark.parametrize("tiers", TIERS)
def test_line_22_plackett_luce_by_finite_differences_and_whatever_the_level(tiers: Tiers) -> None:
    scores = torch.tensor(SCORES, dtype=D, requires_grad=True)
    loss = pl(scores, [(tiers, False)])[0].sum()
    (slope,) = torch.autograd.grad(loss, scores)
    for i in range(len(SCORES)):
        up, down = ([s + h * (i == j) for j, s in enumerate(SCORES)] for h in (1e-5, -1e-5))
        expected = (mean_over_orders(up, tiers) - mean_over_orders(down, tiers)) / 2e-5
        assert float(slope[i]) == pytest.approx(expected, abs=1e-8)
    assert float(slope.sum()) == pytest.approx(0.0, abs=1e-12)
    assert float(pl(scores.detach() + 7.5, [(tiers, False)])[0].sum()) == pytest.approx(float(loss.detach()))


@pytest.mark.parametrize("epsilon", [0.0, 0.2])
def test_line_22_of_two_answers_plackett_luce_is_bradley_terry(epsilon: float) -> None:
    """Half votes and the floor included."""
    for one, other in ((0.7, -0.4), (-2.0, 1.0), (0.5, 0.5)):
        scores = torch.tensor([one, other], dtype=D)
        difference = (scores[0] - scores[1])[None]
        for tiers, wins, losses in ((((0,), (1,)), 1.0, 0.0), (((1,), (0,)), 0.0, 1.0), (((0, 1),), 0.5, 0.5)):
            loss, weights, right = pl(scores, [(tiers, False)], epsilon)
            votes = torch.tensor([wins], dtype=D), torch.tensor([losses], dtype=D)
            expected, stats = bradley_terry_loss(difference, *votes, random_answers=epsilon)
            assert float(loss.sum()) == pytest.approx(float(expected), rel=1e-12)
            assert float(weights.sum()) == 1.0
            assert float(right.sum()) == pytest.approx(float(stats["accuracy"]))


def test_line_22_the_best_alone_is_one_choice_out_of_all() -> None:
    loss, weights, right = pl(torch.tensor(SCORES, dtype=D), [(((2,), (0, 1, 5)), True)])
    shown = [SCORES[i] for i in (2, 0, 1, 5)]
    assert loss.tolist() == pytest.approx([math.log(sum(map(math.exp, shown))) - shown[0]])
    assert (weights.tolist(), right.tolist()) == ([1.0], [1.0])


def test_the_floor_of_a_choice_is_shared_by_the_answers_shown() -> None:
    loss, _, _ = pl(torch.tensor(SCORES, dtype=D), [(((1,), (2, 4)), True)], 0.3)
    total = sum(math.exp(SCORES[i]) for i in (1, 2, 4))
    assert loss.tolist() == pytest.approx([-math.log(0.7 * math.exp(SCORES[1]) / total + 0.3 / 3)])


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_plackett_luce_of_enormous_scores_is_finite_and_padding_means_nothing(epsilon: float) -> None:
    scores = torch.tensor([[1e4, -1e4, 0.0, 5e4], [-1e4, 1e4, 0.0, math.nan]], requires_grad=True)
    shown = torch.tensor([[True, True, True, False]] * 2)
    chosen = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.5, 0.0, 0.5, 0.0]])
    loss, stats = plackett_luce_loss(scores, shown, chosen, torch.tensor([1.0, 2.0]), epsilon)
    loss.sum().backward()
    assert scores.grad is not None
    assert bool(loss.isfinite().all())
    assert bool(scores.grad.isfinite().all())
    assert scores.grad[:, 3].tolist() == [0.0, 0.0]
    assert stats["accuracy"].tolist() == [1.0, 0.0]
    if not epsilon:
        assert loss.tolist() == pytest.approx([0.0, 2 * 1.5e4])


def test_too_many_ties_are_refused_before_they_cost_memory() -> None:
    assert len(list(choices([range(MAX_TIED)]))) == 2**MAX_TIED - 1 - MAX_TIED
    with pytest.raises(
        ValueError, match=r"13 answers to one prompt tie; Plackett–Luce takes up to 12.*bradley-terry"
    ):
        list(choices([[99], range(MAX_TIED + 1)]))
    assert len(list(choices([[99], range(MAX_TIED + 1)], best_only=True))) == 1


def fit(size: int, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """The scores, mean 0, that minimise a loss of them; a weak pull to 0 fixes the level."""
    scores = torch.zeros(size, dtype=D, requires_grad=True)
    optimiser = torch.optim.LBFGS([scores], max_iter=300, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimiser.zero_grad()
        value = loss(scores) + scores.mean().square()
        value.backward()
        return float(value.detach())

    optimiser.step(closure)
    return scores.detach() - scores.detach().mean()


@pytest.mark.parametrize("seed", range(3))
def test_line_22_plackett_luce_gives_the_scores_that_choix_gives_and_the_true_ones(seed: int) -> None:
    """600 rankings of 4 out of 6: an independent fit to 1e-4, the truth to 0.35 (three standard errors)."""
    generator = np.random.default_rng(seed)
    true = generator.normal(size=6)
    data = []
    for _ in range(600):
        shown = generator.choice(6, 4, replace=False)
        data.append(tuple(int(i) for i in shown[np.argsort(-(true[shown] + generator.gumbel(size=4)))]))
    expected = torch.from_numpy(choix.opt_rankings(6, data))
    made = prepare([(tuple((i,) for i in order), False) for order in data], 6)
    found = fit(6, lambda scores: of(scores, made)[0].sum())
    torch.testing.assert_close(found, expected - expected.mean(), atol=1e-4, rtol=0)
    torch.testing.assert_close(found, torch.from_numpy(true - true.mean()), atol=0.35, rtol=0)


@pytest.mark.parametrize("seed", range(3))
def test_line_22_choices_of_the_best_give_the_scores_that_choix_gives(seed: int) -> None:
    generator = np.random.default_rng(seed)
    true = generator.normal(size=5)
    data = []
    for _ in range(600):
        shown = generator.choice(5, 3, replace=False)
        order = [int(i) for i in shown[np.argsort(-(true[shown] + generator.gumbel(size=3)))]]
        data.append((order[0], tuple(order[1:])))
    expected = torch.from_numpy(choix.opt_top1(5, data))
    made = prepare([(((best,), rest), True) for best, rest in data], 5)
    found = fit(5, lambda scores: of(scores, made)[0].sum())
    torch.testing.assert_close(found, expected - expected.mean(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("seed", range(4))
def test_with_random_clicks_the_floor_recovers_what_the_plain_loss_shrinks(seed: int) -> None:
    """8,000 votes over 5 items, a tenth of them clicked blindly: the largest difference is 6.

    The plain loss takes every blind click for an opinion, so what is clear comes out too close.
    """
    generator = np.random.default_rng(seed)
    true = np.array([-3.0, -1.0, 0.0, 1.0, 3.0])
    counts = torch.zeros(5, 5, dtype=D)
    for _ in range(8000):
        i, j = generator.choice(5, 2, replace=False)
        p = 0.5 if generator.random() < 0.1 else sigmoid(true[i] - true[j])
        winner, loser = (i, j) if generator.random() < p else (j, i)
        counts[winner, loser] += 1
    first, second = torch.triu_indices(5, 5, 1)
    wins, losses = counts[first, second], counts[second, first]

    def error(epsilon: float) -> float:
        found = fit(
            5, lambda s: bradley_terry_loss(s[first] - s[second], wins, losses, random_answers=epsilon)[0].sum()
        )
        return float((found - torch.from_numpy(true)).abs().max())

    assert error(0.1) < 0.5
    assert error(0.0) > 0.6
    places = [(int(i), int(j)) for i, j in zip(first, second, strict=True)]
    forth, back = (prepare([(((i,), (j,)), False) for i, j in way], 5) for way in (places, [p[::-1] for p in places]))
    rankings = fit(5, lambda s: (wins * of(s, forth, 0.1)[0] + losses * of(s, back, 0.1)[0]).sum())
    assert float((rankings - torch.from_numpy(true)).abs().max()) == pytest.approx(error(0.1), abs=1e-4)


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
