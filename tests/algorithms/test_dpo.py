"""IPO, KTO, ORPO and SimPO against their papers' formulas, written again as loops of plain floats."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from prefloop.algorithms.dpo import ipo_loss, kto_loss, kto_reference_point, orpo_loss, simpo_loss

D = torch.float64


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=D)


# Clear, split, tied and weighted votes; log-probabilities near 0 and far from it.
WINS, LOSSES = tensor(1.0, 2.0, 0.5, 0.0, 0.7), tensor(0.0, 1.0, 0.5, 1.0, 0.1)
FIRST, SECOND = tensor(-0.001, -1.5, -0.7, -3.0, -9.0), tensor(-2.0, -0.3, -0.7, -1e-6, -0.69)


def each_vote(loss: Callable[[float, float], float]) -> list[float]:
    """Votes times the loss of (preferred, other), for either direction of each pair."""
    rows = zip(FIRST.tolist(), SECOND.tolist(), WINS.tolist(), LOSSES.tolist(), strict=True)
    return [w * loss(first, second) + v * loss(second, first) for first, second, w, v in rows]


def test_line_28_ipo_is_a_square_around_its_margin() -> None:
    found, _ = ipo_loss(FIRST - SECOND, WINS, LOSSES, beta=0.25)
    assert found.tolist() == pytest.approx(each_vote(lambda w, v: ((w - v) - 2.0) ** 2))


def test_line_28_simpo_wants_a_margin_on_either_side() -> None:
    found, _ = simpo_loss(FIRST - SECOND, WINS, LOSSES, beta=2.0, margin=0.8)
    assert found.tolist() == pytest.approx(each_vote(lambda w, v: -math.log(sigmoid(2.0 * (w - v) - 0.8))))


def test_line_28_orpo_imitates_and_contrasts_by_the_odds() -> None:
    def odds(log_p: float) -> float:
        return math.exp(log_p) / -math.expm1(log_p)

    found, _ = orpo_loss(FIRST, SECOND, WINS, LOSSES, weight=0.3)
    expected = each_vote(lambda w, v: -w - 0.3 * math.log(sigmoid(math.log(odds(w) / odds(v)))))
    assert found.tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_line_28_orpo_is_finite_where_a_probability_is_one_or_nothing(dtype: torch.dtype) -> None:
    first = torch.tensor([0.0, -1e-30, -800.0], dtype=dtype, requires_grad=True)
    second = torch.tensor([-800.0, 0.0, 0.0], dtype=dtype, requires_grad=True)
    loss, _ = orpo_loss(first, second, torch.ones(3, dtype=dtype), torch.ones(3, dtype=dtype), weight=1.0)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert first.grad is not None
    assert second.grad is not None
    assert first.grad.isfinite().all()
    assert second.grad.isfinite().all()


def test_line_28_kto_weighs_each_answer_by_its_distance_from_the_reference_point() -> None:
    ratios, liked, disliked = tensor(0.5, -2.0, 0.1, 3.0), tensor(1.0, 0.0, 0.5, 2.0), tensor(0.0, 1.0, 0.5, 1.0)
    found = kto_loss(ratios, tensor(0.2)[0], liked, disliked, 0.7, desirable_weight=1.5, undesirable_weight=0.5)
    expected = [
        w * 1.5 * (1 - sigmoid(0.7 * (h - 0.2))) + v * 0.5 * (1 - sigmoid(0.7 * (0.2 - h)))
        for h, w, v in zip(ratios.tolist(), liked.tolist(), disliked.tolist(), strict=True)
    ]
    assert found.tolist() == pytest.approx(expected)


def test_line_28_ktos_reference_point_is_a_mean_that_is_never_negative_and_takes_no_gradient() -> None:
    assert float(kto_reference_point(tensor(0.5, 1.0, -0.3))) == pytest.approx(0.4)
    assert float(kto_reference_point(tensor(0.5, -1.0))) == 0.0
    ratios = tensor(0.5, 1.0).requires_grad_()
    assert not kto_reference_point(ratios).requires_grad
    kl = tensor(0.4)[0].requires_grad_()
    kto_loss(ratios, kl, tensor(1.0, 0.0), tensor(0.0, 1.0), 0.1).sum().backward()
    assert kl.grad is None


@pytest.mark.parametrize(
    "loss",
    [
        lambda a, b: ipo_loss(a - b, WINS, LOSSES, 0.3)[0],
        lambda a, b: simpo_loss(a - b, WINS, LOSSES, 2.0, 0.5)[0],
        lambda a, b: orpo_loss(a, b, WINS, LOSSES, 0.4)[0],
        lambda a, b: kto_loss(a - b, torch.tensor(0.1, dtype=D), WINS, LOSSES, 0.5),
    ],
    ids=["ipo", "simpo", "orpo", "kto"],
)
def test_line_28_gradients_are_those_of_finite_differences(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    first, second = FIRST.clone().requires_grad_(), SECOND.clamp(max=-1e-3).clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, (first, second))


@pytest.mark.parametrize(
    "make", [lambda d, w, v: ipo_loss(d, w, v, 0.3), lambda d, w, v: simpo_loss(d, w, v, 2.0, 0.5)]
)
def test_which_answer_of_a_pair_is_first_does_not_matter(
    make: Callable[..., tuple[Tensor, dict[str, Tensor]]],
) -> None:
    loss, stats = make(FIRST - SECOND, WINS, LOSSES)
    turned, turned_stats = make(SECOND - FIRST, LOSSES, WINS)
    torch.testing.assert_close(loss, turned)
    for name, values in stats.items():
        torch.testing.assert_close(values, turned_stats[name])


def test_a_pair_on_which_everybody_agrees_has_an_optimum_in_ipo_and_none_in_simpo() -> None:
    """IPO stops at 1/(2β): the overfitting of DPO that the paper is about."""
    one, none = tensor(1.0), tensor(0.0)
    difference = tensor(1 / (2 * 0.1)).requires_grad_()
    ipo_loss(difference, one, none, 0.1)[0].sum().backward()
    assert difference.grad is not None
    assert float(difference.grad) == pytest.approx(0.0)
    far = tensor(50.0).requires_grad_()
    simpo_loss(far, one, none, 0.1, 0.5)[0].sum().backward()
    assert far.grad is not None
    assert float(far.grad) < 0
