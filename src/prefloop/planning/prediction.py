"""Memory and time of each stage, from what it does, what the model's sizes are and how long things take."""

from __future__ import annotations

import math
from dataclasses import dataclass

from prefloop.models.footprint import WEIGHT_BYTES, budget_in
from prefloop.models.forward import PART
from prefloop.planning.rates import Rates
from prefloop.planning.subject import Subject
from prefloop.planning.work import IDLE, Work

GIB = 2**30
USABLE = 0.8
"""Share of a machine's memory that a run may take: the rest is the system's, and what is not foreseen."""
TRAINED, BETWEEN = 4, 3
"""Copies of weights that are trained: with gradient and Adam's moments; between two steps there is no gradient."""
LOGIT_BYTES = 12
"""Of each logit of a part: itself, the table behind its log-probability, and what becomes of that backwards."""
BACKWARDS, FORWARDS = 2, 1
"""What is there for a moment besides, in what a layer keeps: 1.2 to 2.1 and 0.7 to 1.2 were measured."""
SCORED = 8192
"""Tokens of a pass where nothing is trained and the recipe says nothing."""


@dataclass(frozen=True)
class Machine:
    """What the run is planned for: one device, or several that share its models."""

    name: str
    memory: float
    """Bytes of each device."""
    base: float
    """Bytes that the program takes besides models and what they compute."""
    room: float
    """Bytes that a pass may keep for its backward pass."""
    count: int = 1
    is_processor: bool = False
    """Whose libraries take memory besides, by precision; a GPU's have it in ``base``."""


@dataclass(frozen=True)
class Stage:
    """What is predicted of a stage."""

    work: Work
    micro_batch_tokens: int
    """Tokens of a pass at most; 0 where nothing is trained."""
    memory: float
    """Bytes at its peak, on each device."""
    seconds: float | None
    """None where it is people's time, or not counted."""


def predict(work: Work, subject: Subject, machine: Machine, rates: Rates, rendering: float) -> Stage:
    """What a stage takes; ``rendering``: seconds to tokenise a sequence."""
    budget = work.budget or (budget_in(machine.room, subject.kept) if work.steps else SCORED)
    trained, read = (round(max(min(budget, most), work.longest)) for most in (work.step_tokens, work.read))
    seconds = None
    if work.stage != "label":
        seconds = _seconds(work, trained, read, rates) / machine.count + work.rendered * rendering
    return Stage(work, trained if work.steps else 0, _memory(work, trained, read, subject, machine), seconds)


def _memory(work: Work, trained_tokens: int, read_tokens: int, subject: Subject, machine: Machine) -> float:
    """The largest of what training, reading and decoding need at a time."""

    def models(trained: int) -> float:
        copies = sum(count * (trained if is_trained else 1) for count, is_trained in work.held.values())
        return WEIGHT_BYTES * subject.weights * copies / machine.count

    kept = subject.kept
    layer = kept.per_token / subject.layers
    phases = [models(BETWEEN)]
    if work.steps:
        logits = LOGIT_BYTES * min(PART, trained_tokens * subject.vocabulary) if work.trained_logits else 0
        phases.append(models(TRAINED) + kept.bytes(trained_tokens) + BACKWARDS * trained_tokens * layer + logits)
    if work.read:
        logits = LOGIT_BYTES * min(PART, read_tokens * subject.vocabulary) if work.read_logits else 0
        phases.append(models(BETWEEN) + kept.fixed + FORWARDS * read_tokens * layer + logits)
    if work.rows:
        columns = work.columns + max(64, work.columns // 2)
        drawn = work.rows * (subject.cache * columns + LOGIT_BYTES * subject.vocabulary)
        phases.append(models(BETWEEN) + kept.fixed + drawn)
    return machine.base + max(phases)


def _seconds(work: Work, trained_tokens: int, read_tokens: int, rates: Rates) -> float:
    passes = work.steps * math.ceil(work.step_tokens / trained_tokens) if work.steps else 0
    trained = sum(count for count, is_trained in work.held.values() if is_trained)
    return (
        work.trained * rates.train
        + passes * trained * rates.train_pass
        + work.trained_logits * rates.train_logits
        + work.steps * trained * rates.adam
        + work.read * rates.read
        + work.read / max(1, read_tokens) * rates.read_pass
        + work.read_logits * rates.read_logits
        + work.decode_steps * rates.decode_step
        + work.sampled / (1 - IDLE) * rates.decode_row
    )
