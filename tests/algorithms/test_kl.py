"""Estimators of the KL divergence, and the controller of its weight."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prefloop.algorithms.kl import adapt_kl_coef, full_kl, kl_estimate


def test_line_19_k1_k2_k3_are_their_formulas() -> None:
    log_probs, ref = [-0.1, -2.0, -3.0, -0.5], [-0.4, -1.0, -3.0, -7.0]
    for p, q, k1, k2, k3 in zip(
        log_probs,
        ref,
        *(kl_estimate(torch.tensor(log_probs), torch.tensor(ref), k).tolist() for k in ("k1", "k2", "k3")),
        strict=True,
    ):
        assert k1 == pytest.approx(p - q, abs=1e-6)
        assert k2 == pytest.approx((p - q) ** 2 / 2, rel=1e-5)
        assert k3 == pytest.approx(math.exp(q - p) - 1 + (p - q), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("seed", range(4))
def test_line_19_k1_and_k3_are_unbiased_for_samples_of_the_policy(seed: int) -> None:
    """Monte Carlo, 200,000 samples: within five standard errors of the exact KL, which is over 50 of them."""
    generator = torch.Generator().manual_seed(seed)
    policy, ref = torch.log_softmax(torch.randn(2, 12, generator=generator, dtype=torch.float64), 1)
    exact = float((policy.exp() * (policy - ref)).sum())
    drawn = torch.multinomial(policy.exp(), 200_000, replacement=True, generator=generator)
    for estimator in ("k1", "k3"):
        found = kl_estimate(policy[drawn], ref[drawn], estimator)
        error = float(found.std()) / math.sqrt(len(drawn))
        assert exact > 50 * error
        assert float(found.mean()) == pytest.approx(exact, abs=5 * error), estimator


@given(st.lists(st.tuples(st.floats(-30, 0), st.floats(-30, 0)), min_size=1, max_size=20))
def test_line_19_k2_and_k3_are_never_negative(pairs: list[tuple[float, float]]) -> None:
    log_probs, ref = torch.tensor(pairs, dtype=torch.float32).unbind(1)
    assert bool((kl_estimate(log_probs, ref, "k2") >= 0).all())
    assert bool((kl_estimate(log_probs, ref, "k3") >= -1e-6).all())


def test_line_19_k3_keeps_its_digits_near_zero() -> None:
    """exp(−k1) − 1 in float32 would lose three of them."""
    found = kl_estimate(torch.tensor([0.01]), torch.tensor([0.0]), "k3")
    assert float(found) == pytest.approx(math.exp(-0.01) - 1 + 0.01, rel=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_line_19_the_full_kl_is_the_sum_over_the_vocabulary(temperature: float) -> None:
    generator = torch.Generator().manual_seed(4)
    logits, ref = torch.randn(2, 5, 9, generator=generator) * 3
    found = full_kl(logits, ref, temperature)
    for row, ref_row, kl in zip(logits.double(), ref.double(), found, strict=True):
        p, q = (((one / temperature).exp() / (one / temperature).exp().sum()).tolist() for one in (row, ref_row))
        assert float(kl) == pytest.approx(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)), rel=1e-5)


def expected_gradient(logits: Tensor, ref: Tensor, estimator: str, where: str) -> Tensor:
    """Over all samples, each with its probability: nothing is drawn."""
    logits = logits.clone().requires_grad_()
    log_probs = torch.log_softmax(logits, 0)
    penalty = kl_estimate(log_probs, ref, estimator)  # type: ignore[arg-type]
    if where == "reward":
        penalty = penalty.detach() * log_probs  # the score function: k·∇log π
    (found,) = torch.autograd.grad((log_probs.detach().exp() * penalty).sum(), logits)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_line_19_which_estimator_has_the_gradient_of_the_kl_and_where(seed: int) -> None:
    """In the reward k1, in the loss k2; k1 in the loss has none at all, and k3 that of the KL the other way round."""
    generator = torch.Generator().manual_seed(seed)
    logits, ref_logits = torch.randn(2, 8, generator=generator, dtype=torch.float64) * 1.5
    ref = torch.log_softmax(ref_logits, 0)
    at = logits.clone().requires_grad_()
    table = torch.log_softmax(at, 0)
    (right,) = torch.autograd.grad((table.exp() * (table - ref)).sum(), at, retain_graph=True)
    (reverse,) = torch.autograd.grad((ref.exp() * (ref - table)).sum(), at)

    def found(estimator: str, where: str) -> Tensor:
        return expected_gradient(logits, ref, estimator, where)

    torch.testing.assert_close(found("k1", "reward"), right)
    torch.testing.assert_close(found("k2", "loss"), right)
    torch.testing.assert_close(found("k1", "loss"), torch.zeros_like(right), atol=1e-12, rtol=0)
    torch.testing.assert_close(found("k3", "loss"), reverse)
    for estimator in ("k2", "k3"):
        assert float((found(estimator, "reward") - right).abs().max()) > 0.05, estimator
    at = logits.clone().requires_grad_()
    (full,) = torch.autograd.grad(full_kl(at[None], ref_logits[None]).sum(), at)
    torch.testing.assert_close(full, right, atol=1e-6, rtol=1e-5)


def test_line_19_k1_can_be_negative() -> None:
    assert float(kl_estimate(torch.tensor([-2.0]), torch.tensor([-1.0]), "k1")) == -1.0


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (6.0, 0.1),  # on target: as before
        (6.6, 0.1 * (1 + 0.1 * 64 / 1000)),
        (60.0, 0.1 * (1 + 0.2 * 64 / 1000)),  # clipped above
        (5.4, 0.1 * (1 - 0.1 * 64 / 1000)),
        (0.0, 0.1 * (1 - 0.2 * 64 / 1000)),  # clipped below
        (-3.0, 0.1 * (1 - 0.2 * 64 / 1000)),
    ],
)
def test_line_20_the_controller_moves_beta_by_the_clipped_relative_error(kl: float, expected: float) -> None:
    assert adapt_kl_coef(0.1, kl, target=6.0, episodes=64, horizon=1000) == pytest.approx(expected, rel=1e-12)


def test_line_20_the_controller_holds_a_simple_world_at_its_target() -> None:
    """Where KL = 1/β, β goes to 1/target and stays."""
    coef = 0.01
    for _ in range(400):
        coef = adapt_kl_coef(coef, 1 / coef, target=4.0, episodes=128, horizon=1000)
    assert coef == pytest.approx(0.25, rel=1e-3)
