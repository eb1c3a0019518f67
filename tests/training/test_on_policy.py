"""The prompts that on-policy training practises on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from tests.toys import policy, prompts

from prefloop.feedback.records import Prompt
from prefloop.training.loop import shuffled_batches
from prefloop.training.on_policy import prompt_batches

POLICY = policy()


@pytest.mark.parametrize(("seed", "count", "size", "iterations"), [(0, 7, 3, 6), (1, 40, 4, 2), (2, 1, 5, 2)])
def test_prompts_come_as_if_all_had_been_tokenised(seed: int, count: int, size: int, iterations: int) -> None:
    asked = prompts(count)
    encoded = [(prompt, POLICY.chat.prompt_ids(prompt.messages)) for prompt in asked]
    expected = list(shuffled_batches(encoded, size, iterations, seed))
    assert list(prompt_batches(POLICY, asked, size, iterations, seed, 100)) == expected


class Watched(Sequence[Prompt]):
    """Remembers what was asked for."""

    def __init__(self, items: Sequence[Prompt]) -> None:
        self.items, self.read = items, list[int]()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        self.read.append(index)
        return self.items[index]


def test_of_many_prompts_those_are_read_that_are_drawn() -> None:
    many = Watched(prompts(200))
    batches = list(prompt_batches(POLICY, many, 4, 3, 0, 100))
    drawn = {prompt.id for batch in batches for prompt, _ in batch}
    assert len(many.read) == len(drawn) == 12
