"""How the cost of training grows with rows, length, batch, width, depth, vocabulary and episodes.

    python benchmarks/cost.py [--series rows length …] [--repeats 3] [--precision auto]

Each series doubles one number and leaves the others as they are; its members are timed in turn, ``--repeats`` times,
and the best of each counts. Models are Llamas from configuration with random weights. What is printed is seconds of
an optimiser step (rows: of the whole training; episodes: of an iteration of PPO) and how many times those of the
member before. ``rest`` is ``length`` with attention left out: each layer's attention hands its values on.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AttentionInterface, AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

import prefloop
from prefloop.chat import Rendered
from prefloop.config import PPOConfig, SFTConfig
from prefloop.feedback.records import Prompt
from prefloop.models.packing import NAME, attention, longest_packed
from prefloop.policy import Policy
from prefloop.rollout.reward import function_reward
from prefloop.training.loop import Metrics
from prefloop.training.policy_gradient import train_policy_gradient
from prefloop.training.sft import train_sft

STEPS = 8
"""Of a measured training; the first two do not count."""


def policy_of(width: int = 256, layers: int = 4, vocabulary: int = 4096) -> Policy:
    """A Llama with heads of 32 and a vocabulary of numbers."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=8 * width // 3 // 8 * 8,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    words = {"<pad>": 0, "<eos>": 1} | {str(number): number for number in range(2, vocabulary)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="2")), pad_token="<pad>", eos_token="<eos>"
    )
    torch.manual_seed(0)
    return Policy(AutoModelForCausalLM.from_config(config), tokenizer)


def rows_of(count: int, lengths: tuple[int, int], vocabulary: int = 4096) -> list[Rendered]:
    """Random rows whose lengths are spread evenly; the second half of each is a response."""
    draw = random.Random(0)
    shortest, longest = lengths
    made = []
    for number in range(count):
        length = shortest + (longest - shortest) * number // max(1, count - 1)
        ids = [draw.randrange(2, vocabulary) for _ in range(length)]
        made.append(Rendered(ids, [place >= length // 2 for place in range(length)]))
    draw.shuffle(made)
    return made


def fine_tuning(policy: Policy, rows: Sequence[Rendered], batch_size: int, *, whole: bool = False) -> float:
    """Seconds of a step, or of the whole training on all rows once."""
    lines: list[Metrics] = []
    steps = max(1, len(rows) // batch_size) if whole else STEPS
    epochs = steps * batch_size / len(rows)
    config = SFTConfig(batch_size=batch_size, epochs=epochs, learning_rate=1e-6)
    train_sft(policy, rows, [], config, 0, lines.append)
    seconds = [line["seconds"] for line in lines]
    return seconds[-1] if whole else (seconds[-1] - seconds[1]) / (len(seconds) - 2)


def without_attention(policy: Policy, rows: Sequence[Rendered], batch_size: int) -> float:
    """Seconds of a step in which no token looks at another."""
    longest_packed(policy.model)  # measured before attention is gone
    AttentionInterface.register(NAME, lambda *given, **_: (given[3].transpose(1, 2), None))
    try:
        return fine_tuning(policy, rows, batch_size)
    finally:
        AttentionInterface.register(NAME, attention)


def iteration(policy: Policy, episodes: int) -> float:
    """Seconds of an iteration of PPO with prompts of 32 and responses of 32 tokens."""
    draw = random.Random(0)
    prompts = [Prompt.of(" ".join(str(draw.randrange(2, 4000)) for _ in range(28))) for _ in range(episodes)]
    lines: list[Metrics] = []
    config = PPOConfig(
        iterations=3,
        episodes=episodes,
        minibatch_episodes=16,
        epochs=2,
        learning_rate=1e-6,
        max_response_tokens=32,
    )
    reward = function_reward(lambda _, response: float(len(response)), policy.chat)
    train_policy_gradient(policy, prompts, [reward], config, 0, lines.append)
    return (lines[-1]["seconds"] - lines[0]["seconds"]) / 2


def series() -> dict[str, dict[int, Callable[[], float]]]:
    """By name: the number that grows, and what is timed for it."""
    base = policy_of()
    return {
        "rows": {
            count: partial(fine_tuning, base, rows_of(count, (40, 160)), 16, whole=True) for count in (128, 256, 512)
        },
        "length": {
            length: partial(fine_tuning, base, rows_of(16 * STEPS, (length, length)), 16)
            for length in (64, 128, 256, 512)
        },
        "rest": {
            length: partial(without_attention, base, rows_of(16 * STEPS, (length, length)), 16)
            for length in (64, 128, 256, 512)
        },
        "batch": {
            size: partial(fine_tuning, base, rows_of(size * STEPS, (40, 160)), size) for size in (4, 8, 16, 32, 64)
        },
        "width": {
            width: partial(fine_tuning, policy_of(width=width), rows_of(16 * STEPS, (40, 160)), 16)
            for width in (128, 256, 512, 1024)
        },
        "layers": {
            layers: partial(fine_tuning, policy_of(layers=layers), rows_of(16 * STEPS, (40, 160)), 16)
            for layers in (2, 4, 8, 16)
        },
        "vocabulary": {
            words: partial(fine_tuning, policy_of(vocabulary=words), rows_of(16 * STEPS, (40, 160)), 16)
            for words in (4096, 8192, 16384, 32768)
        },
        "episodes": {count: partial(iteration, base, count) for count in (32, 64, 128)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found = series()
    parser.add_argument("--series", nargs="+", default=list(found), choices=list(found))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16"))
    options = parser.parse_args()
    with prefloop.computing_in(options.precision):
        for name in options.series:
            show(name, found[name], options.repeats)


def show(name: str, members: dict[int, Callable[[], float]], repeats: int) -> None:
    best = dict.fromkeys(members, float("inf"))
    for _ in range(repeats):
        for number, timed in members.items():
            best[number] = min(best[number], timed())
    growth: dict[int, Any] = {after: best[after] / best[before] for before, after in pairwise(members)}
    for number, seconds in best.items():
        times = f"  {growth[number]:.2f} ×" if number in growth else ""
        print(f"{name} {number:>6}: {1e3 * seconds:9.1f} ms{times}", flush=True)


if __name__ == "__main__":
    main()
