"""DPO and its family: losses from the model's own logits, a reference read once, the optimum in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import pytest
import torch
from tests.toys import (
    naive_log_probs,
    parameters,
    policy,
    prompts,
    random_sequences,
    same,
    two_token_policy,
)
from torch import Tensor

from prefloop.chat import Rendered
from prefloop.config import DirectConfig, DPOConfig, IPOConfig, KTOConfig, ORPOConfig, SimPOConfig
from prefloop.feedback.records import Prompt
from prefloop.policy import Policy
from prefloop.training import comparisons
from prefloop.training import direct as module
from prefloop.training.comparisons import PreferenceGroup
from prefloop.training.direct import train_direct
from prefloop.training.loop import Metrics

VOCABULARY = 258


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def groups(count: int) -> list[PreferenceGroup]:
    found = []
    for number in range(count):
        answers = 2 + number % 2
        lengths = [(3 + number % 4, 1 + (number + k) % 5) for k in range(answers)]
        sequences = random_sequences(number, lengths, VOCABULARY)
        votes = [(1.0, 0.0), (1.0, 2.0), (0.5, 0.5)]
        pairs = [(i, j, *votes[(number + i + j) % 3]) for i, j in combinations(range(answers), 2)]
        found.append(PreferenceGroup(tuple(sequences), tuple(pairs)))
    return found


def train(
    made: Policy,
    data: Sequence[PreferenceGroup],
    heldout: Sequence[PreferenceGroup] = (),
    seed: int = 0,
    section: type[DirectConfig] = DPOConfig,
    **options: Any,
) -> list[Metrics]:
    lines: list[Metrics] = []
    train_direct(made, data, heldout, section(**{"batch_size": len(data), **options}), seed, lines.append)
    return lines


def test_line_28_the_first_loss_is_ln_2_and_nothing_has_moved() -> None:
    line = train(policy(), groups(6))[0]
    assert line["loss"] == pytest.approx(math.log(2), abs=1e-6)
    for name in ("margin", "chosen_logp", "rejected_logp"):
        assert line[name] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("section", [DPOConfig, KTOConfig, SimPOConfig])
def test_many_groups_are_read_part_by_part(monkeypatch: pytest.MonkeyPatch, section: type[DirectConfig]) -> None:
    """The reference and held-out figures; the last part is a short one."""
    whole, parts = (_after_training(section, at_once, monkeypatch) for at_once in (comparisons.AT_ONCE, 3))
    assert len(whole) == len(parts) > 1
    for one, other in zip(whole, parts, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
    assert "eval_loss" in whole[-1]


def _after_training(section: type[DirectConfig], at_once: int, monkeypatch: pytest.MonkeyPatch) -> list[Metrics]:
    monkeypatch.setattr(comparisons, "AT_ONCE", at_once)
    lines = train(policy(), groups(8), groups(7), 0, section, batch_size=4, epochs=1.0)
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def log_likelihood(model: Any, sequence: Rendered) -> Tensor:
    logits = model(input_ids=torch.tensor([sequence.ids])).logits[0]
    asked = sequence.mask.index(True)
    table = torch.log_softmax(logits[asked - 1 : -1], 1)
    return table.gather(1, torch.tensor(sequence.ids[asked:])[:, None]).sum()


def test_line_28_the_gradient_is_that_of_the_formula_on_whole_answers(
    float64: None, gradients: list[list[Tensor]]
) -> None:
    made, data, beta, epsilon = policy(), groups(5), 0.3, 0.1
    total, votes = torch.zeros(()), 0.0
    for group in data:
        found = [log_likelihood(made.model, sequence) for sequence in group.sequences]
        ratios = [value - value.detach() for value in found]
        for i, j, wins, losses in group.pairs:
            first, second = (
                torch.nn.functional.logsigmoid(sign * beta * (ratios[i] - ratios[j])) for sign in (1, -1)
            )
            total = total - (wins * (1 - epsilon) + losses * epsilon) * first
            total = total - (losses * (1 - epsilon) + wins * epsilon) * second
            votes += wins + losses
    expected = torch.autograd.grad(total / votes, list(made.model.parameters()))
    train(made, data, beta=beta, label_smoothing=epsilon, max_grad_norm=1e9)
    assert max(float(slope.abs().max()) for slope in expected) > 0.1
    for slope, wanted in zip(gradients[0], expected, strict=True):
        torch.testing.assert_close(slope, wanted, atol=1e-9, rtol=0)


FAMILY = (DPOConfig, IPOConfig, KTOConfig, ORPOConfig, SimPOConfig)
family = pytest.mark.parametrize("section", FAMILY, ids=lambda section: section.__name__.removesuffix("Config"))


@family
def test_line_14_micro_batches_change_no_gradient(
    section: type[DirectConfig], float64: None, gradients: list[list[Tensor]]
) -> None:
    for size in (1, 60, 10_000):
        train(policy(), groups(7), section=section, micro_batch_tokens=size, max_grad_norm=1e9)
    assert len(gradients) == 3
    for cut in gradients[:2]:
        for found, whole in zip(cut, gradients[2], strict=True):
            torch.testing.assert_close(found, whole, atol=1e-9, rtol=0)


def test_line_28_the_reference_is_the_policy_as_it_came_in_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    score = module.score_responses

    def recording(model: Any, sequences: Sequence[Rendered], *rest: Any) -> list[Tensor]:
        calls.append(len(sequences))
        assert same(parameters(model), parameters(policy().model))
        return score(model, sequences, *rest)

    monkeypatch.setattr(module, "score_responses", recording)
    data, heldout = groups(6), groups(8)[6:]
    train(policy(), data, heldout, epochs=3.0, batch_size=2)
    assert calls == [sum(len(g.sequences) for g in part) for part in (data, heldout)]


def test_line_29_chosen_and_rejected_are_watched_apart() -> None:
    """The figures of the second step are the change of log π by the first, for either side, mean over votes."""
    made, data, lines, after = policy(), groups(6), list[Metrics](), list[list[list[float]]]()

    def sums() -> list[list[float]]:
        return [[float(naive_log_probs(made.model, s).sum()) for s in group.sequences] for group in data]

    def log(line: Metrics) -> None:
        lines.append(line)
        after.append(sums())

    before = sums()
    train_direct(made, data, [], DPOConfig(batch_size=6, epochs=2.0, learning_rate=1e-3, beta=0.5), 0, log)
    chosen = rejected = margin = votes = 0.0
    for group, old, new in zip(data, before, after[0], strict=True):
        change = [b - a for a, b in zip(old, new, strict=True)]
        for i, j, wins, losses in group.pairs:
            chosen += wins * change[i] + losses * change[j]
            rejected += wins * change[j] + losses * change[i]
            margin += 0.5 * (wins - losses) * (change[i] - change[j])
            votes += wins + losses
    assert lines[1]["chosen_logp"] == pytest.approx(chosen / votes, abs=1e-4)
    assert lines[1]["rejected_logp"] == pytest.approx(rejected / votes, abs=1e-4)
    assert lines[1]["margin"] == pytest.approx(margin / votes, abs=1e-4)
    assert abs(chosen / votes) > 0.01
    assert abs(chosen - rejected) / votes > 0.01


def test_dpo_reaches_the_kl_regularised_optimum() -> None:
    """Votes of σ(r_i − r_j) between all answers: the minimum is π* ∝ π_ref·exp(r/β) over them.

    Reached to 0.0001 of total variation over the answers (0.02 allowed).
    """
    made, beta = two_token_policy(), 0.5
    chat, prompt = made.chat, Prompt.of("x")
    asked = chat.prompt_ids(prompt.messages)
    texts = ["A", "B", "A B", "B B A"]
    true = [1.0, 0.0, 0.5, 2.0]
    sequences = tuple(chat.answered(prompt, text) for text in texts)
    assert all(sequence.ids[: len(asked)] == asked for sequence in sequences)
    pairs = tuple(
        (i, j, sigmoid(true[i] - true[j]), sigmoid(true[j] - true[i])) for i, j in combinations(range(4), 2)
    )

    def distribution() -> Tensor:
        sums = torch.stack([naive_log_probs(made.model, sequence).sum() for sequence in sequences])
        return torch.softmax(sums, 0)

    start = distribution()
    best = start * (torch.tensor(true, dtype=torch.float64) / beta).exp()
    best /= best.sum()
    assert float((start - best).abs().sum()) / 2 > 0.3
    train(made, [PreferenceGroup(sequences, pairs)], epochs=300.0, learning_rate=3e-3, beta=beta)
    assert float((distribution() - best).abs().sum()) / 2 < 0.02


def toy(made: Policy, count: int, start: int) -> list[PreferenceGroup]:
    found = []
    for prompt in prompts(start + count)[start:]:
        good, bad = (made.chat.answered(prompt, text) for text in ("good", "bad"))
        found.append(PreferenceGroup((bad, good), ((0, 1, 0.0, 1.0),)))
    return found


@family
def test_a_toy_preference_is_learnt_and_holds_on_new_prompts(section: type[DirectConfig]) -> None:
    made = policy()
    data, heldout = toy(made, 32, 0), toy(made, 8, 100)
    lines = train(made, data, heldout, section=section, epochs=4.0, batch_size=8, learning_rate=3e-3)
    assert lines[-1]["eval_accuracy"] == 1.0
    assert lines[-1]["eval_loss"] < lines[0]["loss"]
    assert lines[-1]["chosen_logp"] > lines[-1]["rejected_logp"] + (5 if section is DPOConfig else 0.5)
    assert lines[-1]["margin"] > 0.4


def test_line_28_the_gradients_of_the_family_are_those_of_the_formulas_on_whole_answers(
    float64: None, gradients: list[list[Tensor]]
) -> None:
    """IPO and KTO on log-ratios, ORPO and SimPO on means over tokens; KTO's point from answers to other prompts."""
    beta, data = 0.3, groups(5)
    sigma = torch.sigmoid
    softplus = torch.nn.functional.softplus
    wanted: list[list[Tensor]] = []
    for section in FAMILY[1:]:
        made = policy()
        total, votes = torch.zeros(()), 0.0
        for group in data:
            sums = [log_likelihood(made.model, sequence) for sequence in group.sequences]
            ratios = [value - value.detach() for value in sums]
            means = [value / s.response_tokens for value, s in zip(sums, group.sequences, strict=True)]
            for i, j, wins, losses in group.pairs:
                for better, worse, count in ((i, j, wins), (j, i, losses)):
                    delta = means[better] - means[worse]
                    if section is IPOConfig:
                        cost = (ratios[better] - ratios[worse] - 1 / (2 * beta)) ** 2
                    elif section is KTOConfig:  # z is 0: the policy is still the reference
                        cost = (1 - sigma(beta * ratios[better]) + 1 - sigma(-beta * ratios[worse])) / 2
                    elif section is ORPOConfig:
                        odds = [means[k] - torch.log1p(-means[k].exp()) for k in (better, worse)]
                        cost = -means[better] + 0.1 * softplus(odds[1] - odds[0])
                    else:
                        cost = softplus(-(2.0 * delta - 1.0))
                    total = total + count * cost
                votes += wins + losses
        wanted.append(list(torch.autograd.grad(total / votes, list(made.model.parameters()))))
        options = {"beta": beta} if section in (IPOConfig, KTOConfig) else {}
        train(made, data, section=section, max_grad_norm=1e9, **options)
    for found, expected in zip(gradients, wanted, strict=True):
        assert max(float(slope.abs().max()) for slope in expected) > 0.01
        for slope, other in zip(found, expected, strict=True):
            torch.testing.assert_close(slope, other, atol=1e-9, rtol=0)


def test_line_28_ktos_reference_point_is_the_mean_change_of_mismatched_answers() -> None:
    """After a first step: the mean of h over each prompt with the first answer of the prompt before it."""
    made = policy()
    # The first answers win, so they become likelier, and not only where they were given.
    data = [PreferenceGroup(group.sequences, ((0, 1, 1.0, 0.0),)) for group in groups(4)]
    mixed = [
        Rendered(g.sequences[0].ids[: g.sequences[0].mask.index(True)] + o.ids[o.mask.index(True) :],
                 g.sequences[0].mask[: g.sequences[0].mask.index(True)] + o.mask[o.mask.index(True) :])
        for g, o in zip(data, [data[-1].sequences[0], *(g.sequences[0] for g in data[:-1])], strict=True)
    ]  # fmt: skip
    before = [float(naive_log_probs(made.model, s).sum()) for s in mixed]
    after: list[float] = []
    lines: list[Metrics] = []

    def log(line: Metrics) -> None:
        lines.append(line)
        after.append(sum(float(naive_log_probs(made.model, s).sum()) for s in mixed) / len(mixed))

    train_direct(made, data, [], KTOConfig(batch_size=4, epochs=2.0, learning_rate=3e-3), 0, log)
    assert lines[0]["reference_point"] == pytest.approx(0.0, abs=1e-4)
    assert lines[1]["reference_point"] == pytest.approx(max(0.0, after[0] - sum(before) / 4), abs=1e-4)
    assert after[0] - sum(before) / 4 > 0.01


def test_kto_needs_two_prompts() -> None:
    with pytest.raises(ValueError, match="there is only one prompt"):
        train(policy(), groups(1), section=KTOConfig)


@pytest.mark.parametrize("section", [ORPOConfig, SimPOConfig])
def test_without_a_reference_no_pass_is_spent_on_it(
    section: type[DirectConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a reference was read")

    monkeypatch.setattr(module, "score_responses", never)
    train(policy(), groups(4), section=section)


def test_ipo_reaches_its_margin() -> None:
    """Everybody prefers one of two answers: the log-ratio settles at 1/(2β), where DPO's would grow for ever."""
    made = policy()
    [group] = toy(made, 1, 0)
    lines = train(made, [group], section=IPOConfig, beta=0.2, epochs=120.0, learning_rate=1e-3)
    assert lines[-1]["chosen_logp"] - lines[-1]["rejected_logp"] == pytest.approx(1 / (2 * 0.2), abs=0.1)


@pytest.mark.parametrize(("count", "batch", "epochs", "steps"), [(12, 4, 2.0, 6), (7, 7, 1.0, 1)])
def test_line_15_steps_are_counted_in_prompts(
    gradients: list[list[Tensor]], count: int, batch: int, epochs: float, steps: int
) -> None:
    lines = train(policy(), groups(count), batch_size=batch, epochs=epochs, micro_batch_tokens=5)
    assert len(gradients) == len(lines) == steps


def test_line_02_dropout_is_off() -> None:
    made = policy("gpt2", resid_pdrop=0.5)
    made.model.train()
    line = train(made, groups(6))[0]
    assert line["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert not made.model.training


def test_same_seed_same_model_bit_for_bit() -> None:
    found = []
    for seed in (1, 1, 2):
        made = policy()
        train(made, groups(9), seed=seed, batch_size=3, learning_rate=1e-3)
        found.append(parameters(made.model))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


def test_no_comparisons_is_an_error() -> None:
    with pytest.raises(ValueError, match="no comparisons to learn from"):
        train_direct(policy(), [], [], DPOConfig(), 0, print)
