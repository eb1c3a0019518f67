"""The rewards that a recipe names: Python functions from files, reward models from folders, the run's own."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from prefloop.chat import Chat
from prefloop.config import RewardSource
from prefloop.context import Context
from prefloop.evaluation.win_rate import Judge
from prefloop.feedback.records import Prompt
from prefloop.judging import NO_JUDGE, TRAINED_JUDGE, answer_scores
from prefloop.models.heads import RewardModel
from prefloop.models.loading import load_reward_model
from prefloop.rollout.reward import Batched, Reward, RewardFunction, function_reward, model_reward, score_texts

OWN = RewardSource(name="learned")
"""What responses are rewarded for where the recipe does not say: the run's own reward model."""


def rewards_of(context: Context, chat: Chat, max_tokens: int) -> list[Reward]:
    """The recipe's rewards, ready to score what a policy with this chat format says."""
    found = []
    for source in context.recipe.rewards or (OWN,):
        if source.function:
            found.append(function_reward(load_function(source), chat, source.name, source.weight))
        else:
            found.append(model_reward(_model(context, source), chat, max_tokens, source.name, source.weight))
    return found


def text_scores(context: Context, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
    """The weighted sum of the recipe's rewards for texts, wherever they come from."""
    totals = [0.0] * len(texts)
    for source in context.recipe.rewards or (OWN,):
        if source.function:
            scores = score_texts(load_function(source), [p.text for p in prompts], list(texts), source.name)
        else:
            limit = context.recipe.data.max_prompt_tokens
            scores = answer_scores(_model(context, source), prompts, texts, limit)
        totals = [total + source.weight * score for total, score in zip(totals, scores, strict=True)]
    return totals


def rewards_as_judge(context: Context) -> tuple[str, Judge]:
    """The recipe's own rewards, where nobody else can decide an evaluation."""
    warnings.warn(NO_JUDGE, stacklevel=2)
    return TRAINED_JUDGE, lambda prompts, texts: [{"score": one} for one in text_scores(context, prompts, texts)]


def _model(context: Context, source: RewardSource) -> RewardModel:
    return load_reward_model(source.model or context.run / "reward" / "model")


def load_function(source: RewardSource) -> RewardFunction | Batched:
    """The function that ``FILE.py:NAME`` names. The file is run.

    Raises:
        ValueError: there is no such file, it cannot be run, or it has no such function.
    """
    file, _, name = source.function.rpartition(":")
    path = Path(file)
    where = f"reward {source.name!r}: function = {source.function!r}"
    if not path.is_file():
        raise ValueError(f"{where}: there is no file {path}. A relative path starts at the recipe's folder")
    spec = importlib.util.spec_from_file_location(f"prefloop_reward_{source.name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))  # so that it can import what lies beside it
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{where}: running {path} raised {error!r}") from error
    finally:
        sys.path.remove(str(path.parent))
    function: Callable[..., float] | None = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{where}: {path} has no function {name!r}")
    return Batched(function) if source.batched else function  # type: ignore[arg-type]
