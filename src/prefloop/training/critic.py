"""PPO's critic: the value V of every state, from the policy's own trunk or from a model of its own."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from prefloop.chat import Rendered
from prefloop.models.forward import arrange, micro_batches, predicting_states, width_of
from prefloop.models.heads import RewardModel, ValueHead
from prefloop.rollout.batch import Rollout


class SharedCritic:
    """A linear head on the policy's trunk. It starts at zero; its values are read off while decoding."""

    def __init__(self, policy_model: Any) -> None:
        self.head = ValueHead(width_of(policy_model)).to(policy_model.device)

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.head.parameters()

    def read(self, rollout: Rollout, _max_tokens: int) -> Float[Tensor, "B R"]:
        """V of every state of a rollout, without gradients; 0 at padding."""
        return rollout.values

    def save(self, stage: Path) -> None:
        """Beside the policy's weights, in the stage's ``model/``."""
        save_file(self.head.state_dict(), stage / "model" / "value_head.safetensors")


class SeparateCritic:
    """A model of its own that reads a value at every place, as a reward model reads its score at the last one.

    It starts as a copy of the reward model [Ouyang et al. 2022, §C.4].

    Args:
        start: whose trunk and head are copied.
        scale: of the head. 1 where the return is the model's score, so that the first value of a state is the score
            of an answer that would end there; 0 for values of 0.
    """

    head = None

    def __init__(self, start: RewardModel, scale: float = 1.0) -> None:
        first = start.members[0]  # of an ensemble one is enough to start from
        self.model = RewardModel(copy.deepcopy(first.model), first.tokenizer)
        self.model.scale_scores(scale)
        self.model.model.eval().requires_grad_(True)

    def parameters(self) -> Iterator[nn.Parameter]:
        parameters: Iterator[nn.Parameter] = self.model.model.parameters()
        return parameters

    def values(self, sequences: Sequence[Rendered]) -> Float[Tensor, " N"]:
        """V of the states that the sequences' response tokens were chosen in, end to end."""
        model = self.model.model
        return self.model.score_states(predicting_states(model, arrange(sequences, model)))

    @torch.no_grad()
    def read(self, rollout: Rollout, max_tokens: int) -> Float[Tensor, "B R"]:
        """V of every state of a rollout, from a pass of its own; 0 at padding."""
        result = torch.zeros_like(rollout.log_probs)
        sequences, model = rollout.sequences, self.model.model
        for rows in micro_batches(sequences, max_tokens, model):
            found = torch.zeros_like(result[rows])
            found[rollout.mask[rows]] = self.values([sequences[row] for row in rows])
            result[rows] = found
        return result

    def save(self, stage: Path) -> None:
        """As a reward model's folder, ``critic/``."""
        self.model.save(stage / "critic")


Critic = SharedCritic | SeparateCritic
