"""A value for every state (PPO's critic) and a score for a whole answer (the reward model)."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from prefloop.chat import Chat, Rendered
from prefloop.feedback.records import Prompt
from prefloop.models.forward import TokenBatch, context_of, hidden_states, last_states, micro_batches, pad


class ValueHead(nn.Module):
    """V(s) from the policy's own hidden state; zero at the start, so the first advantages are the rewards'."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, states: Float[Tensor, "*shape d"]) -> Float[Tensor, "*shape"]:
        values: Tensor = self.linear(states.float())[..., 0]
        return values


class RewardModel:
    """A sequence classifier with one label, its tokenizer, and the shift that puts reference answers at 0.

    On disk it is a plain folder for ``AutoModelForSequenceClassification``; the shift stands in its
    ``config.json`` as ``reward_shift``, and a score is the classifier's logit plus it.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.chat = Chat(tokenizer)

    @classmethod
    def from_policy(cls, model: Any, tokenizer: Any, seed: int) -> RewardModel:
        """The policy's trunk with a fresh head of standard deviation 1/√(d+1) [Stiennon et al. 2020]."""
        config = copy.deepcopy(model.config)
        config.num_labels = 1
        config.pad_token_id = tokenizer.pad_token_id
        config.reward_shift = 0.0
        try:
            classifier = AutoModelForSequenceClassification.from_config(config)
        except ValueError as error:
            raise ValueError(
                f"transformers has no sequence classifier for {config.model_type} models, so no reward model "
                "can be made of one. Choose another architecture"
            ) from error
        classifier.base_model.load_state_dict(model.base_model.state_dict())
        generator = torch.Generator().manual_seed(seed)
        weight = classifier.score.weight
        with torch.no_grad():
            weight.normal_(0, 1 / math.sqrt(weight.shape[1] + 1), generator=generator)
        return cls(classifier.to(model.device).eval(), tokenizer)

    @property
    def context(self) -> int:
        """The longest sequence that the model can read, in tokens."""
        return context_of(self.model)

    def score_batch(self, batch: TokenBatch) -> Float[Tensor, " B"]:
        """The score of each row, read at its last real token."""
        return self.score_states(last_states(hidden_states(self.model, batch), batch))

    def score_states(self, states: Float[Tensor, "N d"]) -> Float[Tensor, " N"]:
        """The score of an answer whose last hidden state is given."""
        scores: Tensor = self.model.score(states)[:, 0].float() + self.model.config.reward_shift
        return scores

    @torch.no_grad()
    def score(self, sequences: Sequence[Rendered], max_tokens: int = 8192) -> Float[Tensor, " B"]:
        """Scores of tokenised sequences, without gradients."""
        scores = torch.empty(len(sequences), device=self.model.device)
        for group in micro_batches([len(s) for s in sequences], max_tokens):
            scores[group] = self.score_batch(pad([sequences[i] for i in group], self.model.device))
        return scores

    def __call__(self, prompt: str | Prompt, response: str) -> float:
        """The score of one answer."""
        prompt = Prompt.of(prompt) if isinstance(prompt, str) else prompt
        return float(self.score([self.chat.answered(prompt, response)])[0])

    def shift_scores(self, shift: float) -> None:
        """Add ``shift`` to every score from now on."""
        self.model.config.reward_shift = float(self.model.config.reward_shift) + shift

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
