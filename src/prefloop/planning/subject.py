"""The model that is planned for: its sizes, counted on a copy without storage."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, LlamaConfig
from transformers.cache_utils import DynamicLayer

from prefloop.config import ModelConfig, Precision
from prefloop.models.footprint import Kept, kept
from prefloop.models.forward import context_of
from prefloop.models.precision import autocast, computing_in
from prefloop.rollout.decoder import Roomy
from prefloop.training.pretrain import llama_of

BILLIONS = {"K": 1e3, "M": 1e6, "B": 1e9}


@dataclass(frozen=True)
class Subject:
    """A model's sizes."""

    name: str
    weights: int
    """All of them; those of a head that shares the embeddings' count once."""
    head: int
    """Width times vocabulary: weights that a token meets only where its logits are asked for."""
    trunk: int
    """Weights that every token meets. (Of experts all, though a token meets a few.)"""
    layers: int
    width: int
    vocabulary: int
    context: int
    kept: Kept
    """By a pass, for its backward pass."""
    cache: float
    """Bytes that decoding keeps for each token: keys and values of all layers."""

    def scaled(self, share: float) -> Subject:
        """About what a model with this share of the weights would be: width and depth shrink alike."""
        width = share ** (1 / 3)
        return replace(
            self,
            weights=round(self.weights * share),
            head=round(self.head * width),
            trunk=round(self.trunk * share),
            layers=max(1, round(self.layers * width)),
            width=round(self.width * width),
            kept=Kept(self.kept.per_token * width**2, self.kept.fixed * share),
            cache=self.cache * width**2,
        )


def config_of(model: ModelConfig, size: float | None) -> tuple[str, Any]:
    """The name and the configuration of the recipe's model, or of one of ``size`` weights.

    Raises:
        ValueError: there is no such model on this machine.
    """
    if size is not None:
        return f"a Llama of {size / 1e9:.3g} B weights", _llama_of_size(size)
    if not model.path:
        return f"[model], {model.layers} layers of width {model.width}", llama_of(model, model.vocabulary)
    try:
        return model.path, AutoConfig.from_pretrained(model.path, local_files_only=True)
    except (OSError, ValueError) as error:
        folder = Path(model.path)
        found = "the folder has no config.json" if folder.is_dir() else "there is no such folder"
        raise ValueError(
            f"model.path = {model.path!r}: {found}, and no model of that name was downloaded before. Give the folder "
            "of a model, load it once so that it is on this machine, or plan for a size with --model-size 7B"
        ) from error


def size_of(text: str) -> float:
    """``7B`` or ``350M`` as a number of weights.

    Raises:
        ValueError: it is neither, or out of range.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMB])", text.strip().upper())
    size = float(found[1]) * BILLIONS[found[2]] if found else 0.0
    if not 1e6 <= size <= 1e12:
        raise ValueError(
            f"--model-size {text}: expected a number with M or B, from 1M to 1000B, for example 350M or 7B"
        )
    return size


def _llama_of_size(size: float) -> LlamaConfig:
    """As deep as its width in units of 128, as models of 1 to 70 B weights about are; 12·width² weights a layer."""

    def shape(units: int) -> LlamaConfig:
        width = 128 * units
        return LlamaConfig(
            vocab_size=32_000,
            hidden_size=width,
            intermediate_size=-(-8 * width // 3 // 64) * 64,
            num_hidden_layers=units,
            num_attention_heads=units,
            num_key_value_heads=units,
            max_position_embeddings=8192,
            tie_word_embeddings=units <= 16,
        )

    def weights(units: int) -> float:
        width = 128 * units
        return 12 * width**2 * units + (1 if units <= 16 else 2) * 32_000 * width

    return shape(min(range(1, 400), key=lambda units: abs(weights(units) - size)))


def describe(name: str, config: Any, length: int, precision: Precision) -> Subject:
    """The sizes of a model of this configuration, read in this precision in sequences of about ``length`` tokens.

    Nothing of the model's size is allocated.

    Raises:
        ValueError: transformers has no causal language model of this configuration, or it cannot be counted so.
    """
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), computing_in(precision):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            found = _sizes(model)
            return Subject(name, kept=kept(model, length), cache=_cache(model, length), **found)
    except Exception as error:  # an architecture's own code may raise anything
        raise ValueError(
            f"cannot count {name} ({config.model_type}): {str(error).splitlines()[0]}. Plan for a model of the same "
            "size instead: --model-size 7B"
        ) from error


def _sizes(model: Any) -> dict[str, int]:
    config = model.config.get_text_config()
    vocabulary, width = model.get_output_embeddings().weight.shape
    weights = sum(one.numel() for one in model.parameters())
    head = vocabulary * width
    embeddings = sum(one.numel() for one in model.get_input_embeddings().parameters())
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    return {
        "weights": weights,
        "head": head,
        "trunk": weights - embeddings - (0 if tied else head),
        "layers": config.num_hidden_layers,
        "width": width,
        "vocabulary": vocabulary,
        "context": context_of(model),
    }


@torch.no_grad()
def _cache(model: Any, length: int) -> float:
    """Of a token, by the pass of one sequence."""
    length = max(1, min(length, context_of(model)))
    cache = DynamicCache(config=model.config)
    cache.layers = [Roomy() if isinstance(layer, DynamicLayer) else layer for layer in cache.layers]
    ids = torch.zeros(1, length, dtype=torch.long)
    with autocast(model):
        model.base_model(input_ids=ids, use_cache=True, past_key_values=cache)
    kinds = (getattr(layer, kind, None) for layer in cache.layers for kind in ("keys", "values"))
    return sum(one.nbytes for one in kinds if one is not None) / length


def is_small(subject: Subject, most: float = 2e8) -> bool:
    """Whether a model of these weights can be made here to be timed."""
    return subject.weights <= most
