"""Tiny models, tokenizers and worlds, all made from their configuration: nothing is downloaded."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from prefloop.algorithms.likelihood import token_log_probs
from prefloop.chat import Rendered
from prefloop.feedback.assignment import Queue
from prefloop.feedback.records import Message, Prompt
from prefloop.feedback.store import Store
from prefloop.feedback.tasks import Submission, Verdict
from prefloop.models.forward import TokenBatch, head_logits, predicting_states
from prefloop.policy import Policy
from prefloop.training.loop import Loss

EOS, PAD, BOS = "<|eos|>", "<|pad|>", "<|bos|>"

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def heeds_ctrl_c() -> None:
    """For a child process: a shell's background jobs are deaf to Ctrl-C, and their children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def byte_tokenizer(
    *,
    eos: str | None = EOS,
    pad: str | None = PAD,
    bos: str | None = None,
    template: str | None = None,
    merges: Sequence[tuple[str, str]] = (),
) -> PreTrainedTokenizerFast:
    """One token for each byte, after the special tokens and before the merges; ``bos`` is written of itself."""
    special = [token for token in dict.fromkeys((pad, eos, bos)) if token is not None]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*special, *alphabet, *(left + right for left, right in merges)]
    bpe = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=list(merges)))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(special)
    if bos is not None:
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, words.index(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=eos,
        pad_token=pad,
        bos_token=bos,
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def llama(vocabulary: int = 32, *, width: int = 16, layers: int = 2, seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        **{
            "max_position_embeddings": 128,
            "initializer_range": 0.3,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": 1,
            "pad_token_id": 0,
            **options,
        },
    )
    return LlamaForCausalLM(config).eval()


def gpt2(vocabulary: int = 32, *, width: int = 16, seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocabulary,
        n_embd=width,
        n_layer=2,
        n_head=2,
        **{
            "n_positions": 128,
            "initializer_range": 0.3,
            "bos_token_id": None,
            "eos_token_id": 1,
            "pad_token_id": 0,
            **options,
        },
    )
    return GPT2LMHeadModel(config).eval()


def gemma2(vocabulary: int = 32, *, seed: int = 0, **options: Any) -> Any:
    """A soft cap on logits and attention, and a window that slides over every other layer."""
    torch.manual_seed(seed)
    config = Gemma2Config(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        **{
            "final_logit_softcapping": 2.0,
            "initializer_range": 0.3,
            "sliding_window": 6,
            "max_position_embeddings": 128,
            "bos_token_id": None,
            "eos_token_id": 1,
            "pad_token_id": 0,
            **options,
        },
    )
    return Gemma2ForCausalLM(config).eval()


MODELS = {"llama": llama, "gpt2": gpt2, "gemma2": gemma2}


def policy(kind: str = "llama", **options: Any) -> Policy:
    """A policy that reads and writes bytes."""
    tokenizer = byte_tokenizer()
    return Policy(MODELS[kind](len(tokenizer), **options), tokenizer)


def user(text: str) -> Message:
    return Message(role="user", content=text)


def assistant(text: str) -> Message:
    return Message(role="assistant", content=text)


def prompts(count: int) -> list[Prompt]:
    return [Prompt.of(f"question {i}" + "?" * (i % 4)) for i in range(count)]


def random_sequences(seed: int, lengths: Sequence[tuple[int, int]], vocabulary: int = 32) -> list[Rendered]:
    """Sequences of (prompt, response) tokens, drawn from the ids above the special ones."""
    generator = torch.Generator().manual_seed(seed)
    return [
        Rendered(
            torch.randint(2, vocabulary, (asked + answered,), generator=generator).tolist(),
            [False] * asked + [True] * answered,
        )
        for asked, answered in lengths
    ]


def response_log_probs(model: Any, batch: TokenBatch, temperature: float = 1.0) -> Tensor:
    """Log-probabilities of the batch's response tokens, with gradients, the head over all of them at once."""
    return token_log_probs(head_logits(model, predicting_states(model, batch)), batch.targets, temperature)


def naive_log_probs(model: Any, sequence: Rendered, temperature: float = 1.0) -> Tensor:
    """One row, no padding, the model's own logits, float64: log π of each response token."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([sequence.ids])).logits[0].double() / temperature
    found = []
    for place, masked_in in enumerate(sequence.mask):
        if masked_in:
            row = logits[place - 1]
            found.append(row[sequence.ids[place]] - row.exp().sum().log())
    return torch.stack(found)


def parameters(model: Any) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    """Bit for bit."""
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def word_tokenizer(*words: str) -> PreTrainedTokenizerFast:
    """A world of few words; everything else is one unknown token."""
    vocabulary = {word: i for i, word in enumerate([PAD, EOS, "<|unk|>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="<|unk|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([PAD, EOS, "<|unk|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        unk_token="<|unk|>",
        clean_up_tokenization_spaces=False,
    )


def two_token_policy(seed: int = 0) -> Policy:
    """Knows the words A and B; every other token is one in ten thousand at the start, A twice as likely as B."""
    tokenizer = word_tokenizer("A", "B")
    model = llama(len(tokenizer), seed=seed, initializer_range=0.05, tie_word_embeddings=False)
    bias = torch.full((len(tokenizer),), -9.0)
    bias[3], bias[4] = math.log(2.0), 0.0
    model.get_output_embeddings().bias = torch.nn.Parameter(bias)
    return Policy(model, tokenizer)


def loss_and_gradients(parts: Iterable[Loss], count: float, model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum of all parts' losses over ``count``, and its gradient, part by part as an optimiser step takes it."""
    weights = dict(model.named_parameters())
    for weight in weights.values():
        weight.grad = None
    total = torch.zeros(())
    for losses, _ in parts:
        loss = losses.sum() / count
        loss.backward()
        total = total + loss.detach()
    found = {name: weight.grad for name, weight in weights.items()}
    return total, {name: torch.zeros_like(weights[name]) if grad is None else grad for name, grad in found.items()}


def judge_some(store: Store, count: int, annotator: str = "mia", choice: int = 0, flags: tuple[str, ...] = ()) -> int:
    """Judge what the queue hands out, ``count`` times at most: the answer in this place is the best. How many."""
    queue, done = Queue(store), 0
    while done < count and (task := queue.next(annotator)) is not None:
        ranks = tuple(1 if place == choice else 2 for place in range(len(task.shown)))
        verdicts = tuple(Verdict(criterion, ranks) for criterion in task.criteria)
        queue.submit(annotator, task.id, Submission(f"{annotator}-{task.number}", verdicts, flags))
        done += 1
    return done
