"""Every architecture of the zoo: sampling, scoring and all training agree with the model's own uncached forward."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.rollout.slow import slow_sample
from tests.toys import PAD, byte_tokenizer, gpt2, llama, naive_log_probs, parameters, random_sequences, same
from tests.zoo import BODY, CONTEXT, LLAMA, WINDOW, WITHOUT_CLASSIFIER, ZOO, save
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
)

import prefloop
from prefloop.chat import Rendered
from prefloop.models.forward import context_of, score_responses
from prefloop.models.heads import RewardModel, check_score
from prefloop.models.loading import load_reward_model
from prefloop.policy import Policy
from prefloop.rollout import decoder
from prefloop.rollout.parity import check_model
from prefloop.rollout.sampler import _uniforms, sample

KINDS = [(name, tied) for name in ZOO for tied in (True, False)]
NEW_TOKENS = 10
RECURRENT = ("mamba", "mamba2", "jamba", "qwen3_next")
"""Nobody enters a batch of these."""
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
    """Left padding, K answers from one pass over the prompt, rows that leave and enter at once, a span of attention
    for each row, and a window that is passed."""
    for constant in ("sampler.COMPACT_AT", "sampler.ENTER_AT", "attention.LEAST", "attention.APART"):
        monkeypatch.setattr(f"prefloop.rollout.{constant}", 0.01)
    entered, enter = [], decoder.Decoder.enter
    monkeypatch.setattr(decoder.Decoder, "enter", lambda *given: entered.append(1) or enter(*given))
    prompts, options = prompts_of(policy), {"max_response_tokens": NEW_TOKENS, "seed": 5, "answers": 4}
    endless = sample(policy.model, prompts, eos_id=-1, **options).ids.tolist()
    ends = {token: {row.index(token) for row in endless if token in row} for row in endless for token in row}
    eos = max(ends, key=lambda token: len(ends[token]))  # the token that ends rows at the most places
    assert not entered
    rollout = sample(policy.model, prompts, eos_id=eos, batch_size=8, **options)
    assert bool(entered) == (policy.model.config.model_type not in RECURRENT)
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
        with pytest.raises(ValueError, match=r"transformers has no sequence classifier for mamba2? models"):
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


# What cannot be right is refused when it is loaded.

BYTES = len(byte_tokenizer())
SPECIAL = {"vocab_size": BYTES, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
REFUSED = {
    "bert": ({**BODY, "intermediate_size": 24}, "reads what comes after a token, so it is no causal language model"),
    "openai-gpt": ({"n_embd": 16, "n_layer": 2, "n_head": 2}, "cannot be decoded in batches with a cache"),
    "rwkv": ({**BODY, "attention_hidden_size": 16}, "other results with left padding and a cache than without"),
    "recurrent_gemma": (
        {**LLAMA, "num_hidden_layers": 3, "attention_window_size": WINDOW, "lru_width": 16},
        "other results with left padding and a cache than without",
    ),
    "minimax": ({**LLAMA, "head_dim": 8, "num_local_experts": 2}, "MiniMax uses cache of its own"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_an_architecture_that_cannot_be_right_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    settings, reason = REFUSED[name]
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **settings, **SPECIAL)).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"{name} model .*{reason}.*Use a decoder-only architecture"):
        prefloop.load(tmp_path, device="cpu")


def test_an_encoder_decoder_is_refused_by_name(tmp_path: Path) -> None:
    settings = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "vocab_size": BYTES}
    AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("t5", **settings)).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"transformers has no CausalLM model of this architecture, as of encoders"):
        prefloop.load(tmp_path, device="cpu")


@pytest.mark.parametrize("mistake", ["positions", "mask", "cache", "rows", "repeats", "newcomers"])
def test_each_mistake_in_decoding_is_seen_when_a_model_is_loaded(
    mistake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an architecture would make it that ignores what it is told."""
    model = gpt2() if mistake == "positions" else llama()  # rotary positions may all be off by the same number
    check_model(model, "toy")
    inner, cache = model.base_model.forward, decoder.DynamicCache

    def forward(*args: Any, **given: Any) -> Any:
        if given.get("use_cache") and mistake == "positions":
            del given["position_ids"]
        if given.get("use_cache") and mistake == "mask":
            del given["attention_mask"]
        if given.get("use_cache") and mistake == "cache" and given["input_ids"].shape[1] == 1:
            given["past_key_values"], given["attention_mask"] = cache(config=model.config), None
        return inner(*args, **given)

    class Forgetful(cache):
        def reorder_cache(self, rows: torch.Tensor) -> None:
            repeats = len(rows) > self.batch_size_now()
            if (mistake == "rows" and not repeats) or (mistake == "repeats" and repeats):
                rows = torch.arange(len(rows)) % self.batch_size_now()
            super().reorder_cache(rows)

        def batch_size_now(self) -> int:
            return len(self.layers[0].keys)

    if mistake == "newcomers":
        choose = decoder.Roomy.choose
        monkeypatch.setattr(
            decoder.Roomy,
            "choose",
            lambda layer, rows, first, new=None: choose(layer, rows, first, new) or (new and layer.keys.zero_()),
        )
    monkeypatch.setattr(model.base_model, "forward", forward)
    monkeypatch.setattr(decoder, "DynamicCache", Forgetful)
    with pytest.raises(ValueError, match="gives other results with left padding and a cache than without"):
        check_model(model, "toy")


def test_padding_that_changes_a_training_pass_is_seen_when_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As experts of limited capacity do."""
    model = llama()
    inner = model.model.forward

    def forward(**given: Any) -> Any:
        result = inner(**given)
        if len(given["input_ids"]) > 1 and not given["use_cache"]:
            result.last_hidden_state = result.last_hidden_state * torch.tensor([1.0, 1.1])[:, None, None]
        return result

    monkeypatch.setattr(model.model, "forward", forward)
    with pytest.raises(ValueError, match="other results for a sequence that has padding behind it"):
        check_model(model, "toy")


def test_a_model_that_says_nan_is_not_let_through() -> None:
    model = llama()
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    with pytest.raises(ValueError, match="gives logits that are not finite, as after training that diverged"):
        check_model(model, "toy")


def test_a_model_of_texts_and_images_is_used_for_its_texts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = Gemma3Config(
        text_config={**LLAMA, **SPECIAL, "pad_token_id": None, "head_dim": 8, "sliding_window": WINDOW},
        vision_config={**{k: v for k, v in BODY.items() if k != "initializer_range"}, "intermediate_size": 24}
        | {"image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=BYTES - 1,
        boi_token_index=BYTES - 2,
        eoi_token_index=BYTES - 3,
    )
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path)
    byte_tokenizer(pad=None).save_pretrained(tmp_path)
    policy = prefloop.load(tmp_path, device="cpu")
    assert policy.context == CONTEXT
    result = prefloop.ppo(
        policy,
        [text(3, 0), text(16, 1)],
        reward=lambda _prompt, response: float(len(response)),
        iterations=1,
        episodes=4,
        minibatch_episodes=4,
        epochs=1,
        max_response_tokens=NEW_TOKENS,
    )
    assert result.metrics[0]["ratio_error"] < 1e-4
    texts = policy.model.config.get_text_config()
    assert texts.pad_token_id == policy.tokenizer.pad_token_id
    texts.pad_token_id = None
    reward = RewardModel.from_policy(policy.model, policy.tokenizer, 0)
    assert reward.model.config.get_text_config().pad_token_id == policy.tokenizer.pad_token_id


# What the head of a reward model must be.


def test_a_classifier_that_pools_otherwise_is_no_reward_model(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    config = AutoConfig.for_model("bert", **BODY, **SPECIAL, intermediate_size=24, num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="for bert models is no linear score of the last token"):
        load_reward_model(tmp_path, "cpu")


def test_a_score_that_is_not_of_the_last_token_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = RewardModel.from_policy(llama(BYTES), byte_tokenizer(), 0).model
    check_score(classifier)
    inner = classifier.forward

    def first_token(**given: Any) -> Any:
        return inner(input_ids=given["input_ids"][:, :1])

    monkeypatch.setattr(classifier, "forward", first_token)
    with pytest.raises(ValueError, match="for llama models is no linear score of the last token"):
        check_score(classifier)


def test_a_reward_model_is_float32_whatever_the_folder_was(tmp_path: Path) -> None:
    llama(BYTES).bfloat16().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    policy = prefloop.load(tmp_path, device="cpu")
    assert RewardModel.from_policy(policy.model, policy.tokenizer, 0).model.dtype == torch.float32


# How long a sequence may be.


def test_rotary_frequencies_that_change_limit_the_context() -> None:
    """A model whose frequencies depend on the longest sequence of a batch: right up to that length, wrong beyond."""
    rope = {"rope_theta": 10_000.0, "original_max_position_embeddings": 20}
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    model = llama(rope_parameters={"rope_type": "longrope", **factors, **rope})
    assert context_of(model) == 20
    for length, agrees in ((20, True), (21, False)):
        sequences = random_sequences(0, [(4, 6), (4, length - 4)])
        found = score_responses(model, sequences, 10_000)[0].double()
        assert torch.allclose(found, naive_log_probs(model, sequences[0]), atol=1e-4) == agrees

    class Layered:
        config = AutoConfig.for_model("llama", max_position_embeddings=90)

    Layered.config.rope_parameters = {"full_attention": {"rope_type": "longrope", **rope}, "sliding_attention": {}}
    assert context_of(Layered) == 20
    assert context_of(llama(max_position_embeddings=77)) == 77


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_learned_positions_are_used_to_the_last_of_them(name: str, tmp_path: Path) -> None:
    save(name, True, tmp_path)
    policy = prefloop.load(tmp_path, device="cpu")
    prompts = [list(range(20, 20 + length)) for length in (CONTEXT - 4, 3)]
    rollout = sample(policy.model, prompts, eos_id=-1, max_response_tokens=4)
    assert len(rollout.sequences[0]) == policy.context == CONTEXT
    for row, sequence in enumerate(rollout.sequences):
        expected = naive_log_probs(policy.model, sequence)
        torch.testing.assert_close(rollout.log_probs[row].double(), expected, atol=DECODING, rtol=0)
    assert policy.tokenizer.pad_token == PAD
