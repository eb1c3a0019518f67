"""One optimiser step: normalisation, clipping, the learning rate, and what happens to numbers that are none."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from prefloop.config import Optimisation
from prefloop.training.loop import Loss, NonFiniteError, Optimiser, is_checkpoint, shuffled_batches, steps_in


def squares(parameter: nn.Parameter, scale: float = 1.0) -> object:
    def loss(batch: list[float]) -> list[Loss]:
        losses = scale * (parameter - torch.tensor(batch)).square()
        return [(losses, {"double": 2 * losses.detach()})]

    return loss


def test_line_14_a_step_divides_by_the_whole_steps_count() -> None:
    found = []
    for cut in ([[1.0, 2.0, 5.0]], [[1.0], [2.0, 5.0]], [[1.0], [2.0], [5.0]]):
        parameter = nn.Parameter(torch.zeros(1))
        optimiser = Optimiser([parameter], Optimisation(max_grad_norm=1e9), steps=1)
        found.append(optimiser.step(cut, squares(parameter), count=3))
    for line in found:
        assert line["loss"] == pytest.approx(10.0)  # (1 + 4 + 25) / 3
        assert line["double"] == pytest.approx(20.0)
        assert line["grad_norm"] == pytest.approx(16 / 3)  # |−2 (1 + 2 + 5) / 3|


def test_line_16_gradients_are_clipped_by_the_global_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """3-4-5: two parameters, one norm; the metric is the norm before clipping."""
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    used: list[list[float]] = []
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda self: used.append([float(p.grad) for p in self.param_groups[0]["params"]])
    )
    optimiser = Optimiser([first, second], Optimisation(max_grad_norm=1.0), steps=1)
    line = optimiser.step([0], lambda _: [(3 * first + 4 * second, {})], count=1)
    assert line["grad_norm"] == pytest.approx(5.0)
    assert used == [[pytest.approx(0.6), pytest.approx(0.8)]]


@pytest.mark.parametrize("warmup", [0.0, 0.2])
def test_line_30_the_learning_rate_rises_then_falls_linearly_to_zero(warmup: float) -> None:
    parameter, steps = nn.Parameter(torch.zeros(1)), 10
    config = Optimisation(learning_rate=0.5, warmup_fraction=warmup)
    optimiser = Optimiser([parameter], config, steps)
    found = [optimiser.step([[1.0]], squares(parameter), 1)["learning_rate"] for _ in range(steps)]
    rising = math.ceil(warmup * steps)
    expected = [0.5 * (i + 1) / rising for i in range(rising)]
    expected += [0.5 * (steps - i) / (steps - rising) for i in range(rising, steps)]
    assert found == pytest.approx(expected)
    assert max(found) == pytest.approx(0.5)
    assert optimiser.learning_rate == 0.0


def test_line_30_the_learning_rate_is_the_one_that_adam_uses() -> None:
    """Adam's first steps move by the learning rate, whatever the gradient."""
    parameter = nn.Parameter(torch.zeros(1))
    optimiser = Optimiser([parameter], Optimisation(learning_rate=0.1, warmup_fraction=0.0), steps=2)
    optimiser.step([[50.0]], squares(parameter), 1)
    assert float(parameter.detach()) == pytest.approx(0.1, rel=1e-4)
    optimiser.step([[50.0]], squares(parameter), 1)
    assert float(parameter.detach()) == pytest.approx(0.15, rel=1e-3)


def test_line_30_adams_epsilon_is_what_the_stage_asks_for() -> None:
    """At a gradient of ε Adam moves half a learning rate."""
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimiser = Optimiser([parameter], Optimisation(learning_rate=1.0, warmup_fraction=0.0), steps=1, eps=1e-5)
    optimiser.step([0], lambda _: [(1e-5 * parameter, {})], 1)
    assert float(parameter.detach()) == pytest.approx(-0.5, rel=1e-4)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 2])
def test_line_16_a_loss_that_is_not_finite_stops_before_anything_moves(poison: float, place: int) -> None:
    parameter = nn.Parameter(torch.ones(1))
    optimiser = Optimiser([parameter], Optimisation(), steps=3)
    batches = [[1.5], [2.0], [3.0]]
    batches[place] = [poison]
    with pytest.raises(NonFiniteError, match="the loss is not finite") as caught:
        optimiser.step(batches, squares(parameter), count=3)
    assert caught.value.batch is batches[place]
    assert parameter.tolist() == [1.0]


def test_line_16_a_gradient_that_is_not_finite_stops_before_anything_moves() -> None:
    """The square root of 0: a finite loss with an infinite slope."""
    parameter = nn.Parameter(torch.zeros(1))
    optimiser = Optimiser([parameter], Optimisation(), steps=1)
    with pytest.raises(NonFiniteError, match="the gradient is not finite") as caught:
        optimiser.step(["batch"], lambda _: [(parameter.sqrt(), {})], count=1)
    assert caught.value.batch == ["batch"]
    assert parameter.tolist() == [0.0]


def test_gradients_do_not_leak_into_the_next_step() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimiser = Optimiser([parameter], Optimisation(max_grad_norm=1e9, learning_rate=1e-12), steps=2)
    norms = [optimiser.step([[1.0]], squares(parameter), 1)["grad_norm"] for _ in range(2)]
    assert norms == pytest.approx([2.0, 2.0])


def test_frozen_parameters_are_left_out() -> None:
    frozen, free = nn.Parameter(torch.ones(1), requires_grad=False), nn.Parameter(torch.ones(1))
    optimiser = Optimiser([frozen, free], Optimisation(weight_decay=0.5), steps=1)
    optimiser.step([0], lambda _: [(frozen * free, {})], 1)
    assert frozen.tolist() == [1.0]
    assert free.tolist() != [1.0]


@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 20), st.integers(0, 5))
def test_line_15_batches_go_through_the_items_pass_after_pass(items: int, size: int, steps: int, seed: int) -> None:
    batches = list(shuffled_batches(range(items), size, steps, seed))
    assert [len(batch) for batch in batches] == [size] * steps
    stream = [item for batch in batches for item in batch]
    for start in range(0, len(stream), items):
        one_pass = stream[start : start + items]
        assert len(set(one_pass)) == len(one_pass)
    counts = Counter(stream)
    assert max(counts.values()) - min((counts[i] for i in range(items)), default=0) <= 1


def test_the_order_of_the_data_depends_on_the_seed_alone_and_changes_between_passes() -> None:
    first, again, other = (list(shuffled_batches(range(20), 20, 2, seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert first[0] != first[1] != list(range(20))


@pytest.mark.parametrize(
    ("items", "batch", "epochs", "steps"), [(100, 32, 1.0, 3), (100, 10, 2.0, 20), (3, 32, 1.0, 1), (64, 32, 0.5, 1)]
)
def test_line_15_steps_are_epochs_times_items_over_batch(items: int, batch: int, epochs: float, steps: int) -> None:
    assert steps_in(items, batch, epochs) == steps


@pytest.mark.parametrize("steps", [1, 3, 5, 23, 100])
def test_heldout_data_is_looked_at_about_five_times_and_at_the_end(steps: int) -> None:
    found = [step for step in range(1, steps + 1) if is_checkpoint(step, steps)]
    assert found[-1] == steps
    assert min(5, steps) <= len(found) <= 7
