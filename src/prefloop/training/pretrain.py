"""A small model from nothing: a byte-level BPE tokenizer and a Llama-shaped transformer, trained on plain text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
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
AT_ONCE = 256
"""Pieces of text that are tokenised together."""
PIECE = 1 << 11
"""Characters of a piece, and those up to the end of a word."""
_WORD_ENDS = re.compile(r"\S(?=[ \n])")


def make_policy(documents: Iterable[str], config: ModelConfig, seed: int) -> Policy:
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


def train_tokenizer(documents: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
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
    bpe.train_from_iterator((piece for document in documents for piece, _ in _pieces(document)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=PAD_TOKEN, eos_token=EOS_TOKEN, clean_up_tokenization_spaces=False
    )


@in_one_precision
def train_pretrain(
    policy: Policy,
    blocks: Sequence[Rendered],
    heldout: Sequence[Rendered],
    config: PretrainConfig,
    seed: int,
    log: Log,
) -> Metrics:
    """Train on every token of the blocks but the first; returns ``eval_loss`` (nats a token) where there is held-out
    text."""
    if not blocks:
        raise ValueError("there is no text to pretrain on; give files in pretrain.files")
    batch_size = max(1, config.batch_tokens // config.block)
    return fit(
        policy.model,
        blocks,
        heldout,
        config,
        batch_size=batch_size,
        steps=max(1, config.tokens // (batch_size * config.block)),
        seed=seed,
        log=log,
    )


def blocks_of(policy: Policy, documents: Iterable[str], length: int) -> Iterator[Rendered]:
    """The documents end to end, an eos after each, cut into sequences of ``length`` tokens.

    What is left at the end is left out, unless it is all there is. Of a sequence every token but the first is learnt.
    """
    left, cut = list[int](), False
    for ids in _tokenised(policy, documents):
        left += ids
        starts = range(0, len(left) - length + 1, length)
        for start in starts if length > 1 else ():
            cut = True
            yield _block(left[start : start + length])
        del left[: len(starts) * length]
    if len(left) > 1 and not cut:
        yield _block(left)


def _tokenised(policy: Policy, documents: Iterable[str]) -> Iterator[list[int]]:
    """The ids of each piece, and the eos after a document's last."""
    every = (piece for document in documents for piece in _pieces(document))
    while some := list(islice(every, AT_ONCE)):
        found = policy.tokenizer([piece for piece, _ in some], add_special_tokens=False)["input_ids"]
        for ids, (_, last) in zip(found, some, strict=True):
            yield [*ids, policy.chat.eos_id] if last else ids


def _pieces(document: str) -> Iterator[tuple[str, bool]]:
    """A document's parts, and whether it is the last: a tokenizer takes 100 times a text's memory and more.

    Our own tokenizer reads the parts as it reads the whole, for a word of it may begin with white space, but none has
    any behind another character [Radford et al. 2019, the pattern of GPT-2].
    """
    start = 0
    while end := _WORD_ENDS.search(document, start + PIECE):
        yield document[start : end.end()], False
        start = end.end()
    yield document[start:], True


def _block(ids: list[int]) -> Rendered:
    return Rendered(ids, [False] + [True] * (len(ids) - 1))
