"""Loading and saving: what comes back is what was written; what cannot be read says what is missing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.toys import EOS, MODELS, byte_tokenizer, gemma2, gpt2, llama, parameters, policy, same
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefloop.feedback.records import Prompt
from prefloop.models.forward import head_logits
from prefloop.models.heads import RewardEnsemble, RewardModel
from prefloop.models.loading import PAD_TOKEN, load_reward_model, load_tokenizer
from prefloop.models.precision import computed_in, computing_in
from prefloop.policy import Policy, load_policy
from prefloop.rollout.sampler import sample

IDS = torch.tensor([[5, 6, 7, 200, 30]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("policy")
    policy().save(path)
    return path


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_a_saved_policy_is_a_plain_folder_with_the_same_logits(kind: str, tmp_path: Path) -> None:
    made = policy(kind)
    made.save(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        expected = made.model(IDS).logits
        assert torch.equal(plain(IDS).logits, expected)
        assert torch.equal(load_policy(tmp_path, "cpu").model(IDS).logits, expected)
    text = "\n\nHuman: hé"
    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == made.tokenizer(text)["input_ids"]
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".safetensors", ".txt", ".jinja"}


def test_a_loaded_policy_is_float32_and_in_evaluation_mode(tmp_path: Path) -> None:
    made = policy()
    made.model.bfloat16()
    made.save(tmp_path)
    loaded = load_policy(tmp_path)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert not loaded.model.training


@pytest.mark.parametrize("pad", [None, EOS])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_line_05_a_pad_token_is_added_where_there_is_none_of_its_own(
    pad: str | None, kind: str, tmp_path: Path
) -> None:
    tokenizer = byte_tokenizer(pad=pad)
    made = Policy(MODELS[kind](len(tokenizer), pad_token_id=None), tokenizer)
    made.save(tmp_path)
    loaded = load_policy(tmp_path)
    assert loaded.tokenizer.pad_token == PAD_TOKEN
    assert loaded.tokenizer.pad_token_id != loaded.tokenizer.eos_token_id
    assert loaded.model.config.pad_token_id == loaded.tokenizer.pad_token_id
    assert loaded.model.get_input_embeddings().num_embeddings == len(loaded.tokenizer) == len(tokenizer) + 1
    with torch.no_grad():
        old, new = made.model(IDS).logits, loaded.model(IDS).logits
    assert torch.equal(old, new[..., : old.shape[-1]])


@pytest.mark.parametrize("tied", [True, False])
def test_line_05_an_added_pad_token_is_never_likely(tied: bool, tmp_path: Path) -> None:
    """As in GPT-2, whose logits are all far below 0: a new row near 0 would take all the probability."""
    tokenizer = byte_tokenizer(pad=None)
    made = Policy(llama(len(tokenizer), pad_token_id=None, tie_word_embeddings=tied), tokenizer)
    with torch.no_grad():
        made.model.model.norm.weight.fill_(1.0)
        # Every logit is about −30: the rows of the head share a direction, and the states point the other way.
        direction = made.model.get_output_embeddings().weight
        direction += 30 * torch.nn.functional.normalize(torch.ones(direction.shape[1]), dim=0)
    made.save(tmp_path)
    twice = [load_policy(tmp_path) for _ in range(2)]
    head = twice[0].model.get_output_embeddings().weight
    torch.testing.assert_close(head[-1], head[:-1].mean(0))
    assert torch.equal(head, twice[1].model.get_output_embeddings().weight)
    for states in torch.randn(20, head.shape[1], generator=torch.Generator().manual_seed(1)):
        probabilities = (head @ (states - 1)).softmax(0)
        assert probabilities[-1] <= 1 / (len(head) - 1)


def test_a_pickle_is_not_opened(folder: Path, tmp_path: Path) -> None:
    """Opening one may run code."""
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "model.safetensors").unlink()
    torch.save(policy().model.state_dict(), copy / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"cannot load a model from .*safetensors"):
        load_policy(copy)


def test_a_pad_token_that_is_there_is_left_alone(folder: Path) -> None:
    loaded = load_policy(folder)
    assert loaded.tokenizer.pad_token == "<|pad|>"
    assert loaded.model.get_input_embeddings().num_embeddings == len(byte_tokenizer())


def test_a_padded_embedding_is_not_made_smaller(tmp_path: Path) -> None:
    """Many models have more rows than tokens; the new pad token takes one of them."""
    tokenizer = byte_tokenizer(pad=None)
    Policy(llama(len(tokenizer) + 30, pad_token_id=None), tokenizer).save(tmp_path)
    assert load_policy(tmp_path).model.get_input_embeddings().num_embeddings == len(byte_tokenizer(pad=None)) + 30


def test_a_missing_folder_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot load a model from .*nowhere.*there is no such folder, and no hub"):
        load_policy(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="cannot load a model from 'no-one/nothing'"):
        load_policy("no-one/nothing")


def test_an_empty_folder_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds nothing\. A model folder needs config\.json"):
        load_policy(tmp_path)


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors"])
def test_a_folder_without_a_file_is_an_error_that_lists_the_others(folder: Path, tmp_path: Path, lost: str) -> None:
    path = Path(shutil.copytree(folder, tmp_path / "copy"))
    (path / lost).unlink()
    with pytest.raises(ValueError, match=r"the folder is there and holds .*tokenizer\.json") as caught:
        load_policy(path)
    listed = str(caught.value).split(" holds ")[1].split(". A model folder needs")[0].split(", ")
    assert set(listed) == {found.name for found in path.iterdir()}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00garbage!"),
        ("model.safetensors", b""),
        ("config.json", b"{"),
        ("config.json", b'{"model_type": "no such model"}'),
        ("tokenizer.json", b"{}"),
    ],
    ids=["corrupt weights", "empty weights", "broken config", "unknown model", "broken tokenizer"],
)
def test_a_corrupt_file_is_an_error_that_names_the_folder(
    folder: Path, tmp_path: Path, name: str, content: bytes
) -> None:
    path = Path(shutil.copytree(folder, tmp_path / "copy"))
    (path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"cannot load a model from .*copy.*{name}"):
        load_policy(path)


def test_weights_of_another_shape_are_an_error(folder: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(folder, tmp_path / "copy"))
    config = (path / "config.json").read_text()
    (path / "config.json").write_text(config.replace('"intermediate_size": 32', '"intermediate_size": 48'))
    with pytest.raises(ValueError, match="cannot load a model from"):
        load_policy(path)


def test_weights_that_lack_a_part_are_an_error(tmp_path: Path) -> None:
    """A policy without a trained head (here: the folder of a reward model) must not be filled up with noise."""
    tokenizer = byte_tokenizer()
    RewardModel.from_policy(llama(len(tokenizer), tie_word_embeddings=False), tokenizer, 0).save(tmp_path)
    with pytest.raises(ValueError, match=r"no weights for lm_head\.weight, so it is no whole CausalLM model"):
        load_policy(tmp_path)


def test_a_policy_whose_tokenizer_has_no_eos_is_refused(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    byte_tokenizer(eos=None).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no eos token"):
        load_policy(tmp_path)


def test_a_classifier_with_two_labels_is_no_reward_model(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    made = RewardModel.from_policy(llama(len(tokenizer)), tokenizer, 0)
    made.save(tmp_path)
    config = (tmp_path / "config.json").read_text()
    made.model.config.num_labels = 2
    made.model.score = torch.nn.Linear(16, 2, bias=False)
    made.save(tmp_path)
    assert config != (tmp_path / "config.json").read_text()
    with pytest.raises(ValueError, match="one label; this classifier has 2"):
        load_reward_model(tmp_path)


def test_several_labels_are_a_reward_model_when_all_of_them_have_a_weight(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    made = RewardModel.from_policy(llama(len(tokenizer)), tokenizer, 0, {"a": 1.0, "b": 2.0})
    made.save(tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert load_reward_model(tmp_path).criteria == ("a", "b")
    (tmp_path / "config.json").write_text(text.replace('"reward_shift"', '"reward_drift"'))
    assert load_reward_model(tmp_path).model.config.reward_shift == [0.0, 0.0]
    (tmp_path / "config.json").write_text(text.replace('"b": 2.0', '"c": 2.0'))
    with pytest.raises(
        ValueError, match=r"reward_weights in config.json names \['a', 'c'\].*labels are \['a', 'b'\]"
    ):
        load_reward_model(tmp_path)
    (tmp_path / "config.json").write_text(text.replace('"reward_weights"', '"reward_heights"'))
    with pytest.raises(ValueError, match=r"has 2, and its config.json does not say by reward_weights"):
        load_reward_model(tmp_path)


def test_a_model_saved_where_an_ensemble_stood_is_itself(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    parts = [RewardModel.from_policy(llama(len(tokenizer)), tokenizer, seed) for seed in range(3)]
    RewardEnsemble(parts).save(tmp_path)
    RewardEnsemble(parts[:2]).save(tmp_path)
    assert len(load_reward_model(tmp_path).members) == 2
    parts[0].save(tmp_path)
    assert len(load_reward_model(tmp_path).members) == 1


def test_an_ensemble_that_lacks_a_member_is_refused(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    parts = [RewardModel.from_policy(llama(len(tokenizer)), tokenizer, seed) for seed in range(3)]
    RewardEnsemble(parts).save(tmp_path)
    assert len(load_reward_model(tmp_path).members) == 3
    (tmp_path / "member-2").rename(tmp_path / "away")
    with pytest.raises(ValueError, match="an ensemble of 3, of which member-2 is missing"):
        load_reward_model(tmp_path)
    RewardModel.from_policy(llama(len(tokenizer)), tokenizer, 0, {"a": 1.0}).save(tmp_path / "member-2")
    with pytest.raises(ValueError, match=r"member-2 has other criteria than the first member"):
        load_reward_model(tmp_path)
    shutil.rmtree(tmp_path / "member-2")
    (tmp_path / "member-2").mkdir()
    with pytest.raises(ValueError, match=r"cannot load a model from .*member-2"):
        load_reward_model(tmp_path)


def test_a_reward_model_without_a_shift_is_not_shifted(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    made = RewardModel.from_policy(llama(len(tokenizer)), tokenizer, 0)
    made.save(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"reward_shift": 0.0,', ""))
    assert load_reward_model(tmp_path).model.config.reward_shift == 0.0


def test_a_head_that_prefloop_does_not_know_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_tokenizer()
    Policy(gemma2(len(tokenizer)), tokenizer).save(tmp_path)
    load_policy(tmp_path)

    def without_cap(model: torch.nn.Module, states: torch.Tensor) -> torch.Tensor:
        return model.get_output_embeddings()(states)

    assert head_logits is not without_cap
    monkeypatch.setattr("prefloop.rollout.parity.head_logits", without_cap)
    with pytest.raises(ValueError, match="a gemma2 model computes its logits in a way that prefloop does not know"):
        load_policy(tmp_path)


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_a_model_is_read_whatever_it_will_be_trained_in(kind: str, tmp_path: Path) -> None:
    policy(kind).save(tmp_path)
    with computing_in("bfloat16"):
        assert computed_in() == torch.bfloat16
        load_policy(tmp_path)
        assert computed_in() == torch.bfloat16


def test_the_tokenizer_alone_can_be_loaded(folder: Path) -> None:
    assert load_tokenizer(folder).eos_token == EOS


def test_a_copy_is_independent_and_equal() -> None:
    made = policy("gpt2")
    copied = made.copy()
    with torch.no_grad():
        for parameter in copied.model.parameters():
            parameter.add_(1.0)
    assert not torch.equal(made.model(IDS).logits, copied.model(IDS).logits)
    assert same(parameters(made.model), parameters(policy("gpt2").model))


def test_the_context_is_what_the_model_can_read() -> None:
    assert Policy(llama(258, max_position_embeddings=77), byte_tokenizer()).context == 77
    assert Policy(gpt2(258, n_positions=55), byte_tokenizer()).context == 55


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("words", [1, 3, 30, 300])
def test_an_answer_ends_where_the_context_does(kind: str, words: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made, asked = policy(kind), []

    def spy(model: object, prompts: list[list[int]], **options: Any) -> Any:
        asked.append((len(prompts[0]), options["max_response_tokens"]))
        return sample(model, prompts, **options)

    monkeypatch.setattr("prefloop.policy.sample", spy)
    text = "\n".join(["line"] * words)
    made.generate(text, max_response_tokens=10_000)
    [(prompt, answer)] = asked
    whole = len(made.chat.prompt_ids(Prompt.of(text).messages))
    assert prompt + answer == made.context
    assert prompt == whole if 2 * whole <= made.context else answer >= made.context // 2
    with pytest.raises(ValueError, match="for its last line"):
        made.generate("x" * made.context, max_response_tokens=5)


def test_a_policy_answers_a_text_or_a_prompt() -> None:
    made = policy()
    first = made.generate("hello", max_response_tokens=6, seed=3)
    assert first == made.generate("hello", max_response_tokens=6, seed=3)
    assert isinstance(first, str)
    assert len({made.generate("hello", max_response_tokens=6, seed=seed) for seed in range(5)}) > 1
