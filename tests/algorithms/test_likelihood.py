"""Log-probabilities against the definition; sums over sequences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from prefloop.algorithms.likelihood import sequence_sums, token_entropy, token_log_probs
from prefloop.algorithms.masked import masked_mean, masked_whiten


def softmax(row: list[float], temperature: float) -> list[float]:
    weights = [math.exp(logit / temperature) for logit in row]
    return [weight / sum(weights) for weight in weights]


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(7, 11, generator=torch.Generator().manual_seed(3)) * 3


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.5])
def test_line_01_log_probabilities_are_of_the_logits_over_the_temperature(logits: Tensor, temperature: float) -> None:
    targets = torch.tensor([0, 10, 3, 3, 7, 1, 5])
    found = token_log_probs(logits, targets, temperature)
    expected = [
        math.log(softmax(row, temperature)[target])
        for row, target in zip(logits.tolist(), targets.tolist(), strict=True)
    ]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=0)
    torch.testing.assert_close(found, torch.log_softmax(logits / temperature, 1)[torch.arange(7), targets])


def test_log_probabilities_are_float32_whatever_the_logits() -> None:
    logits = torch.tensor([[0.0, 20.0, 3.0]])
    found = token_log_probs(logits.bfloat16(), torch.tensor([0]))
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(-20.0, abs=1e-5)  # bfloat16 could not tell −20 from −20.0000001


@pytest.mark.parametrize(
    ("dtype", "temperature"), [(torch.bfloat16, 1.0), (torch.float32, 1.0), (torch.float32, 0.7)]
)
@pytest.mark.parametrize("shape", [(1, 3), (5, 97), (300, 1031), (1024, 4096)])
def test_the_softmax_may_be_written_over_its_logits(
    shape: tuple[int, int], dtype: torch.dtype, temperature: float
) -> None:
    """Nobody else's logits are touched, and values and gradients are the library's, of tables of all sizes."""
    generator = torch.Generator().manual_seed(sum(shape))
    logits = (torch.randn(shape, generator=generator) * 4).to(dtype).requires_grad_(True)
    before, targets = logits.detach().clone(), torch.randint(shape[1], shape[:1], generator=generator)
    slope = torch.rand(shape[0], generator=generator)
    found = token_log_probs(logits, targets, temperature)
    found.backward(slope)
    exact = before.double().requires_grad_(True)
    wanted = (exact / temperature).log_softmax(1)[torch.arange(shape[0]), targets]
    wanted.backward(slope.double())
    assert bool((logits == before).all())
    assert float((found - wanted).detach().abs().max()) < 1e-5
    assert logits.grad is not None
    assert exact.grad is not None
    assert float((logits.grad - exact.grad).abs().max()) < (1e-2 if dtype == torch.bfloat16 else 1e-6)


def test_log_probabilities_of_enormous_logits_are_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    found = token_log_probs(logits, torch.tensor([1]))
    assert float(found.detach()) == -2e4
    found.sum().backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[-1.0, 1.0, 0.0]]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_line_17_entropy_is_that_of_the_sampled_distribution(logits: Tensor, temperature: float) -> None:
    expected = [-sum(p * math.log(p) for p in softmax(row, temperature)) for row in logits.tolist()]
    torch.testing.assert_close(token_entropy(logits, temperature), torch.tensor(expected), atol=1e-5, rtol=0)
    uniform = token_entropy(torch.zeros(1, 8))
    assert float(uniform) == pytest.approx(math.log(8))


def test_line_28_a_sequence_sums_its_own_tokens() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    rows = torch.tensor([0, 0, 2, 2, 0])
    assert sequence_sums(values, rows, 4).tolist() == [19.0, 0.0, 12.0, 0.0]


def test_sequence_sums_pass_gradients_to_their_tokens() -> None:
    values = torch.ones(3, requires_grad=True)
    (sequence_sums(values, torch.tensor([1, 0, 1]), 2) * torch.tensor([10.0, 3.0])).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [3.0, 10.0, 3.0]


def test_line_18_the_mean_is_over_real_positions_alone() -> None:
    values = torch.tensor([[1.0, 3.0, math.nan], [8.0, math.inf, 99.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert float(masked_mean(values, mask)) == 4.0


def test_line_11_whitening_is_masked_and_over_the_whole_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(5, 6, generator=generator, dtype=torch.float64) * 4 + 7
    mask = torch.arange(6) < torch.tensor([6, 1, 3, 5, 2])[:, None]
    real = [values[b, t].item() for b in range(5) for t in range(6) if mask[b, t]]
    mean = sum(real) / len(real)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in real) / len(real))
    found = masked_whiten(values.masked_fill(~mask, math.nan), mask)
    for b in range(5):
        for t in range(6):
            expected = (values[b, t].item() - mean) / deviation if mask[b, t] else 0.0
            assert found[b, t].item() == pytest.approx(expected, abs=1e-8)


def test_line_11_whitened_rewards_keep_their_mean() -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(4, 5, generator=generator, dtype=torch.float64) * 3 - 2
    mask = torch.arange(5) < torch.tensor([5, 2, 1, 4])[:, None]
    found = masked_whiten(values, mask, keep_mean=True)
    assert float(found[mask].mean()) == pytest.approx(float(values[mask].mean()), abs=1e-9)
    assert float(found[mask].std(correction=0)) == pytest.approx(1.0, abs=1e-6)
    assert not bool(found[~mask].any())


def test_line_11_whitening_equal_values_gives_zeros() -> None:
    assert masked_whiten(torch.full((2, 2), 3.0), torch.ones(2, 2, dtype=torch.bool)).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("real", [0, 1])
def test_line_11_whitening_fewer_than_two_tokens_is_an_error_not_nan(real: int) -> None:
    mask = torch.zeros(2, 3, dtype=torch.bool)
    mask[0, :real] = True
    with pytest.raises(ValueError, match=rf"at least two response tokens in the batch; it has {real}\. Use more"):
        masked_whiten(torch.ones(2, 3), mask)
