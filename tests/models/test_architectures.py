"""Every architecture of the zoo: sampling, scoring and all training agree with the model's own uncached forward."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.rollout.test_sampler import slow_sample
from tests.toys import naive_log_probs, parameters, same
from tests.zoo import CONTEXT, WINDOW, WITHOUT_CLASSIFIER, ZOO, save
from transformers import AutoModelForSequenceClassification

import prefloop
from prefloop.chat import Rendered
from prefloop.models.forward import context_of, score_responses
from prefloop.models.loading import load_reward_model
from prefloop.policy import Policy
from prefloop.rollout import sampler
from prefloop.rollout.sampler import _uniforms, sample

KINDS = [(name, tied) for name in ZOO for tied in (True, False)]
NEW_TOKENS = 10
# Cached decoding and one pass over the whole do the same sums in another order.
DECODING, ONE_PASS = 1e-4, 2e-5


@pytest.fixture(scope="module", params=KINDS, ids=[f"{name}-{'tied' if tied else 'untied'}" for name, tied in KINDS])
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    name, tied = request.param
    folder = tmp_path_factory.mktemp(name)
    save(name, tied, folder)
    return prefloop.load(folder, device="cpu")


def prompts_of(policy: Policy) -> list[list[int]]:
    """Of 1 to 15 tokens: shorter and longer than the window."""
    generator = random.Random(0)
    return [generator.choices(range(10, 250), k=length) for length in (4, 15, 1, 9)]


def text(length: int, seed: int) -> str:
    return "".join(random.Random(seed).choices("abcdefghijklmnop", k=length))


def test_embeddings_are_tied_as_the_folder_says(policy: Policy) -> None:
    tied = policy.model.get_input_embeddings().weight is policy.model.get_output_embeddings().weight
    assert tied == policy.model.config.tie_word_embeddings
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([prompts_of(policy)[1]])).logits
    assert 0.5 < logits[..., :-1].std() < 5  # the model has opinions: nats, not hundredths
    assert policy.tokenizer.pad_token_id not in (None, policy.tokenizer.eos_token_id)


def test_line_01_and_03_sampling_is_that_of_a_slow_sampler(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left padding, K answers from one pass over the prompt, rows that leave at once, and a window that is passed."""
    monkeypatch.setattr(sampler, "COMPACT_AT", 0.01)
    prompts, options = prompts_of(policy), {"max_response_tokens": NEW_TOKENS, "seed": 5, "answers": 4}
    endless = sample(policy.model, prompts, eos_id=-1, **options).ids.tolist()
    ends = {token: {row.index(token) for row in endless if token in row} for row in endless for token in row}
    eos = max(ends, key=lambda token: len(ends[token]))  # the token that ends rows at the most places
    rollout = sample(policy.model, prompts, eos_id=eos, **options)
    assert len(set(rollout.lengths.tolist())) > 2  # rows left the batch
    assert max(len(sequence) for sequence in rollout.sequences) > 2 * WINDOW
    for row, sequence in enumerate(rollout.sequences):
        expected = naive_log_probs(policy.model, sequence)
        found = rollout.log_probs[row][rollout.mask[row]].double()
        torch.testing.assert_close(found, expected, atol=DECODING, rtol=0)
        if row % 5 == 0:
            uniforms = _uniforms(5, prompts[row // 4], row % 4, NEW_TOKENS)
            assert rollout.responses[row] == slow_sample(policy.model, prompts[row // 4], uniforms, 1.0, eos)


def test_line_05_scoring_with_padding_is_the_models_own(policy: Policy) -> None:
    sequences = [
        Rendered(ids + answer, [False] * len(ids) + [True] * len(answer))
        for ids, answer in zip(prompts_of(policy), reversed(prompts_of(policy)), strict=True)
    ]
    for found, sequence in zip(score_responses(policy.model, sequences, 10_000), sequences, strict=True):
        torch.testing.assert_close(found.double(), naive_log_probs(policy.model, sequence), atol=ONE_PASS, rtol=0)


def test_a_saved_policy_says_the_same(policy: Policy, tmp_path: Path) -> None:
    policy.save(tmp_path)
    again = prefloop.load(tmp_path, device="cpu")
    ids = torch.tensor([prompts_of(policy)[1]])
    with torch.no_grad():
        assert torch.equal(again.model(input_ids=ids).logits, policy.model(input_ids=ids).logits)
    assert again.tokenizer.pad_token_id == policy.tokenizer.pad_token_id


def test_supervised_fine_tuning_learns(policy: Policy) -> None:
    demonstrations = [(text(5 + 4 * i, i), text(10, 10 + i)) for i in range(3)]
    result = prefloop.sft(policy, demonstrations, epochs=2, batch_size=2, learning_rate=1e-3)
    changed_and_finite(policy, result.policy, result.metrics, "loss")


def test_line_03_ppo_starts_with_ratio_one(policy: Policy, request: pytest.FixtureRequest) -> None:
    result = prefloop.ppo(
        policy,
        [text(2, 0), text(16, 1), text(9, 2), text(5, 3)],
        reward=lambda _prompt, response: float(len(response) % 7),
        iterations=2,
        episodes=4,
        minibatch_episodes=4,
        epochs=1,
        max_response_tokens=NEW_TOKENS,
        learning_rate=1e-3,
    )
    changed_and_finite(policy, result.policy, result.metrics, "policy_loss")
    errors = [line["ratio_error"] for line in result.metrics]
    print(f"\n{request.node.callspec.id}: largest ratio error {max(errors):.1e}")  # pytest -s; docs/models.md
    assert max(errors) < 1e-4
    assert result.metrics[0]["kl"] == pytest.approx(0, abs=1e-3)


def test_dpo_moves_the_policy(policy: Policy) -> None:
    comparisons = [(text(5 + 4 * i, i), text(10, 10 + i), text(12, 20 + i)) for i in range(3)]
    result = prefloop.dpo(policy, comparisons, epochs=1, batch_size=2, learning_rate=1e-3)
    changed_and_finite(policy, result.policy, result.metrics, "loss")
    assert result.metrics[0]["loss"] == pytest.approx(0.6931, abs=1e-4)  # log 2: policy and reference are one


def test_line_23_a_reward_is_the_logit_of_the_saved_classifier(policy: Policy, tmp_path: Path) -> None:
    comparisons = [(text(5 + 4 * i, i), text(10, 10 + i), text(12, 20 + i)) for i in range(3)]
    if policy.model.config.model_type in WITHOUT_CLASSIFIER:
        with pytest.raises(ValueError, match="transformers has no sequence classifier for mamba2? models"):
            prefloop.reward_model(policy, comparisons)
        return
    result = prefloop.reward_model(policy, comparisons, epochs=1, batch_size=2, learning_rate=1e-3)
    reward = result.model
    trunk = policy.model.base_model.state_dict()
    assert any(not torch.equal(value, trunk[name]) for name, value in reward.model.base_model.state_dict().items())
    reward.save(tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    sequences = [Rendered(ids, [True] * len(ids)) for ids in prompts_of(policy)]
    with torch.no_grad():
        logits = [float(plain(input_ids=torch.tensor([s.ids])).logits[0, 0]) for s in sequences]
    expected = [logit + plain.config.reward_shift for logit in logits]
    assert max(logits) - min(logits) > 1e-2
    assert reward.score(sequences).tolist() == pytest.approx(expected, abs=ONE_PASS)
    assert load_reward_model(tmp_path, "cpu").score(sequences).tolist() == pytest.approx(expected, abs=ONE_PASS)


def changed_and_finite(before: Policy, after: Policy, metrics: list[dict[str, float]], name: str) -> None:
    for line in metrics:
        assert torch.isfinite(torch.tensor([line[name], line["grad_norm"]])).all()
        assert line["grad_norm"] > 0
    assert not same(parameters(before.model), parameters(after.model))
