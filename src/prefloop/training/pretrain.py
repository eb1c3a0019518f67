"""A small model from nothing: a byte-level BPE tokenizer and a Llama-shaped transformer, trained on plain text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prefloop.chat import Rendered
from prefloop.config import ModelConfig, PretrainConfig
from prefloop.models.loading import PAD_TOKEN, default_device
from prefloop.models.quickest import in_one_precision
from prefloop.policy import Policy
from prefloop.training.loop import Log, Metrics
from prefloop.training.maximum_likelihood import fit

EOS_TOKEN = "<|eos|>"


def make_policy(documents: Sequence[str], config: ModelConfig, seed: int) -> Policy:
    """An untrained model with a tokenizer that has learnt its merges from ``documents``."""
    tokenizer = train_tokenizer(documents, config.vocabulary)
    shape = llama_of(
        config,
        len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    model: Any = LlamaForCausalLM(shape)
    return Policy(model.to(device=default_device()), tokenizer)


def llama_of(config: ModelConfig, vocabulary: int, **ids: Any) -> LlamaConfig:
    """The configuration of a model of this shape."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=config.width,
        intermediate_size=4 * config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=config.context,
        tie_word_embeddings=True,
        bos_token_id=None,
        attention_dropout=0.0,
        # The usual 0.02 suits a width of 1,000 and more; narrow models start with attention that is far too flat.
        initializer_range=config.width**-0.5,
        **ids,
    )


def train_tokenizer(documents: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: any text goes in and comes out unchanged."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD_TOKEN, EOS_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=PAD_TOKEN, eos_token=EOS_TOKEN, clean_up_tokenization_spaces=False
    )


@in_one_precision
def train_pretrain(
    policy: Policy,
    documents: Sequence[str],
    heldout: Sequence[str],
    config: PretrainConfig,
    seed: int,
    log: Log,
) -> Metrics:
    """Train on every token of the documents; returns ``eval_loss`` (nats a token) where there is held-out text."""
    blocks = _blocks(policy, documents, config.block)
    if not blocks:
        raise ValueError("there is no text to pretrain on; give files in pretrain.files")
    batch_size = max(1, config.batch_tokens // config.block)
    return fit(
        policy.model,
        blocks,
        _blocks(policy, heldout, config.block),
        config,
        batch_size=batch_size,
        steps=max(1, config.tokens // (batch_size * config.block)),
        seed=seed,
        log=log,
    )


def _blocks(policy: Policy, documents: Sequence[str], length: int) -> list[Rendered]:
    """The documents end to end, an eos after each, cut into sequences of ``length`` tokens."""
    if not documents:
        return []
    stream = [
        token
        for ids in policy.tokenizer(list(documents), add_special_tokens=False)["input_ids"]
        for token in [*ids, policy.chat.eos_id]
    ]
    starts = range(0, max(1, len(stream) - length + 1), length)
    return [
        Rendered(ids, [False] + [True] * (len(ids) - 1))
        for ids in (stream[start : start + length] for start in starts)
        if len(ids) > 1
    ]
