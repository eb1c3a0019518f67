"""Value head and reward model: where they start, what they read, what stands on disk."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.toys import MODELS, byte_tokenizer, gpt2, llama, prompts, random_sequences
from transformers import AutoModelForSequenceClassification, CohereConfig, CohereForCausalLM

from prefloop.models.forward import pad
from prefloop.models.heads import RewardEnsemble, RewardModel, ValueHead
from prefloop.models.loading import load_reward_model

LENGTHS = [(5, 3), (1, 9), (12, 1), (2, 2), (7, 8)]
VOCABULARY = len(byte_tokenizer())


@pytest.fixture(params=["llama", "gpt2"])
def reward(request: pytest.FixtureRequest) -> RewardModel:
    tokenizer = byte_tokenizer()
    return RewardModel.from_policy(MODELS[request.param](len(tokenizer)), tokenizer, seed=0)


def test_line_30_the_value_head_is_zero_at_the_start() -> None:
    values = ValueHead(16)(torch.randn(3, 5, 16))
    assert values.shape == (3, 5)
    assert not bool(values.any())


def test_the_value_head_is_linear_in_the_state() -> None:
    head = ValueHead(3)
    with torch.no_grad():
        head.linear.weight.copy_(torch.tensor([[1.0, 2.0, 3.0]]))
        head.linear.bias.fill_(0.5)
    assert head(torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, -1.0]])).tolist() == [6.5, -2.5]


def test_line_24_the_head_starts_with_the_published_deviation() -> None:
    """1/√(d+1) at d = 1024, within four standard errors of a sample of 1024."""
    model = llama(VOCABULARY, width=1024, layers=1)
    weight = RewardModel.from_policy(model, byte_tokenizer(), seed=1).model.score.weight.detach()
    expected = 1 / math.sqrt(1025)
    assert weight.shape == (1, 1024)
    assert float(weight.std()) == pytest.approx(expected, rel=4 / math.sqrt(2 * 1024))
    assert abs(float(weight.mean())) < 4 * expected / math.sqrt(1024)


def test_the_head_depends_on_the_seed_alone() -> None:
    model, tokenizer = llama(VOCABULARY), byte_tokenizer()
    first, again, other = (RewardModel.from_policy(model, tokenizer, seed).model.score.weight for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_trunk_is_the_policys_and_a_copy(reward: RewardModel) -> None:
    kind = llama if reward.model.config.model_type == "llama" else gpt2
    policy = kind(VOCABULARY)
    made = RewardModel.from_policy(policy, reward.tokenizer, seed=0)
    trunk, original = made.model.base_model.state_dict(), policy.base_model.state_dict()
    assert all(torch.equal(trunk[name], value) for name, value in original.items())
    assert not {p.data_ptr() for p in made.model.parameters()} & {p.data_ptr() for p in policy.parameters()}


def naive_score(model: Any, ids: list[int]) -> float:
    with torch.no_grad():
        states = model.base_model(input_ids=torch.tensor([ids])).last_hidden_state
        return float(states[0, -1] @ model.score.weight[0])


def test_line_23_scores_are_read_at_the_last_real_token_of_each_row(reward: RewardModel) -> None:
    reward.model.eval()
    sequences = random_sequences(0, LENGTHS, VOCABULARY)
    expected = [naive_score(reward.model, sequence.ids) for sequence in sequences]
    for max_tokens in (1, 40, 10_000):
        assert reward.score(sequences, max_tokens).tolist() == pytest.approx(expected, abs=1e-5)
    with torch.no_grad():
        batch = reward.score_batch(pad(sequences, torch.device("cpu")))
    assert batch.tolist() == pytest.approx(expected, abs=1e-5)


def test_line_24_the_shift_adds_up(reward: RewardModel) -> None:
    reward.model.eval()
    sequences = random_sequences(0, LENGTHS, VOCABULARY)
    before = reward.score(sequences)
    reward.shift_scores(1.5)
    reward.shift_scores(-0.25)
    torch.testing.assert_close(reward.score(sequences), before + 1.25)
    assert reward.model.config.reward_shift == 1.25


def test_calling_a_reward_model_scores_one_rendered_answer(reward: RewardModel) -> None:
    reward.model.eval()
    [prompt] = prompts(1)
    ids = reward.chat.answered(prompt, "yes").ids
    assert ids[-1] == reward.chat.eos_id
    assert reward(prompt, "yes") == reward(prompt.text, "yes")
    assert reward(prompt, "yes") == pytest.approx(naive_score(reward.model, ids), abs=1e-5)


def test_line_24_a_saved_reward_model_is_a_classifier_and_its_shift(reward: RewardModel, tmp_path: Path) -> None:
    reward.model.eval()
    reward.shift_scores(0.75)
    reward.save(tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert plain.config.num_labels == 1
    shift = json.loads((tmp_path / "config.json").read_text())["reward_shift"]
    assert shift == 0.75

    sequences = random_sequences(4, LENGTHS, VOCABULARY)
    longest = max(map(len, sequences))
    ids = torch.tensor([one.ids + [reward.tokenizer.pad_token_id] * (longest - len(one)) for one in sequences])
    attention = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in sequences])
    with torch.no_grad():
        logits = plain(input_ids=ids, attention_mask=attention).logits[:, 0]
    expected = reward.score(sequences)
    torch.testing.assert_close(logits + shift, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(load_reward_model(tmp_path).score(sequences), expected, atol=1e-6, rtol=0)


# Criteria and ensembles

CRITERIA = {"helpful": 1.0, "harmless": -0.5, "short": 0.25}


def members(count: int, criteria: dict[str, float] | None = None) -> list[RewardModel]:
    """With heads of their own and different levels."""
    tokenizer = byte_tokenizer()
    made = [RewardModel.from_policy(llama(len(tokenizer)), tokenizer, seed, criteria) for seed in range(count)]
    for number, member in enumerate(made):
        member.shift_scores(*[0.5 * number] * len(criteria or [""]))
    return made


def test_a_score_is_the_weighted_sum_of_the_criteria(tmp_path: Path) -> None:
    [made] = members(1, CRITERIA)
    made.shift_scores(1.0, 2.0, 3.0)
    sequences = random_sequences(0, LENGTHS, VOCABULARY)
    for model in (made, _again(made, tmp_path)):
        heads = model.criterion_scores(sequences, 40)
        for row, score, sequence in zip(heads.tolist(), model.score(sequences).tolist(), sequences, strict=True):
            with torch.no_grad():
                state = model.model.base_model(input_ids=torch.tensor([sequence.ids])).last_hidden_state[0, -1]
                logits = (model.model.score.weight @ state).tolist()
            assert row == pytest.approx(
                [logit + shift for logit, shift in zip(logits, (1, 2, 3), strict=True)], abs=1e-5
            )
            assert score == pytest.approx(row[0] - 0.5 * row[1] + 0.25 * row[2], abs=1e-5)
        assert model.criteria == ("helpful", "harmless", "short")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["id2label"] == {"0": "helpful", "1": "harmless", "2": "short"}
    assert (config["reward_weights"], config["reward_shift"]) == (CRITERIA, [1.0, 2.0, 3.0])
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert plain.config.num_labels == 3


def _again(made: RewardModel, folder: Path) -> RewardModel:
    made.save(folder)
    return load_reward_model(folder)


def test_a_reward_model_without_criteria_is_one_score(reward: RewardModel) -> None:
    sequences = random_sequences(0, LENGTHS, VOCABULARY)
    assert reward.criteria == ("",)
    assert reward.members == (reward,)
    assert torch.equal(reward.criterion_scores(sequences)[:, 0], reward.score(sequences))


@pytest.mark.parametrize("criteria", [None, CRITERIA])
@pytest.mark.parametrize("pessimism", [0.0, 1.5])
def test_an_ensembles_score_is_the_mean_less_the_disagreement(
    criteria: dict[str, float] | None, pessimism: float, tmp_path: Path
) -> None:
    parts = members(3, criteria)
    sequences = random_sequences(0, LENGTHS, VOCABULARY)
    scores = torch.stack([member.score(sequences) for member in parts])
    mean = scores.mean(0)
    spread = ((scores - mean) ** 2).mean(0).sqrt()
    assert float(spread.min()) > 0.01
    made = RewardEnsemble(parts, pessimism)
    for model in (made, _again(made, tmp_path)):
        assert isinstance(model, RewardEnsemble)
        torch.testing.assert_close(model.score(sequences, 40), mean - pessimism * spread, atol=1e-5, rtol=0)
        torch.testing.assert_close(model.disagreement(sequences), spread, atol=1e-5, rtol=0)
        heads = torch.stack([member.criterion_scores(sequences) for member in parts]).mean(0)
        torch.testing.assert_close(model.criterion_scores(sequences), heads, atol=1e-5, rtol=0)
        [prompt] = prompts(1)
        alone = [member(prompt, "yes") for member in parts]
        average = sum(alone) / 3
        deviation = math.sqrt(sum((one - average) ** 2 for one in alone) / 3)
        assert model(prompt, "yes") == pytest.approx(average - pessimism * deviation, abs=1e-5)
        assert model.context == parts[0].context
    before = made.score(sequences)
    made.shift_scores(*[1.0] * len(made.criteria))
    torch.testing.assert_close(made.score(sequences), before + sum((criteria or {"": 1.0}).values()))


def test_every_member_is_a_plain_folder_and_the_first_is_the_ensembles_own(tmp_path: Path) -> None:
    parts = members(3)
    RewardEnsemble(parts, 0.5).save(tmp_path / "model")
    sequences = random_sequences(0, LENGTHS, VOCABULARY)
    for number, member in enumerate(parts, start=1):
        folder = tmp_path / "model" / ("" if number == 1 else f"member-{number}")
        assert AutoModelForSequenceClassification.from_pretrained(folder).config.num_labels == 1
        if number > 1:
            assert torch.equal(load_reward_model(folder).score(sequences), member.score(sequences))
    assert sorted(path.name for path in (tmp_path / "model").glob("member*")) == ["member-2", "member-3"]


def test_an_ensemble_is_of_the_same_kind() -> None:
    with pytest.raises(ValueError, match="two or more"):
        RewardEnsemble(members(1))
    with pytest.raises(ValueError, match="same criteria"):
        RewardEnsemble([*members(1), *members(1, CRITERIA)])


def test_a_saved_reward_model_has_no_pickle(reward: RewardModel, tmp_path: Path) -> None:
    reward.save(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert {Path(name).suffix for name in names} <= {".json", ".safetensors", ".txt", ".jinja"}


def test_an_architecture_without_a_classifier_is_refused_by_name() -> None:
    config = CohereConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    with pytest.raises(ValueError, match="no sequence classifier for cohere models"):
        RewardModel.from_policy(CohereForCausalLM(config), byte_tokenizer(), seed=0)


def test_a_fresh_reward_model_has_no_dropout_until_it_is_trained() -> None:
    model = RewardModel.from_policy(gpt2(VOCABULARY, resid_pdrop=0.5, embd_pdrop=0.5), byte_tokenizer(), seed=0)
    sequences = random_sequences(0, LENGTHS, VOCABULARY)
    assert torch.equal(model.score(sequences), model.score(sequences))
