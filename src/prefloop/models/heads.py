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
        config.pad_token_id = config.get_text_config().pad_token_id = tokenizer.pad_token_id
        config.reward_shift = 0.0
        try:
            classifier = AutoModelForSequenceClassification.from_config(config)
        except ValueError as error:
            raise ValueError(
                f"transformers has no sequence classifier for {config.model_type} models, so no reward model "
                "can be made of one. Choose another architecture"
            ) from error
        classifier = classifier.to(model.dtype)
        check_score(classifier.eval())
        classifier.base_model.load_state_dict(model.base_model.state_dict())
        generator = torch.Generator().manual_seed(seed)
        weight = classifier.score.weight
        with torch.no_grad():
            weight.normal_(0, 1 / math.sqrt(weight.shape[1] + 1), generator=generator)
        return cls(classifier.to(model.device), tokenizer)

    @property
    def context(self) -> int:
        """The longest sequence that the model can read, in tokens."""
        return context_of(self.model)

    def score_batch(self, batch: TokenBatch) -> Float[Tensor, " B"]:
        """The score of each row, read at its last real token."""
        states = last_states(hidden_states(self.model, batch), batch)
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


@torch.no_grad()
def check_score(classifier: Any) -> None:
    """Refuse a classifier whose logit is not its ``score`` of the last real token's state.

    Measured on four tokens, not looked up: transformers' classifiers differ in what they pool and in the layers
    after it.

    Raises:
        ValueError: the classifier is of another make.
    """
    vocabulary, pad_id = classifier.get_input_embeddings().num_embeddings, classifier.config.pad_token_id
    ids = torch.tensor([[i for i in range(min(6, vocabulary)) if i != pad_id][-4:]], device=classifier.device)
    score = getattr(classifier, "score", None)
    if isinstance(score, nn.Linear):
        expected = classifier(input_ids=ids).logits[0]
        found = score(classifier.base_model(input_ids=ids, use_cache=False).last_hidden_state[0, -1])
        if torch.allclose(found, expected, atol=1e-4, rtol=1e-3):
            return
    raise ValueError(
        f"the sequence classifier of transformers for {classifier.config.model_type} models is no linear score of "
        "the last token, so no reward model can be made of one. Choose another architecture"
    )
