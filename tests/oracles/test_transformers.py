"""The loss that transformers' own models compute from labels is that of fine-tuning and of pretraining."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.toys import MODELS, loss_and_gradients, policy, random_sequences
from torch import Tensor

from prefloop.chat import Rendered
from prefloop.policy import Policy
from prefloop.training.maximum_likelihood import _negative_log_likelihood
from prefloop.training.pretrain import blocks_of

TOLERANCE = 1e-5
LENGTHS = [(5, 3), (1, 9), (12, 1), (2, 2), (7, 8)]


@pytest.fixture(params=MODELS)
def made(request: pytest.FixtureRequest) -> Policy:
    return policy(request.param)


def own(model: Any, sequences: Sequence[Rendered]) -> Tensor:
    """Labels are token ids, -100 where there is no loss; the model shifts them itself and takes the mean."""
    longest = max(map(len, sequences))
    rows = [(one.ids, one.mask, [0] * (longest - len(one))) for one in sequences]
    ids = torch.tensor([own + fill for own, _, fill in rows])
    attention = torch.tensor([[1] * len(own) + fill for own, _, fill in rows])
    labels = ids.where(torch.tensor([mask + [False] * len(fill) for _, mask, fill in rows]), ids.new_tensor(-100))
    loss: Tensor = model(input_ids=ids, attention_mask=attention, labels=labels).loss
    return loss


def assert_same(model: Any, sequences: Sequence[Rendered]) -> None:
    wanted = own(model, sequences)
    slopes = torch.autograd.grad(wanted, list(model.parameters()))
    count = sum(sequence.response_tokens for sequence in sequences)
    mine, found = loss_and_gradients(_negative_log_likelihood(model)(list(sequences)), count, model)
    torch.testing.assert_close(mine, wanted.detach(), atol=TOLERANCE, rtol=0)
    for slope, other in zip(found.values(), slopes, strict=True):
        torch.testing.assert_close(slope, other, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("seed", range(3))
def test_line_27_fine_tuning(made: Policy, seed: int) -> None:
    assert_same(made.model, random_sequences(seed, LENGTHS, 258))


def test_pretraining(made: Policy) -> None:
    documents = ["Some text to read,", "and a little more of it.", "The end"]
    blocks = list(blocks_of(made, documents, 16))
    assert len(blocks) == 3
    assert_same(made.model, blocks)
    # Every token but the first of a block is learnt, which transformers has from labels that are the ids themselves.
    ids = torch.tensor([block.ids for block in blocks])
    losses = torch.cat([part for part, _ in _negative_log_likelihood(made.model)(blocks)])
    assert len(losses) == ids[:, 1:].numel()
    whole = float(made.model(input_ids=ids, labels=ids).loss.detach())
    assert float(losses.detach().mean()) == pytest.approx(whole, abs=TOLERANCE)
