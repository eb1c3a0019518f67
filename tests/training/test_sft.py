"""Supervised fine-tuning: which tokens the loss is on, and that it falls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.toys import (
    assistant,
    byte_tokenizer,
    gpt2,
    llama,
    naive_log_probs,
    parameters,
    policy,
    random_sequences,
    same,
    user,
)
from torch import Tensor

from prefloop.chat import Rendered
from prefloop.config import SFTConfig
from prefloop.policy import Policy
from prefloop.training.loop import Metrics
from prefloop.training.maximum_likelihood import heldout_loss
from prefloop.training.sft import train_sft

LENGTHS = [(5, 3), (1, 9), (12, 1), (2, 2), (7, 8), (4, 4)]


def train(made: Policy, data: list[Rendered], seed: int = 0, heldout: Any = (), **options: Any) -> list[Metrics]:
    lines: list[Metrics] = []
    train_sft(made, data, heldout, SFTConfig(**{"batch_size": 6, **options}), seed, lines.append)
    return lines


def test_line_27_the_loss_is_the_mean_over_response_tokens_alone() -> None:
    made = policy()
    data = random_sequences(0, LENGTHS)
    expected = torch.cat([naive_log_probs(made.model, sequence) for sequence in data])
    assert len(expected) == sum(answered for _, answered in LENGTHS)
    [line] = train(made, data)
    assert line["loss"] == pytest.approx(-float(expected.mean()), abs=1e-5)
    assert line["tokens"] == len(expected)


def test_line_27_the_gradient_is_that_of_the_naive_loss(float64: None, gradients: list[list[Tensor]]) -> None:
    made = policy()
    data = random_sequences(1, LENGTHS)
    total = torch.zeros(())
    for sequence in data:
        logits = made.model(input_ids=torch.tensor([sequence.ids])).logits[0]
        asked = sequence.mask.index(True)
        table = torch.log_softmax(logits[asked - 1 : -1], 1)
        total = total - table.gather(1, torch.tensor(sequence.ids[asked:])[:, None]).sum()
    expected = torch.autograd.grad(total / sum(s.response_tokens for s in data), list(made.model.parameters()))
    train(made, data, max_grad_norm=1e9)
    for found, wanted in zip(gradients[0], expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-9, rtol=0)


def test_line_14_micro_batches_change_no_gradient(float64: None, gradients: list[list[Tensor]]) -> None:
    for size in (1, 30, 10_000):
        train(policy(), random_sequences(2, LENGTHS), micro_batch_tokens=size, max_grad_norm=1e9)
    assert len(gradients) == 3
    for cut in gradients[:2]:
        for found, whole in zip(cut, gradients[2], strict=True):
            torch.testing.assert_close(found, whole, atol=1e-9, rtol=0)


def test_line_27_the_question_itself_is_not_learnt() -> None:
    """Two answers' worth of training on a fixed question leaves what comes inside the question as unlikely."""
    made = policy()
    sequence = made.chat.render([user("zq"), assistant("ok")])
    asked = Rendered(sequence.ids, [False, *(not m for m in sequence.mask[1:])])
    before, before_asked = (float(naive_log_probs(made.model, s).mean()) for s in (sequence, asked))
    train(made, [sequence], epochs=30.0, batch_size=1, learning_rate=3e-3)
    after, after_asked = (float(naive_log_probs(made.model, s).mean()) for s in (sequence, asked))
    assert after - before > 3
    assert after_asked - before_asked < 0.5


@pytest.mark.parametrize(("loss_on", "turns"), [("all", 2), ("last", 1)])
def test_line_27_a_conversation_trains_on_the_configured_turns(loss_on: Any, turns: int) -> None:
    made = policy()
    rendered = made.chat.render([user("a"), assistant("bcd"), user("e"), assistant("fgh")], loss_on)
    [line] = train(made, [rendered], batch_size=1)
    assert line["tokens"] == turns * len(" bcd.")


@pytest.mark.parametrize(("count", "batch", "epochs", "steps"), [(12, 4, 2.0, 6), (6, 6, 1.0, 1), (10, 4, 1.0, 2)])
def test_line_15_steps_are_counted_in_demonstrations(
    gradients: list[list[Tensor]], count: int, batch: int, epochs: float, steps: int
) -> None:
    data = random_sequences(3, [(3, 2)] * count)
    lines = train(policy(), data, batch_size=batch, epochs=epochs, micro_batch_tokens=5)
    assert len(gradients) == len(lines) == steps
    assert [line["step"] for line in lines] == list(range(1, steps + 1))


def test_dropout_is_on_in_training_and_off_afterwards_and_on_heldout_data() -> None:
    tokenizer = byte_tokenizer()
    made = Policy(gpt2(len(tokenizer), resid_pdrop=0.5), tokenizer)
    data = random_sequences(4, LENGTHS)
    clean = -float(torch.cat([naive_log_probs(made.model, sequence) for sequence in data]).mean())
    [line] = train(made, data, learning_rate=1e-12, heldout=data)
    assert abs(line["loss"] - clean) > 0.01
    assert line["eval_loss"] == pytest.approx(clean, abs=1e-4)
    assert not made.model.training


def test_heldout_loss_leaves_the_mode_as_it_was() -> None:
    model = llama().train()
    heldout_loss(model, random_sequences(0, LENGTHS), 64)
    assert model.training


def test_same_seed_same_model_bit_for_bit_dropout_included() -> None:
    found = []
    for seed in (1, 1, 2):
        tokenizer = byte_tokenizer()
        made = Policy(gpt2(len(tokenizer), resid_pdrop=0.2), tokenizer)
        train(made, random_sequences(5, LENGTHS * 3), seed, epochs=2.0)
        found.append(parameters(made.model))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


def test_without_heldout_data_there_is_no_heldout_figure() -> None:
    lines: list[Metrics] = []
    assert train_sft(policy(), random_sequences(0, LENGTHS), [], SFTConfig(), 0, lines.append) == {}
    assert all("eval_loss" not in line for line in lines)


def test_no_demonstrations_is_an_error_with_the_remedy() -> None:
    with pytest.raises(
        ValueError, match=r"no demonstrations to learn from\. Import some, or set sft\.demonstrations"
    ):
        train(policy(), [])
