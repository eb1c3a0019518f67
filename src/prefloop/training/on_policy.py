"""What training on the policy's own samples shares, whatever is learnt from them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, pairwise

from jaxtyping import Float
from torch import Tensor

from prefloop.algorithms.kl import kl_estimate
from prefloop.algorithms.masked import masked_mean
from prefloop.config import OnPolicyConfig
from prefloop.feedback.elsewhere import chosen
from prefloop.feedback.records import Prompt
from prefloop.policy import Policy
from prefloop.rollout.batch import Rollout
from prefloop.training.loop import Metrics, shuffled_batches

Observer = Callable[[Sequence[Prompt], Sequence[str]], Metrics]
"""Looks at prompts and responses of an iteration and adds figures to its metrics; it never touches training."""


def prompt_batches(
    policy: Policy, prompts: Sequence[Prompt], size: int, iterations: int, seed: int, max_tokens: int
) -> Iterator[list[tuple[Prompt, list[int]]]]:
    """The prompts of each iteration with their token ids, in an order that depends on the seed alone.

    There may be any number of prompts: those that are drawn are read and tokenised, before the first iteration.
    """
    if not prompts:
        raise ValueError("there are no prompts to practise on")
    drawn = list(shuffled_batches(range(len(prompts)), size, iterations, seed))
    wanted = sorted(set(chain.from_iterable(drawn)))
    fitted = [(prompt, *policy.chat.fitted_prompt_ids(prompt, max_tokens)) for prompt in chosen(prompts, wanted)]
    cut = sum(kept is not prompt for prompt, _, kept in fitted)
    if cut:
        warnings.warn(f"{cut} of {len(fitted)} prompts were cut to {max_tokens} tokens", stacklevel=3)
    encoded = {number: (prompt, ids) for number, (prompt, ids, _) in zip(wanted, fitted, strict=True)}
    return ([encoded[number] for number in batch] for batch in drawn)


def shuffled_minibatches(rollout: Rollout, config: OnPolicyConfig, seed: int) -> Iterator[list[int]]:
    """Rows of each optimiser step, pass after pass."""
    steps = config.epochs * (len(rollout) // config.minibatch_episodes)
    return shuffled_batches(range(len(rollout)), config.minibatch_episodes, steps, seed)


def rollout_figures(rollout: Rollout, ref_log_probs: Float[Tensor, "B R"]) -> Metrics:
    """KL, entropy, length, and the share that ended."""
    mask, lengths = rollout.mask, rollout.lengths.float()
    kl = kl_estimate(rollout.log_probs, ref_log_probs, "k1").sum(1)
    _watch_kl(kl, lengths)
    return {
        "kl": float(kl.mean()),
        "entropy": float(masked_mean(rollout.entropy, mask)),
        "response_tokens": float(lengths.mean()),
        "ended": float(rollout.ended.float().mean()),
    }


def _watch_kl(kl: Float[Tensor, " B"], lengths: Float[Tensor, " B"]) -> None:
    """Say so when the KL is impossible (a bug) or out of hand (a setting)."""
    mean = float(kl.mean())
    noise = float(kl.std()) / len(kl) ** 0.5 if len(kl) > 1 else 0.0
    if mean < -4 * noise - 1e-3:
        warnings.warn(
            f"the KL to the reference is {mean:.3f} nats, below 0 by more than sampling noise ({noise:.3f}): the "
            "responses were not drawn from the distribution whose log-probabilities are used",
            stacklevel=2,
        )
    if mean > 2 * float(lengths.mean()):
        warnings.warn(
            f"the KL to the reference is {mean:.1f} nats, more than 2 a token: the policy has left the language of "
            "the reference. Raise kl_coef (online DPO: beta), set kl_target or lower learning_rate",
            stacklevel=2,
        )


def laps(clock: Sequence[float]) -> list[float]:
    """Seconds between neighbouring readings."""
    return [later - earlier for earlier, later in pairwise(clock)]
