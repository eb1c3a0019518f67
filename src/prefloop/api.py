"""Five lines in a notebook: load, sft, reward_model, ppo and its relatives, dpo and its family.

Every function has the same shape: a model, data, keyword options that are the fields of the stage's section in
the recipe, and a result with the trained model and its metrics. The model that is passed in stays as it is.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from prefloop.chat import Chat, Rendered
from prefloop.config import (
    DirectConfig,
    DPOConfig,
    GRPOConfig,
    IPOConfig,
    KTOConfig,
    OnlineDPOConfig,
    OnPolicyConfig,
    ORPOConfig,
    PolicyGradientConfig,
    PPOConfig,
    REINFORCEConfig,
    REINFORCEPPConfig,
    RewardConfig,
    RLOOConfig,
    Section,
    SFTConfig,
    SimPOConfig,
)
from prefloop.feedback.aggregate import Comparison, Ranking
from prefloop.feedback.records import Message, Prompt, dense_ranks
from prefloop.models.heads import RewardModel
from prefloop.models.precision import computing_in as computing_in
from prefloop.policy import Policy, load_policy
from prefloop.recipes import check
from prefloop.rollout.reward import Batched, Reward, RewardFunction, function_reward, model_reward
from prefloop.training.comparisons import PreferenceGroup
from prefloop.training.critic import SeparateCritic
from prefloop.training.direct import train_direct
from prefloop.training.encoding import encode, encode_criteria
from prefloop.training.loop import Log, Metrics
from prefloop.training.online_dpo import judge_by_reward, train_online_dpo
from prefloop.training.policy_gradient import train_policy_gradient
from prefloop.training.reward import make_reward
from prefloop.training.sft import train_sft

PromptLike = str | Prompt | Sequence[Mapping[str, str]]
"""A text, a list of ``{"role", "content"}`` messages, or a record."""
Demonstrations = Iterable[tuple[PromptLike, str] | Mapping[str, Any]]
"""(prompt, response) pairs, or mappings with those keys."""
Comparisons = Iterable[Comparison | tuple[PromptLike, str, str] | Mapping[str, Any]]
"""(prompt, chosen, rejected) triples; mappings with those keys and, if need be, ``weight`` and either ``strength``
(1 to 4) or ``margin``; rankings, mappings with ``prompt``, ``responses`` and ``ranks`` (1 is best, equal ranks tie);
or the store's comparisons."""
OneReward = RewardFunction | Batched | RewardModel
RewardLike = OneReward | Mapping[str, OneReward | tuple[float, OneReward]]
"""A reward, or several by name, each alone or with its weight."""
S = TypeVar("S", bound=Section)


@dataclass(frozen=True)
class PolicyResult:
    """A trained policy, and one dict of metrics for each step (docs/run-folder.md says what they mean)."""

    policy: Policy
    metrics: list[Metrics]
    critic: RewardModel | None = None
    """PPO's critic, where it is a model of its own; its score of an answer is the value of the state after it."""


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
    comparisons: Comparisons | Mapping[str, Comparisons],
    *,
    heldout: Comparisons | Mapping[str, Comparisons] = (),
    seed: int = 0,
    log: Log | None = None,
    **options: Any,
) -> RewardResult:
    """Train a reward model on comparisons, starting from ``policy``'s trunk; ``options``: :class:`RewardConfig`.

    With the option ``criteria``, ``comparisons`` and ``heldout`` are mappings of each criterion to its own.
    """
    config, lines = _config(RewardConfig, "reward_model", options), _Lines(log)
    train, test = (
        _groups_by_criterion(policy, part, config.criteria, what)
        for part, what in ((comparisons, "comparisons"), (heldout, "heldout"))
    )
    model = make_reward(policy, train, test, config, seed, lines, config.criteria)
    return RewardResult(model, lines.found)


def ppo(policy: Policy, prompts: Iterable[PromptLike], reward: RewardLike, **options: Any) -> PolicyResult:
    """Train a copy of ``policy`` against a reward, ``policy`` itself being the reference.

    Args:
        reward: a function of (prompt's text, response) that returns a number; one of all of them at once
            (:func:`batched`); a reward model; or several, by name: ``{"kind": model, "short": (0.2, function)}``,
            each alone or with its weight.
        options: the fields of :class:`PPOConfig`; ``seed`` and ``log``.

    Returns:
        The policy, its metrics, and the critic where it is a model of its own.

    Raises:
        ValueError: an option that PPO does not have, or a reward that raises or is no finite number: the message has
            the prompt and the response.
    """
    return _on_policy(PPOConfig, "ppo", policy, prompts, reward, **options)


def reinforce(policy: Policy, prompts: Iterable[PromptLike], reward: RewardLike, **options: Any) -> PolicyResult:
    """As :func:`ppo` without a critic, the mean of the batch as baseline: :class:`REINFORCEConfig`."""
    return _on_policy(REINFORCEConfig, "reinforce", policy, prompts, reward, **options)


def rloo(policy: Policy, prompts: Iterable[PromptLike], reward: RewardLike, **options: Any) -> PolicyResult:
    """As :func:`ppo` without a critic, the other answers to a prompt as baseline: :class:`RLOOConfig`."""
    return _on_policy(RLOOConfig, "rloo", policy, prompts, reward, **options)


def grpo(policy: Policy, prompts: Iterable[PromptLike], reward: RewardLike, **options: Any) -> PolicyResult:
    """As :func:`ppo` without a critic, advantages relative to the answers to a prompt: :class:`GRPOConfig`."""
    return _on_policy(GRPOConfig, "grpo", policy, prompts, reward, **options)


def reinforce_pp(policy: Policy, prompts: Iterable[PromptLike], reward: RewardLike, **options: Any) -> PolicyResult:
    """REINFORCE++: as :func:`ppo` without a critic, rewards-to-go whitened: :class:`REINFORCEPPConfig`."""
    return _on_policy(REINFORCEPPConfig, "reinforce_pp", policy, prompts, reward, **options)


def online_dpo(policy: Policy, prompts: Iterable[PromptLike], reward: RewardLike, **options: Any) -> PolicyResult:
    """DPO on what the policy says as it learns; a reward as in :func:`ppo` compares: :class:`OnlineDPOConfig`."""
    return _on_policy(OnlineDPOConfig, "online_dpo", policy, prompts, reward, **options)


def batched(function: Callable[[list[str], list[str]], Sequence[float]]) -> Batched:
    """Mark a reward function that takes two lists, all prompts and all responses, and returns all their scores."""
    return Batched(function)


def _on_policy(
    section: type[OnPolicyConfig],
    name: str,
    policy: Policy,
    prompts: Iterable[PromptLike],
    reward: RewardLike,
    *,
    seed: int = 0,
    log: Log | None = None,
    **options: Any,
) -> PolicyResult:
    config = _config(section, name, options)
    room = policy.context - config.max_response_tokens
    if room < 1:
        raise ValueError(
            f"prefloop.{name}: max_response_tokens = {config.max_response_tokens} leaves no room for a prompt; the "
            f"model reads {policy.context} tokens in all"
        )
    trained, lines = policy.copy(), _Lines(log)
    asked = [_prompt(prompt) for prompt in prompts]
    rewards = _rewards(reward, trained.chat, config.scored_tokens)
    critic = None
    if isinstance(config, OnlineDPOConfig):
        if config.judge != "reward":
            raise ValueError(f"prefloop.{name}: judge = {config.judge!r} is for recipes; here the reward judges")
        judge = judge_by_reward(rewards, config.missing_eos_penalty)
        train_online_dpo(trained, asked, judge, config, seed, lines, max_prompt_tokens=room)
    else:
        assert isinstance(config, PolicyGradientConfig)
        critic = train_policy_gradient(trained, asked, rewards, config, seed, lines, max_prompt_tokens=room)
    return PolicyResult(trained, lines.found, critic.model if isinstance(critic, SeparateCritic) else None)


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
    if any(ranking.margin for group in [*train, *test] for ranking in group.rankings):
        raise ValueError(f"prefloop.{name}: margins are for prefloop.reward_model; this loss has none for each pair")
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


def _rewards(reward: RewardLike, chat: Chat, max_tokens: int) -> list[Reward]:
    named = reward if isinstance(reward, Mapping) else {"reward": reward}
    if not named:
        raise ValueError("reward names nothing: give a function, a reward model, or several of them by name")
    found = []
    for name, value in named.items():
        weight, one = value if isinstance(value, tuple) else (1.0, value)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise ValueError(f"the weight of reward {name!r} is {weight!r}; expected a finite number")
        if isinstance(one, RewardModel):
            found.append(model_reward(one, chat, max_tokens, name, weight))
        elif isinstance(one, Batched) or callable(one):
            found.append(function_reward(one, chat, name, weight))
        else:
            raise ValueError(
                f"reward {name!r} is {one!r:.200}; expected a function of (prompt, response), a function in "
                "prefloop.batched(...), a reward model, or (weight, one of them)"
            )
    return found


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


def _groups_by_criterion(
    policy: Policy, data: Comparisons | Mapping[str, Comparisons], criteria: Mapping[str, float], what: str
) -> list[PreferenceGroup]:
    if not criteria and not isinstance(data, Mapping):
        return _groups(policy.chat, data, policy.context)
    if not isinstance(data, Mapping):
        data = {} if isinstance(data, Sequence) and not data else {"one list for all of them": data}
    unknown = data.keys() - criteria.keys()
    if unknown or (what == "comparisons" and criteria.keys() - data.keys()):
        raise ValueError(
            f"{what} by criterion are a mapping with the keys of the option criteria, {list(criteria)}; "
            f"got {list(data)}"
        )
    found = [[_comparison(number, item) for number, item in enumerate(data.get(name, ()))] for name in criteria]
    kept, _, _ = encode_criteria(policy.chat, found, policy.context, sys.maxsize)
    groups = list(kept)
    _check_lengths([one for group in groups for one in group.sequences], policy.context, "compared answer")
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
    if isinstance(item, Mapping) and "responses" in item:
        return _ranked(number, item)
    prompt, chosen, rejected = _named(item, "comparison", ("prompt", "chosen", "rejected"))
    if chosen == rejected:
        raise ValueError(f"comparison {number}: chosen and rejected are the same text {chosen!r}, which says nothing")
    return _of_ranking(number, item, prompt, (chosen, rejected), ((0,), (1,)))


def _ranked(number: int, item: Mapping[str, Any]) -> Comparison:
    prompt, responses, ranks = _named(item, "ranking", ("prompt", "responses", "ranks"))
    where = f"comparison {number}"
    for name, values, kind in (("responses", responses, str), ("ranks", ranks, int)):
        if not isinstance(values, list | tuple) or not all(type(value) is kind for value in values):
            words = "texts" if kind is str else "whole numbers, 1 for the best"
            raise ValueError(f"{where}: {name} are a list of {words}; got {values!r:.200}")
    if len(responses) < 2 or len(set(responses)) < len(responses):
        raise ValueError(f"{where}: a ranking is of two or more different responses; got {responses!r:.200}")
    if len(ranks) != len(responses):
        raise ValueError(f"{where}: {len(responses)} responses and {len(ranks)} ranks; each response has one")
    places = dense_ranks([-rank for rank in ranks])
    tiers = [tuple(i for i, place in enumerate(places) if place == tier) for tier in range(1, max(places) + 1)]
    return _of_ranking(number, item, prompt, tuple(responses), tuple(tiers))


def _of_ranking(
    number: int, item: Any, prompt: PromptLike, texts: tuple[str, ...], tiers: tuple[tuple[int, ...], ...]
) -> Comparison:
    """A comparison of one ranking, with the weight, strength or margin that a mapping gives."""
    given = item if isinstance(item, Mapping) else {}
    weight, margin = (_amount(number, given, name, usual) for name, usual in (("weight", 1.0), ("margin", 0.0)))
    strength = given.get("strength")
    if strength is not None and (type(strength) is not int or not 1 <= strength <= 4):
        raise ValueError(f"comparison {number}: strength is 1 (negligibly better) to 4; got {strength!r:.60}")
    if strength is not None and given.get("margin") is not None:
        raise ValueError(f"comparison {number}: strength and margin both say how clear it is; give one of them")
    if weight == 0:
        raise ValueError(f"comparison {number}: a weight of 0 says nothing; leave the comparison out")
    for key in given.keys() - {"weight", "strength", "margin"}:
        close = difflib.get_close_matches(str(key), ("weight", "strength", "margin"), n=1, cutoff=0.8)
        if close:
            raise ValueError(f"comparison {number}: there is no key {key!r}; did you mean {close[0]!r}?")
    rank = {place: number for number, tier in enumerate(tiers) for place in tier}
    wins = tuple(
        (i, j, weight if rank[i] < rank[j] else weight / 2)
        for i in range(len(texts))
        for j in range(len(texts))
        if i != j and rank[i] <= rank[j]
    )
    ids = tuple(map(str, range(len(texts))))
    return Comparison(_prompt(prompt), texts, ids, wins, (Ranking(tiers, weight, strength or 0, margin),))


def _amount(number: int, given: Mapping[str, Any], name: str, usual: float) -> float:
    value = given.get(name)
    if value is None:
        return usual
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"comparison {number}: {name} is a finite number, 0 or more; got {value!r:.60}")
    return float(value)


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
