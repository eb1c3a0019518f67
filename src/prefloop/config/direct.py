"""Sections of the algorithms that learn from comparisons without a reward model."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from prefloop.config.section import ComparisonsConfig, NonNegative, PositiveFloat


class DirectConfig(ComparisonsConfig):
    """Training on comparisons without a reward model."""

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
