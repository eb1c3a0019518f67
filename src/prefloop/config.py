"""One strict model for each stage's section of a recipe; :mod:`prefloop.recipes` has the whole.

Every field's docstring is its documentation; ``docs/config.md`` is made from them and a test holds the two together.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]

PolicyGradientName = Literal["ppo", "reinforce", "rloo", "grpo", "reinforce_pp"]
DirectName = Literal["dpo", "ipo", "kto", "orpo", "simpo"]
Precision = Literal["auto", "float32", "bfloat16"]
AlgorithmName = Literal[PolicyGradientName, "online_dpo", DirectName]
StageName = Literal["pretrain", "sft", "sample", "label", "reward", "judge", AlgorithmName, "evaluation"]
POLICY_GRADIENTS: tuple[PolicyGradientName, ...] = get_args(PolicyGradientName)
"""Algorithms that learn from the rewards of sampled responses."""
DIRECT: tuple[DirectName, ...] = get_args(DirectName)
"""Algorithms that learn from comparisons without a reward model."""
ON_POLICY: tuple[Literal[PolicyGradientName, "online_dpo"], ...] = (*POLICY_GRADIENTS, "online_dpo")
"""Algorithms that sample from the policy as it learns."""
ALGORITHMS: tuple[AlgorithmName, ...] = get_args(AlgorithmName)


class Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class DataConfig(Section):
    """Where prompts, demonstrations and judgements come from."""

    files: tuple[str, ...] = ()
    """Files imported into ``feedback.db`` before the run; a relative path starts at the recipe's folder."""
    world: Literal["", "rewriter"] = ""
    """An embedded world that writes prompts and demonstrations itself; empty for none."""
    world_prompts: Positive = 3000
    """Training prompts that the world writes."""
    world_heldout: Positive = 500
    """Held-out prompts that the world writes."""
    heldout_fraction: Fraction = 0.1
    """Share of prompts kept for evaluation where the data does not say; decided by a hash of the prompt."""
    criterion: str = "overall"
    """Which judgements are training data."""
    max_prompt_tokens: Positive = 256
    """Longer prompts are cut from the left at a message or line boundary; how many were cut is reported."""
    max_response_tokens: Positive = 128
    """Longer demonstrations and judged answers are left out of training; how many is reported."""


class ModelConfig(Section):
    """The starting point: a checkpoint, or the shape of a small model to pretrain."""

    path: str = ""
    """Folder or hub name of a causal language model; empty means: pretrain a model of the shape below."""
    vocabulary: Annotated[int, Field(ge=300)] = 1024
    """Size of the byte-level BPE vocabulary (256 bytes, special tokens and merges)."""
    width: Positive = 128
    """Hidden size."""
    layers: Positive = 4
    """Transformer blocks."""
    heads: Positive = 4
    """Attention heads; divides the width."""
    context: Positive = 512
    """Longest sequence in tokens."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width {self.width} must be a multiple of twice heads ({self.heads}): rotary positions turn "
                "pairs of numbers in each head"
            )
        return self


class Optimisation(Section):
    """What every training stage shares."""

    learning_rate: PositiveFloat = 1e-3
    """The highest of the run (AdamW)."""
    warmup_fraction: Fraction = 0.05
    """Share of the steps over which the learning rate rises from 0; it then falls linearly to 0."""
    weight_decay: NonNegative = 0.0
    """Of AdamW: the share of itself, times the learning rate, that each weight loses in a step."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this global norm."""
    micro_batch_tokens: Annotated[int, Field(ge=0)] = 0
    """Tokens in one forward pass, and padding where there is any; 0: as many as there is room for, 512 to
    4,096, found by measuring the model once. Fits memory; never changes the result."""

    @property
    def scored_tokens(self) -> int:
        """Tokens of a pass that keeps nothing for a backward pass."""
        return self.micro_batch_tokens or 8192


class PretrainConfig(Optimisation):
    """A small model and its tokenizer from plain text, for worlds without a checkpoint."""

    files: tuple[str, ...] = ()
    """Text files. When empty: the world's text, or every dialogue in the store's training split."""
    tokens: Positive = 1_000_000
    """Training tokens in all; the text is repeated when it is shorter."""
    batch_tokens: Positive = 8192
    """Tokens of one optimiser step."""
    block: Positive = 128
    """Tokens of one training sequence, cut out of the text."""


class SFTConfig(Optimisation):
    """Supervised fine-tuning on demonstrations; the loss is on the responses only."""

    epochs: PositiveFloat = 1.0
    """Passes over the data; may be a fraction."""
    batch_size: Positive = 32
    """Demonstrations of one optimiser step."""
    loss_on: Literal["all", "last"] = "last"
    """In a conversation: train on every assistant turn, or only on the last."""
    demonstrations: Literal["written", "preferred"] = "written"
    """Learn from demonstrations in the store, or from the preferred side of each judged pair."""


class SampleConfig(Section):
    """K answers to each prompt, to be judged."""

    prompts: Positive = 1000
    """How many training prompts are answered (all, when there are fewer)."""
    heldout: Positive = 300
    """How many held-out prompts are answered and judged too: the reward model is measured on them."""
    answers: Annotated[int, Field(ge=2)] = 2
    """K: answers sampled for each prompt."""
    temperature: PositiveFloat = 1.0
    """Logits are divided by it."""
    max_response_tokens: Positive = 64
    """Longest answer."""
    batch_size: Positive = 128
    """Sequences decoded together."""


class LabelConfig(Section):
    """Who judges the sampled answers."""

    by: Literal["simulated", "human", "none"] = "none"
    """``simulated``: annotators with known faults (needs a world with a true preference); ``human``: people, on the
    page that ``prefloop label`` serves, while the run waits; ``none``: the store holds judgements already."""
    overlap: Positive = 1
    """How many different annotators judge each prompt's answers; the simulated panel has six."""
    minimum: Positive = 50
    """With ``human``: votes needed before the run goes on, and one at least to train on, to test on, for a judge."""
    gold: str = ""
    """With ``human``: a file of comparisons whose answer is known, shown among the others to see who reads."""
    gold_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of an annotator's tasks that comes from ``gold``."""
    reward_model: str = ""
    """With ``human``: a reward model's folder (an ensemble at best); what it is least sure of is asked first."""
    control_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of an annotator's tasks that is drawn by lot, whatever ``reward_model`` says."""
    weights: Literal["equal", "reliability"] = "equal"
    """What an annotator's vote counts: one for everybody, or by estimated reliability (Crowd-BT), 1 on average."""


class ScoreConfig(Optimisation):
    """What a reward model and a judge have in common."""

    epochs: PositiveFloat = 1.0
    """Passes over the data; may be a fraction."""
    batch_size: Positive = 32
    """Prompts of one optimiser step; all comparisons of a prompt stay together."""
    centre_coef: NonNegative = 0.001
    """Weight of the penalty on (r_i + r_j)² that keeps scores near zero."""
    learning_rate: PositiveFloat = 5e-4
    """The highest of the run (AdamW)."""
    loss: Literal["bradley-terry", "plackett-luce"] = "bradley-terry"
    """A ranking counts as its pairs, or as a series of choices of the best of those that are left."""
    margin: NonNegative = 0.0
    """By how much the better answer should lead for each point of stated strength above 1; 0 pays no attention to
    strengths. With ``bradley-terry``."""
    random_answers: Fraction = 0.0
    """ε: the share of judgements taken to be given at random, which no score can explain."""

    @model_validator(mode="after")
    def _margins_are_of_pairs(self) -> Self:
        if self.margin and self.loss == "plackett-luce":
            raise ValueError(
                f'margin ({self.margin}) is between the two of a pair; loss = "plackett-luce" has no pairs. '
                'Set margin to 0, or loss to "bradley-terry"'
            )
        return self


class RewardConfig(ScoreConfig):
    """A reward model from comparisons (Bradley–Terry or Plackett–Luce)."""

    ensemble: Positive = 1
    """Models trained from different seeds; the score is their mean."""
    pessimism: NonNegative = 0.0
    """Taken from an ensemble's score: this many standard deviations of its members' scores."""
    criteria: dict[str, float] = {}
    """Criteria and their weights in the score, one head each: ``{helpful = 1.0, harmless = 0.5}``. Empty: one head,
    for ``data.criterion``. The judge has the same."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.pessimism and self.ensemble == 1:
            raise ValueError(
                f"pessimism ({self.pessimism}) weighs the disagreement of several models, and ensemble is 1; "
                "set ensemble to 2 or more, or pessimism to 0"
            )
        for name in self.criteria:
            if not re.fullmatch(r"\w[\w-]*", name):
                raise ValueError(f"criteria: {name!r} should be a word of letters, digits, _ and -")
        if self.criteria and not any(self.criteria.values()):
            raise ValueError("criteria: all weights are 0, so every answer would have the same score")
        return self


class JudgeConfig(ScoreConfig):
    """A second reward model from comparisons that nothing else sees; it judges the evaluation of a run
    whose true preference is not known."""

    fraction: Fraction = 0.0
    """Share of the training prompts set aside for it; 0 means no such judge."""


class RewardSource(Section):
    """One of the rewards of a response: a Python function, a reward model's folder, or the run's own reward model."""

    name: str
    """In metrics (``reward_NAME``) and messages."""
    weight: float = 1.0
    """The scores are multiplied by it and added up."""
    function: str = ""
    """``FILE.py:NAME`` of a function of (prompt, response) that returns a number. The file is run as it is."""
    batched: bool = False
    """The function takes two lists, the prompts and the responses of an iteration, and returns a list of numbers."""
    model: str = ""
    """Folder or hub name of a reward model. Neither function nor model: the run's own reward model."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.function and self.model:
            raise ValueError(f"reward {self.name!r} names a function and a model; it can be one of them only")
        if self.function and not all(self.function.rpartition(".py:")):
            raise ValueError(
                f"reward {self.name!r}: function = {self.function!r} is not FILE.py:NAME, for example "
                '"rewards.py:brevity"'
            )
        if self.batched and not self.function:
            raise ValueError(f"reward {self.name!r}: batched is about a function, and none is named")
        if not self.name.isidentifier():
            raise ValueError(f"reward name {self.name!r} must be letters, digits and underscores")
        return self


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


class DirectConfig(Optimisation):
    """Training on comparisons without a reward model."""

    epochs: PositiveFloat = 1.0
    """Passes over the data; may be a fraction."""
    batch_size: Positive = 32
    """Prompts of one optimiser step; all comparisons of a prompt stay together."""
    learning_rate: PositiveFloat = 1e-4
    """The highest of the run (AdamW)."""


class DPOConfig(DirectConfig):
    """Direct preference optimisation."""

    beta: PositiveFloat = 0.1
    """Strength of the tie to the reference."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of judgements assumed to be flipped (conservative DPO)."""


class IPOConfig(DirectConfig):
    """Identity preference optimisation: DPO with a squared loss, which stops at a margin."""

    beta: PositiveFloat = 0.1
    """τ: the margin aimed at is 1/(2β) nats."""


class KTOConfig(DirectConfig):
    """Kahneman–Tversky optimisation: every answer counts by itself, as liked or disliked."""

    beta: PositiveFloat = 0.1
    """Strength of the tie to the reference."""
    desirable_weight: PositiveFloat = 1.0
    """λ_D: weight of a vote for an answer."""
    undesirable_weight: PositiveFloat = 1.0
    """λ_U: weight of a vote against an answer."""


class ORPOConfig(DirectConfig):
    """Odds-ratio preference optimisation: imitation of the better answer and a contrast, without a reference."""

    weight: PositiveFloat = 0.1
    """λ of the odds ratio beside the imitation."""


class SimPOConfig(DirectConfig):
    """Simple preference optimisation: mean log-probabilities with a margin, without a reference."""

    beta: PositiveFloat = 2.0
    """Scale of the mean log-probability."""
    margin: NonNegative = 1.0
    """γ: by how much the better answer should lead."""


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


class EvaluateConfig(Section):
    """Trained policies against the supervised one, on held-out prompts."""

    prompts: Positive = 500
    """Held-out prompts used (all, when there are fewer)."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature of both sides."""
    max_response_tokens: Positive = 64
    """Longest answer."""
    batch_size: Positive = 128
    """Sequences decoded together."""
