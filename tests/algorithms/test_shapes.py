"""Shape annotations are checked under pytest: a wrong shape, type of number or size is an error at the call."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from jaxtyping import TypeCheckError

from prefloop.algorithms.gae import generalised_advantages
from prefloop.algorithms.likelihood import token_log_probs
from prefloop.algorithms.masked import masked_whiten
from prefloop.rollout.batch import Rollout
from prefloop.rollout.draw import draw

REAL = torch.ones(2, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    "call",
    [
        lambda: generalised_advantages(torch.zeros(2, 3), torch.zeros(2, 4), REAL, 1.0, 1.0),
        lambda: generalised_advantages(torch.zeros(2, 3), torch.zeros(2, 3), REAL.long(), 1.0, 1.0),
        lambda: masked_whiten(torch.zeros(6), REAL.flatten()),
        lambda: token_log_probs(torch.zeros(2, 3), torch.zeros(2)),
        lambda: draw(torch.zeros(2, 3), torch.zeros(3), 1.0),
        lambda: Rollout([[1], [1]], REAL.long(), REAL, *[torch.zeros(2, 2)] * 3, torch.ones(2, dtype=torch.bool)),
    ],
    ids=["another width", "integers for a mask", "a row for a table", "floats for ids", "more rows", "a field"],
)
def test_a_wrong_shape_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(TypeCheckError):
        call()


def test_right_shapes_pass() -> None:
    advantages, returns = generalised_advantages(torch.zeros(2, 3), torch.zeros(2, 3), REAL, 1.0, 1.0)
    assert advantages.shape == returns.shape == (2, 3)
