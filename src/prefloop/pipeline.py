"""The stages in the papers' order: which are run, which are skipped, and the summary at the end.

A stage's key is a hash of everything that it depends on: its part of the recipe, the seed, the data and the keys of
the stages it reads. A stage whose folder carries the same key is skipped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from prefloop import __version__
from prefloop.config import ALGORITHMS, DIRECT, ON_POLICY, RewardSource, StageName
from prefloop.context import Context
from prefloop.dataset import Dataset, prepare
from prefloop.feedback.assignment import Queue
from prefloop.feedback.records import content_id
from prefloop.feedback.store import Store
from prefloop.labelling import ask_people, check_label, judged_so_far
from prefloop.models.footprint import hand_back, noting_budgets
from prefloop.models.precision import computing_in, noting_precision
from prefloop.recipes import Recipe, dump_recipe
from prefloop.report import write_report
from prefloop.rewarding import is_path, load_function
from prefloop.runs import RunFolder, file_hash, folder_hash, read_json, read_lines, write_json, write_text
from prefloop.stages import STAGES
from prefloop.training.loop import Metrics
from prefloop.training.loop import NonFiniteError as NonFiniteError

READS: dict[StageName, tuple[StageName, ...]] = {
    "pretrain": (),
    "sft": ("pretrain",),
    "sample": ("sft",),
    "label": ("sample",),
    "reward": ("sft", "label"),
    "judge": ("sft", "label"),
    **dict.fromkeys(ON_POLICY, ("sft", "reward")),
    **dict.fromkeys(DIRECT, ("sft", "label")),
    "evaluation": ("sft", "reward", "judge", *ALGORITHMS),
}
"""The earlier stages whose folders each stage reads."""


class Listener(Protocol):
    """Whoever watches a run."""

    def started(self, stage: str) -> None: ...

    def skipped(self, stage: str) -> None: ...

    def line(self, stage: str, metrics: Metrics) -> None: ...

    def note(self, text: str) -> None: ...

    def finished(self, stage: str, seconds: float) -> None: ...


class Silence:
    """A listener that does nothing."""

    def started(self, stage: str) -> None: ...

    def skipped(self, stage: str) -> None: ...

    def line(self, stage: str, metrics: Metrics) -> None: ...

    def note(self, text: str) -> None: ...

    def finished(self, stage: str, seconds: float) -> None: ...


def run(
    recipe: Recipe,
    project: Path,
    *,
    folder: Path | None = None,
    listener: Listener | None = None,
    wait: bool = False,
    page: str = "",
) -> Path:
    """Run a recipe to the end, or from where an earlier run of it stopped.

    Args:
        project: the folder with ``feedback.db`` and ``runs/``.
        folder: where relative paths in the recipe start; the project's folder when not given.
        wait: where people judge: wait for them, rather than stop and go on when called again.
        page: the address of a page to judge on that is there already, for the message to people.

    Returns:
        The run's folder, with ``summary.json`` and ``report.html``.

    Raises:
        ValueError: the data or the recipe cannot be used; the message says what to do.
        WaitingForPeopleError: answers wait for judgements and ``wait`` is False; the message says how to give them.
        NonFiniteError: training ran into NaN; the batch lies in the run's folder.
    """
    listener = listener or Silence()
    recipe = _resolved(recipe, folder or project)
    for reason, settings in recipe.ignored.items():
        listener.note(f"Without effect, since {reason}: {', '.join(settings)}.")
    for source in recipe.rewards:
        if source.function:
            load_function(source)  # a fault in it is found now, not after an hour of training
        elif is_path(source.model) and not Path(source.model).is_dir():
            raise ValueError(f"reward {source.name!r}: there is no folder {source.model}")
    check_label(recipe.label)
    runs = RunFolder(project / "runs" / recipe.name)
    with _threads(recipe.threads), computing_in(recipe.precision), Store.of_project(project) as store:
        data = prepare(recipe, store, folder or project)
        with runs.lock():
            write_text(runs.path / "recipe.toml", dump_recipe(recipe))
            keys: dict[StageName, str] = {}
            said: set[str] = set()
            for stage in recipe.stages:
                context = _context(recipe, runs, data, store, stage, listener, said)
                context.wait, context.page = wait, page
                if stage == "label" and recipe.label.by != "simulated":
                    # Before the key, which is of what was said, and once: the stage freezes just that.
                    context.judged = ask_people(context) if recipe.label.by == "human" else judged_so_far(context)
                keys[stage] = _key(stage, context, keys)
                _run_stage(stage, keys, context, runs, listener)
            write_json(runs.path / "summary.json", _summary(recipe, runs))
            write_report(runs.path)
    return runs.path


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch use ``count`` threads for now (0: as many as it does already). Who calls us gets theirs back."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _resolved(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with absolute paths, so that its copy in the run's folder can be run; a hub's name stays a name."""

    def absolute(name: str) -> str:
        return str((folder / name).resolve())

    def source(one: RewardSource) -> RewardSource:
        file, colon, name = one.function.rpartition(":")
        is_folder = one.model and (folder / one.model).is_dir()
        paths = {"function": absolute(file) + colon + name if one.function else ""}
        return one.model_copy(update=paths | ({"model": absolute(one.model)} if is_folder else {}))

    path = recipe.model.path
    model = {"path": absolute(path)} if path and (folder / path).is_dir() else {}
    label = {name: absolute(path) for name in ("gold", "reward_model") if (path := getattr(recipe.label, name))}
    return recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update=model),
            "data": recipe.data.model_copy(update={"files": tuple(map(absolute, recipe.data.files))}),
            "rewards": tuple(map(source, recipe.rewards)),
            "pretrain": recipe.pretrain.model_copy(update={"files": tuple(map(absolute, recipe.pretrain.files))}),
            "label": recipe.label.model_copy(update=label),
        }
    )


def _context(
    recipe: Recipe,
    runs: RunFolder,
    data: Dataset,
    store: Store,
    stage: StageName,
    listener: Listener,
    said: set[str],
) -> Context:
    def note(text: str) -> None:
        """Once a run: several stages cut the same prompts."""
        if text not in said:
            said.add(text)
            listener.note(text)

    return Context(recipe, runs.path, data, store, lambda metrics: listener.line(stage, metrics), note)


def _run_stage(
    stage: StageName, keys: dict[StageName, str], context: Context, runs: RunFolder, listener: Listener
) -> None:
    if runs.is_current(stage, keys[stage]):
        listener.skipped(stage)
        return
    listener.started(stage)
    started = time.perf_counter()
    inputs: dict[str, str] = {name: keys[name] for name in READS[stage] if name in keys}
    try:
        with (
            runs.writing(stage, keys[stage], inputs, context.recipe.seed) as writer,
            noting_precision() as used,
            noting_budgets() as budgets,
        ):
            STAGES[stage](context, writer)
            writer.extra |= {"precision": sorted(used)} if used else {}
            writer.extra |= {"micro_batch_tokens": min(budgets)} if budgets else {}
    except NonFiniteError as error:
        path = runs.path / f"failed-{stage}.json"
        write_json(path, _plain(error.batch))
        error.add_note(f"The batch is in {path}.")
        raise
    hand_back()
    listener.finished(stage, time.perf_counter() - started)


def _key(stage: StageName, context: Context, keys: dict[StageName, str]) -> str:
    """Everything that the stage's result depends on, hashed; but not the machine, which the manifest describes."""
    recipe, data = context.recipe, context.data
    sections = recipe.model_dump(mode="json")
    parts: dict[str, Any] = {
        "version": __version__,
        "seed": recipe.seed,
        "threads": recipe.threads,  # rounding
        "precision": recipe.precision,
        "reads": {name: keys[name] for name in READS[stage] if name in keys},
        "config": sections.get("evaluate" if stage == "evaluation" else stage),
    }
    used = ("max_prompt_tokens", "max_response_tokens", "heldout_fraction", "criterion")
    limits = {name: sections["data"][name] for name in used}
    if stage == "pretrain":
        parts |= {"documents": data.documents_hash, "model": sections["model"]}
    elif stage == "sft":
        parts |= {"demonstrations": data.demonstrations_hash, "limits": limits, "base": _base(recipe)}
    elif stage == "sample":
        parts |= {"prompts": data.prompts_hash, "limits": limits, "judge_fraction": recipe.judge.fraction}
    elif stage == "label" and recipe.label.by != "simulated":
        # How people were asked is over; what they said counts.
        parts["config"] = [recipe.label.by, recipe.label.weights]
        parts["judgements"] = [frozen.hash for frozen in context.judged or ()]
        if recipe.label.weights == "reliability":
            parts["gold"] = sorted(Queue(context.store).gold_ranks())
    elif stage in ("reward", "judge", *DIRECT):
        parts |= {"limits": limits, "judge_fraction": recipe.judge.fraction}
        if stage == "judge":
            parts["criteria"] = recipe.reward.criteria
    elif stage in (*ON_POLICY, "evaluation"):
        parts |= {"prompts": data.prompts_hash, "limits": limits, "rewards": _rewards(recipe)}
        if stage == "online_dpo" and recipe.online_dpo.judge == "annotators":
            parts["label"] = sections["label"]
    return content_id(stage, parts)


def _rewards(recipe: Recipe) -> list[Any]:
    """The recipe's rewards with what they are made of: the functions' files, the models' files."""
    return [
        [
            source.model_dump(),
            file_hash(Path(source.function.rpartition(":")[0])) if source.function else "",
            folder_hash(Path(source.model)) if source.model and Path(source.model).is_dir() else "",
        ]
        for source in recipe.rewards
    ]


def _base(recipe: Recipe) -> Any:
    """A fingerprint of the checkpoint that the run starts from: its files' names, sizes and times."""
    folder = Path(recipe.model.path)
    if not recipe.model.path or not folder.is_dir():
        return recipe.model.path
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def _summary(recipe: Recipe, runs: RunFolder) -> dict[str, Any]:
    """The figures that matter, from the stages' files (see docs/run-folder.md)."""
    manifests: dict[str, dict[str, Any]] = {stage: runs.manifest(stage) or {} for stage in recipe.stages}
    stages: dict[str, dict[str, Any]] = {
        stage: {"seconds": manifest["seconds"]} for stage, manifest in manifests.items()
    }
    names: tuple[StageName, ...] = ("pretrain", "sft", *DIRECT)
    for stage in names:
        if stage in stages:
            found = manifests[stage]
            stages[stage] |= {k: found[k] for k in ("eval_loss", "eval_accuracy") if k in found}
    for stage in ("reward", "judge"):
        path = runs.path / stage / "evaluation.json"
        if stage in stages and path.exists():
            stages[stage]["accuracy"] = read_json(path)["accuracy"]
    for name in ON_POLICY:
        if name in stages:
            lines = read_lines(runs.path / name / "metrics.jsonl")
            stages[name] |= {"kl": lines[-1]["kl"]}
            if "reward" in lines[-1]:
                stages[name] |= {"reward_before": lines[0]["reward"], "reward_after": lines[-1]["reward"]}
    return {
        "name": recipe.name,
        "seed": recipe.seed,
        "seconds": sum(stage["seconds"] for stage in stages.values()),
        "peak_memory_mb": max(manifest["peak_memory_mb"] for manifest in manifests.values()),
        "stages": stages,
        "evaluation": {name: read_json(runs.path / "evaluation" / f"{name}.json") for name in recipe.algorithms},
    }


def _plain(batch: Any) -> Any:
    """A batch as JSON: the token ids and masks of its sequences."""
    if is_dataclass(batch) and not isinstance(batch, type):
        return {name: _plain(value) for name, value in asdict(batch).items() if not isinstance(value, torch.Tensor)}
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        return [_plain(item) for item in batch]
    return batch
