"""The rewards that a recipe names: Python functions from files, reward models from folders, the run's own."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from prefloop.chat import Chat, Rendered
from prefloop.config import RewardSource
from prefloop.context import Context
from prefloop.feedback.records import Prompt, content_id
from prefloop.models.heads import RewardEnsemble, RewardModel
from prefloop.models.loading import load_reward_model
from prefloop.rollout.reward import Batched, Reward, RewardFunction, function_reward, model_reward, score_texts

MAX_TOKENS = 8192
"""Of one forward pass where nothing is trained, padding included."""

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


def text_scorer_of(context: Context) -> Callable[[Sequence[Prompt], Sequence[str]], list[float]]:
    """The weighted sum of the recipe's rewards for texts, wherever they come from."""
    limit = context.recipe.data.max_prompt_tokens
    sources = [
        (source, load_function(source) if source.function else _model(context, source))
        for source in context.recipe.rewards or (OWN,)
    ]

    def scores(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        totals = [0.0] * len(texts)
        for source, one in sources:
            found = (
                answer_scores(one, prompts, texts, limit)
                if isinstance(one, RewardModel)
                else score_texts(one, [prompt.text for prompt in prompts], list(texts), source.name)
            )
            totals = [total + source.weight * score for total, score in zip(totals, found, strict=True)]
        return totals

    return scores


def answer_scores(
    model: RewardModel, prompts: Sequence[Prompt], texts: Sequence[str], max_prompt_tokens: int
) -> list[float]:
    """A reward model's scores of texts."""
    scores: list[float] = model.score(_sequences(model, prompts, texts, max_prompt_tokens), MAX_TOKENS).tolist()
    return scores


def member_scores(
    model: RewardModel, prompts: Sequence[Prompt], texts: Sequence[str], max_prompt_tokens: int
) -> list[list[float]]:
    """The scores by each member of an ensemble; of a single reward model, its own."""
    sequences = _sequences(model, prompts, texts, max_prompt_tokens)
    members = model.members if isinstance(model, RewardEnsemble) else (model,)
    return [member.score(sequences, MAX_TOKENS).tolist() for member in members]


def _sequences(
    model: RewardModel, prompts: Sequence[Prompt], texts: Sequence[str], max_prompt_tokens: int
) -> list[Rendered]:
    return [
        model.chat.answered(model.chat.fitted_prompt_ids(prompt, max_prompt_tokens)[1], text)
        for prompt, text in zip(prompts, texts, strict=True)
    ]


def _model(context: Context, source: RewardSource) -> RewardModel:
    return load_reward_model(source.model or context.run / "reward" / "model")


def is_path(name: str) -> bool:
    """Whether a model's name can only be a path: names of a hub are ``model`` or ``owner/model``."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


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
    spec = importlib.util.spec_from_file_location(f"prefloop_reward_{content_id(str(path.resolve()))[:8]}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
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
