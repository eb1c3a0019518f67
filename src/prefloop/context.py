"""What a stage may look at, and how it samples."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from prefloop.config import EvaluateConfig, SampleConfig
from prefloop.dataset import Dataset
from prefloop.demo.world import WORLDS, World
from prefloop.feedback.freezing import StoredSnapshot
from prefloop.feedback.records import Prompt
from prefloop.feedback.store import Store
from prefloop.policy import Policy, load_policy
from prefloop.recipes import Recipe
from prefloop.rollout.batch import Rollout
from prefloop.rollout.sampler import sample
from prefloop.runs import StageWriter
from prefloop.seeds import derive
from prefloop.training.loop import Log, Metrics


@dataclass
class Context:
    """What a stage may look at."""

    recipe: Recipe
    run: Path
    data: Dataset
    store: Store
    line: Callable[[Metrics], None] = field(default=lambda _: None)
    """Shows a line of metrics to whoever watches."""
    note: Callable[[str], None] = field(default=lambda _: None)
    """Tells whoever watches something worth knowing."""
    wait: bool = False
    """Whether to wait for people, or to stop and say that they are waited for."""
    judged: list[StoredSnapshot] | None = None
    """What the label stage freezes, where that was known before it began."""
    page: str = ""
    """Where people judge, when this process shows the page itself."""

    @property
    def world(self) -> World | None:
        return WORLDS[self.recipe.data.world] if self.recipe.data.world else None

    @property
    def tokens(self) -> Path:
        """Where token sequences are kept, for all runs of the project."""
        return self.run.parents[1] / "cache" / "tokens"

    def seed(self, stage: str) -> int:
        return derive(self.recipe.seed, stage)

    def base_policy(self) -> Policy:
        """What supervised fine-tuning starts from."""
        return load_policy(self.recipe.model.path or self.run / "pretrain" / "model")

    @contextmanager
    def log(self, writer: StageWriter) -> Iterator[Log]:
        """Write metrics to the stage's folder, line by line, and show them."""
        with (writer.folder / "metrics.jsonl").open("w", encoding="utf-8") as file:

            def log(metrics: Metrics) -> None:
                file.write(json.dumps(metrics, allow_nan=False) + "\n")
                file.flush()
                self.line(metrics)

            yield log


def sample_responses(
    context: Context,
    policy: Policy,
    prompts: Sequence[Prompt],
    config: SampleConfig | EvaluateConfig,
    purpose: str,
    answers: int = 1,
) -> Rollout:
    """K responses to each prompt, as ``config`` says, with random numbers that belong to ``purpose``."""
    limit = context.recipe.data.max_prompt_tokens
    fitted = [(prompt, *policy.chat.fitted_prompt_ids(prompt, limit)) for prompt in prompts]
    note_cut(context, sum(kept is not prompt for prompt, _, kept in fitted), len(fitted))
    return sample(
        policy.model,
        [ids for _, ids, _ in fitted],
        eos_id=policy.chat.eos_id,
        max_response_tokens=config.max_response_tokens,
        temperature=config.temperature,
        seed=context.seed(purpose),
        answers=answers,
        batch_size=config.batch_size,
    )


def note_cut(context: Context, cut: int, of: int) -> None:
    """Say how many prompts were cut."""
    if cut:
        context.note(f"{cut} of {of} prompts were cut to {context.recipe.data.max_prompt_tokens} tokens.")
