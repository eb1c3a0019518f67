"""What sections are made of: strict models, kinds of numbers, and the fields that several share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]

Precision = Literal["auto", "float32", "bfloat16"]


class Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


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


class ComparisonsConfig(Optimisation):
    """What training on comparisons has in common, with a reward model or without."""

    epochs: PositiveFloat = 1.0
    """Passes over the data; may be a fraction."""
    batch_size: Positive = 32
    """Prompts of one optimiser step; all comparisons of a prompt stay together."""
