"""Five lines in a notebook: load, sft, reward_model, ppo, dpo and its family.

Every function has the same shape: a model, data, keyword options that are the fields of the stage's section in
the recipe, and a result with the trained model and its metrics. The model that is passed in stays as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from prefloop.chat import Chat, Rendered
from prefloop.config import (
    DirectConfig,
    DPOConfig,
    IPOConfig,
    KTOConfig,
    ORPOConfig,
    PPOConfig,
    RewardConfig,
    Section,
    SFTConfig,
    SimPOConfig,
)
from prefloop.feedback.aggregate import Comparison
from prefloop.feedback.records import Message, Prompt
from prefloop.models.heads import RewardModel
from prefloop.policy import Policy, load_policy
from prefloop.recipes import check
from prefloop.rollout.reward import RewardFunction, Scorer, function_scorer, model_scorer, text_scorer
from prefloop.training.comparisons import PreferenceGroup, encode
from prefloop.training.direct import train_direct
from prefloop.training.loop import Log, Metrics
from prefloop.training.ppo import train_ppo
from prefloop.training.reward import train_reward
from prefloop.training.sft import train_sft

PromptLike = str | Prompt | Sequence[Mapping[str, str]]
"""A text, a list of ``{"role", "content"}`` messages, or a record."""
Demonstrations = Iterable[tuple[PromptLike, str] | Mapping[str, Any]]
"""(prompt, response) pairs, or mappings with those keys."""
Comparisons = Iterable[Comparison | tuple[PromptLike, str, str] | Mapping[str, Any]]
"""(prompt, chosen, rejected) triples, mappings with those keys, or the store's comparisons."""
S = TypeVar("S", bound=Section)


@dataclass(frozen=True)
class PolicyResult:
    """A trained policy, and one dict of metrics for each step (docs/run-folder.md says what they mean)."""

    policy: Policy
    metrics: list[Metrics]


@dataclass(frozen=True)
class RewardResult:
    """A trained reward model, and one dict of metrics for each step."""

    model: RewardModel
    metrics: list[Metrics]


def load(path: str | Path, *, device: str | None = None) -> Policy:
    """A policy from any causal language model's folder or hub name.

    Raises:
        ValueError: there is no such model, or its tokenizer has no eos token.
    """
    return load_policy(path, device)


def sft(
    policy: Policy, demonstrations: Demonstrations, *, seed: int = 0, log: Log | None = None, **options: Any
) -> PolicyResult:
    """Fine-tune a copy of ``policy`` on demonstrations; ``options`` are the fields of :class:`SFTConfig`."""
    config = _config(SFTConfig, "sft", options)
    trained, lines = policy.copy(), _Lines(log)
    pairs = [_named(item, "demonstration", ("prompt", "response")) for item in demonstrations]
    rendered = [
        trained.chat.render([*_prompt(prompt).messages, Message(role="assistant", content=answer)], config.loss_on)
        for prompt, answer in pairs
    ]
    _check_lengths(rendered, policy.context, "demonstration")
    train_sft(trained, rendered, [], config, seed, lines)
    return PolicyResult(trained, lines.found)


def reward_model(
    policy: Policy,
    comparisons: Comparisons,
    *,
    heldout: Comparisons = (),
    seed: int = 0,
    log: Log | None = None,
    **options: Any,
) -> RewardResult:
    """Train a reward model on comparisons, starting from ``policy``'s trunk; ``options``: :class:`RewardConfig`."""
    config = _config(RewardConfig, "reward_model", options)
    model, lines = RewardModel.from_policy(policy.model, policy.tokenizer, seed), _Lines(log)
    train, test = (_groups(model.chat, part, policy.context) for part in (comparisons, heldout))
    train_reward(model, train, test, config, seed, lines)
    return RewardResult(model, lines.found)


def ppo(
    policy: Policy,
    prompts: Iterable[PromptLike],
    reward: RewardFunction | RewardModel,
    *,
    seed: int = 0,
    log: Log | None = None,
    **options: Any,
) -> PolicyResult:
    """Train a copy of ``policy`` against a reward, ``policy`` itself being the reference; ``options``: PPOConfig.

    Args:
        reward: a function of (prompt's text, response) that returns a number, or a reward model.

    Raises:
        ValueError: an option that PPO does not have, or a reward that is no finite number.
    """
    config = _config(PPOConfig, "ppo", options)
    if config.max_response_tokens >= policy.context:
        raise ValueError(
            f"prefloop.ppo: max_response_tokens = {config.max_response_tokens} leaves no room for a prompt; the "
            f"model reads {policy.context} tokens in all"
        )
    trained, lines = policy.copy(), _Lines(log)
    train_ppo(
        trained,
        [_prompt(prompt) for prompt in prompts],
        _scorer(reward, trained, config),
        config,
        seed,
        lines,
        max_prompt_tokens=policy.context - config.max_response_tokens,
    )
    return PolicyResult(trained, lines.found)


def dpo(policy: Policy, comparisons: Comparisons, **options: Any) -> PolicyResult:
    """Train a copy of ``policy`` on comparisons directly, ``policy`` being the reference.

    Args:
        options: the fields of :class:`DPOConfig`; ``heldout`` (comparisons to measure on), ``seed`` and ``log``.
    """
    return _direct(DPOConfig, "dpo", policy, comparisons, **options)


def ipo(policy: Policy, comparisons: Comparisons, **options: Any) -> PolicyResult:
    """As :func:`dpo`, with the squared loss of :class:`IPOConfig`."""
    return _direct(IPOConfig, "ipo", policy, comparisons, **options)


def kto(policy: Policy, comparisons: Comparisons, **options: Any) -> PolicyResult:
    """As :func:`dpo`, each answer by itself, liked or disliked: :class:`KTOConfig`."""
    return _direct(KTOConfig, "kto", policy, comparisons, **options)


def orpo(policy: Policy, comparisons: Comparisons, **options: Any) -> PolicyResult:
    """As :func:`dpo`, by imitation and odds ratio, without a reference: :class:`ORPOConfig`."""
    return _direct(ORPOConfig, "orpo", policy, comparisons, **options)


def simpo(policy: Policy, comparisons: Comparisons, **options: Any) -> PolicyResult:
    """As :func:`dpo`, with mean log-probabilities and a margin, without a reference: :class:`SimPOConfig`."""
    return _direct(SimPOConfig, "simpo", policy, comparisons, **options)


def _direct(
    section: type[DirectConfig],
    name: str,
    policy: Policy,
    comparisons: Comparisons,
    *,
    heldout: Comparisons = (),
    seed: int = 0,
    log: Log | None = None,
    **options: Any,
) -> PolicyResult:
    config = _config(section, name, options)
    trained, lines = policy.copy(), _Lines(log)
    train, test = (_groups(trained.chat, part, policy.context) for part in (comparisons, heldout))
    train_direct(trained, train, test, config, seed, lines)
    return PolicyResult(trained, lines.found)


class _Lines:
    """Keeps every line of metrics, and passes it on."""

    def __init__(self, log: Callable[[Metrics], None] | None) -> None:
        self.found: list[Metrics] = []
        self._log = log

    def __call__(self, metrics: Metrics) -> None:
        self.found.append(metrics)
        if self._log is not None:
            self._log(metrics)


def _config(section: type[S], function: str, options: Mapping[str, Any]) -> S:
    return check(section, options, where=f"prefloop.{function}")


def _scorer(reward: RewardFunction | RewardModel, policy: Policy, config: PPOConfig) -> Scorer:
    if not isinstance(reward, RewardModel):
        return function_scorer(reward, policy.chat)
    if reward.tokenizer.get_vocab() == policy.tokenizer.get_vocab():
        return model_scorer(reward, config.micro_batch_tokens)
    return text_scorer(reward, policy.chat)


def _prompt(prompt: PromptLike) -> Prompt:
    if isinstance(prompt, Prompt):
        return prompt
    if isinstance(prompt, str):
        return Prompt.of(prompt)
    try:
        return Prompt(messages=tuple(Message.model_validate(dict(turn)) for turn in prompt))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"a prompt is a text, a list of {{role, content}} messages or a Prompt; got {prompt!r:.200}: {error}"
        ) from error


def _groups(chat: Chat, comparisons: Comparisons, context: int) -> list[PreferenceGroup]:
    found = [_comparison(number, item) for number, item in enumerate(comparisons)]
    groups, _, _ = encode(chat, found, max_prompt_tokens=context, max_response_tokens=sys.maxsize)
    _check_lengths([sequence for group in groups for sequence in group.sequences], context, "compared answer")
    return groups


def _check_lengths(sequences: Sequence[Rendered], context: int, what: str) -> None:
    too_long = [len(sequence) for sequence in sequences if len(sequence) > context]
    if too_long:
        raise ValueError(
            f"with its prompt, a {what} may have {context} tokens, which is all that the model reads; "
            f"{len(too_long)} of {len(sequences)} are longer (up to {max(too_long)}). Shorten them or leave them out"
        )


def _comparison(number: int, item: Comparison | tuple[PromptLike, str, str] | Mapping[str, Any]) -> Comparison:
    if isinstance(item, Comparison):
        return item
    prompt, chosen, rejected = _named(item, "comparison", ("prompt", "chosen", "rejected"))
    if chosen == rejected:
        raise ValueError(f"comparison {number}: chosen and rejected are the same text {chosen!r}, which says nothing")
    return Comparison(_prompt(prompt), (chosen, rejected), ("chosen", "rejected"), ((0, 1, 1.0),))


def _named(item: Any, what: str, names: tuple[str, ...]) -> tuple[Any, ...]:
    """The values of a tuple or mapping, in the order of ``names``."""
    if isinstance(item, Mapping):
        missing = [name for name in names if name not in item]
        if missing:
            raise ValueError(
                f"a {what} needs {', '.join(names)}; this one lacks {', '.join(missing)}: {dict(item)!r}"
            )
        return tuple(item[name] for name in names)
    if isinstance(item, str) or not isinstance(item, Sequence):
        raise ValueError(f"a {what} is ({', '.join(names)}); got {item!r:.200}")
    values = tuple(item)
    if len(values) != len(names):
        raise ValueError(f"a {what} is ({', '.join(names)}); got {len(values)} values: {values!r}")
    return values
