"""Sections of the reward: the run's own model, the judge, and rewards from elsewhere."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import model_validator

from prefloop.config.section import ComparisonsConfig, Fraction, NonNegative, Positive, PositiveFloat, Section


class ScoreConfig(ComparisonsConfig):
    """What a reward model and a judge have in common."""

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
    criteria: dict[str, float] = {}  # noqa: RUF012  (each model has a copy of its own)
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
