"""A plan: the model, the data, the machine and every stage."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from prefloop.config import Precision
from prefloop.models.footprint import memory_of, room_on
from prefloop.models.loading import default_device
from prefloop.models.precision import computing_in
from prefloop.models.quickest import quickest
from prefloop.planning.cards import Card, card_of
from prefloop.planning.data import Amounts, amounts_of
from prefloop.planning.prediction import GIB, USABLE, Machine, Stage, predict
from prefloop.planning.rates import Rates, assumed, make, measure, narrow, shallow
from prefloop.planning.subject import Subject, config_of, describe, is_small
from prefloop.planning.work import work_of
from prefloop.recipes import Recipe
from prefloop.runs import peak_memory_mb

CUDA_BASE = 0.6 * GIB
"""Assumed of a GPU's memory: what the driver and the libraries take."""
CODES = 0.18 * GIB
"""What a processor's library writes for the shapes that it meets in bfloat16 (docs/performance.md)."""
PIECES: dict[Precision, float] = {"float32": 0.07 * GIB, "bfloat16": 0.25 * GIB}
"""What a processor's allocator holds free at a peak, in pieces (docs/planning.md)."""


@dataclass(frozen=True)
class Asked:
    """What a plan is asked for, besides the recipe."""

    gpus: int = 1
    gpu: str = ""
    """A card of the table; empty: this machine's device."""
    memory: float | None = None
    """GiB of each device; None: what it has."""
    size: float | None = None
    """Weights of the model, instead of the recipe's."""


@dataclass
class Planner:
    """Predicts a recipe, and others like it: what they share is looked at once."""

    recipe: Recipe
    asked: Asked
    amounts: Amounts
    machine: Machine
    precision: Precision
    """What models are trained in, where the recipe leaves that open. What is only read and sampled from is then in
    float32."""
    rates: Rates
    """In that precision."""
    outside: Rates
    """Of stages that train nothing."""
    _subjects: dict[Any, Subject] = field(default_factory=dict)

    def subject(self, recipe: Recipe, precision: Precision) -> Subject:
        """The model that a recipe trains, in a precision."""
        key = (self.asked.size or recipe.model, precision)
        if key not in self._subjects:
            name, config = config_of(recipe.model, self.asked.size)
            length = round(self.amounts.within(recipe).demonstrated.whole)
            self._subjects[key] = describe(name, config, length, precision)
        return self._subjects[key]

    def precision_of(self, recipe: Recipe) -> Precision:
        """What a recipe's models are computed in."""
        return self.precision if recipe.precision == "auto" else recipe.precision

    def stages(self, recipe: Recipe, share: float = 1.0) -> list[Stage]:
        """What each stage takes, with a model of a ``share`` of the weights; seconds by the first recipe's rates."""
        trained = self.subject(recipe, self.precision_of(recipe)).scaled(share)
        read = trained if recipe.precision != "auto" else self.subject(recipe, "float32").scaled(share)
        amounts = self.amounts.within(recipe)
        machine = replace(self.machine, base=self.machine.base + self._overhead(self.precision_of(recipe)))
        return [
            predict(work, trained, machine, self.rates, amounts.rendering)
            if work.steps
            else predict(work, read, machine, self.outside, amounts.rendering)
            for work in work_of(recipe, amounts)
        ]

    def _overhead(self, precision: Precision) -> float:
        """Bytes that a processor's libraries take for what is computed."""
        if not self.machine.is_processor:
            return 0.0
        return PIECES[precision] + CODES * (precision == "bfloat16")

    @property
    def usable(self) -> float:
        """Bytes that a run may take."""
        return USABLE * self.machine.memory

    def fits(self, stage: Stage) -> bool:
        return stage.memory <= self.usable


def planner_of(recipe: Recipe, project: Path, folder: Path, asked: Asked) -> Planner:
    """Looks at the data, counts the model and finds out how long things take.

    Args:
        project: the folder with ``feedback.db``.
        folder: where relative paths of the recipe start.

    Raises:
        ValueError: the model or the data cannot be read, or the card is not known.
    """
    card = card_of(asked.gpu) if asked.gpu else None
    name, config = config_of(recipe.model, asked.size)
    amounts = amounts_of(recipe, project, folder)
    base = peak_memory_mb() * 2**20  # the program and the data, before there is a model
    length = round(amounts.demonstrated.whole)
    first = describe(name, config, length, "float32")
    if card:
        precision = card.precision if recipe.precision == "auto" else recipe.precision
        rates, outside = (
            assumed(first, card, asked.gpu.upper(), length, one) for one in (precision, _outside(recipe))
        )
    else:
        precision, rates, outside = _here(recipe, first, config, amounts)
    machine = _machine(asked, card, base)
    planner = Planner(recipe, asked, amounts, machine, precision, rates, outside)
    planner._subjects[asked.size or recipe.model, "float32"] = first
    return planner


def _outside(recipe: Recipe) -> Precision:
    """What models are in where nothing is trained."""
    return "float32" if recipe.precision == "auto" else recipe.precision


def _machine(asked: Asked, card: Card | None, base: float) -> Machine:
    device = torch.device("cuda" if card else default_device())
    if card:
        memory, name, base = card.gib * GIB, asked.gpu.upper(), CUDA_BASE
    else:
        memory, name = float(memory_of(device)), "this machine"
        base = base if device.type == "cpu" else CUDA_BASE
    memory = memory if asked.memory is None else asked.memory * GIB
    return Machine(name, memory, base, room_on(device, memory), asked.gpus, device.type == "cpu")


def _here(recipe: Recipe, subject: Subject, config: Any, amounts: Amounts) -> tuple[Precision, Rates, Rates]:
    """The quicker precision of this device, and what things take in it: by the model itself, where it is small enough
    to be made, else by two of its layers, else by two large layers of another."""
    length = round(amounts.demonstrated.whole)
    timed = subject
    if not is_small(subject):
        config = shallow(config)
        timed = describe("two of its layers", config, length, "float32")
    if not is_small(timed):
        config = narrow()
        timed = describe("two layers of width 1,024", config, length, "float32")
    model, threads = make(config, default_device()), torch.get_num_threads()
    precision = recipe.precision
    if precision == "auto":
        precision = "bfloat16" if quickest(model) == torch.bfloat16 else "float32"
    torch.set_num_threads(recipe.threads or threads)
    try:
        found: dict[Precision, Rates] = {}
        for one in {precision, _outside(recipe)}:
            with computing_in(one):
                found[one] = measure(model, timed, amounts.demonstrated).scaled(timed, subject)
        return precision, found[precision], found[_outside(recipe)]
    finally:
        torch.set_num_threads(threads)
