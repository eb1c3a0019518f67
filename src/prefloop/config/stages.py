"""Sections of what a run starts from, of the stages up to the judgements, and of the evaluation."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from prefloop.config.section import Fraction, Optimisation, Positive, PositiveFloat, Section


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
