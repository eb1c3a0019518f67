"""The command line: parse, call, print. Heavy imports happen inside the commands, so that --help is quick."""

from __future__ import annotations

import gc
import json
import os
import re
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.text import Text

from prefloop.feedback.format_names import ExportFormat, Format
from prefloop.planning.command import plan

if TYPE_CHECKING:
    from prefloop.recipes import Recipe

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Turn human preferences into a better language model.\n\n"
    "New here? `prefloop demo` runs the whole loop on an embedded world in a few minutes: a small model is trained, "
    "its answers are judged, a reward model learns from the judgements, PPO and DPO train against them, and a report "
    "shows what came of it.",
)
console = Console()

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change one field of the recipe, for example `--set ppo.kl_coef=0.1`. Repeatable."),
]
RecipeFile = Annotated[Path, typer.Option("--recipe", help="Whose held-out prompts and settings are used.")]
ModelFolder = Annotated[str, typer.Argument(help="A model folder, such as `runs/demo/ppo/model`, or a hub name.")]

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def main() -> None:
    """Run the command line; what the user can mend is one clear message, not a traceback."""
    warnings.showwarning = _warn
    before = gc.get_threshold()
    # Not 700: looking for garbage is a fifth of importing torch and transformers. It stays so, for training leaves no
    # tensors in cycles.
    gc.set_threshold(100_000)
    try:
        app(prog_name="prefloop")
    except (ValueError, OSError) as error:
        if os.environ.get("PREFLOOP_TRACEBACK"):
            raise
        from prefloop.console import printable

        Console(stderr=True, soft_wrap=True).print(Text(printable(f"error: {error}"), style="red"))
        sys.exit(EXIT_BAD_INPUT)
    finally:
        gc.set_threshold(*before)
        gc.freeze()  # the process ends: Python would look for garbage among all that torch and transformers have made


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    """A warning is a sentence for the user; where in our code it was raised is not."""
    from prefloop.console import printable

    Console(stderr=True, soft_wrap=True).print(Text(printable(f"warning: {message}"), style="yellow"))


@app.command()
def demo(
    algorithm: Annotated[
        Literal["ppo", "dpo", "both"], typer.Option(help="What is trained from the preferences.")
    ] = "both",
    seed: Annotated[int, typer.Option(help="Another seed, another world and another run.", min=0)] = 0,
    human: Annotated[
        bool,
        typer.Option("--human", help="You judge, on a page in the browser, instead of simulated annotators."),
    ] = False,
    wait: Annotated[bool, typer.Option(help="With --human: wait for you, or stop and be called again.")] = True,
    folder: Annotated[Path, typer.Option(help="The project folder that is made.")] = Path("prefloop-demo"),
    settings: Settings = None,
) -> None:
    """The whole loop on the embedded world: a text rewriter that learns from preferences."""
    from prefloop.demo.recipe import demo_table
    from prefloop.recipes import dump_recipe, load_recipe, make_recipe
    from prefloop.runs import write_text

    name = f"seed-{seed}-human" if human else f"seed-{seed}"
    recipe = make_recipe(demo_table(name, seed, algorithm, human), settings or [], where="demo")
    place = folder / "prefloop.toml"
    if place.exists() and load_recipe(place).data.world != recipe.data.world:
        raise ValueError(f"{place} is another project's recipe; nothing was changed. Name a new folder with --folder")
    folder.mkdir(parents=True, exist_ok=True)
    if not place.exists():
        write_text(place, dump_recipe(recipe))
    elif load_recipe(place) != recipe:
        _say(f"{place} says something else and was left as it is. This run's recipe: runs/{name}/recipe.toml", "dim")
    if human and wait:
        from prefloop.web.serve import serving

        with serving(folder) as link:
            _run(recipe, folder, folder, wait, link)
    else:
        _run(recipe, folder, folder, wait)


@app.command()
def init(
    name: Annotated[Path, typer.Argument(help="The folder to make.")],
) -> None:
    """Make a project folder with a recipe to start from and an empty store."""
    from prefloop.demo.recipe import starter_text
    from prefloop.feedback.store import Store

    if (name / "prefloop.toml").exists():
        raise ValueError(f"{name / 'prefloop.toml'} is there already; nothing was changed")
    name.mkdir(parents=True, exist_ok=True)
    (name / "prefloop.toml").write_text(starter_text(_as_name(name.resolve().name)), encoding="utf-8")
    Store.of_project(name).close()
    _say(
        f"Made {name}. Next:\n"
        f"  cd {name}\n"
        "  prefloop import FILE.jsonl     comparisons (chosen, rejected) or demonstrations (prompt, response)\n"
        "  prefloop run                   set model.path in prefloop.toml first, or pretrain a small model"
    )


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a TOML file.")] = Path("prefloop.toml"),
    wait: Annotated[bool, typer.Option(help="Where people judge: wait, or stop and be called again.")] = True,
    settings: Settings = None,
) -> None:
    """Run a recipe, or go on with it: stages whose inputs did not change are skipped.

    The project is the current folder: its `feedback.db` holds the data, its `runs/` the results. Paths in the recipe
    start at the recipe's own folder.
    """
    from prefloop.recipes import load_recipe

    _run(load_recipe(recipe, settings or []), Path.cwd(), recipe.resolve().parent, wait)


app.command()(plan)


@app.command("import")
def import_(
    files: Annotated[list[Path], typer.Argument(help="JSON lines, JSON, CSV, Parquet, or a saved datasets folder.")],
    format: Annotated[
        Format | None,
        typer.Option(help="Found by looking, unless given."),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave bad rows out and write them to FILE.rejected.jsonl.")
    ] = False,
) -> None:
    """Import comparisons, labels, demonstrations, prompts or judged sheets into this project's store."""
    from prefloop.feedback.formats import import_file
    from prefloop.feedback.store import Store

    for file in files:
        saved = (file / "state.json").exists() or (file / "dataset_dict.json").exists()
        if not file.is_file() and not saved:
            problem = "is a folder; name the files in it" if file.is_dir() else "there is no such file"
            raise ValueError(f"{file}: {problem}")
    with Store.of_project(Path.cwd()) as store:
        for file in files:
            report = import_file(store, file, format, skip_bad=skip_bad)
            added = report.added
            _say(
                f"{file}: {report.rows} rows ({report.format}): {added.prompts} new prompts, "
                f"{added.completions} completions, {added.judgements} judgements, "
                f"{added.demonstrations} demonstrations"
            )
            if report.corrected:
                _say(f"  {report.corrected} of the judgements take the place of what the sheet said before")
            for reason, lines in report.skipped.items():
                numbers = ", ".join(map(str, lines[:5])) + (", …" if len(lines) > 5 else "")
                _say(f"  {len(lines)} rows left out: {reason} ({report.unit} {numbers})", "yellow")
            if report.rejected:
                _say(f"  The bad rows: {report.rejected}", "yellow")
            for what, count in report.noted.items():
                _say(f"  {count} rows: {what}", "dim")


@app.command()
def export(
    out: Annotated[
        Path, typer.Argument(help="A new .jsonl, .json, .csv or .parquet file, or a new folder for datasets.")
    ],
    format: Annotated[
        ExportFormat,
        typer.Option(help="What to write; `prefloop` is everything."),
    ],
    criterion: Annotated[str, typer.Option(help="Whose judgements are written.")] = "overall",
) -> None:
    """Write this project's feedback in a format that other tools read."""
    from prefloop.feedback.formats import export_file
    from prefloop.feedback.store import Store

    with Store.of_project(Path.cwd(), create=False) as store:
        report = export_file(store, format, out, criterion=criterion)
    _say(f"{out}: {report.rows} rows ({format})")
    for reason, count in report.left_out.items():
        _say(f"  {count} left out: {reason}", "yellow")
    for what, count in report.noted.items():
        _say(f"  {count}: {what}", "dim")


@app.command()
def backup(
    out: Annotated[Path, typer.Argument(help="The file to write; one that is there is not overwritten.")],
) -> None:
    """Write this project's store to one file, as it is at this moment, while others go on working."""
    from prefloop.feedback.backup import back_up
    from prefloop.feedback.store import Store

    with Store.of_project(Path.cwd(), create=False) as store:
        rows = back_up(store, out)
    _say(f"{out}: {_rows(rows)}")


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="A backup.")],
) -> None:
    """Write a backup into this project's store, which must be missing or empty."""
    from prefloop.feedback import backup
    from prefloop.feedback.database import place_of

    _say(f"Restored from {file}: {_rows(backup.restore(file, place_of(Path.cwd())))}")


@app.command()
def sample(
    model: ModelFolder,
    prompts: Annotated[int, typer.Option(help="How many of the store's training prompts to answer.", min=1)] = 100,
    answers: Annotated[int, typer.Option(help="Answers to each prompt.", min=2)] = 2,
    temperature: Annotated[float, typer.Option(help="Sampling temperature.", min=0.01)] = 1.0,
    max_response_tokens: Annotated[int, typer.Option(help="Longest answer.", min=1)] = 128,
    seed: Annotated[int, typer.Option(help="The same seed gives the same answers.", min=0)] = 0,
    overlap: Annotated[int, typer.Option(help="How many people judge each.", min=1)] = 1,
    target: Annotated[
        int | None, typer.Option(help="Votes that are enough: nobody is asked any more then.", min=1)
    ] = None,
    reward: Annotated[
        str, typer.Option(help="A reward model's folder: what it is least sure of is asked first.")
    ] = "",
    sheet: Annotated[Path | None, typer.Option(help="Write a judging sheet instead, to fill in by hand.")] = None,
    recipe: RecipeFile = Path("prefloop.toml"),
) -> None:
    """Sample answers to training prompts and put them into the queue that `prefloop label` shows to people.

    Prompts with the fewest answers so far come first, so that the next call asks about others.
    """
    from prefloop.feedback.store import Store
    from prefloop.recipes import Recipe, load_recipe
    from prefloop.tasks import Sampling, sample_to_queue

    # The recipe says which prompts are held out and what people are asked.
    loaded = load_recipe(recipe) if recipe.exists() or recipe != Path("prefloop.toml") else Recipe()
    how = Sampling(prompts, answers, temperature, max_response_tokens, seed, overlap, target, reward)
    with Store.of_project(Path.cwd(), create=False) as store:
        made = sample_to_queue(model, store, loaded, how, sheet)
    if sheet is not None:
        _say(
            f"{made.added} prompts with {answers} answers each: {sheet}\n"
            f'Set "choice" in each line to the better answer\'s number or to "tie", then: prefloop import {sheet}'
        )
    elif made.target is not None and made.done >= made.target:
        _say(f"Enough is collected: {made.done} of {made.target} votes. Raise --target to ask for more.")
    else:
        wanted = "" if made.target is None else f" of {made.target} wanted"
        _say(
            f"{made.added} prompts with {answers} answers each wait for votes ({made.done}{wanted} so far).\n"
            "To judge them: prefloop label"
        )


@app.command()
def label(
    host: Annotated[
        str, typer.Option(help="The address to listen on; one that other machines reach needs --url.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on; 0 takes a free one.", min=0, max=65535)] = 8765,
    url: Annotated[
        str, typer.Option(help="Where a team's browsers reach the pages, such as `https://label.example.org`.")
    ] = "",
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the link.")] = False,
) -> None:
    """Judge answers in the browser, alone or with a team, until Ctrl-C."""
    from prefloop.feedback.store import Store
    from prefloop.web.serve import LabelServer, open_browser

    with Store.of_project(Path.cwd(), create=False) as store:
        server = LabelServer(store, host, port, url)
        _say(f"Open {server.link}\nThis link signs you in as {server.settings.owner} while the server runs.")
        if url:
            _say(f"Others need an invite: make links for them at {server.settings.origins[0]}/admin")
        _say("Ctrl-C stops the server.", "dim")
        if not no_browser and not url:
            open_browser(server.link)
        try:
            server.run()
        except KeyboardInterrupt:
            Console(stderr=True).print("\nStopped. Everything that was sent is kept.")
            raise typer.Exit(EXIT_INTERRUPTED) from None


@app.command()
def stats(
    criterion: Annotated[
        str | None, typer.Option(help="Only judgements by this criterion; all of them when not given.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Every figure as one JSON object.")] = False,
) -> None:
    """Say what the judgements in this project's store are worth: agreement, reliability, bias, votes still needed."""
    from prefloop.console import statistics_tables
    from prefloop.feedback.assignment import Queue
    from prefloop.feedback.statistics import statistics
    from prefloop.feedback.store import Store

    with Store.of_project(Path.cwd(), create=False) as store:
        queue = Queue(store)
        found = statistics(
            store, criterion, gold=queue.gold_ranks(), skips=queue.skips(), arms=queue.arms()
        ).to_json()
    if as_json:
        console.print(Text(found), soft_wrap=True)
    else:
        console.print(statistics_tables(json.loads(found)))


@app.command()
def evaluate(
    after: Annotated[str, typer.Argument(help="The model folder to judge.")],
    before: Annotated[str, typer.Argument(help="The model folder it is compared with.")],
    judge: Annotated[str, typer.Option(help="A reward model folder; the recipe's world judges when not given.")] = "",
    recipe: RecipeFile = Path("prefloop.toml"),
    settings: Settings = None,
) -> None:
    """Compare two policies on held-out prompts: win rate with its interval, length, KL, alarms."""
    from prefloop.console import comparison_table
    from prefloop.recipes import load_recipe
    from prefloop.tasks import evaluate_pair

    loaded = load_recipe(recipe, settings or [])
    console.print(comparison_table(evaluate_pair(loaded, Path.cwd(), recipe.resolve().parent, after, before, judge)))


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A run folder, such as `runs/NAME`.")],
) -> None:
    """Write `report.html` from a run folder's files."""
    from prefloop.report import write_report

    _say(f"Report: {write_report(folder)}")


@app.command()
def inspect(
    model: ModelFolder,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", help="JSON lines to show; when not given, the store's demonstrations and then its answers."
        ),
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", help="How many to show.", min=1)] = 3,
    loss_on: Annotated[Literal["all", "last"], typer.Option(help="As `sft.loss_on`.")] = "last",
) -> None:
    """Show conversations as the model reads them: every token, and in colour those that are trained on."""
    from prefloop.tasks import coloured_examples

    for text in coloured_examples(model, file, count, loss_on):
        console.print(text)


@app.command()
def chat(
    model: ModelFolder,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.", min=0.0)] = 0.7,
    max_response_tokens: Annotated[int, typer.Option(help="Longest answer.", min=1)] = 256,
    seed: Annotated[int, typer.Option(help="The same seed gives the same answers.", min=0)] = 0,
    single: Annotated[bool, typer.Option("--single", help="Forget the conversation after each answer.")] = False,
) -> None:
    """Talk to a policy. An empty line ends the conversation."""
    from prefloop.console import printable
    from prefloop.policy import load_policy
    from prefloop.tasks import converse

    policy = load_policy(model)
    console.print("An empty line ends the conversation.", style="dim")
    answers = converse(policy, temperature, max_response_tokens, seed, single)
    next(answers)
    while text := _ask():
        console.print(Text(printable(answers.send(text))))
        next(answers)


def _rows(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {table}" for table, count in counts.items() if count) or "nothing in it"


def _as_name(folder: str) -> str:
    """What a run may be called after a folder: no dots first, nothing that TOML would have to escape."""
    return re.sub(r'["\\\\\x00-\x1f\x7f]', "-", folder.lstrip(".")) or "run"


def _ask() -> str:
    try:
        return console.input("[bold]> [/bold]").strip()
    except EOFError:
        return ""


def _run(recipe: Recipe, project: Path, folder: Path, wait: bool, page: str = "") -> None:
    from prefloop.console import RunDisplay, summary_table
    from prefloop.labelling import WaitingForPeopleError
    from prefloop.pipeline import NonFiniteError
    from prefloop.pipeline import run as run_recipe
    from prefloop.runs import read_json

    try:
        with RunDisplay(recipe.stages, console) as display:
            path = run_recipe(recipe, project, folder=folder, listener=display, wait=wait, page=page)
    except WaitingForPeopleError as waiting:
        _say(str(waiting))
        return
    except NonFiniteError as error:
        raise ValueError("\n".join([str(error), *error.__notes__])) from error
    except KeyboardInterrupt:
        Console(stderr=True).print("\nStopped. Finished stages are kept; the same command goes on from there.")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    console.print(summary_table(read_json(path / "summary.json")))
    _say(f"Report: {path / 'report.html'}", "bold")


def _say(text: str, style: str = "") -> None:
    """Print plain text; lines are not broken, so that a long path can be copied."""
    console.print(Text(text, style=style), soft_wrap=True)
