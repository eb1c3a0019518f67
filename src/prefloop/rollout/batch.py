"""What sampling returns and PPO learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Bool, Float, Int
from torch import Tensor

from prefloop.chat import Rendered


@dataclass(frozen=True)
class Rollout:
    """B sampled responses, padded on the right to the longest (R)."""

    prompts: Sequence[list[int]]
    """Token ids of the prompt of each row."""
    ids: Int[Tensor, "B R"]
    """Response tokens as sampled; they are never decoded and encoded again. 0 at padding."""
    mask: Bool[Tensor, "B R"]
    """True for the tokens of the response, its eos included."""
    log_probs: Float[Tensor, "B R"]
    """Of each token under the policy that sampled it, at the sampling temperature; 0 at padding."""
    entropy: Float[Tensor, "B R"]
    """Of the distribution that each token was drawn from, nats; 0 at padding."""
    values: Float[Tensor, "B R"]
    """V of the state before each token; 0 at padding and where there is no value head."""
    ended: Bool[Tensor, " B"]
    """Whether the response ends with an eos rather than by being cut off."""

    def __len__(self) -> int:
        return len(self.prompts)

    @cached_property
    def lengths(self) -> Int[Tensor, " B"]:
        """Tokens of each response."""
        return self.mask.sum(1)

    @cached_property
    def responses(self) -> list[list[int]]:
        """Token ids of each response, without padding."""
        return [row[:length] for row, length in zip(self.ids.tolist(), self.lengths.tolist(), strict=True)]

    @cached_property
    def sequences(self) -> list[Rendered]:
        """Prompt and response of each row end to end, as every other pass reads them."""
        return [
            Rendered(prompt + ids, [False] * len(prompt) + [True] * len(ids))
            for prompt, ids in zip(self.prompts, self.responses, strict=True)
        ]
