"""A value for every state (PPO's critic) and a score for a whole answer (the reward model)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from prefloop.chat import Chat, Rendered
from prefloop.feedback.records import Prompt
from prefloop.models.forward import TokenBatch, arrange, context_of, hidden_states, micro_batches


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
    """A sequence classifier with a label for each criterion, its tokenizer, and the shift that puts reference answers
    at 0.

    On disk it is a plain folder for ``AutoModelForSequenceClassification``; the shift stands in its
    ``config.json`` as ``reward_shift``, and a score is the classifier's logit plus it. Where there are several
    criteria, the shift is a list, ``reward_weights`` has the weight of each label, and the score is the weighted sum.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.chat = Chat(tokenizer)

    @classmethod
    def from_policy(
        cls, model: Any, tokenizer: Any, seed: int, criteria: Mapping[str, float] | None = None
    ) -> RewardModel:
        """The policy's trunk with a fresh head of standard deviation 1/√(d+1) [Stiennon et al. 2020].

        Args:
            criteria: name → weight in the score, one head each; nothing for one head without a name.
        """
        config = copy.deepcopy(model.config)
        config.num_labels = len(criteria) if criteria else 1
        config.pad_token_id = config.get_text_config().pad_token_id = tokenizer.pad_token_id
        config.reward_shift = 0.0
        if criteria:
            config.id2label, config.label2id = dict(enumerate(criteria)), {n: i for i, n in enumerate(criteria)}
            config.reward_weights, config.reward_shift = dict(criteria), [0.0] * len(criteria)
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

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    @property
    def members(self) -> tuple[RewardModel, ...]:
        """The models that it is made of: itself, unless it is an ensemble."""
        return (self,)

    @property
    def criteria(self) -> tuple[str, ...]:
        """The names of the labels; one empty name where there is a single one without a weight."""
        if not getattr(self.model.config, "reward_weights", None):
            return ("",)
        return tuple(self.model.config.id2label[label] for label in range(self.model.config.num_labels))

    def weigh(self, scores: Float[Tensor, "*shape H"]) -> Float[Tensor, "*shape"]:
        """Scores by criterion to one score."""
        weights = getattr(self.model.config, "reward_weights", None) or {"": 1.0}
        return (scores * scores.new_tensor([weights[name] for name in self.criteria])).sum(-1)

    def score_states(self, states: Float[Tensor, "N d"]) -> Float[Tensor, " N"]:
        """The score of an answer whose last hidden state is given."""
        return self.weigh(self._criterion_states(states))

    def _criterion_states(self, states: Float[Tensor, "N d"]) -> Float[Tensor, "N H"]:
        scores: Tensor = self.model.score(states.to(self.model.score.weight.dtype)).float()
        return scores + torch.tensor(self.model.config.reward_shift, device=self.device)

    def criterion_batch(self, batch: TokenBatch) -> Float[Tensor, "B H"]:
        """The scores of each row by each criterion, read at its last real token."""
        return self._criterion_states(hidden_states(self.model, batch)[batch.last])

    def score_batch(self, batch: TokenBatch) -> Float[Tensor, " B"]:
        """The score of each row."""
        return self.weigh(self.criterion_batch(batch))

    def score(self, sequences: Sequence[Rendered], max_tokens: int = 8192) -> Float[Tensor, " B"]:
        """Scores of tokenised sequences, without gradients."""
        return self._over(sequences, max_tokens, self.score_batch)

    def criterion_scores(self, sequences: Sequence[Rendered], max_tokens: int = 8192) -> Float[Tensor, "B H"]:
        """Scores of tokenised sequences by each criterion, without gradients."""
        return self._over(sequences, max_tokens, self.criterion_batch, len(self.criteria))

    @torch.no_grad()
    def _over(
        self, sequences: Sequence[Rendered], max_tokens: int, of: Callable[[TokenBatch], Tensor], *shape: int
    ) -> Tensor:
        found = torch.empty(len(sequences), *shape, device=self.device)
        for group in micro_batches(sequences, max_tokens, self.model):
            found[group] = of(arrange([sequences[i] for i in group], self.model))
        return found

    def __call__(self, prompt: str | Prompt, response: str) -> float:
        """The score of one answer."""
        prompt = Prompt.of(prompt) if isinstance(prompt, str) else prompt
        return float(self.score([self.chat.answered(prompt, response)])[0])

    def shift_scores(self, *shifts: float) -> None:
        """Add to every score from now on: one number for each criterion."""
        config = self.model.config
        if isinstance(config.reward_shift, list):
            config.reward_shift = [old + new for old, new in zip(config.reward_shift, shifts, strict=True)]
        else:
            (shift,) = shifts
            config.reward_shift = float(config.reward_shift) + shift

    @torch.no_grad()
    def scale_scores(self, factor: float) -> None:
        """Multiply every score from now on."""
        config = self.model.config
        self.model.score.weight.mul_(factor)
        shift = config.reward_shift
        config.reward_shift = [factor * one for one in shift] if isinstance(shift, list) else factor * float(shift)

    def save(self, folder: Path) -> None:
        self.model.config.reward_members = len(self.members)
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


class RewardEnsemble(RewardModel):
    """Several reward models, trained from different seeds on the same comparisons, as one.

    A score is the members' mean less ``pessimism`` times their standard deviation: where they disagree, the
    comparisons have not settled what is right, and a policy should not be paid for going there [Coste et al. 2023].

    On disk it is the first member's folder with the others below it, ``member-2`` and so on; their number and
    ``pessimism`` stand in the first one's ``config.json`` as ``reward_members`` and ``reward_pessimism``.
    """

    def __init__(self, members: Sequence[RewardModel], pessimism: float = 0.0) -> None:
        if len(members) < 2 or any(member.criteria != members[0].criteria for member in members):
            raise ValueError("an ensemble is two or more reward models with the same criteria")
        super().__init__(members[0].model, members[0].tokenizer)
        self._members = tuple(members)
        self.pessimism = pessimism

    @property
    def members(self) -> tuple[RewardModel, ...]:
        return self._members

    def criterion_batch(self, batch: TokenBatch) -> Float[Tensor, "B H"]:
        """The members' mean scores."""
        return torch.stack([member.criterion_batch(batch) for member in self.members]).mean(0)

    def score_batch(self, batch: TokenBatch) -> Float[Tensor, " B"]:
        scores = torch.stack([member.score_batch(batch) for member in self.members])
        return scores.mean(0) - self.pessimism * scores.std(0, correction=0)

    def disagreement(self, sequences: Sequence[Rendered], max_tokens: int = 8192) -> Float[Tensor, " B"]:
        """The standard deviation of the members' scores of each sequence, without gradients."""
        return torch.stack([member.score(sequences, max_tokens) for member in self.members]).std(0, correction=0)

    def shift_scores(self, *shifts: float) -> None:
        for member in self.members:
            member.shift_scores(*shifts)

    def score_states(self, states: Float[Tensor, "N d"]) -> Float[Tensor, " N"]:  # noqa: ARG002
        raise TypeError("an ensemble's members have a trunk each, so there are no states that all of them read")

    def save(self, folder: Path) -> None:
        self.model.config.reward_pessimism = self.pessimism
        super().save(folder)
        for number, member in enumerate(self.members[1:], start=2):
            member.save(Path(folder) / f"member-{number}")


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
