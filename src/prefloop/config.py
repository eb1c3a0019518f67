"""The recipe: one strict model per stage. :mod:`prefloop.recipes` reads and writes it.

Every field's docstring is its documentation; ``docs/config.md`` is made from them and a test holds the two together.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]

DirectName = Literal["dpo", "ipo", "kto", "orpo", "simpo"]
AlgorithmName = Literal["ppo", DirectName]
StageName = Literal["pretrain", "sft", "sample", "label", "reward", "judge", AlgorithmName, "evaluation"]
DIRECT: tuple[DirectName, ...] = get_args(DirectName)
"""Algorithms that learn from comparisons without a reward model."""
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
    micro_batch_tokens: Positive = 8192
    """Tokens, padding included, in one forward pass. Fits memory; never changes the result."""


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
    """``simulated``: annotators with known faults (needs a world with a true preference); ``human``: the run
    stops and says how to give judgements; ``none``: the store holds judgements already."""
    overlap: Annotated[int, Field(gt=0, le=6)] = 1
    """Annotators asked about each pair; the simulated panel has six."""
    minimum: Positive = 50
    """With ``human``: judgements needed before the run goes on."""


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


class PPOConfig(Optimisation):
    """Proximal policy optimisation against a reward."""

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
    kl_coef: NonNegative = 0.05
    """β: weight of the per-token KL penalty in the reward."""
    kl_estimator: Literal["k1", "k3"] = "k1"
    """Per-token estimate of KL(π‖π_ref) in the reward. k3 is never negative, but its optimum is not
    π_ref·exp(r/β): see docs/tried.md."""
    kl_target: NonNegative = 0.0
    """Adapt β towards this KL (nats, summed over the response); 0 keeps β fixed."""
    kl_horizon: Positive = 10_000
    """Episodes over which the adaptive controller acts."""
    gamma: Probability = 1.0
    """Discount."""
    lam: Probability = 0.95
    """λ of generalised advantage estimation."""
    clip_range: PositiveFloat = 0.2
    """ε of the policy's probability ratio."""
    value_clip_range: PositiveFloat = 0.2
    """ε of the value function's change."""
    value_coef: NonNegative = 0.1
    """Weight of the value loss."""
    entropy_coef: NonNegative = 0.0
    """Weight of the entropy bonus."""
    temperature: PositiveFloat = 1.0
    """Logits are divided by it everywhere: sampling, old, new and reference log-probabilities."""
    max_response_tokens: Positive = 64
    """Longest response; what has no eos by then is cut off."""
    missing_eos_penalty: NonNegative = 1.0
    """Taken from the score of a response that was cut off."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.episodes % self.minibatch_episodes:
            raise ValueError(
                f"episodes ({self.episodes}) must be a multiple of minibatch_episodes ({self.minibatch_episodes})"
            )
        if self.kl_target and not self.kl_coef:
            raise ValueError(
                f"kl_target ({self.kl_target}) multiplies kl_coef, which is 0 and stays 0; set kl_coef above 0"
            )
        return self


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


class Recipe(Section):
    """A whole run."""

    name: str = "run"
    """The run's folder below ``runs/``."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Everything random follows from it: the same seed gives the same figures."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads; 0 leaves the choice to torch."""
    algorithms: tuple[AlgorithmName, ...] = ("ppo", "dpo")
    """Which policies are trained from the preferences."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    pretrain: PretrainConfig = PretrainConfig()
    sft: SFTConfig = SFTConfig()
    sample: SampleConfig = SampleConfig()
    label: LabelConfig = LabelConfig()
    reward: RewardConfig = RewardConfig()
    judge: JudgeConfig = JudgeConfig()
    ppo: PPOConfig = PPOConfig()
    dpo: DPOConfig = DPOConfig()
    ipo: IPOConfig = IPOConfig()
    kto: KTOConfig = KTOConfig()
    orpo: ORPOConfig = ORPOConfig()
    simpo: SimPOConfig = SimPOConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.name or any(c in self.name for c in "/\\") or self.name.startswith("."):
            raise ValueError(f"name {self.name!r} must be a plain folder name")
        if not self.algorithms:
            raise ValueError(f"algorithms is empty; allowed are any of {', '.join(ALGORITHMS)}")
        if len(set(self.algorithms)) != len(self.algorithms):
            raise ValueError(f"algorithms names one twice: {list(self.algorithms)}")
        if self.label.by == "simulated" and not self.data.world:
            raise ValueError(
                'label.by = "simulated" needs data.world: simulated annotators answer by a true preference, '
                'which only an embedded world knows. Use label.by = "human" or "none"'
            )
        if self.label.by == "simulated" and self.data.criterion != "overall":
            raise ValueError(
                'label.by = "simulated" judges by data.criterion = "overall" only; '
                f"data.criterion is {self.data.criterion!r}"
            )
        if self.label.by == "simulated" and self.reward.criteria:
            raise ValueError(
                'label.by = "simulated" judges by one criterion only, "overall"; '
                f"reward.criteria are {', '.join(self.reward.criteria)}"
            )
        if self.data.world and self.sft.demonstrations == "preferred":
            raise ValueError(
                'sft.demonstrations = "preferred" is for judgements in the store; data.world writes demonstrations '
                'itself, so use "written"'
            )
        if self.data.world and self.judge.fraction:
            raise ValueError(
                "judge.fraction is for data without a true preference; data.world has one, so set it to 0"
            )
        if not self.model.path:
            self.check_context(self.model.context)
        if not self.model.path and self.pretrain.block > self.model.context:
            raise ValueError(
                f"pretrain.block ({self.pretrain.block}) does not fit model.context ({self.model.context})"
            )
        return self

    def check_context(self, context: int) -> None:
        """Raise a ValueError unless every stage's prompts and responses fit a model that reads ``context`` tokens."""
        limits = {"data": self.data.max_response_tokens, "evaluate": self.evaluate.max_response_tokens}
        if "sample" in self.stages:
            limits["sample"] = self.sample.max_response_tokens
        if "ppo" in self.stages:
            limits["ppo"] = self.ppo.max_response_tokens
        section = max(limits, key=lambda name: limits[name])
        needed = self.data.max_prompt_tokens + limits[section]
        if needed > context:
            raise ValueError(
                f"the model reads at most {context} tokens; data.max_prompt_tokens ({self.data.max_prompt_tokens}) "
                f"and {section}.max_response_tokens ({limits[section]}) together need {needed}. Lower one of them, "
                "or give the model a longer context"
            )

    @property
    def criteria(self) -> tuple[str, ...]:
        """What the reward model and the judge learn from."""
        return tuple(self.reward.criteria) or (self.data.criterion,)

    @property
    def ignored(self) -> dict[str, list[str]]:
        """Why settings change nothing, and the settings: those that differ from their defaults.

        Sections of algorithms that are not asked for are not named: they may stand ready.
        """
        reasons: dict[str, str] = {}

        def unused(reason: str, *keys: str) -> None:
            reasons.update(dict.fromkeys(keys, reason))

        def all_of(section: Section, name: str, *but: str) -> list[str]:
            return [f"{name}.{field}" for field in type(section).model_fields if field not in but]

        if self.model.path:
            unused("model.path is set", *all_of(self.model, "model", "path"), *all_of(self.pretrain, "pretrain"))
        if self.label.by != "simulated":
            unused(f'label.by is "{self.label.by}"', "label.overlap")
        if self.label.by != "human":
            unused(f'label.by is "{self.label.by}"', "label.minimum")
        if self.label.by == "none":
            unused('label.by is "none"', *all_of(self.sample, "sample"))
        if not self.judge.fraction:
            unused("judge.fraction is 0", *all_of(self.judge, "judge"))
        if not self.ppo.kl_target:
            unused("ppo.kl_target is 0", "ppo.kl_horizon")
        if self.data.world:
            unused("data.world is set", "data.files", "data.heldout_fraction")
        else:
            unused("data.world is not set", "data.world_prompts", "data.world_heldout")
        mine, default = self.model_dump(), Recipe.model_construct().model_dump()

        def value(of: dict[str, Any], key: str) -> Any:
            section, field = key.split(".")
            return of[section][field]

        found: dict[str, list[str]] = {}
        for key, reason in reasons.items():
            if value(mine, key) != value(default, key):
                found.setdefault(reason, []).append(key)
        return found

    @property
    def stages(self) -> tuple[StageName, ...]:
        """The stages that this recipe runs, in the papers' order."""
        wanted: dict[StageName, bool] = {
            "pretrain": not self.model.path,
            "sft": True,
            "sample": self.label.by != "none",
            "label": True,
            "reward": True,
            "judge": self.judge.fraction > 0,
            **{name: name in self.algorithms for name in ALGORITHMS},
            "evaluation": True,
        }
        return tuple(stage for stage, runs in wanted.items() if runs)
