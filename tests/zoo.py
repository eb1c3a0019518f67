"""Small random models of many architectures. Weights are large, so that logits spread over nats and mistakes show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tests.toys import PAD, byte_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

WINDOW = 6
CONTEXT = 64

BODY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.3}
LLAMA = {**BODY, "intermediate_size": 24, "num_key_value_heads": 1, "max_position_embeddings": CONTEXT}
MIXED = ["sliding_attention", "full_attention"]
SSM = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "expand": 2, "initializer_range": 0.3}
HYBRID = {**LLAMA, "num_experts": 2, "num_experts_per_tok": 1}
OPT = {
    "hidden_size": 16,
    "ffn_dim": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": CONTEXT,
    "init_std": 0.5,
    "word_embed_proj_dim": 16,
}

ZOO: dict[str, dict[str, Any]] = {
    # Learned positions, dropout in the configuration.
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": CONTEXT, "initializer_range": 0.3},
    "opt": OPT,
    # As OPT-350m: embeddings narrower than the layers, norm after each of them.
    "opt-projected": {**OPT, "model_type": "opt", "word_embed_proj_dim": 8, "do_layer_norm_before": False},
    # Rotary positions.
    "llama": LLAMA,
    "qwen2": LLAMA,
    "qwen3": {**LLAMA, "head_dim": 8},
    "gpt_neox": {**BODY, "intermediate_size": 24, "max_position_embeddings": CONTEXT},
    # A window that slides over every layer.
    "mistral": {**LLAMA, "sliding_window": WINDOW},
    "phi3": {**LLAMA, "sliding_window": WINDOW},
    # A window over some layers; soft caps; embeddings that are scaled.
    "gemma2": {
        **LLAMA,
        "head_dim": 8,
        "sliding_window": WINDOW,
        "layer_types": MIXED,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 4.0,
    },
    "gemma3_text": {
        **LLAMA,
        "head_dim": 8,
        "sliding_window": WINDOW,
        "layer_types": MIXED,
        "num_hidden_layers": 2,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 4.0,
    },
    # Positions as biases on attention; experts.
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.3},
    "mixtral": {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    # No attention at all, and one layer of either kind.
    "mamba": SSM,
    "mamba2": {**SSM, "head_dim": 8, "num_heads": 4, "n_groups": 2, "chunk_size": 8},
    "jamba": {
        **HYBRID,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_d_state": 4,
        "mamba_dt_rank": 2,
        "use_mamba_kernels": False,
    },
    "qwen3_next": {
        **HYBRID,
        "head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 1,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
}

WITHOUT_CLASSIFIER = ("mamba", "mamba2")
"""transformers has no sequence classifier of these, so there is no reward model."""


def make(name: str, tied: bool, vocabulary: int, **options: Any) -> Any:
    """A model of the zoo, from its configuration."""
    settings = {"model_type": name, **ZOO[name], **options}
    config = AutoConfig.for_model(
        settings.pop("model_type"),
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=None,
        **settings,
    )
    torch.manual_seed(len(name) + tied)
    return AutoModelForCausalLM.from_config(config)


def save(name: str, tied: bool, folder: Path, **options: Any) -> None:
    """A folder as one would download it. Tied models come with a tokenizer that has no pad token."""
    tokenizer = byte_tokenizer(pad=None if tied else PAD)
    model = make(name, tied, len(tokenizer), **options)
    model.config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
