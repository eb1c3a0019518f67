"""The precision of training: chosen by a measurement, one for a whole stage, and no different in what is learnt."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest
import torch
from tests.toys import gpt2, llama, policy, random_sequences

from prefloop.config import SFTConfig
from prefloop.models import quickest as module
from prefloop.models.forward import arrange, head_logits, predicting_states, score_responses
from prefloop.models.precision import computed_in, computing_in, noting_precision
from prefloop.models.quickest import in_one_precision
from prefloop.policy import Policy
from prefloop.training.loop import Metrics
from prefloop.training.sft import train_sft

LENGTHS = [(5, 3), (1, 9), (12, 1), (2, 2), (7, 8)]


class Trained:
    def __init__(self, model: Any) -> None:
        self.model = model


@in_one_precision
def used(_: Trained) -> torch.dtype:
    return computed_in()


@pytest.mark.parametrize(("gain", "expected"), [(3.0, torch.bfloat16), (1.1, torch.float32)])
def test_the_quicker_one_is_chosen_once(monkeypatch: pytest.MonkeyPatch, gain: float, expected: torch.dtype) -> None:
    monkeypatch.setattr(module, "_measured", {})
    asked: list[float] = []
    monkeypatch.setattr(module, "_units", lambda: 4.0)
    monkeypatch.setattr(module, "_gain", lambda _: (asked.append(gain), gain)[1])
    with computing_in("auto"):
        assert [used(Trained(llama())) for _ in range(2)] == [expected] * 2
        assert computed_in() == torch.float32, "outside of training"
    assert len(asked) == 1
    with computing_in("bfloat16"):
        assert used(Trained(llama())) == torch.bfloat16
    with computing_in("float32"):
        assert used(Trained(llama())) == torch.float32


def test_what_was_used_is_noted() -> None:
    with noting_precision() as names:
        for name in ("float32", "bfloat16"):
            with computing_in(name):  # type: ignore[arg-type]
                used(Trained(llama()))
    assert names == {"float32", "bfloat16"}
    used(Trained(llama()))


def test_the_measurement_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_measured", {})
    model = gpt2(resid_pdrop=0.5).train()
    monkeypatch.setattr(module, "_units", lambda: 4.0)
    state = torch.random.get_rng_state()
    assert module.quickest(model) in (torch.float32, torch.bfloat16)
    assert all(weight.grad is None for weight in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_model_in_float64_stays_so() -> None:
    assert module._measure(llama().double()) == torch.float32


@pytest.mark.parametrize("make", [llama, gpt2])
def test_layers_are_in_bfloat16_and_log_probabilities_in_float32(make: Any) -> None:
    model, sequences = make(), random_sequences(0, LENGTHS)
    exact = torch.cat(score_responses(model, sequences, 1000))
    with computing_in("bfloat16"):
        states = predicting_states(model, arrange(sequences, model))
        assert head_logits(model, states).dtype == torch.bfloat16
        found = torch.cat(score_responses(model, sequences, 1000))
    assert found.dtype == torch.float32
    assert 1e-4 < float((found - exact).abs().max()) < 0.1


def test_bfloat16_learns_what_float32_learns() -> None:
    def train(name: Any) -> list[Metrics]:
        made: Policy = policy("llama")
        lines: list[Metrics] = []
        config = SFTConfig(batch_size=4, epochs=10.0, learning_rate=3e-3)
        with computing_in(name):
            train_sft(made, random_sequences(1, [(4, 8)] * 12, 258), [], config, 0, lines.append)
        assert made.model.dtype == torch.float32
        return lines

    exact, rounded = train("float32"), train("bfloat16")
    assert exact[-1]["loss"] < exact[0]["loss"] - 0.5
    assert [line["loss"] for line in rounded] != [line["loss"] for line in exact]
    for one, other in zip(exact, rounded, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=0.02)


def test_an_unknown_precision_is_refused() -> None:
    with (
        pytest.raises(ValueError, match="unknown precision 'half'; expected one of auto, float32, bfloat16"),
        computing_in("half"),
    ):  # type: ignore[arg-type]
        pass


def test_where_there_are_no_units_the_model_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_units", lambda: 0.3)
    monkeypatch.setattr(module, "_gain", lambda _: pytest.fail("asked"))
    assert module._measure(llama()) == torch.float32


@pytest.mark.parametrize(
    ("exact", "rounded", "ratio", "repeats"),
    [
        ([0.015, 0.012, *[0.011] * 4], [0.1, *[0.01] * 6], (1.0, 1.15), 6),
        ([0.04], [0.1, 0.01], (3.5, 4.5), 1),
        ([0.01], [0.01, 0.03], (0.3, 0.4), 1),
        ([0.015, 0.02], [0.01, 0.01, 0.005], (2.5, 3.5), 2),
    ],
)
def test_ratios_are_of_the_best_of_each(
    exact: list[float], rounded: list[float], ratio: tuple[float, float], repeats: int
) -> None:
    """A moment in which the machine is busy changes nothing; nor does bfloat16's first pass, for which code is
    written, nor a wait. Near the threshold there are more repeats."""
    efforts = {torch.float32: iter(exact), torch.bfloat16: iter(rounded)}
    threads, calls = torch.get_num_threads(), Counter[torch.dtype]()

    def work(dtype: torch.dtype) -> None:
        calls[dtype] += 1
        time.sleep(0.005)
        until = time.process_time() + next(efforts[dtype])
        while time.process_time() < until:
            pass

    assert ratio[0] < module._ratio(work) < ratio[1]
    assert calls == {torch.float32: repeats, torch.bfloat16: 1 + repeats}
    assert torch.get_num_threads() == threads
