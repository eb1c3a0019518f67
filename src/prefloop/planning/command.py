"""``prefloop plan``: the command, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from prefloop.planning.planner import Planner


def plan(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a TOML file.")] = Path("prefloop.toml"),
    gpus: Annotated[int, typer.Option(help="How many devices share the work, for comparison.", min=1)] = 1,
    gpu: Annotated[
        str, typer.Option(help="A card instead of this machine: H200, H100, A100-80, A100-40, L40S, 4090 or T4.")
    ] = "",
    memory: Annotated[
        float | None, typer.Option(help="GiB of each device, where it is not what it has.", min=0.1)
    ] = None,
    model_size: Annotated[
        str, typer.Option(help="A model of so many weights instead of the recipe's, such as `7B`.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Everything as one JSON object.")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Change one field of the recipe, for example `--set ppo.kl_coef=0.1`. Repeatable."
        ),
    ] = None,
) -> None:
    """Predict memory and time of every stage, and say which setting to change where it does not fit."""
    from prefloop.planning.planner import Asked, planner_of
    from prefloop.planning.subject import size_of
    from prefloop.recipes import load_recipe

    loaded = load_recipe(recipe, settings or [])
    asked = Asked(gpus, gpu, memory, size_of(model_size) if model_size else None)
    found = report(planner_of(loaded, Path.cwd(), recipe.resolve().parent, asked))
    console = Console()
    if as_json:
        console.print(Text(json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False)), soft_wrap=True)
    else:
        console.print(shown(found))


def report(planner: Planner) -> dict[str, Any]:
    """The whole plan as JSON has it; sizes in GiB."""
    from prefloop.planning.advice import advise
    from prefloop.planning.prediction import GIB, USABLE

    subject = planner.subject(planner.recipe, planner.precision_of(planner.recipe))
    stages, machine = planner.stages(planner.recipe), planner.machine
    counted = [stage.seconds for stage in stages if stage.seconds is not None]
    return {
        "recipe": planner.recipe.name,
        "model": {
            "name": subject.name,
            "weights": subject.weights,
            "kept_bytes_per_token": round(subject.kept.per_token),
            "cache_bytes_per_token": round(subject.cache),
        },
        "device": {
            "name": machine.name,
            "count": machine.count,
            "memory": machine.memory / GIB,
            "usable": USABLE * machine.memory / GIB,
        },
        "precision": planner.precision_of(planner.recipe),
        "rates": planner.rates.source,
        "data": planner.amounts.source,
        "stages": [
            {
                "stage": stage.work.stage,
                "models": {name: count for name, (count, _) in stage.work.held.items()},
                "trained": [name for name, (_, trained) in stage.work.held.items() if trained],
                "steps": stage.work.steps,
                "tokens_trained": round(stage.work.trained),
                "tokens_read": round(stage.work.read),
                "tokens_sampled": round(stage.work.sampled),
                "micro_batch_tokens": stage.micro_batch_tokens,
                "memory": stage.memory / GIB,
                "seconds": stage.seconds,
                "fits": planner.fits(stage),
            }
            for stage in stages
        ],
        "memory": max(stage.memory for stage in stages) / GIB,
        "seconds": sum(counted),
        "fits": all(map(planner.fits, stages)),
        "changes": [
            {"settings": list(one.settings), "what": one.what, "memory": one.memory / GIB, "fits": one.fits}
            for one in advise(planner)
        ],
        "notes": list(_notes(planner)),
    }


def _notes(planner: Planner) -> list[str]:
    found = []
    if planner.asked.gpus > 1:
        found.append(
            f"A run uses one device today; {planner.asked.gpus} are for comparison: weights, gradients and Adam's "
            "state divided among them, each with passes of its own, and no time for what they tell each other."
        )
    if planner.asked.gpu:
        found.append("Nothing of the card was measured: its times are an assumption.")
    if "label" in planner.recipe.stages:
        found.append("The time of judging is not counted.")
    return found


def shown(found: dict[str, Any]) -> Group:
    """For a terminal."""
    device, model = found["device"], found["model"]
    count = f"{device['count']} × " if device["count"] > 1 else ""
    lines = [
        f"{model['name']}: {_large(model['weights'])} weights, {found['precision']}",
        f"{count}{device['name']}: {device['memory']:.1f} GiB, of which {device['usable']:.1f} for a run",
        f"Time: {found['rates']}",
        f"Data: {found['data']}",
    ]
    fits = found["fits"]
    verdict = f"Peak {_gib(found['memory'])}, {_time(found['seconds'])} in all: "
    parts: list[Any] = [*map(Text, lines), _table(found["stages"])]
    parts.append(Text(verdict + ("it fits." if fits else "it does not fit."), style="green" if fits else "bold red"))
    if found["changes"]:
        parts.append(_changes(found["changes"]))
    elif not fits:
        parts.append(Text("No setting makes it fit.", style="red"))
    return Group(*parts, *(Text(note, style="dim") for note in found["notes"]))


def _table(stages: list[dict[str, Any]]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("stage", no_wrap=True)
    table.add_column("models held (*: trained)", overflow="fold")
    for heading in ("steps", "trained", "read", "sampled", "a pass", "memory", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in stages:
        held = [
            ("" if count == 1 else f"{count:g} ") + name + ("*" if name in row["trained"] else "")
            for name, count in row["models"].items()
        ]
        tokens = (row[key] for key in ("tokens_trained", "tokens_read", "tokens_sampled"))
        table.add_row(
            row["stage"],
            ", ".join(held),
            f"{row['steps']:,}" if row["steps"] else "",
            *(_large(count) if count else "" for count in tokens),
            f"{row['micro_batch_tokens']:,}" if row["micro_batch_tokens"] else "",
            Text(_gib(row["memory"]), style="" if row["fits"] else "red"),
            "" if row["seconds"] is None else _time(row["seconds"]),
        )
    return table


def _changes(rows: list[dict[str, Any]]) -> Table:
    others = any("--gpus" in row["what"] or not row["settings"] for row in rows)
    title = "What else would fit" if others else "What to change, one after the other"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("", overflow="fold")
    table.add_column("", overflow="fold")
    table.add_column("memory", justify="right", no_wrap=True)
    for row in rows:
        settings = "\n".join(f"--set {one}" for one in row["settings"])
        table.add_row(settings, row["what"], Text(_gib(row["memory"]), style="green" if row["fits"] else "red"))
    return table


def _large(count: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"


def _gib(size: float) -> str:
    return f"{size:.2f} GiB" if size < 10 else f"{size:,.1f} GiB"


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"
