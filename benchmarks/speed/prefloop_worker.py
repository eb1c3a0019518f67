"""prefloop's side: the functions that a recipe's stages call, with their defaults where the job says nothing."""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import Any

from benchmarks.speed.jobs import ROUNDS, Job, answer, read_job, read_rows

job = read_job()

import prefloop  # noqa: E402  (imports are measured too)

load = prefloop.load

from prefloop.config import DPOConfig, PPOConfig, RewardConfig, SFTConfig  # noqa: E402
from prefloop.feedback.records import Message, Prompt  # noqa: E402
from prefloop.models.loading import load_reward_model  # noqa: E402
from prefloop.models.precision import settled  # noqa: E402
from prefloop.models.quickest import quickest  # noqa: E402
from prefloop.policy import Policy  # noqa: E402
from prefloop.rollout.reward import model_reward  # noqa: E402
from prefloop.rollout.sampler import sample  # noqa: E402
from prefloop.training.comparisons import PreferenceGroup  # noqa: E402
from prefloop.training.direct import train_direct  # noqa: E402
from prefloop.training.loop import Metrics  # noqa: E402
from prefloop.training.policy_gradient import train_policy_gradient  # noqa: E402
from prefloop.training.reward import train_reward  # noqa: E402
from prefloop.training.sft import train_sft  # noqa: E402

ends: list[float] = []
last: Metrics = {}


def log(line: Metrics) -> None:
    ends.append(time.time())
    last.update(line)


def prompts(rows: list[dict[str, Any]]) -> list[Prompt]:
    return [Prompt(messages=tuple(Message(**message) for message in row["messages"])) for row in rows]


def groups(policy_or_reward: Any, rows: list[dict[str, Any]]) -> list[PreferenceGroup]:
    chat = policy_or_reward.chat
    return [
        PreferenceGroup(
            tuple(chat.answered(prompt, row[side].strip()) for side in ("chosen", "rejected")), ((0, 1, 1.0, 0.0),)
        )
        for prompt, row in zip(prompts(rows), rows, strict=True)
    ]


def sft(job: Job, policy: Policy) -> None:
    rows = read_rows(job)
    examples = [policy.chat.answered(p, row["chosen"].strip()) for p, row in zip(prompts(rows), rows, strict=True)]
    begin()
    config = SFTConfig(batch_size=job.batch_size, learning_rate=job.learning_rate, warmup_fraction=0.0, **job.setting)
    train_sft(policy, examples, [], config, job.seed, log)
    policy.save(job.out)


def reward(job: Job) -> None:
    model = load_reward_model(job.reward)
    found = groups(model, read_rows(job))
    begin()
    config = RewardConfig(
        batch_size=job.batch_size,
        learning_rate=job.learning_rate,
        warmup_fraction=0.0,
        centre_coef=0.0,
        **job.setting,
    )
    train_reward(model, found, [], config, job.seed, log)
    model.save(Path(job.out))


def dpo(job: Job, policy: Policy) -> None:
    found = groups(policy, read_rows(job))
    begin()
    config = DPOConfig(
        batch_size=job.batch_size, learning_rate=job.learning_rate, warmup_fraction=0.0, beta=0.1, **job.setting
    )
    train_direct(policy, found, [], config, job.seed, log)
    policy.save(job.out)


def ppo(job: Job, policy: Policy) -> None:
    config = PPOConfig(
        iterations=job.iterations,
        episodes=job.batch_size,
        minibatch_episodes=job.batch_size // 4,
        epochs=job.epochs,
        learning_rate=job.learning_rate,
        max_response_tokens=job.response_tokens,
        **job.setting,
    )
    rewards = [model_reward(load_reward_model(job.reward), policy.chat, config.scored_tokens)]
    found = prompts(read_rows(job))
    begin()
    train_policy_gradient(policy, found, rewards, config, job.seed, log)
    read = sum(len(policy.chat.prompt_ids(one.messages)) for one in found) / len(found) + last["response_tokens"]
    last["trained_tokens_per_second"] = job.epochs * job.batch_size * read / last["update_seconds"]


def sampling(job: Job, policy: Policy) -> None:
    """As many tokens as the bare loop's: no answer ends early."""
    ids = [row["ids"] for row in read_rows(job)[: job.batch_size]]
    with settled(quickest(policy.model)):
        begin()
        for seed in range(ROUNDS):
            sample(
                policy.model.eval(),
                ids,
                eos_id=-1,
                max_response_tokens=job.response_tokens,
                seed=seed,
                batch_size=job.batch_size,
            )
            ends.append(time.time())


def begin() -> None:
    ends.append(time.time())


match job.work:
    case "sft":
        sft(job, load(job.model))
    case "reward":
        reward(job)
    case "dpo":
        dpo(job, load(job.model))
    case "ppo":
        ppo(job, load(job.model))
    case "sample":
        sampling(job, load(job.model))
shown = (
    *("kl", "reward", "response_tokens"),
    *("sample_seconds", "score_seconds", "update_seconds", "trained_tokens_per_second"),
)
answer(ends, **{name: last[name] for name in shown if name in last})
gc.freeze()  # as the command line ends
