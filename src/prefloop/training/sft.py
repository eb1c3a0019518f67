"""Supervised fine-tuning on demonstrations [Ouyang et al. 2022, §3.5]: the loss is on the responses only."""

from __future__ import annotations

from collections.abc import Sequence

from prefloop.chat import Rendered
from prefloop.config import SFTConfig
from prefloop.models.quickest import in_one_precision
from prefloop.policy import Policy
from prefloop.training.loop import Log, Metrics, steps_in
from prefloop.training.maximum_likelihood import fit


@in_one_precision
def train_sft(
    policy: Policy,
    demonstrations: Sequence[Rendered],
    heldout: Sequence[Rendered],
    config: SFTConfig,
    seed: int,
    log: Log,
) -> Metrics:
    """Fine-tune ``policy`` in place; returns ``eval_loss`` (nats a token) where there is held-out data."""
    if not demonstrations:
        raise ValueError("there are no demonstrations to learn from. Import some, or set sft.demonstrations")
    steps = steps_in(len(demonstrations), config.batch_size, config.epochs)
    return fit(
        policy.model,
        demonstrations,
        heldout,
        config,
        batch_size=config.batch_size,
        steps=steps,
        seed=seed,
        log=log,
    )
