"""What the tests of the training loops share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.layouts import layout  # noqa: F401
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from prefloop.rollout.batch import Rollout
from prefloop.rollout.sampler import sample
from prefloop.training import policy_gradient

pytest.register_assert_rewrite("tests.training.oracle")  # its failures say what differs, as a test's do


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything in float64, so that what differs by more than rounding shows at 1e-9.

    The code asks for float32 by ``.float()``, whatever the precision of the model; here that gives float64. Llama's
    norm asks in another way.
    """

    def norm(self: Any, states: Tensor) -> Tensor:
        scaled: Tensor = states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * scaled

    monkeypatch.setattr(Tensor, "float", Tensor.double)
    monkeypatch.setattr(LlamaRMSNorm, "forward", norm)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Gradients(list[list[Tensor]]):
    """The gradients that each optimiser step used, after clipping."""


@pytest.fixture
def gradients(monkeypatch: pytest.MonkeyPatch) -> Gradients:
    """Records the gradient of every optimiser step from now on."""
    found, step = Gradients(), torch.optim.AdamW.step

    def recording(self: torch.optim.AdamW) -> None:
        found.append([p.grad.clone() for group in self.param_groups for p in group["params"]])
        step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", recording)
    return found


class Rollouts(list[Rollout]):
    """What a policy gradient drew, iteration by iteration."""


@pytest.fixture
def rollouts(monkeypatch: pytest.MonkeyPatch) -> Rollouts:
    """Records every rollout of a policy gradient from now on."""
    found = Rollouts()

    def recording(*args: Any, **options: Any) -> Rollout:
        found.append(sample(*args, **options))
        return found[-1]

    monkeypatch.setattr(policy_gradient, "sample", recording)
    return found
