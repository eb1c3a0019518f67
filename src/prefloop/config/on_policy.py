"""Sections of the algorithms that sample from the policy as it learns."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from prefloop.config.section import (
    Fraction,
    NonNegative,
    Optimisation,
    Positive,
    PositiveFloat,
    Probability,
)


class OnPolicyConfig(Optimisation):
    """What all methods share that sample from the policy as it learns."""

    iterations: Positive = 50
    """Rounds of sampling and updating."""
    episodes: Positive = 128
    """Responses sampled in one iteration."""
    minibatch_episodes: Positive = 32
    """Responses of one optimiser step; ``epochs × episodes / minibatch_episodes`` steps an iteration."""
    epochs: Positive = 2
    """Passes over the sampled responses."""
    learning_rate: PositiveFloat = 3e-4
    """The highest of the run (AdamW)."""
    warmup_fraction: Fraction = 0.0
    """Share of the steps over which the learning rate rises from 0; it then falls linearly to 0."""
    temperature: PositiveFloat = 1.0
    """Logits are divided by it everywhere: sampling, old, new and reference log-probabilities."""
    max_response_tokens: Positive = 64
    """Longest response; what has no eos by then is cut off."""
    missing_eos_penalty: NonNegative = 1.0
    """Taken from the score of a response that was cut off."""

    @model_validator(mode="after")
    def _whole_minibatches(self) -> Self:
        if self.episodes % self.minibatch_episodes:
            raise ValueError(
                f"episodes ({self.episodes}) must be a multiple of minibatch_episodes ({self.minibatch_episodes})"
            )
        return self


class PolicyGradientConfig(OnPolicyConfig):
    """What PPO and the policy gradients without a critic share: all but the advantage."""

    kl_coef: NonNegative = 0.05
    """β: weight of the KL penalty."""
    kl_in: Literal["reward", "loss"] = "reward"
    """The penalty is taken from each token's reward, or added to the loss."""
    kl_estimator: Literal["k1", "k2", "k3", "full"] = "k1"
    """Per-token estimate of KL(π‖π_ref), or the KL over the whole vocabulary. In the reward k1 is right, in the loss
    k2 or full: see docs/ppo.md."""
    kl_target: NonNegative = 0.0
    """Adapt β towards this KL (nats, summed over the response); 0 keeps β fixed."""
    kl_horizon: Positive = 10_000
    """Episodes over which the adaptive controller acts."""
    scale_scores: bool = False
    """Divide scores by the standard deviation of all scores so far."""
    clip_scores: NonNegative = 0.0
    """Scores beyond ± this count as this, after scaling; 0 clips nothing."""
    clip_range: PositiveFloat = 0.2
    """ε of the policy's probability ratio."""
    dual_clip: NonNegative = 0.0
    """c > 1: a bad action costs at most c times its advantage, however likely it has become; 0 for no such bound."""
    entropy_coef: NonNegative = 0.0
    """Weight of the entropy bonus."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.kl_target and not self.kl_coef:
            raise ValueError(
                f"kl_target ({self.kl_target}) multiplies kl_coef, which is 0 and stays 0; set kl_coef above 0"
            )
        if self.kl_in == "loss" and self.kl_estimator == "k1":
            raise ValueError(
                'kl_estimator = "k1" has a gradient of 0 on average as a term of the loss, so it would hold nothing. '
                'Use "k2" or "full" there, or kl_in = "reward"'
            )
        if self.kl_in == "reward" and self.kl_estimator == "full":
            raise ValueError(
                'kl_estimator = "full" is the same for every token that could have been sampled, so in the reward it '
                'holds back none of them. Use "k1" there, or kl_in = "loss"'
            )
        if self.dual_clip and self.dual_clip <= 1:
            raise ValueError(f"dual_clip ({self.dual_clip}) must be above 1, or 0 for none")
        return self


class REINFORCEConfig(PolicyGradientConfig):
    """REINFORCE with a baseline: rewards-to-go less the mean return of the other episodes."""

    gamma: Probability = 1.0
    """Discount."""


class GroupConfig(PolicyGradientConfig):
    """Several answers to each prompt are each other's baseline."""

    answers: Annotated[int, Field(ge=2)] = 4
    """K: answers to each prompt; ``episodes / answers`` prompts an iteration."""

    @model_validator(mode="after")
    def _whole_groups(self) -> Self:
        if self.episodes % self.answers:
            raise ValueError(f"episodes ({self.episodes}) must be a multiple of answers ({self.answers})")
        return self


class PPOConfig(GroupConfig):
    """Proximal policy optimisation against a reward."""

    answers: Positive = 1
    """K: answers to each prompt; ``episodes / answers`` prompts an iteration. Above 1, a score counts from the mean
    of the prompt's other answers."""

    critic: Literal["shared", "separate"] = "shared"
    """The value function: a head on the policy's own trunk, or a model of its own that starts from the reward model
    (from the policy, where no reward is a model that reads the policy's tokens)."""
    gamma: Probability = 1.0
    """Discount."""
    lam: Probability = 0.95
    """λ of generalised advantage estimation."""
    value_clip_range: PositiveFloat = 0.2
    """ε of the value function's change."""
    value_coef: NonNegative = 0.1
    """Weight of the value loss."""
    whiten_rewards: bool = False
    """Scale the per-token rewards of an iteration to variance 1 and keep their mean; published work found it
    harmful."""


class RLOOConfig(GroupConfig):
    """REINFORCE leave-one-out: an answer's return less the mean of the other answers to its prompt."""


class GRPOConfig(GroupConfig):
    """Group-relative policy optimisation: an answer's return among those to its prompt."""

    scale_advantages: bool = True
    """Divide by the standard deviation of the prompt's answers; without it this is Dr. GRPO."""


class REINFORCEPPConfig(PolicyGradientConfig):
    """REINFORCE++: rewards-to-go, whitened over the batch."""

    gamma: Probability = 1.0
    """Discount."""


class OnlineDPOConfig(OnPolicyConfig):
    """DPO on answers of the policy as it learns: sample, judge, train, again."""

    answers: Annotated[int, Field(ge=2)] = 2
    """K: answers to each prompt, all compared with each other; ``episodes / answers`` prompts an iteration."""
    beta: PositiveFloat = 0.1
    """Strength of the tie to the reference."""
    judge: Literal["reward", "annotators"] = "reward"
    """Who compares: the rewards, or in an embedded world the simulated annotators (their judgements are stored)."""

    @model_validator(mode="after")
    def _whole_groups(self) -> Self:
        if self.minibatch_episodes % self.answers:
            raise ValueError(
                f"minibatch_episodes ({self.minibatch_episodes}) must be a multiple of answers ({self.answers}): "
                "the answers to a prompt stay together"
            )
        return self
