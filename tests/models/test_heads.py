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
from prefloop.models.heads import RewardModel, ValueHead
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
    batch = pad(sequences, torch.device("cpu"))
    pad_id = reward.tokenizer.pad_token_id
    ids = batch.ids.where(batch.attention, torch.tensor(pad_id))
    with torch.no_grad():
        logits = plain(input_ids=ids, attention_mask=batch.attention.long()).logits[:, 0]
    expected = reward.score(sequences)
    torch.testing.assert_close(logits + shift, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(load_reward_model(tmp_path).score(sequences), expected, atol=1e-6, rtol=0)


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
