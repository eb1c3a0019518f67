"""One strict model for each stage's section of a recipe; :mod:`prefloop.recipes` has the whole.

Every field's docstring is its documentation; ``docs/config.md`` is made from them and a test holds the two together.
"""

from prefloop.config.direct import DirectConfig, DPOConfig, IPOConfig, KTOConfig, ORPOConfig, SimPOConfig
from prefloop.config.names import (
    ALGORITHMS,
    DIRECT,
    ON_POLICY,
    POLICY_GRADIENTS,
    AlgorithmName,
    DirectName,
    PolicyGradientName,
    StageName,
)
from prefloop.config.on_policy import (
    GroupConfig,
    GRPOConfig,
    OnlineDPOConfig,
    OnPolicyConfig,
    PolicyGradientConfig,
    PPOConfig,
    REINFORCEConfig,
    REINFORCEPPConfig,
    RLOOConfig,
)
from prefloop.config.reward import JudgeConfig, RewardConfig, RewardSource, ScoreConfig
from prefloop.config.section import Optimisation, Precision, Section
from prefloop.config.stages import (
    DataConfig,
    EvaluateConfig,
    LabelConfig,
    ModelConfig,
    PretrainConfig,
    SampleConfig,
    SFTConfig,
)

__all__ = [
    "ALGORITHMS",
    "DIRECT",
    "ON_POLICY",
    "POLICY_GRADIENTS",
    "AlgorithmName",
    "DPOConfig",
    "DataConfig",
    "DirectConfig",
    "DirectName",
    "EvaluateConfig",
    "GRPOConfig",
    "GroupConfig",
    "IPOConfig",
    "JudgeConfig",
    "KTOConfig",
    "LabelConfig",
    "ModelConfig",
    "ORPOConfig",
    "OnPolicyConfig",
    "OnlineDPOConfig",
    "Optimisation",
    "PPOConfig",
    "PolicyGradientConfig",
    "PolicyGradientName",
    "Precision",
    "PretrainConfig",
    "REINFORCEConfig",
    "REINFORCEPPConfig",
    "RLOOConfig",
    "RewardConfig",
    "RewardSource",
    "SFTConfig",
    "SampleConfig",
    "ScoreConfig",
    "Section",
    "SimPOConfig",
    "StageName",
]
