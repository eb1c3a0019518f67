"""A reward model from comparisons: the loss, the closed form it must reach, and the shift."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, permutations, product
from typing import Any

import pytest
import torch
from tests.toys import byte_tokenizer, gpt2, llama, parameters, prompts, random_sequences, same
from torch import Tensor

from prefloop.chat import Rendered
from prefloop.config import RewardConfig
from prefloop.feedback.aggregate import Ranking
from prefloop.models.forward import pad
from prefloop.models.heads import RewardEnsemble, RewardModel
from prefloop.policy import Policy
from prefloop.training import comparisons
from prefloop.training import reward as module
from prefloop.training.comparisons import PreferenceGroup, flatten, with_margins
from prefloop.training.loop import Metrics
from prefloop.training.reward import heldout_figures, make_reward, train_reward

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
    **options: Any,
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


def rankings(count: int, criteria: int = 1) -> list[PreferenceGroup]:
    """As `groups`, with strengths, ties and choices of the best; the pairs are the votes of the rankings."""
    found = []
    for number, group in enumerate(groups(count)):
        said = []
        for criterion in range(criteria):
            places = [i * criteria + criterion for i in range(len(group.sequences))]
            turned = places[number % 2 :] + places[: number % 2]
            said += [
                Ranking(tuple((place,) for place in turned), 1.0 + number % 2, strength=1 + number % 4),
                Ranking((tuple(turned[:2]), *((place,) for place in turned[2:])), 0.5),
                Ranking(((turned[-1],), tuple(turned[:-1])), strength=4, best_only=len(places) > 2),
            ]
        made = replace(group, pairs=(), rankings=tuple(said), criteria=criteria)
        [voted] = with_margins([made], 0.0)
        found.append(replace(voted, margins=()))
    return found


LOSSES: dict[str, dict[str, Any]] = {
    "bradley-terry": {},
    "margin": {"margin": 0.5},
    "random answers": {"random_answers": 0.1, "margin": 0.3},
    "plackett-luce": {"loss": "plackett-luce"},
    "plackett-luce, random answers": {"loss": "plackett-luce", "random_answers": 0.1},
}


@pytest.mark.parametrize("criteria", [1, 2])
@pytest.mark.parametrize("name", LOSSES)
def test_line_14_micro_batches_change_no_gradient(
    name: str, criteria: int, float64: None, gradients: list[list[Tensor]]
) -> None:
    names = {str(number): 1.0 for number in range(criteria)} if criteria > 1 else {}
    for size in (1, 60, 10_000):
        made = RewardModel.from_policy(llama(VOCABULARY), TOKENIZER, 0, names)
        train(made, rankings(7, criteria), micro_batch_tokens=size, max_grad_norm=1e9, **LOSSES[name])
    assert len(gradients) == 3
    for cut in gradients[:2]:
        for found, whole in zip(cut, gradients[2], strict=True):
            torch.testing.assert_close(found, whole, atol=1e-9, rtol=0)


def test_the_defaults_are_the_loss_that_stood_here_before_bit_for_bit() -> None:
    """What a run trained on before there were other losses: votes, no margin, no floor, one head."""
    data = rankings(7)
    sequences, pairs = flatten(data, torch.device("cpu"))
    made = reward_model()
    with torch.no_grad():
        states = made.model.base_model(input_ids=pad(sequences, made.device).ids).last_hidden_state
        last = torch.tensor([len(sequence) - 1 for sequence in sequences])
        scores = made.model.score(states[torch.arange(len(sequences)), last])[:, 0].float() + 0.0
    first, second = scores[pairs.first], scores[pairs.second]
    logsigmoid = torch.nn.functional.logsigmoid
    losses = -pairs.wins * logsigmoid(first - second) - pairs.losses * logsigmoid(second - first)
    expected = (losses + 0.001 * (first + second).square()).sum() / sum(group.votes for group in data)
    with torch.no_grad():
        found, _ = module._losses(reward_model(), data, RewardConfig())
    assert torch.equal(found.sum() / sum(group.votes for group in data), expected)


@pytest.mark.parametrize("options", [{"margin": 0.5, "random_answers": 0.2}, {"margin": 0.5}])
def test_line_22_margins_are_those_of_the_strengths(options: dict[str, float]) -> None:
    """Ranking by ranking and pair by pair, from the scores of the untrained model."""
    made, data = reward_model(), rankings(7)
    total, votes, epsilon = 0.0, 0.0, options.get("random_answers", 0.0)
    for group in data:
        scores = scores_one_by_one(made, group.sequences)
        for ranking in group.rankings:
            rank = {place: number for number, tier in enumerate(ranking.tiers) for place in tier}
            for i, j in combinations(rank, 2):
                if ranking.best_only and min(rank[i], rank[j]) > 0:
                    continue
                far = abs(rank[i] - rank[j]) / max(1, len(ranking.tiers) - 1)
                margin = 0.5 * max(0, ranking.strength - 1) * far
                sides = [(i, j), (j, i)] if rank[i] == rank[j] else [(i, j) if rank[i] < rank[j] else (j, i)]
                for winner, loser in sides:
                    p = (1 - epsilon) * sigmoid(scores[winner] - scores[loser] - margin) + epsilon / 2
                    total -= ranking.weight / len(sides) * math.log(p)
                votes += ranking.weight
        total += sum(0.01 * (scores[i] + scores[j]) ** 2 for i, j, _ in rows_of(group))
    [line] = train(made, data, centre_coef=0.01, **options)
    assert line["loss"] == pytest.approx(total / votes, abs=1e-5)


def rows_of(group: PreferenceGroup) -> list[tuple[int, int, float]]:
    """(i, j, margin): what has a row of its own, and so a centring penalty."""
    [made] = with_margins([group], 0.5)
    return [(i, j, margin) for (i, j, _, _), margin in zip(made.pairs, made.margins, strict=True)]


def test_line_22_the_loss_of_rankings_is_the_mean_over_choices() -> None:
    """Every order that the ties allow, one after another; a ranking of K is K − 1 choices, "the best of K" is one."""
    made, data = reward_model(), rankings(7)
    total, count = 0.0, 0.0
    for group in data:
        scores = scores_one_by_one(made, group.sequences)
        for ranking in group.rankings:
            orders = [sum(parts, ()) for parts in product(*map(permutations, ranking.tiers))]
            first = len(ranking.tiers[0]) if ranking.best_only else len(orders[0]) - 1
            for order in orders:
                for k in range(first):
                    left = math.log(sum(math.exp(scores[i]) for i in order[k:]))
                    total += ranking.weight / len(orders) * (left - scores[order[k]])
            count += ranking.weight * first
        total += sum(0.01 * (scores[i] + scores[j]) ** 2 for i, j, _, _ in group.pairs)
    [line] = train(made, data, centre_coef=0.01, loss="plackett-luce")
    assert line["loss"] == pytest.approx(total / count, abs=1e-5)


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_line_22_of_pairs_plackett_luce_trains_as_bradley_terry_does(epsilon: float, float64: None) -> None:
    """Ties, several votes and the centring included."""
    data = [group for group in groups(9) if len(group.sequences) == 2]
    found = []
    for loss in ("bradley-terry", "plackett-luce"):
        made = reward_model()
        lines = train(made, data, epochs=4.0, loss=loss, random_answers=epsilon, centre_coef=0.1)
        found.append(
            ([(line["loss"], line["accuracy"], line["grad_norm"]) for line in lines], parameters(made.model))
        )
    assert found[0][0][0][1] not in (0.0, 1.0)
    for one, other in zip(*(lines for lines, _ in found), strict=True):
        assert one == pytest.approx(other, abs=1e-9)
    for one, other in zip(*(weights for _, weights in found), strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=0)


@pytest.mark.parametrize("seed", range(3))
def test_line_22_simulated_rankings_give_the_scores_that_made_them(seed: int) -> None:
    """400 rankings of 4 answers drawn from Plackett–Luce: a small model finds the scores to 0.35."""
    generator = torch.Generator().manual_seed(seed)
    sequences = random_sequences(50 + seed, [(4, 2), (4, 3), (4, 1), (4, 5)], VOCABULARY)
    true = torch.tensor([0.0, 1.0, -0.7, 1.5])
    said = []
    for _ in range(400):
        gumbel = -torch.empty(4).exponential_(generator=generator).log()
        said.append(Ranking(tuple((int(i),) for i in (true + gumbel).argsort(descending=True))))
    pairs = tuple((i, j, 1.0, 1.0) for i, j in combinations(range(4), 2))  # only centred
    made = reward_model(seed)
    data = [PreferenceGroup(tuple(sequences), pairs, tuple(said))]
    lines = train(made, data, epochs=300.0, learning_rate=1e-2, centre_coef=0.0, loss="plackett-luce")
    torch.testing.assert_close(made.score(sequences), true - true.mean(), atol=0.35, rtol=0)
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_margins_that_were_said_outright_count_and_have_no_place_in_rankings() -> None:
    data = [replace(group, rankings=(Ranking(((0,), (1,)), margin=2.0),)) for group in groups(3)]
    plain, led = (train(reward_model(), part, centre_coef=0.0)[0]["loss"] for part in (groups(3), data))
    assert led != plain
    with pytest.raises(ValueError, match="margins are of pairs"):
        train(reward_model(), data, loss="plackett-luce")


# Criteria


def test_each_criterion_trains_its_own_head_only() -> None:
    made = RewardModel.from_policy(llama(VOCABULARY), TOKENIZER, 0, {"helpful": 1.0, "harmless": 0.5})
    # Places 1 and 3: both answers' scores by the second criterion.
    data = [replace(group, pairs=((1, 3, 1.0, 0.0),), criteria=2) for group in groups(6)]
    losses, _ = module._losses(made, data, RewardConfig(centre_coef=0.0))
    losses.sum().backward()
    assert not bool(made.model.score.weight.grad[0].any())
    assert bool(made.model.score.weight.grad[1].all())


def test_criteria_are_learnt_apart_and_weighed_together() -> None:
    """By the first the answer "good" is better, by the second "bad": the weights decide."""
    data = []
    for number, group in enumerate(toy(24, 0)):
        votes = (1.0, 0.0) if number % 2 else (0.0, 1.0)
        data.append(replace(group, pairs=((0, 2, *votes), (1, 3, *votes[::-1])), criteria=2))
    for weights, sign in (((1.0, 0.2), 1), ((0.2, 1.0), -1)):
        made = RewardModel.from_policy(llama(VOCABULARY), TOKENIZER, 0, dict(zip("ab", weights, strict=True)))
        lines = train(made, data, data, epochs=12.0, batch_size=8, learning_rate=1e-2)
        assert lines[-1]["eval_accuracy"] == 1.0
        assert sign * (made("anything", "good answer") - made("anything", "bad answer")) > 0
        sequences = [sequence for group in data for sequence in group.sequences]
        assert made.criterion_scores(sequences).mean(0).tolist() == pytest.approx([0.0, 0.0], abs=1e-5)


# Ensembles


def ensemble(seed: int = 0, lines: list[Metrics] | None = None, **options: Any) -> RewardModel:
    log = [].append if lines is None else lines.append
    config = RewardConfig(**{"batch_size": 3, "learning_rate": 1e-2, **options})
    return make_reward(Policy(llama(VOCABULARY), TOKENIZER), groups(9), groups(4), config, seed, log)


def test_members_differ_and_the_first_is_the_one_without_the_others() -> None:
    lines, alone = list[Metrics](), list[Metrics]()
    made, single = ensemble(lines=lines, ensemble=3, epochs=2.0), ensemble(lines=alone, epochs=2.0)
    assert isinstance(made, RewardEnsemble)
    assert not isinstance(single, RewardEnsemble)
    weights = [parameters(member.model) for member in made.members]
    assert same(weights[0], parameters(single.model))
    assert not any(same(weights[i], weights[j]) for i, j in combinations(range(3), 2))
    assert [line["member"] for line in lines] == [1] * 6 + [2] * 6 + [3] * 6
    assert [line["step"] for line in lines] == list(range(1, 19))
    assert [line["progress"] for line in lines] == pytest.approx([step / 18 for step in range(1, 19)])
    assert all("member" not in line for line in alone)
    assert [line["loss"] for line in lines[:6]] == [line["loss"] for line in alone]
    again = ensemble(ensemble=3, epochs=2.0)
    assert all(same(w, parameters(member.model)) for w, member in zip(weights, again.members, strict=True))


def test_line_22_all_comparisons_of_a_prompt_share_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """K answers are read K times in an epoch, not once for each of K(K−1)/2 pairs; all in one micro-batch."""
    seen: list[list[int]] = []
    arrange = module.arrange

    def recording(sequences: Sequence[Rendered], *models: Any) -> object:
        seen.append([id(sequence) for sequence in sequences])
        return arrange(sequences, *models)

    monkeypatch.setattr(module, "arrange", recording)
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


@pytest.mark.parametrize(("most", "asked"), [(7, range(7)), (6, range(0, 7, 2)), (3, range(0, 7, 3)), (1, [0])])
def test_of_many_prompts_some_say_where_0_is(
    monkeypatch: pytest.MonkeyPatch, most: int, asked: Sequence[int]
) -> None:
    monkeypatch.setattr(module, "SHIFT_PROMPTS", most)
    made, data = reward_model(), groups(7)
    train(made, data, centre_coef=0.0)
    totals = [sum(scores_one_by_one(made, group.sequences)) for group in data]
    assert len(asked) <= most
    assert sum(totals[at] for at in asked) == pytest.approx(0.0, abs=1e-5)
    assert len(asked) == 7 or abs(sum(totals)) > 1e-3


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


def test_heldout_figures_of_many_groups_are_taken_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    made, data = reward_model(), groups(7)
    whole = heldout_figures(made, data, max_tokens=50)
    monkeypatch.setattr(comparisons, "AT_ONCE", 3)
    assert heldout_figures(made, data, max_tokens=50) == pytest.approx(whole, rel=1e-5)


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
