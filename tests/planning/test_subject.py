"""A model's sizes, counted without making it, against the model made."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.toys import policy
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from prefloop.config import ModelConfig
from prefloop.models.footprint import kept, sequences_around
from prefloop.models.forward import pack, pad, predicting_states
from prefloop.models.precision import computing_in
from prefloop.planning.subject import config_of, describe, size_of
from prefloop.rollout.decoder import Decoder

CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig(
        vocab_size=300,
        hidden_size=48,
        intermediate_size=100,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
    ),
    "tied": LlamaConfig(
        vocab_size=200,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
    ),
    "gpt2": GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=128),
}


@pytest.mark.parametrize("layout", [pack, pad])
def test_counting_leaves_nothing_without_storage_behind(layout: Any) -> None:
    """A mask that was kept from counting had no numbers, and real passes of that length took it."""
    describe("llama", CONFIGS["llama"], 40, "bfloat16")
    model: Any = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    sequences = sequences_around(model, 40, 8)
    exact = predicting_states(model, layout(sequences, model.device))
    with computing_in("bfloat16"):
        found = predicting_states(model, layout(sequences, model.device))
    assert type(found) is torch.Tensor
    torch.testing.assert_close(found.float(), exact, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_counts_without_storage_are_those_of_the_model(name: str, precision: Any) -> None:
    found = describe(name, CONFIGS[name], 40, precision)
    model: Any = AutoModelForCausalLM.from_config(CONFIGS[name])
    layers = model.base_model.get_submodule("h" if name == "gpt2" else "layers")
    assert found.weights == sum(one.numel() for one in model.parameters())
    assert found.head == model.get_output_embeddings().weight.numel()
    positions = model.base_model.wpe.weight.numel() if name == "gpt2" else 0
    last = model.base_model.get_submodule("ln_f" if name == "gpt2" else "norm")
    inside = sum(one.numel() for part in (layers, last) for one in part.parameters())
    assert found.trunk == inside + positions
    with computing_in(precision):
        assert found.kept.per_token == pytest.approx(kept(model, 40).per_token, rel=0.01)
        with torch.no_grad():
            decoder = Decoder(model.eval(), [list(range(1, 25))] * 3, 1)
    columns = [layer.keys.nbytes + layer.values.nbytes for layer in decoder._cache.layers]
    assert found.cache == pytest.approx(sum(columns) / (3 * 24), rel=0.01)
    assert found.context == 128


def test_a_large_model_is_counted_on_a_small_machine() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _, config = config_of(ModelConfig(), size_of("7B"))
    found = describe("7B", config, 300, "bfloat16")
    assert found.weights == pytest.approx(7e9, rel=0.1)
    # By hand: the casts of all layers' products, and at least what enters each of them.
    assert found.kept.fixed == pytest.approx(2 * found.trunk, rel=0.1)
    assert found.kept.per_token > found.layers * found.width * 2 * 8
    assert found.cache == 2 * found.layers * found.width * 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 * 1024, "something was allocated"


@pytest.mark.parametrize(("text", "size"), [("7B", 7e9), ("350m", 3.5e8), ("1.5B", 1.5e9)])
def test_sizes_are_read_and_met(text: str, size: float) -> None:
    assert size_of(text) == size
    _, config = config_of(ModelConfig(), size)
    assert describe(text, config, 64, "float32").weights == pytest.approx(size, rel=0.15)


@pytest.mark.parametrize("text", ["7", "B", "7 giga", "0B", "-1B", "5K", "2000B"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"--model-size .*for example 350M or 7B"):
        size_of(text)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no-such.*there is no such folder.*--model-size 7B"):
        config_of(ModelConfig(path=str(tmp_path / "no-such")), None)
    with pytest.raises(ValueError, match=r"has no config\.json"):
        config_of(ModelConfig(path=str(tmp_path)), None)


def test_a_folder_is_counted_as_it_is(tmp_path: Path) -> None:
    made = policy()
    made.save(tmp_path)
    name, config = config_of(ModelConfig(path=str(tmp_path)), None)
    found = describe(name, config, 16, "float32")
    assert found.weights == sum(one.numel() for one in made.model.parameters())


def test_a_smaller_share_keeps_less() -> None:
    whole = describe("llama", CONFIGS["llama"], 40, "float32")
    half = whole.scaled(0.5)
    assert half.weights == round(whole.weights / 2)
    assert half.kept.per_token < whole.kept.per_token
    assert half.cache < whole.cache
