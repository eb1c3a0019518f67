"""The models and rows that both sides are given: made once, from configuration and from a file of comparisons."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from prefloop.chat import Chat
from prefloop.config import SFTConfig
from prefloop.feedback.formats import read_file
from prefloop.feedback.records import Completion, Judgement, Message, Prompt
from prefloop.models.heads import RewardModel
from prefloop.policy import Policy, load_policy
from prefloop.training.pretrain import train_tokenizer
from prefloop.training.sft import train_sft

VOCABULARY = 4096
LONGEST = 512
"""Tokens of a row at most, prompt and answer together: nothing is cut by either side."""
LESSONS = 1024
"""Rows from which a model learns to end its answers, before anything is measured."""
PPO_PROMPT = 48
"""Tokens of a prompt at most, in PPO."""


@dataclass(frozen=True)
class Size:
    """A model, and how much of each work is measured with it."""

    config: PretrainedConfig
    rows: int
    comparisons: int
    """Of the reward model's training, which is quick: with few, the whole process would be its imports."""
    batch_size: int
    episodes: int
    iterations: int
    learning_rate: float
    fine_tuned: bool
    """Whether training starts from a model that has learnt to end its answers."""


def sizes() -> dict[str, Size]:
    """By name, smallest first."""
    return {
        "tiny": Size(_llama(128, 4, 4), 512, 1536, 32, 128, 6, 5e-4, True),
        "small": Size(_llama(384, 8, 6), 192, 192, 32, 64, 3, 3e-4, True),
        "gpt2": Size(GPT2Config(bos_token_id=1, eos_token_id=1, pad_token_id=0), 32, 32, 8, 16, 2, 1e-4, False),
    }


def _llama(width: int, layers: int, heads: int) -> PretrainedConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=8 * width // 3 // 8 * 8,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )


def make(folder: Path, name: str, data: Path) -> Size:
    """``folder``/NAME/model and /reward, ``folder``/rows.jsonl and /prompts.jsonl; what is there is kept."""
    size = sizes()[name]
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "rows.jsonl").exists():
        with data.open(encoding="utf-8") as file:
            tokenizer = train_tokenizer([json.loads(line)["chosen"] for line in file], VOCABULARY)
        tokenizer.save_pretrained(folder / "tokenizer")
        rows = _rows(data, Chat(tokenizer))
        _write(folder / "prompts.jsonl", [row for row in rows if len(row["ids"]) <= PPO_PROMPT])
        _write(folder / "heldout.jsonl", rows[:128])
        _write(folder / "rows.jsonl", rows[128:])
    place = folder / name
    if not (place / "reward").exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
        torch.manual_seed(0)
        policy = Policy(AutoModelForCausalLM.from_config(size.config), tokenizer)
        policy.save(place / "model")
        if size.fine_tuned:
            policy = load_policy(place / "model")
            _fine_tune(policy, folder / "rows.jsonl")
            policy.save(place / "model")
        RewardModel.from_policy(policy.model, tokenizer, seed=0).save(place / "reward")
    return size


def _fine_tune(policy: Policy, rows: Path) -> None:
    with rows.open(encoding="utf-8") as file:
        found = [json.loads(line) for line in islice(file, LESSONS)]
    examples = [
        policy.chat.answered(Prompt(messages=tuple(Message(**one) for one in row["messages"])), row["chosen"].strip())
        for row in found
    ]
    train_sft(policy, examples, [], SFTConfig(learning_rate=2e-3), 0, lambda _: None)


def _rows(data: Path, chat: Chat) -> list[dict[str, Any]]:
    """Comparisons that fit, shuffled: messages for prefloop, the same as texts for TRL, which adds the eos itself."""
    records = list(read_file(data))
    prompts = {one.id: one for one in records if isinstance(one, Prompt)}
    answers = {one.id: one for one in records if isinstance(one, Completion)}
    rows = []
    for judgement in (one for one in records if isinstance(one, Judgement)):
        prompt = prompts[judgement.prompt_id]
        ranked = sorted(zip(judgement.ranks, judgement.shown, strict=True))
        texts = [answers[key].text for _, key in ranked]
        rendered = [chat.answered(prompt, text) for text in texts]
        if max(map(len, rendered)) > LONGEST or len(set(judgement.ranks)) < 2:
            continue
        ids = chat.prompt_ids(prompt.messages)
        rows.append(
            {
                "messages": [message.model_dump(mode="json") for message in prompt.messages],
                "prompt": chat.tokenizer.decode(ids),
                "chosen": f" {texts[0]}",
                "rejected": f" {texts[1]}",
                "ids": ids,
                "tokens": [len(one) for one in rendered],
            }
        )
    random.Random(0).shuffle(rows)
    return rows


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
