"""prefloop: turn human preferences into a better language model, and close the loop.

import prefloop
policy = prefloop.load("gpt2")
result = prefloop.ppo(policy, prompts, reward=lambda prompt, response: len(response) / 100)
print(result.policy.generate("Why is the sky blue?"))
"""

import sys
from typing import TYPE_CHECKING, Any

from prefloop.garbage import uncollected

__version__ = "0.1.0"
__all__ = [
    "PolicyResult",
    "RewardResult",
    "batched",
    "computing_in",
    "dpo",
    "grpo",
    "ipo",
    "kto",
    "load",
    "online_dpo",
    "orpo",
    "ppo",
    "reinforce",
    "reinforce_pp",
    "reward_model",
    "rloo",
    "sft",
    "simpo",
]

if TYPE_CHECKING:
    from prefloop.api import (
        PolicyResult,
        RewardResult,
        batched,
        computing_in,
        dpo,
        grpo,
        ipo,
        kto,
        load,
        online_dpo,
        orpo,
        ppo,
        reinforce,
        reinforce_pp,
        reward_model,
        rloo,
        sft,
        simpo,
    )


def __getattr__(name: str) -> Any:
    """Import torch when it is needed, not for ``prefloop --help``."""
    if name not in __all__:
        raise AttributeError(f"module 'prefloop' has no attribute {name!r}")
    if "prefloop.api" not in sys.modules:
        with uncollected():
            from prefloop import api
    from prefloop import api

    return getattr(api, name)
