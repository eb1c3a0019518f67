"""Documentation that cannot rot: options, commands and every key that a run writes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.runs import dialogues, from_store, tiny

from prefloop import pipeline
from prefloop.cli import app
from prefloop.config import ALGORITHMS, RewardSource
from prefloop.judging import NO_JUDGE
from prefloop.recipes import Recipe
from prefloop.runs import read_json, read_lines

DOCS = Path(__file__).parents[1] / "docs"


def sections(page: str) -> dict[str, str]:
    """Heading → text below it."""
    parts = re.split(r"^## (.+)$", (DOCS / page).read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def code(text: str) -> set[str]:
    """Every name that stands in `code`."""
    return {name for span in re.findall(r"`([^`]+)`", text) for name in re.findall(r"\w+", span)}


# The recipe


def test_the_recipes_page_is_up_to_date() -> None:
    script = DOCS / "make_config.py"
    made = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, encoding="utf-8", check=True)
    assert made.stdout == (DOCS / "config.md").read_text(encoding="utf-8"), (
        "run: python docs/make_config.py > docs/config.md"
    )


def test_the_recipes_page_has_every_key() -> None:
    found = sections("config.md")
    for name, value in Recipe().model_dump().items():
        if isinstance(value, dict) or name == "rewards":
            heading = f"`[[{name}]]`" if name == "rewards" else f"`[{name}]`"
            value = value or RewardSource.model_fields
            rows = re.findall(r"^\| `(\w+)` \| `.+?` \| .+? \| \S.+ \|$", found[heading], flags=re.MULTILINE)
            assert rows == list(value)
        else:
            assert f"| `{name}` |" in found["Top level"]


# The command line

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def test_every_command_has_its_section_and_nothing_else_has() -> None:
    headings = [re.findall(r"`prefloop (\w+).*`", heading) for heading in sections("cli.md") if heading]
    assert sorted(heading[0] for heading in headings) == sorted(COMMANDS)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_option_is_explained(command: str) -> None:
    (heading,) = (heading for heading in sections("cli.md") if re.match(rf"`prefloop {command}\b", heading))
    text = heading + sections("cli.md")[heading]
    options = {
        name for p in COMMANDS[command].params for name in [*p.opts, *p.secondary_opts] if name.startswith("-")
    } - {"--help"}
    told = set(
        re.findall(r"(?<!\S)`?(--[\w-]+|-\w)(?=`)", "\n".join(re.findall(r"^\| (.+?) \|", text, re.MULTILINE)))
    )
    assert told == options
    for parameter in COMMANDS[command].params:
        if parameter.param_type_name == "argument":
            assert parameter.name.upper() in heading
        elif isinstance(parameter.default, int | float) and not isinstance(parameter.default, bool):
            assert f"| `--{parameter.name.replace('_', '-')}` | `{parameter.default}` |" in re.sub(
                r", `-n`", "", text
            )


# The run folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A run in a world and one on imported comparisons: between them they have every stage."""
    first, second = tmp_path_factory.mktemp("world"), tmp_path_factory.mktemp("store")
    dialogues(second / "dialogues.jsonl")
    everything = f"algorithms={json.dumps(ALGORITHMS)}"
    weighted = ("label.overlap=3", "label.weights=reliability")
    return [pipeline.run(tiny(everything, *weighted), first), pipeline.run(from_store("judge.fraction=0.3"), second)]


def keys(value: Any) -> Iterator[str]:
    """Every key, at any depth."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from keys(item)
    elif isinstance(value, list):
        for item in value:
            yield from keys(item)


def rows(text: str) -> dict[str, str]:
    """First cell's names → the other cells, of a table by stages."""
    cells = [line.strip("| ").split(" | ", 1) for line in text.splitlines() if line.startswith("| `")]
    return {stage: rest for names, rest in cells for stage in code(names)}


def test_every_key_of_the_metrics_is_documented(runs: list[Path]) -> None:
    text = sections("run-folder.md")["`metrics.jsonl`"]
    table, seen = rows(text), set()
    for path in (path for run in runs for path in run.glob("*/metrics.jsonl")):
        stage = path.parent.name
        found = set(keys(read_lines(path)))
        assert found - code(table[stage]) == {"progress"}, path
        # Nothing is promised that is not there, but for what the page says is there now and then.
        now_and_then = {"true_reward", "reward_NAME", "judgements", "critic_grad_norm", "kl_loss"}
        assert found >= code(table[stage]) - now_and_then, path
        seen.add(stage)
    assert seen == table.keys()
    assert "progress" in code(text)


def test_every_key_of_the_manifests_is_documented(runs: list[Path]) -> None:
    text = sections("run-folder.md")["`manifest.json`"]
    general, extra = code(text.split("|", 1)[0]), rows(text)
    for path in (path for run in runs for path in run.glob("*/manifest.json")):
        manifest = read_json(path)
        added = manifest.keys() - general
        assert added == code(extra.get(path.parent.name, "")), path
        assert manifest["versions"].keys() <= general


def test_every_key_of_the_evaluations_is_documented(runs: list[Path]) -> None:
    told = sections("run-folder.md")
    interval = code(told[""])
    for run in runs:
        for stage in ("reward", "judge"):
            if (run / stage).exists():
                found = set(keys(read_json(run / stage / "evaluation.json")))
                assert found <= code(told["`reward/evaluation.json`"]) | interval
        for name in read_json(run / "summary.json")["evaluation"]:
            comparison = code(told["`evaluation/NAME.json`"])
            assert set(keys(read_json(run / "evaluation" / f"{name}.json"))) <= comparison | interval
            samples = read_lines(run / "evaluation" / f"{name}.samples.jsonl")
            assert set(keys(samples)) <= comparison
            judge = read_json(run / "evaluation" / f"{name}.json")["judge"]
            assert f"`{judge}`" in told["`evaluation/NAME.json`"]
    assert NO_JUDGE.startswith("The judge is the reward ")


def test_every_key_of_the_summary_is_documented(runs: list[Path]) -> None:
    told = sections("run-folder.md")
    text = told["`summary.json`"]
    for run in runs:
        summary = read_json(run / "summary.json")
        assert summary.keys() <= code(text)
        for stage, values in summary["stages"].items():
            for key, value in values.items():
                named = re.findall(r"`stages\.(\{[\w,]+\}|\w+)\.(\{[\w,]+\}|\w+)", text)
                assert any(_among(stage, one, "NAME") and _among(key, other) for one, other in named), (stage, key)
                assert isinstance(value, float) or value.keys() == {"value", "low", "high", "n"}


def _among(name: str, braces: str, *wild: str) -> bool:
    return name in braces.strip("{}").split(",") or braces in wild


def test_every_file_of_a_run_is_documented(runs: list[Path]) -> None:
    page = (DOCS / "run-folder.md").read_text(encoding="utf-8")
    for run in runs:
        for path in run.iterdir():
            assert path.name == ".lock" or re.search(rf"\b{re.escape(path.name)}\b", page), path
        for stage in (path for path in run.iterdir() if path.is_dir()):
            line = next(line for line in page.splitlines() if line.startswith(f"      {stage.name}/"))
            for path in stage.iterdir():
                name = (
                    re.sub(rf"^({'|'.join(ALGORITHMS)})\.", "NAME.", path.name)
                    if stage.name == "evaluation"
                    else path.name
                )
                assert stage.name == "judge" or name in line, path


def test_what_a_page_imports_is_there() -> None:
    seen = 0
    for page in (DOCS.parent / "README.md", *DOCS.glob("*.md")):
        for module, names in re.findall(r"^from (prefloop\S*) import (.+)$", page.read_text("utf-8"), re.MULTILINE):
            assert set(names.split(", ")) <= vars(import_module(module)).keys(), page
            seen += 1
    assert seen


def test_no_page_waits_for_its_figures() -> None:
    for page in DOCS.glob("*.md"):
        assert "RESULTS-" not in page.read_text(encoding="utf-8"), page
