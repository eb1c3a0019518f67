"""How long things take: measured here with a model of the recipe's kind, or assumed of a card."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from prefloop.algorithms.likelihood import token_log_probs
from prefloop.chat import Rendered
from prefloop.config import Precision
from prefloop.models.footprint import WEIGHT_BYTES, sequences_around
from prefloop.models.forward import (
    PART,
    arrange,
    context_of,
    head_logits,
    hidden_states,
    width_of,
)
from prefloop.planning.cards import Card
from prefloop.planning.data import Lengths
from prefloop.planning.subject import Subject
from prefloop.rollout.decoder import Decoder, casting_once
from prefloop.rollout.draw import draw

UTILISATION = 0.4
"""Assumed share of a card's products that training and reading reach."""
STREAMED = 0.5
"""Assumed share of a card's bandwidth that decoding and the optimiser reach."""
LAUNCHES = 1e-4
"""Assumed seconds that a layer takes to be asked for, however little it does."""
REPEATS, PATIENCE = 4, 0.7
"""Of what is timed, a first one to warm up included; after so many seconds no other is asked for."""
FEW, MANY = 256, 1024
"""Tokens of the two passes that are timed; of a large model an eighth."""
DRAWN = 4
"""Tokens of each row that are decoded to time that."""


@dataclass(frozen=True)
class Rates:
    """Seconds."""

    source: str
    train: float
    """A token, forwards and backwards through the trunk, and each pass besides."""
    train_pass: float
    train_logits: float
    """A token through the head and its loss, forwards and backwards."""
    read: float
    read_pass: float
    read_logits: float
    adam: float
    """An optimiser step."""
    decode_step: float
    """A step of decoding, and each of its rows besides."""
    decode_row: float

    def scaled(self, of: Subject, to: Subject) -> Rates:
        """A larger model of the same kind: as its products, its weights and its layers are more."""
        trunk, head = to.trunk / of.trunk, to.head / of.head
        weights, layers = to.weights / of.weights, to.layers / of.layers
        return replace(
            self,
            train=self.train * trunk,
            train_pass=self.train_pass * layers,
            train_logits=self.train_logits * head,
            read=self.read * trunk,
            read_pass=self.read_pass * layers,
            read_logits=self.read_logits * head,
            adam=self.adam * weights,
            decode_step=self.decode_step * weights,
            decode_row=self.decode_row * weights,
        )


def assumed(subject: Subject, card: Card, name: str, length: float, precision: Precision) -> Rates:
    """Of a card: a stated share of what its maker says."""
    teraflops = card.teraflops(precision)
    speed, streamed = UTILISATION * teraflops * 1e12, STREAMED * card.bandwidth * 1e9
    products = 2 * subject.trunk + 2 * subject.layers * subject.width * length
    stored = WEIGHT_BYTES / 2 if precision == "bfloat16" else WEIGHT_BYTES
    launch = subject.layers * LAUNCHES
    return Rates(
        source=f"assumed: {UTILISATION:.0%} of the {teraflops:g} TFLOP/s and {STREAMED:.0%} of the "
        f"{card.bandwidth:g} GB/s that the {name} has by its maker's data sheet",
        train=3 * products / speed,
        train_pass=3 * launch,
        train_logits=6 * subject.head / speed,
        read=products / speed,
        read_pass=launch,
        read_logits=2 * subject.head / speed,
        adam=7 * WEIGHT_BYTES * subject.weights / streamed,
        decode_step=stored * subject.weights / streamed + launch,
        decode_row=(products + 2 * subject.head) / speed,
    )


def make(config: Any, device: str) -> Any:
    """A model of this configuration with random weights."""
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().to(device)


def shallow(config: Any) -> Any:
    """The same layers, two of them, and few words."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    text.num_hidden_layers, text.vocab_size = 2, min(text.vocab_size, 4096)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:2]
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(text, name, None)
    return config


def narrow() -> LlamaConfig:
    """Layers that are large enough to multiply as fast as larger ones do."""
    return LlamaConfig(
        vocab_size=4096,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=2,
        num_attention_heads=16,
        num_key_value_heads=16,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )


def measure(model: Any, subject: Subject, lengths: Lengths) -> Rates:
    """Times passes, a step of the optimiser and decoding of this very model, in the precision chosen here."""
    sizes = (FEW, MANY) if subject.weights < 3e7 else (FEW // 4, MANY // 4)
    batches = [_sequences(model, lengths, tokens) for tokens in sizes]
    train, train_pass = _line([(sum(map(len, rows)), _trained(model, rows)) for rows in batches])
    read, read_pass = _line([(sum(map(len, rows)), _read(model, rows)) for rows in batches])
    decode_row, decode_step = _line([(rows, _decoded(model, lengths, rows)) for rows in (8, 64)])
    logits = max(1, min(sizes[1], PART // subject.vocabulary))
    return Rates(
        source=f"measured on {subject.name}",
        train=train,
        train_pass=train_pass,
        train_logits=_head(model, logits, trained=True) / logits,
        read=read,
        read_pass=read_pass,
        read_logits=_head(model, logits, trained=False) / logits,
        adam=_adam(model),
        decode_step=decode_step,
        decode_row=decode_row,
    )


def _line(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Seconds for each thing more, and whatever their number; from those of few things and of many."""
    (few, less), (many, more) = points
    slope = (more - less) / (many - few)
    # Where noise is larger than what things take, all counts as taken by things.
    return (slope, less - few * slope) if 0 < slope <= less / few else (more / many, 0.0)


def _seconds(model: Any, work: Callable[[], object]) -> float:
    """The mean of several after a first one."""
    found: list[float] = []
    while len(found) < REPEATS and (len(found) < 2 or sum(found) < PATIENCE):
        _wait(model)
        started = time.perf_counter()
        work()
        _wait(model)
        found.append(time.perf_counter() - started)
    return fmean(found[1:])


def _wait(model: Any) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def _sequences(model: Any, lengths: Lengths, tokens: int) -> list[Rendered]:
    """Of about the recipe's lengths, and about ``tokens`` in all."""
    whole = max(4, min(round(lengths.whole), context_of(model) * 4 // 5, tokens // 4))
    return sequences_around(model, whole, max(1, tokens // whole))


def _trained(model: Any, rows: list[Rendered]) -> float:
    try:
        return _seconds(model, lambda: hidden_states(model, arrange(rows, model)).sum().backward())
    finally:
        model.zero_grad(set_to_none=True)


@torch.no_grad()
def _read(model: Any, rows: list[Rendered]) -> float:
    return _seconds(model, lambda: hidden_states(model, arrange(rows, model)))


def _head(model: Any, count: int, *, trained: bool) -> float:
    """The head and the loss of so many tokens."""
    states = torch.randn(count, width_of(model), device=model.device, requires_grad=trained)
    targets = torch.zeros(count, dtype=torch.long, device=model.device)

    def work() -> None:
        log_probs = token_log_probs(head_logits(model, states), targets)
        if trained:
            log_probs.sum().backward()

    try:
        with torch.set_grad_enabled(trained):
            return _seconds(model, work)
    finally:
        model.zero_grad(set_to_none=True)


def _adam(model: Any) -> float:
    """A step and the clipping before it; weights stay as they are."""
    parameters = list(model.parameters())
    for one in parameters:
        one.grad = torch.zeros_like(one)
    adam = torch.optim.AdamW(parameters, lr=0.0, fused=True)

    def work() -> None:
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.step()

    try:
        return _seconds(model, work)
    finally:
        model.zero_grad(set_to_none=True)


@torch.no_grad()
def _decoded(model: Any, lengths: Lengths, rows: int) -> float:
    """One more token of each of so many rows."""
    words = model.get_input_embeddings().num_embeddings
    length = max(1, min(round(lengths.prompt), context_of(model) - DRAWN * REPEATS - 1))
    prompts = [[(37 * row + place) % words for place in range(length)] for row in range(rows)]
    uniforms = torch.full((rows,), 0.5, dtype=torch.float64, device=model.device)
    with casting_once(model):
        decoder = Decoder(model, prompts, 1)

        def work() -> None:
            for _ in range(DRAWN):
                tokens, _, _ = draw(head_logits(model, decoder.states), uniforms, 1.0)
                decoder.advance(tokens)

        return _seconds(model, work) / DRAWN
