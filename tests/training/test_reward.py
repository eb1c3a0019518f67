"""A reward model from comparisons: the loss, the closed form it must reach, and the shift."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import pytest
import torch
from tests.toys import byte_tokenizer, gpt2, llama, parameters, prompts, random_sequences, same
from torch import Tensor

from prefloop.chat import Rendered
from prefloop.config import RewardConfig
from prefloop.models.heads import RewardModel
from prefloop.training import reward as module
from prefloop.training.comparisons import PreferenceGroup
from prefloop.training.loop import Metrics
from prefloop.training.reward import heldout_figures, train_reward

TOKENIZER = byte_tokenizer()
VOCABULARY = len(TOKENIZER)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def reward_model(seed: int = 0, **options: float) -> RewardModel:
    kind = gpt2 if options else llama
    return RewardModel.from_policy(kind(VOCABULARY, **options), TOKENIZER, seed)


def groups(count: int, seed: int = 0) -> list[PreferenceGroup]:
    """Two to four answers of different lengths to each prompt; split, tied and clear votes."""
    found = []
    for number in range(count):
        answers = 2 + number % 3
        lengths = [(3 + number % 4, 1 + (number + k) % 5) for k in range(answers)]
        sequences = random_sequences(100 * seed + number, lengths, VOCABULARY)
        votes = [(1.0, 0.0), (1.0, 2.0), (0.5, 0.5)]
        pairs = [(i, j, *votes[(number + i + j) % 3]) for i, j in combinations(range(answers), 2)]
        found.append(PreferenceGroup(tuple(sequences), tuple(pairs)))
    return found


def train(
    made: RewardModel,
    data: Sequence[PreferenceGroup],
    heldout: Sequence[PreferenceGroup] = (),
    seed: int = 0,
    **options: float,
) -> list[Metrics]:
    lines: list[Metrics] = []
    train_reward(made, data, heldout, RewardConfig(**{"batch_size": len(data), **options}), seed, lines.append)
    return lines


def scores_one_by_one(made: RewardModel, sequences: Sequence[Rendered]) -> list[float]:
    with torch.no_grad():
        states = [made.model.base_model(input_ids=torch.tensor([s.ids])).last_hidden_state[0, -1] for s in sequences]
        return [float(made.model.score(state)) + made.model.config.reward_shift for state in states]


def test_line_22_the_loss_is_the_mean_over_votes() -> None:
    made, data = reward_model(), groups(7)
    total, right, votes = 0.0, 0.0, 0.0
    for group in data:
        scores = scores_one_by_one(made, group.sequences)
        for i, j, wins, losses in group.pairs:
            difference = scores[i] - scores[j]
            total -= wins * math.log(sigmoid(difference)) + losses * math.log(sigmoid(-difference))
            total += 0.01 * (scores[i] + scores[j]) ** 2
            right += wins if difference > 0 else losses
            votes += wins + losses
    [line] = train(made, data, centre_coef=0.01)
    assert line["loss"] == pytest.approx(total / votes, abs=1e-5)
    assert line["accuracy"] == pytest.approx(right / votes, abs=1e-6)


def test_line_14_micro_batches_change_no_gradient(float64: None, gradients: list[list[Tensor]]) -> None:
    for size in (1, 60, 10_000):
        train(reward_model(), groups(7), micro_batch_tokens=size, max_grad_norm=1e9)
    assert len(gradients) == 3
    for cut in gradients[:2]:
        for found, whole in zip(cut, gradients[2], strict=True):
            torch.testing.assert_close(found, whole, atol=1e-9, rtol=0)


def test_line_22_all_comparisons_of_a_prompt_share_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """K answers are read K times in an epoch, not once for each of K(K−1)/2 pairs; all in one micro-batch."""
    seen: list[list[int]] = []
    pad = module.pad

    def recording(sequences: Sequence[Rendered], device: torch.device) -> object:
        seen.append([id(sequence) for sequence in sequences])
        return pad(sequences, device)

    monkeypatch.setattr(module, "pad", recording)
    data = groups(9)
    lines = train(reward_model(), data, batch_size=3, micro_batch_tokens=1)
    assert len(lines) == 3
    assert sorted(seen) == sorted([id(sequence) for sequence in group.sequences] for group in data)


def test_line_24_after_training_the_judged_answers_have_mean_zero() -> None:
    made, data = reward_model(), groups(7)
    train(made, data, epochs=3.0, centre_coef=0.0)
    scores = [score for group in data for score in scores_one_by_one(made, group.sequences)]
    assert sum(scores) / len(scores) == pytest.approx(0.0, abs=1e-5)
    assert made.model.config.reward_shift != 0.0
    assert max(scores) - min(scores) > 0.1


def test_line_22_soft_votes_give_the_scores_that_made_them() -> None:
    """Votes of σ(r_i − r_j): the loss has its minimum where every difference is the true one."""
    sequences = random_sequences(50, [(4, 2), (4, 3), (4, 1), (4, 5)], VOCABULARY)
    true = [0.0, 1.0, -0.7, 2.0]
    pairs = tuple(
        (i, j, sigmoid(true[i] - true[j]), sigmoid(true[j] - true[i])) for i, j in combinations(range(4), 2)
    )
    made = reward_model()
    train(made, [PreferenceGroup(tuple(sequences), pairs)], epochs=300.0, learning_rate=1e-2, centre_coef=0.0)
    found = made.score(sequences)
    expected = torch.tensor(true) - sum(true) / 4
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)


def toy(count: int, start: int) -> list[PreferenceGroup]:
    """The answer that says "good" is better, whatever the question, first or second."""
    found = []
    chat = reward_model().chat
    for number in range(start, start + count):
        prompt = prompts(number + 1)[-1]
        good, bad = chat.answered(prompt, f"good {number}"), chat.answered(prompt, f"bad {number}")
        found.append(
            PreferenceGroup((good, bad), ((0, 1, 1.0, 0.0),))
            if number % 2
            else PreferenceGroup((bad, good), ((0, 1, 0.0, 1.0),))
        )
    return found


def test_a_toy_preference_is_learnt_and_holds_on_new_prompts() -> None:
    made = reward_model()
    lines = train(made, toy(32, 0), toy(16, 100), epochs=8.0, batch_size=8, learning_rate=1e-2)
    assert lines[-1]["eval_accuracy"] == 1.0
    assert lines[-1]["eval_loss"] < 0.1
    assert made("anything", "good answer") > made("anything", "bad answer")


def test_heldout_figures_are_over_votes_and_without_dropout() -> None:
    made, data = reward_model(resid_pdrop=0.5), groups(5)
    made.model.train()
    found = heldout_figures(made, data, max_tokens=50)
    assert made.model.training
    made.model.eval()
    total = right = votes = 0.0
    for group in data:
        scores = scores_one_by_one(made, group.sequences)
        for i, j, wins, losses in group.pairs:
            total -= wins * math.log(sigmoid(scores[i] - scores[j])) + losses * math.log(
                sigmoid(scores[j] - scores[i])
            )
            right += wins if scores[i] > scores[j] else losses
            votes += wins + losses
    assert found == {
        "eval_loss": pytest.approx(total / votes, abs=1e-5),
        "eval_accuracy": pytest.approx(right / votes),
    }


def test_line_02_dropout_is_off_once_training_is_done() -> None:
    made = reward_model(resid_pdrop=0.5)
    train(made, groups(3))
    assert not made.model.training


@pytest.mark.parametrize(("count", "batch", "epochs", "steps"), [(12, 4, 2.0, 6), (7, 7, 1.0, 1)])
def test_line_15_steps_are_counted_in_prompts(
    gradients: list[list[Tensor]], count: int, batch: int, epochs: float, steps: int
) -> None:
    lines = train(reward_model(), groups(count), batch_size=batch, epochs=epochs, micro_batch_tokens=5)
    assert len(gradients) == len(lines) == steps


def test_same_seed_same_model_bit_for_bit() -> None:
    found = []
    for seed in (1, 1, 2):
        made = reward_model(resid_pdrop=0.2)
        train(made, groups(9), seed=seed, batch_size=3)
        found.append((parameters(made.model), made.model.config.reward_shift))
    assert same(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    assert not same(found[0][0], found[2][0])


def test_no_comparisons_is_an_error() -> None:
    with pytest.raises(ValueError, match="no comparisons to learn from"):
        train_reward(reward_model(), [], [], RewardConfig(), 0, print)
