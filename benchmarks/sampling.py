"""Sampling against a bare decode loop and against transformers' own: what docs/sampling.md reports.

    python benchmarks/sampling.py [--sizes tiny small gpt2] [--parts full mixed] [--repeats 3] [--threads 1]

Models from their configuration with random weights, prompts of 20 to 60 tokens, 64 sequences at a time. In the part
``full`` nothing ends early: 64 prompts, 64 tokens each. In ``mixed`` every token is an eos with probability 1/40 and
the limit is 128: 256 prompts whose answers differ in length. The contenders take turns, ``--repeats`` times, and the
best of each counts: seconds of the clock, and seconds of the processor, which others' work on the machine disturbs
less. Transformers' continuous batching is timed once by default (``--slow 1``), as it may take minutes.

* bare: transformers' model, `DynamicCache`, padding on the left, the likeliest token and nothing else.
* ours: `prefloop.rollout.sampler.sample`, with log-probabilities, entropies and values.
* groups: the same on 64 prompts after the other, so that nobody enters.
* generate: `model.generate(do_sample=True)` on the same groups, without log-probabilities.
* continuous: `model.generate_batch`, transformers' continuous batching.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    ContinuousBatchingConfig,
    DynamicCache,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
)

from prefloop.models.heads import ValueHead
from prefloop.models.precision import autocast, computing_in
from prefloop.rollout.sampler import sample

Prompts = list[list[int]]
BATCH, EOS, NEVER = 64, 1, -1
MEAN = 40
"""Tokens of an answer in the part "mixed", were there no limit."""


def llama(width: int, layers: int) -> LlamaConfig:
    heads = max(4, width // 64)
    return LlamaConfig(
        vocab_size=4096,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=width * 8 // 3 // 8 * 8,
        max_position_embeddings=512,
    )


SIZES: dict[str, Callable[[], Any]] = {
    "tiny": lambda: llama(128, 4),
    "small": lambda: llama(384, 8),
    "gpt2": GPT2Config,
}


def make(size: str) -> Any:
    """A model whose every token is an eos with probability 1 / MEAN, about."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(SIZES[size]()).eval()
    head = model.get_output_embeddings()
    bias = torch.zeros(head.weight.shape[0])
    bias[EOS] = np.log(len(bias) / (MEAN - 1))
    head.bias = nn.Parameter(bias)
    return model


def make_prompts(count: int, vocabulary: int) -> Prompts:
    numbers = np.random.default_rng(0)
    return [numbers.integers(2, vocabulary, length).tolist() for length in numbers.integers(20, 61, count)]


def groups_of(prompts: Prompts) -> list[Prompts]:
    by_length = sorted(prompts, key=len)
    return [by_length[start : start + BATCH] for start in range(0, len(prompts), BATCH)]


def padded(prompts: Prompts) -> tuple[Tensor, Tensor]:
    """Ids with padding on the left, and their mask."""
    longest = max(map(len, prompts))
    ids = [[0] * (longest - len(p)) + p for p in prompts]
    mask = [[0] * (longest - len(p)) + [1] * len(p) for p in prompts]
    return torch.tensor(ids), torch.tensor(mask)


@torch.no_grad()
def bare(model: Any, prompts: Prompts, _eos: int, limit: int) -> int:
    """As many tokens for everybody, whatever they are."""
    for group in groups_of(prompts):
        ids, mask = padded(group)
        cache = DynamicCache(config=model.config)
        for step in range(limit):
            positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
            logits = model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            ids = logits[:, -1].argmax(1, keepdim=True)
            if step < limit - 1:
                mask = torch.cat([mask, mask.new_ones(len(ids), 1)], dim=1)
    return len(prompts) * limit


def ours(model: Any, prompts: Prompts, eos: int, limit: int) -> int:
    head = ValueHead(model.get_output_embeddings().weight.shape[1])
    rollout = sample(model, prompts, eos_id=eos, max_response_tokens=limit, batch_size=BATCH, value_head=head)
    return int(rollout.lengths.sum())


def groups(model: Any, prompts: Prompts, eos: int, limit: int) -> int:
    return sum(ours(model, group, eos, limit) for group in groups_of(prompts))


@torch.no_grad()
def generate(model: Any, prompts: Prompts, eos: int, limit: int) -> int:
    settings = GenerationConfig(do_sample=True, max_new_tokens=limit, eos_token_id=eos, pad_token_id=0, top_k=0)
    total = 0
    for group in groups_of(prompts):
        ids, mask = padded(group)
        answers = model.generate(ids, attention_mask=mask, generation_config=settings)[:, ids.shape[1] :]
        total += sum(length_of(row, eos) for row in answers.tolist())
    return total


def continuous(model: Any, prompts: Prompts, eos: int, limit: int) -> int:
    settings = GenerationConfig(do_sample=True, max_new_tokens=limit, eos_token_id=eos, pad_token_id=0, top_k=0)
    # Pages as small and as few as hold the batch: on a CPU the defaults take far more memory and time.
    room = ContinuousBatchingConfig(page_size=32, num_blocks=BATCH * 6, max_batch_tokens=512)
    found = model.generate_batch(prompts, generation_config=settings, continuous_batching_config=room, warmup=False)
    return sum(length_of(one.generated_tokens, eos) for one in found.values())


def length_of(ids: Sequence[int], eos: int) -> int:
    """Tokens of an answer, its eos included."""
    return ids.index(eos) + 1 if eos in ids else len(ids)


def in_bfloat16(contender: Callable[..., int]) -> Callable[..., int]:
    def run(model: Any, *given: Any) -> int:
        with computing_in("bfloat16"), autocast(model):
            return contender(model, *given)

    return run


CONTENDERS: dict[str, Callable[..., int]] = {
    "bare": bare,
    "ours": ours,
    "groups": groups,
    "generate": generate,
    "continuous": continuous,
    "bare bf16": in_bfloat16(bare),
    "ours bf16": in_bfloat16(ours),
}


def compare(model: Any, part: str, names: Sequence[str], repeats: int, slow: int) -> None:
    eos, limit, count = (NEVER, 64, 64) if part == "full" else (EOS, 128, 256)
    prompts = make_prompts(count, model.config.vocab_size)
    best: dict[str, list[float]] = {name: [0.0, 0.0] for name in names}
    for turn in range(repeats):
        for name in names:
            if name == "continuous" and turn >= slow:
                continue
            wall, cpu = time.perf_counter(), time.process_time()
            tokens = CONTENDERS[name](model, prompts, eos, limit)
            speeds = tokens / (time.perf_counter() - wall), tokens / (time.process_time() - cpu)
            best[name] = [max(pair) for pair in zip(best[name], speeds, strict=True)]
    for name, (wall, cpu) in best.items():
        share = cpu / best[names[0]][1]
        print(f"{part:6} {name:10} {wall:7.0f} tokens/s, {cpu:7.0f} a processor second: {share:5.0%} of {names[0]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["tiny", "small"])
    parser.add_argument("--parts", nargs="+", choices=["full", "mixed"], default=["full", "mixed"])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--slow", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)
    for size in options.sizes:
        model = make(size)
        print(
            f"{size}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, {options.threads} threads"
        )
        for part in options.parts:
            compare(model, part, options.contenders, options.repeats, options.slow)


if __name__ == "__main__":
    main()
