"""What every training loop shares: the order of the data and one optimiser step."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from prefloop.config import Optimisation
from prefloop.models.footprint import token_budget

Metrics = dict[str, float]
Log = Callable[[Metrics], None]
"""Takes one line of metrics as soon as it is known."""
Loss = tuple[Tensor, dict[str, Tensor]]
"""The losses of some things, and statistics of each."""
Item = TypeVar("Item")
Settings = TypeVar("Settings", bound=Optimisation)


def fitted(config: Settings, model: Any) -> Settings:
    """The settings with the tokens of a micro-batch that this machine can hold, where they leave that open."""
    if config.micro_batch_tokens:
        return config
    return config.model_copy(update={"micro_batch_tokens": token_budget(model)})


class NonFiniteError(RuntimeError):
    """A loss or gradient is NaN or infinite. The run stops; ``batch`` is what it was computed from."""

    def __init__(self, what: str, batch: Any) -> None:
        super().__init__(
            f"{what} is not finite, so training stopped. Usual causes: a learning rate that is too high, "
            "or a reward of enormous size"
        )
        self.batch = batch


class Optimiser:
    """AdamW with gradient clipping and a learning rate that rises, then falls linearly to 0."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        config: Optimisation,
        steps: int,
        *,
        eps: float = 1e-8,
        apart: Iterable[nn.Parameter] = (),
    ) -> None:
        """``apart``: parameters of another model, whose gradient is clipped by itself (``critic_grad_norm``)."""
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._apart = [parameter for parameter in apart if parameter.requires_grad]
        self._config = config
        self._steps = max(1, steps)
        self._warmup = math.ceil(config.warmup_fraction * steps)
        self._done = 0
        self._adam = torch.optim.AdamW(
            [*self._parameters, *self._apart],
            lr=config.learning_rate,
            betas=(0.9, 0.95),
            eps=eps,
            weight_decay=config.weight_decay,
            fused=True,
        )

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        if self._done < self._warmup:
            return self._config.learning_rate * (self._done + 1) / self._warmup
        left = (self._steps - self._done) / max(1, self._steps - self._warmup)
        return self._config.learning_rate * max(0.0, left)

    def step(
        self,
        micro_batches: Iterable[Item],
        loss: Callable[[Item], Iterable[Loss]],
        count: float,
    ) -> Metrics:
        """One step on the sum of all losses over ``count``.

        Args:
            micro_batches: the step's data, cut to fit memory.
            loss: part by part (`models.forward.in_parts`), the loss of each thing in a micro-batch (tokens, pairs)
                and statistics of the same length.
            count: how many things there are in the whole step, so that the cut changes nothing.

        Raises:
            NonFiniteError: the loss or the gradient is not finite; no parameter has been changed.
        """
        sums: dict[str, float] = {}
        batches = []
        for batch in micro_batches:
            batches.append(batch)
            for losses, stats in loss(batch):
                total = losses.sum() / count
                if not torch.isfinite(total):
                    raise NonFiniteError("the loss", batch)
                total.backward()
                sums["loss"] = sums.get("loss", 0.0) + float(total.detach())
                for name, values in stats.items():
                    sums[name] = sums.get(name, 0.0) + float(values.sum()) / count
        norms = {"grad_norm": self._clip(self._parameters, batches)}
        if self._apart:
            norms["critic_grad_norm"] = self._clip(self._apart, batches)
        rate = self.learning_rate
        for group in self._adam.param_groups:
            group["lr"] = rate
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        self._done += 1
        return {**sums, "learning_rate": rate, **norms}

    def _clip(self, parameters: list[nn.Parameter], batches: list[Any]) -> float:
        """Scale the gradient down to ``max_grad_norm``; returns its norm before."""
        norm = nn.utils.clip_grad_norm_(parameters, self._config.max_grad_norm)
        if not torch.isfinite(norm):
            raise NonFiniteError("the gradient", batches)
        return float(norm)


def mean_figures(steps: Sequence[Metrics]) -> Metrics:
    """The mean of each figure over several steps; the learning rate is the last one's."""
    means = {name: sum(step[name] for step in steps) / len(steps) for name in steps[0]}
    return {**means, "learning_rate": steps[-1]["learning_rate"]}


def steps_in(items: int, batch_size: int, epochs: float) -> int:
    """Optimiser steps of ``epochs`` passes over the items."""
    return max(1, round(items * epochs / batch_size))


def shuffled_batches(items: Sequence[Item], batch_size: int, steps: int, seed: int) -> Iterator[list[Item]]:
    """``steps`` full batches, pass after pass over the items, in an order that depends on the seed alone."""
    generator = random.Random(seed)

    def endless() -> Iterator[Item]:
        while True:
            for index in generator.sample(range(len(items)), len(items)):
                yield items[index]

    stream = endless()
    for _ in range(steps):
        yield list(itertools.islice(stream, batch_size))


def is_checkpoint(step: int, steps: int, times: int = 5) -> bool:
    """Whether to look at held-out data after ``step`` (from 1): ``times`` times in all, the last step included."""
    return step * times // steps > (step - 1) * times // steps
