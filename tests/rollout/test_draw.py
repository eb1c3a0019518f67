"""Drawing a token, against the distribution in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prefloop.rollout.draw import draw

PROBABILITIES = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]])


@pytest.mark.parametrize(
    ("uniform", "token"), [(0.0, 1), (0.2499, 1), (0.2501, 3), (0.7499, 3), (0.7501, 4), (1 - 2**-53, 4)]
)
def test_line_01_draws_invert_the_distribution_and_never_take_the_impossible(uniform: float, token: int) -> None:
    tokens, log_probs, _ = draw(PROBABILITIES.log(), torch.tensor([uniform], dtype=torch.float64), 1.0)
    assert tokens.tolist() == [token]
    assert float(log_probs) == pytest.approx(math.log(PROBABILITIES[0, token].item()))


@given(st.integers(0, 2**20), st.integers(2, 3000))
def test_line_01_no_uniform_falls_past_the_last_token(seed: int, vocabulary: int) -> None:
    logits: Tensor = torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(seed)) * 5
    highest = torch.tensor([math.nextafter(1.0, 0.0)], dtype=torch.float64)
    tokens, log_probs, _ = draw(logits, highest, 1.0)
    assert 0 <= int(tokens) < vocabulary
    assert bool(torch.isfinite(log_probs).all())


def test_greedy_draws_report_the_log_probability_at_temperature_one() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    tokens, log_probs, entropy = draw(logits, torch.tensor([0.9]), 0.0)
    expected = torch.log_softmax(logits[0], 0)
    assert tokens.tolist() == [1]
    assert float(log_probs) == pytest.approx(float(expected[1]))
    assert float(entropy) == pytest.approx(float(-(expected.exp() * expected).sum()))


@pytest.mark.parametrize("part", [2**22, 50_000])
@pytest.mark.parametrize("vocabulary", [7, 4096, 50_257, 150_000])
def test_line_01_draws_are_those_of_float64(vocabulary: int, part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefloop.rollout.draw.PART", part)
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(5, vocabulary, generator=generator) * 4
    logits[:, ::3] = -torch.inf
    uniforms = torch.rand(5, generator=generator, dtype=torch.float64)
    tokens, log_probs, entropy = draw(logits, uniforms, 0.7)
    expected = torch.log_softmax(logits.double() / 0.7, 1)
    cumulative = expected.exp().cumsum(1)
    reached, before = (cumulative.gather(1, (tokens - less)[:, None].clamp(min=0))[:, 0] for less in (0, 1))
    before *= tokens > 0
    assert bool(((before - 1e-7 <= uniforms) & (uniforms <= reached + 1e-7)).all())
    torch.testing.assert_close(log_probs.double(), expected.gather(1, tokens[:, None])[:, 0], atol=3e-6, rtol=0)
    torch.testing.assert_close(entropy.double(), torch.special.entr(expected.exp()).sum(1), atol=3e-6, rtol=0)
