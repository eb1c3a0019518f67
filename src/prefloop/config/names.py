"""The names of a recipe's algorithms and stages."""

from __future__ import annotations

from typing import Literal, get_args

PolicyGradientName = Literal["ppo", "reinforce", "rloo", "grpo", "reinforce_pp"]
DirectName = Literal["dpo", "ipo", "kto", "orpo", "simpo"]
AlgorithmName = Literal[PolicyGradientName, "online_dpo", DirectName]
StageName = Literal["pretrain", "sft", "sample", "label", "reward", "judge", AlgorithmName, "evaluation"]
POLICY_GRADIENTS: tuple[PolicyGradientName, ...] = get_args(PolicyGradientName)
"""Algorithms that learn from the rewards of sampled responses."""
DIRECT: tuple[DirectName, ...] = get_args(DirectName)
"""Algorithms that learn from comparisons without a reward model."""
ON_POLICY: tuple[Literal[PolicyGradientName, "online_dpo"], ...] = (*POLICY_GRADIENTS, "online_dpo")
"""Algorithms that sample from the policy as it learns."""
ALGORITHMS: tuple[AlgorithmName, ...] = get_args(AlgorithmName)
