"""A published trainer as an oracle: TRL and prefloop read the same model folder and the same rows.

TRL's trainers do everything themselves here, from text to loss: template, tokens, masks, collation, forward pass.
What comes out must equal what prefloop makes of the same texts, to 1e-5 in float32, and so must the gradients. Where
TRL follows another convention, the test says which, and compares like with like.

The policy is the reference after some fine-tuning, so no log-ratio is 0. Nothing here uses the network: TRL reports
its use to the hub unless HF_HUB_OFFLINE is set, which ``conftest.py`` does; a fixture looks out for attempts.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # CPO (for SimPO) and ORPO live in trl.experimental

import pytest
import torch
from datasets import Dataset
from tests.toys import CHATML, byte_tokenizer, llama, loss_and_gradients, response_log_probs
from tests.toys import policy as toy_policy
from torch import Tensor
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

import prefloop
from prefloop import config as ours
from prefloop.algorithms.kl import kl_estimate
from prefloop.algorithms.ppo import policy_loss
from prefloop.chat import Chat, Rendered
from prefloop.feedback.records import Prompt
from prefloop.models.forward import arrange
from prefloop.models.heads import RewardModel
from prefloop.models.loading import load_reward_model, load_tokenizer
from prefloop.policy import Policy
from prefloop.training.comparisons import PreferenceGroup, with_mismatched
from prefloop.training.direct import _reference_point, preference_losses, train_direct, with_reference
from prefloop.training.loop import Metrics
from prefloop.training.maximum_likelihood import _negative_log_likelihood
from prefloop.training.reward import train_reward
from prefloop.training.sft import train_sft

ROWS = [
    ("What is new?", "Not much, thanks.", "Nothing"),
    ("Tea or coffee?", "Tea", "I could not care less, really"),
    ("Where are we", "In the hall.", "Hm"),
    ("Say it again!", "It again.", "No, I said it twice before"),
    ("Is it late?", "A little.", "Yes"),
]
"""Prompt, better answer, worse answer; of many lengths."""
LEVEL = [(f"Question {i}", f"yes {i} {'abcd'[i]}", f"no {'dcba'[i]} ..") for i in range(4)]
"""Every answer has as many tokens as every other."""
TOLERANCE = 1e-5

# TRL asks transformers for what has another name by now.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


class Folders(NamedTuple):
    reference: Path
    policy: Path
    reward: Path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    found = Folders(*(tmp_path_factory.mktemp(name) for name in Folders._fields))
    made = toy_policy("llama")
    made.save(found.reference)
    RewardModel.from_policy(made.model, made.tokenizer, seed=3).save(found.reward)
    better = [group.sequences[0] for group in groups(made.chat)]
    train_sft(made, better, [], ours.SFTConfig(batch_size=5, epochs=8.0, learning_rate=3e-3), 0, lambda _: None)
    made.save(found.policy)
    return found


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Looking up a host's name, in whatever thread, fails, and so does the test."""
    asked: list[object] = []

    def refuse(host: object, *_: object, **__: object) -> None:
        asked.append(host)
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield
    assert asked == []


def groups(chat: Chat, rows: Sequence[tuple[str, str, str]] = ROWS) -> list[PreferenceGroup]:
    return [
        PreferenceGroup(tuple(chat.answered(Prompt.of(asked), text) for text in answers), ((0, 1, 1.0, 0.0),))
        for asked, *answers in rows
    ]


def texts(rows: Sequence[tuple[str, str, str]] = ROWS) -> Dataset:
    """The rows as TRL takes them; it adds the eos itself. The words around them are those of the default template."""
    return Dataset.from_list(
        [
            {"prompt": f"\n\nHuman: {asked}\n\nAssistant:", "chosen": f" {better}", "rejected": f" {worse}"}
            for asked, better, worse in rows
        ]
    )


def options(tmp_path: Path, rows: int, **others: Any) -> dict[str, Any]:
    """Every row in one step, AdamW and its schedule as ours, float32, and nothing written or reported."""
    return {
        "output_dir": str(tmp_path),
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "max_length": None,
        "per_device_train_batch_size": rows,
        "num_train_epochs": 5,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "linear",
        "max_grad_norm": 1.0,
        "optim": "adamw_torch",
        "adam_beta2": 0.95,
        "weight_decay": 0.0,
        **others,
    }


def trainer(kind: Any, settings: Any, model: Path, data: Dataset, **others: Any) -> Any:
    """One of TRL's, from a model folder, which it loads itself."""
    tokenizer = load_tokenizer(model)
    return kind(model=str(model), args=settings, train_dataset=data, processing_class=tokenizer, **others)


Gradients = dict[str, Tensor]


def theirs(made: Any) -> tuple[Tensor, Gradients]:
    """The mean loss of TRL over its own batches, and its gradient."""
    batches = list(made.get_train_dataloader())
    loss = torch.stack([made.compute_loss(made.model, batch) for batch in batches]).mean()
    return loss, gradients(loss, made.model)


def gradients(loss: Tensor, model: Any) -> Gradients:
    named = dict(model.named_parameters())
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def direct(
    folders: Folders, config: ours.DirectConfig, rows: Sequence[tuple[str, str, str]] = ROWS, point: float = 0.0
) -> tuple[Tensor, Gradients]:
    """The loss of prefloop, a mean over votes, and its gradient."""
    policy, reference = prefloop.load(folders.policy), prefloop.load(folders.reference)
    data = with_reference(reference.model, groups(policy.chat, rows), config)
    parts = preference_losses(policy.model, data, config, torch.tensor(point))
    return loss_and_gradients(parts, sum(group.votes for group in data), policy.model)


def assert_same(found: tuple[Tensor, Gradients], other: tuple[Tensor, Gradients]) -> None:
    torch.testing.assert_close(found[0], other[0], atol=TOLERANCE, rtol=0)
    assert found[1].keys() == other[1].keys()
    assert max(float(slope.abs().max()) for slope in found[1].values()) > 0.01
    for name, slope in found[1].items():
        torch.testing.assert_close(slope, other[1][name], atol=TOLERANCE, rtol=TOLERANCE, msg=lambda m, n=name: n + m)


# The losses


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_dpo(folders: Folders, tmp_path: Path, beta: float) -> None:
    made = trainer(
        DPOTrainer,
        DPOConfig(**options(tmp_path, len(ROWS), beta=beta)),
        folders.policy,
        texts(),
        ref_model=prefloop.load(folders.reference).model,
    )
    found = direct(folders, ours.DPOConfig(beta=beta))
    assert abs(float(found[0].detach()) - 0.6931) > 0.05  # a policy that is its own reference has ln 2
    assert_same(found, theirs(made))


def test_dpo_with_label_smoothing(folders: Folders, tmp_path: Path) -> None:
    """TRL's "sigmoid" has no smoothing (any more). Its "aot" sorts log-ratios within a batch and smooths; with one
    pair to a batch there is nothing to sort, and what is left is conservative DPO."""
    settings = options(tmp_path, 1, beta=0.3, label_smoothing=0.2, loss_type=["aot"])
    reference = prefloop.load(folders.reference).model
    made = trainer(DPOTrainer, DPOConfig(**settings), folders.policy, texts(), ref_model=reference)
    assert_same(direct(folders, ours.DPOConfig(beta=0.3, label_smoothing=0.2)), theirs(made))


def test_ipo(folders: Folders, tmp_path: Path) -> None:
    """TRL divides the log-ratio of each answer by its tokens before it takes the difference; the paper (eq. 17), and
    prefloop, do not. With answers of equal length L that is another β and another scale:
    (Δ/L − 1/(2β))² = (Δ − 1/(2β/L))² / L². With other lengths the two losses differ in substance."""
    beta, chat = 0.4, prefloop.load(folders.policy).chat
    [length] = {answer.response_tokens for group in groups(chat, LEVEL) for answer in group.sequences}
    settings = options(tmp_path, len(LEVEL), beta=beta, loss_type=["ipo"])
    reference = prefloop.load(folders.reference).model
    made = trainer(DPOTrainer, DPOConfig(**settings), folders.policy, texts(LEVEL), ref_model=reference)
    loss, slopes = direct(folders, ours.IPOConfig(beta=beta / length), LEVEL)
    scale = length**-2
    assert_same((loss * scale, {name: slope * scale for name, slope in slopes.items()}), theirs(made))


def test_kto(folders: Folders, tmp_path: Path) -> None:
    """TRL takes z from every answer, moved on by one row; prefloop from the first answer of every prompt, and from
    the same shift. So z is estimated here by prefloop's functions from TRL's rows. Both means are over answers."""
    weights = {"desirable_weight": 1.2, "undesirable_weight": 0.7}
    settings = KTOConfig(**options(tmp_path, 2 * len(ROWS), beta=0.3, **weights))
    rows = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for side in ("chosen", "rejected")
        for row in texts()
    ]
    reference, policy = prefloop.load(folders.reference), prefloop.load(folders.policy)
    made = trainer(KTOTrainer, settings, folders.policy, Dataset.from_list(rows), ref_model=reference.model)
    loss = theirs(made)

    config = ours.KTOConfig(beta=0.3, **weights)
    paired = groups(policy.chat)
    alone = [PreferenceGroup((group.sequences[side],), ()) for side in (0, 1) for group in paired]
    mismatched = with_reference(reference.model, with_mismatched(alone), config)
    point = float(_reference_point(policy.model, mismatched, config))
    assert point == pytest.approx(made._metrics["eval"]["kl"][-1], abs=TOLERANCE)
    assert point > 0.01
    assert_same(direct(folders, config, point=point), loss)


def test_simpo(folders: Folders, tmp_path: Path) -> None:
    """CPO's trainer adds the likelihood of the better answer unless it is told not to; SimPO has no such term."""
    settings = CPOConfig(**options(tmp_path, len(ROWS), loss_type="simpo", cpo_alpha=0.0, beta=2.0, simpo_gamma=1.4))
    made = trainer(CPOTrainer, settings, folders.policy, texts())
    assert_same(direct(folders, ours.SimPOConfig(beta=2.0, margin=1.4)), theirs(made))


def test_orpo(folders: Folders, tmp_path: Path) -> None:
    """TRL imitates prompt and answer, all tokens of the batch weighing alike; the paper's eq. 6, and prefloop, the
    answer alone, every answer weighing alike. The contrast is the same. So TRL's figures for it and for the mean
    log-probability of the better answers are put together."""
    weight = 0.6
    made = trainer(ORPOTrainer, ORPOConfig(**options(tmp_path, len(ROWS), beta=weight)), folders.policy, texts())
    [batch] = made.get_train_dataloader()
    loss, figures = made.get_batch_loss_metrics(made.model, batch)
    contrast = -weight * figures["log_odds_ratio"]
    assert float(loss.detach()) == pytest.approx(figures["nll_loss"] + contrast, abs=TOLERANCE)
    own, slopes = direct(folders, ours.ORPOConfig(weight=weight))
    assert float(own.detach()) == pytest.approx(contrast - figures["logps/chosen"], abs=TOLERANCE)

    # The gradient of the contrast: the difference of two weights takes the imitation out.
    def at(value: float) -> Gradients:
        made.beta = value
        return gradients(made.get_batch_loss_metrics(made.model, batch)[0], made.model)

    lighter, low, high = direct(folders, ours.ORPOConfig(weight=0.1))[1], at(0.1), at(weight)
    for name, slope in slopes.items():
        torch.testing.assert_close(slope - lighter[name], high[name] - low[name], atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("centre", [0.0, 0.05])
def test_reward_model(folders: Folders, tmp_path: Path, centre: float) -> None:
    settings = RewardConfig(**options(tmp_path, len(ROWS), center_rewards_coefficient=centre or None))
    made = trainer(RewardTrainer, settings, folders.reward, texts())
    wanted = [float(made.compute_loss(made.model, batch).detach()) for batch in made.get_train_dataloader()]
    reward = load_reward_model(folders.reward)
    config = ours.RewardConfig(centre_coef=centre, batch_size=len(ROWS))
    assert abs(wanted[0] - 0.6931) > 0.01
    assert mine(train_reward, reward, groups(reward.chat), config) == pytest.approx(wanted, abs=TOLERANCE)


def test_sft(folders: Folders, tmp_path: Path) -> None:
    rows = Dataset.from_list([{"prompt": row["prompt"], "completion": row["rejected"]} for row in texts()])
    made = trainer(SFTTrainer, SFTConfig(**options(tmp_path, len(ROWS))), folders.policy, rows)
    policy = prefloop.load(folders.policy)
    answers = [group.sequences[1] for group in groups(policy.chat)]
    parts = _negative_log_likelihood(policy.model)(answers)
    count = sum(answer.response_tokens for answer in answers)
    assert_same(loss_and_gradients(parts, count, policy.model), theirs(made))


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_the_clipped_loss_of_ppo_is_that_of_grpo(folders: Folders, tmp_path: Path, beta: float) -> None:
    """GRPO's loss for each token is PPO's, with one advantage for all tokens of an answer, and k3 beside it. Its mean
    over all tokens ("bnpo") is ours. TRL pads prompts on the left and divides logits by the temperature too."""
    policy, temperature = prefloop.load(folders.policy), 0.7
    answers = [sequence for group in groups(policy.chat)[:3] for sequence in group.sequences]
    old, new = (prefloop.load(folder).model for folder in (folders.reference, folders.policy))
    batch = arrange(answers, new)
    log_probs = response_log_probs(new, batch, temperature)
    with torch.no_grad():
        # An old policy near the new one, so that some tokens are clipped and others are not.
        old_log_probs = 0.9 * log_probs + 0.1 * response_log_probs(old, batch, temperature)
        ref_log_probs = response_log_probs(old, batch, temperature)
    advantages = torch.tensor([1.0, -0.6, 0.3, -1.2, 2.0, 0.5])
    losses, stats = policy_loss(log_probs, old_log_probs, advantages[batch.rows], 0.2)
    loss = (losses + beta * kl_estimate(log_probs, ref_log_probs, "k3")).mean()
    assert 0.05 < float(stats["clip_fraction"].mean()) < 0.95

    settings = options(tmp_path, 6, beta=beta, epsilon=0.2, temperature=temperature, loss_type="bnpo")
    settings |= {"num_generations": 2, "use_bias_correction_kl": False}
    del settings["max_length"]
    made = trainer(
        GRPOTrainer,
        GRPOConfig(**settings),
        folders.policy,
        texts().select_columns("prompt"),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
    )
    value = made._compute_loss(made.model, rollout(answers, advantages, old_log_probs, ref_log_probs))
    assert_same((loss, gradients(loss, new)), (value, gradients(value, made.model)))


def rollout(answers: Sequence[Rendered], advantages: Tensor, old: Tensor, ref: Tensor) -> dict[str, Tensor]:
    """What TRL's sampling hands to its loss."""

    def side_by_side(rows: Sequence[Sequence[Any]], left: bool) -> tuple[Tensor, Tensor]:
        longest = max(map(len, rows))
        gaps = [[0] * (longest - len(row)) for row in rows]
        padded = [[*gap, *row] if left else [*row, *gap] for row, gap in zip(rows, gaps, strict=True)]
        real = [[0] * len(gap) + [1] * len(row) for row, gap in zip(rows, gaps, strict=True)]
        return torch.tensor(padded), torch.tensor(real if left else [row[::-1] for row in real])

    starts = [answer.mask.index(True) for answer in answers]
    counts = [answer.response_tokens for answer in answers]
    prompts = side_by_side([answer.ids[:start] for answer, start in zip(answers, starts, strict=True)], True)
    said = side_by_side([answer.ids[start:] for answer, start in zip(answers, starts, strict=True)], False)
    return {
        **dict(zip(("prompt_ids", "prompt_mask"), prompts, strict=True)),
        **dict(zip(("completion_ids", "completion_mask"), said, strict=True)),
        "advantages": advantages,
        "old_per_token_logps": side_by_side([part.tolist() for part in old.split(counts)], False)[0],
        "ref_per_token_logps": side_by_side([part.tolist() for part in ref.split(counts)], False)[0],
    }


def test_a_chat_template(tmp_path: Path) -> None:
    """The same tokens but for what a template writes after the eos. TRL trains on that as part of the answer, though
    nobody samples it; for prefloop it is part of the next question."""
    tokenizer = byte_tokenizer(eos="<|im_end|>", template=CHATML)
    chat = Chat(tokenizer)
    Policy(llama(len(tokenizer)), tokenizer).save(tmp_path / "model")
    rows = [
        {
            "prompt": [{"role": "user", "content": asked}],
            "chosen": [{"role": "assistant", "content": better}],
            "rejected": [{"role": "assistant", "content": worse}],
        }
        for asked, better, worse in ROWS
    ]
    made = trainer(DPOTrainer, DPOConfig(**options(tmp_path, 2)), tmp_path / "model", Dataset.from_list(rows))
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
    for row, group in zip(made.train_dataset, groups(chat), strict=True):
        for side, sequence in zip(("chosen_ids", "rejected_ids"), group.sequences, strict=True):
            start = sequence.mask.index(True)
            assert row["prompt_ids"] == sequence.ids[:start]
            assert row[side] == sequence.ids[start:] + newline
            assert sequence.ids[-1] == tokenizer.eos_token_id


# Whole runs: data, loss, clipping, AdamW, schedule


def trained(made: Any, parts: int = 1) -> list[float]:
    """The losses of TRL's own training, one a step, added up over its micro-batches. (Its log rounds them.)"""
    losses: list[float] = []
    compute: Callable[..., Tensor] = made.compute_loss

    def recording(*args: Any, **named: Any) -> Tensor:
        loss = compute(*args, **named)
        losses.append(float(loss.detach()))
        return loss

    made.compute_loss = recording
    made.train()
    norms = [line["grad_norm"] for line in made.state.log_history if "grad_norm" in line]
    assert len(norms) * parts == len(losses) == 5 * parts
    assert max(norms) > 1  # so that clipping is at work
    return [sum(losses[start : start + parts]) for start in range(0, len(losses), parts)]


def mine(train: Callable[..., Any], start: Any, data: Sequence[Any], config: Any) -> list[float]:
    lines: list[Metrics] = []
    train(start, data, [], config, 0, lines.append)
    return [line["loss"] for line in lines]


STEPS: dict[str, Any] = {"batch_size": len(ROWS), "epochs": 5.0, "learning_rate": 1e-2, "warmup_fraction": 0.0}


def assert_run(found: list[float], wanted: list[float]) -> None:
    """Rounding grows from step to step: to 1e-5 at first, to 1e-3 of the loss in the end."""
    assert found[0] == pytest.approx(wanted[0], abs=TOLERANCE)
    assert found == pytest.approx(wanted, rel=1e-3, abs=TOLERANCE)
    assert found[-1] < found[0] - 0.1


def test_a_run_of_dpo(folders: Folders, tmp_path: Path) -> None:
    made = trainer(DPOTrainer, DPOConfig(**options(tmp_path, len(ROWS), beta=0.3)), folders.reference, texts())
    start = prefloop.load(folders.reference)
    assert_run(mine(train_direct, start, groups(start.chat), ours.DPOConfig(beta=0.3, **STEPS)), trained(made))


def test_a_run_of_sft(folders: Folders, tmp_path: Path) -> None:
    rows = Dataset.from_list([{"prompt": row["prompt"], "completion": row["chosen"]} for row in texts()])
    # A row at a time and gradients added up: the mean is over the tokens of the whole step, in both.
    settings = SFTConfig(**options(tmp_path, 1, gradient_accumulation_steps=len(ROWS)))
    made = trainer(SFTTrainer, settings, folders.reference, rows)
    start = prefloop.load(folders.reference)
    answers = [group.sequences[0] for group in groups(start.chat)]
    config = ours.SFTConfig(**STEPS, micro_batch_tokens=100)
    assert_run(mine(train_sft, start, answers, config), trained(made, parts=len(ROWS)))


def test_a_run_of_simpo(folders: Folders, tmp_path: Path) -> None:
    settings = CPOConfig(**options(tmp_path, len(ROWS), loss_type="simpo", cpo_alpha=0.0, beta=2.0, simpo_gamma=1.4))
    made = trainer(CPOTrainer, settings, folders.reference, texts())
    start = prefloop.load(folders.reference)
    config = ours.SimPOConfig(beta=2.0, margin=1.4, **STEPS)
    assert_run(mine(train_direct, start, groups(start.chat), config), trained(made))


def test_a_run_of_a_reward_model(folders: Folders, tmp_path: Path) -> None:
    made = trainer(RewardTrainer, RewardConfig(**options(tmp_path, len(ROWS))), folders.reward, texts())
    start = load_reward_model(folders.reward)
    config = ours.RewardConfig(centre_coef=0.0, **STEPS)
    assert_run(mine(train_reward, start, groups(start.chat), config), trained(made))
