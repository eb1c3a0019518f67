"""A model is measured as it is loaded: does batched, cached decoding say what the model itself says of one sequence?

A measurement, not a list of names: transformers has some two hundred causal architectures and changes them. It costs
a dozen passes over at most ten tokens, which is little beside reading the weights. It cannot see what begins beyond
ten tokens, as a sliding window does; ``tests/models/test_architectures.py`` goes there with small models.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prefloop.chat import Rendered
from prefloop.models.forward import context_of, head_logits, hidden_states, pad
from prefloop.models.precision import computing_in
from prefloop.rollout.decoder import Decoder

# Of the logits' standard deviation. In float32 rounding stays far below; a wrong position, mask or state does not.
TOLERANCE = 1e-2
# The head is applied to the same states, so hardly any rounding is between the two.
HEAD_TOLERANCE = 1e-3

INSTEAD = "Use a decoder-only architecture; docs/models.md lists those that are tested"


@torch.no_grad()
def check_model(model: Any, name: str) -> None:
    """Refuse an architecture that would be sampled from or trained wrongly.

    Raises:
        ValueError: the model is not causal, its logits are not its head applied to its last hidden states, padding
            changes its results, or its cache cannot be used.
    """
    architecture = model.config.model_type
    kind = f"{name}: {'an' if architecture[0] in 'aeio' else 'a'} {architecture} model"
    try:
        with computing_in("float32"):  # whatever is chosen for training: of less, rounding alone would be a fault
            fault = _fault(model)
    except Exception as error:  # an architecture's own code may raise anything
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"{kind} cannot be decoded in batches with a cache ({type(error).__name__}: {reason}). {INSTEAD}"
        ) from error
    if fault:
        raise ValueError(f"{kind} {fault}")


def _fault(model: Any) -> str | None:
    """What is wrong, as the rest of a sentence that begins with "a NAME model"."""
    whole = min(10, context_of(model))
    long, short = max(1, whole - 3), max(1, whole - 7)
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = [1 + 37 * place % (vocabulary - 1) for place in range(whole)]
    expected, start = _logits(model, ids), _logits(model, ids[:short])
    if not bool(expected.isfinite().all()):
        return "gives logits that are not finite, as after training that diverged. Use an earlier checkpoint"
    if _differ(start, expected[:short]):
        return f"reads what comes after a token, so it is no causal language model. {INSTEAD}"

    batch = pad([Rendered(ids, [True] * whole), Rendered(ids[:short], [True] * short)], model.device)
    states = hidden_states(model, batch).unflatten(0, batch.ids.shape)
    if _differ(head_logits(model, states[0]), expected, HEAD_TOLERANCE):
        return (
            "computes its logits in a way that prefloop does not know, so its log-probabilities would be wrong. "
            "Please report the architecture"
        )
    if _differ(head_logits(model, states[1, :short]), expected[:short]):
        return f"gives other results for a sequence that has padding behind it. {INSTEAD}"

    decoder = Decoder(model, [ids[:long], ids[:short]], answers=2)
    places = [long, long, short, short]
    for place in range(whole - long + 1):
        found = head_logits(model, decoder.states)
        if _differ(found, expected[[row - 1 for row in places]]):
            return (
                "gives other results with left padding and a cache than without, so what is sampled would not be "
                f"what is trained. {INSTEAD}"
            )
        if place == 1:  # rows leave
            decoder.keep(torch.tensor([1, 2], device=model.device))
            places = places[1:3]
        if place < whole - long:
            decoder.advance(torch.tensor([ids[row] for row in places], device=model.device))
            places = [row + 1 for row in places]
        if place == 1 and decoder.takes_newcomers:
            decoder.running = torch.tensor([False, True], device=model.device)
            decoder.enter([ids[:short]], answers=2)
            places = [places[1], short, short]
    return None


def _logits(model: Any, ids: list[int]) -> Float[Tensor, "T V"]:
    """The model's own, of one sequence, without cache or padding."""
    rows: Int[Tensor, "1 T"] = torch.tensor([ids], device=model.device)
    logits: Tensor = model(input_ids=rows).logits[0]
    return logits


def _differ(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> bool:
    """By more than rounding. (Written so that a NaN differs.)"""
    return not bool((found - expected).abs().max() <= tolerance * expected.std(correction=0))
