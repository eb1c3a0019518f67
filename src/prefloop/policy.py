"""A policy: a causal language model and its tokenizer, loaded, made and saved as a plain folder."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from prefloop.chat import Chat
from prefloop.feedback.records import Prompt
from prefloop.models.forward import context_of
from prefloop.models.loading import PAD_TOKEN, load_pretrained
from prefloop.rollout.parity import check_model
from prefloop.rollout.sampler import sample


class Policy:
    """A causal language model with its tokenizer and the chat format that goes with it."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.chat = Chat(tokenizer)

    @property
    def context(self) -> int:
        """The longest sequence that the model can read, in tokens."""
        return context_of(self.model)

    def generate(
        self, prompt: str | Prompt, *, max_response_tokens: int = 128, temperature: float = 1.0, seed: int = 0
    ) -> str:
        """One answer. ``temperature=0`` takes the likeliest token each time.

        The answer ends where the model's context does. At most half of that is kept free for it: a prompt that is
        still too long loses its oldest turns and lines.

        Raises:
            ValueError: the prompt's last line alone is too long.
        """
        prompt = Prompt.of(prompt) if isinstance(prompt, str) else prompt
        free = min(max_response_tokens, self.context // 2)
        ids, _ = self.chat.fitted_prompt_ids(prompt, self.context - free)
        rollout = sample(
            self.model,
            [ids],
            eos_id=self.chat.eos_id,
            max_response_tokens=min(max_response_tokens, self.context - len(ids)),
            temperature=temperature,
            seed=seed,
        )
        return self.chat.text(rollout.responses[0])

    def copy(self) -> Policy:
        """An independent copy: a frozen reference, or a start for training that leaves this one alone."""
        return Policy(copy.deepcopy(self.model), self.tokenizer)

    def save(self, folder: str | Path) -> None:
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def load_policy(path: str | Path, device: str | None = None) -> Policy:
    """A policy from a model folder or hub name, in float32.

    A tokenizer whose pad token is missing, or is its eos token, is given a pad token of its own: an eos that
    means padding could not be learnt.

    Raises:
        ValueError: the folder is missing or unreadable, the tokenizer has no eos token, or the architecture
            would be sampled from or trained wrongly (:mod:`prefloop.rollout.parity`).
    """
    model, tokenizer = load_pretrained(AutoModelForCausalLM, path, device)
    if tokenizer.eos_token_id is not None and tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
        _make_room(model, len(tokenizer))
    # A model of texts and images has a configuration for each, and reads the texts'.
    model.config.pad_token_id = model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    policy = Policy(model, tokenizer)
    check_model(model, str(path))
    return policy


@torch.no_grad()
def _make_room(model: Any, vocabulary: int) -> None:
    """Widen embeddings and head to ``vocabulary`` tokens; each new row is the mean of the old ones.

    A random row would have a logit near 0. Where all others are far below 0, as GPT-2's are, it would take all the
    probability. The mean's logit is the mean logit, so its probability is at most 1/V [Hewitt 2021].
    """
    old = model.get_input_embeddings().num_embeddings
    if vocabulary <= old:
        return
    model.resize_token_embeddings(vocabulary, mean_resizing=False)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        for parameter in (layer.weight, getattr(layer, "bias", None)):
            if parameter is not None:
                parameter[old:] = parameter[:old].mean(0)
