"""Every command, with tiny models, as a person would call it."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_type_hints

import httpx
import pytest
import typer
from rich.console import Console
from tests.commands import Call, names, ok, settings
from tests.databases import Server
from tests.runs import dialogues, tiny
from tests.toys import heeds_ctrl_c, judge_some

from prefloop import cli
from prefloop.feedback.records import Completion, Judgement, Prompt
from prefloop.feedback.store import Store
from prefloop.recipes import dump_recipe, load_recipe
from prefloop.runs import read_json

# Help

COMMANDS = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]


def test_these_are_the_commands() -> None:
    known = "demo init run plan import export backup restore sample label stats evaluate report inspect chat"
    assert list(COMMANDS) == known.split()


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_explains_every_option(command: str, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = ok(call(command, "--help"))
    for parameter in COMMANDS[command].params:
        if parameter.param_type_name == "option":
            assert all(name in shown for name in parameter.opts)
        assert parameter.help, f"{command} {parameter.name} is not explained"
        assert " ".join(parameter.help.replace("`", "").split()[:3]) in shown


def test_help_is_quick() -> None:
    """It imports nothing heavy: no torch, no validation, no database."""
    heavy = {"torch", "transformers", "numpy", "scipy", "sqlalchemy", "pydantic", "jinja2", "tokenizers"}
    program = (
        "import sys\nfrom prefloop.cli import main\nsys.argv = ['prefloop', '--help']\n"
        f"try:\n    main()\nfinally:\n    print('heavy:', sorted({heavy!r} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "heavy: []" in done.stdout
    for command in COMMANDS:
        assert f" {command} " in done.stdout


def test_garbage_is_looked_for_seldom_and_as_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = gc.get_threshold(), []
    monkeypatch.setattr(cli, "app", lambda **_: seen.append(gc.get_threshold()[0]))
    cli.main()
    assert seen == [100_000]
    assert gc.get_threshold() == before


def test_it_is_a_module_too() -> None:
    done = subprocess.run([sys.executable, "-m", "prefloop", "report", "no-such"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no-such: there is no such folder")
    assert "Traceback" not in done.stderr


def test_nothing_asked_shows_the_help(call: Call) -> None:
    assert "prefloop demo" in call().out


# The loop


def test_demo(call: Call, tmp_path: Path) -> None:
    options = settings("data.world_prompts=60", "data.world_heldout=30")
    shown = ok(call("demo", "--folder", "here", "--seed", 3, "--algorithm", "dpo", *options))
    folder = tmp_path / "here" / "runs" / "seed-3"
    assert shown.splitlines()[-1] == "Report: here/runs/seed-3/report.html"
    assert (folder / "report.html").is_file()
    assert not (folder / "ppo").exists()
    assert "Judged by: true preference, 12 prompts." in shown
    for stage in ("pretrain", "sft", "sample", "label", "reward", "dpo", "evaluation"):
        assert re.search(rf"^{stage} +done", shown, re.MULTILINE)
    recipe = load_recipe(tmp_path / "here" / "prefloop.toml")
    assert (recipe.seed, recipe.algorithms) == (3, ("dpo",))
    assert load_recipe(folder / "recipe.toml") == recipe
    again = ok(call("demo", "--folder", "here", "--seed", 3, "--algorithm", "dpo", *options))
    assert len(re.findall(r" unchanged ", again)) == 7
    assert names(tmp_path) == ["here"]


def test_demo_with_people(call: Call, tmp_path: Path) -> None:
    """Stops with instructions; following them leads to the end."""
    options = settings("data.world_prompts=60", "data.world_heldout=30", "label.minimum=20", 'algorithms=["dpo"]')
    shown = ok(call("demo", "--human", "--no-wait", *options))
    assert "(0 of 20 votes so far)" in shown
    (place,) = re.findall(r"^In (.*): prefloop label$", shown, re.MULTILINE)  # whole, however long
    assert Path(place) == tmp_path / "prefloop-demo"
    with Store.of_project(Path(place)) as store:
        assert judge_some(store, 99) == 20
    assert "Judged by: true preference" in ok(call("demo", "--human", "--no-wait", *options))
    run = Path(place) / "runs" / "seed-0-human"
    assert read_json(run / "label" / "manifest.json")["judgements"] == 20


def test_the_demo_shows_its_own_page_to_judge_on(tmp_path: Path) -> None:
    """What is printed is all that somebody needs: the link signs them in, their votes let the run go on by itself."""
    options = settings("data.world_prompts=60", "data.world_heldout=30", "label.minimum=20", 'algorithms=["dpo"]')
    process = subprocess.Popen(
        [sys.executable, "-m", "prefloop", "demo", "--human", *options],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        link = re.compile(r"Open (http://127\.0\.0\.1:\d+)/#key=(\S+)")
        found = next(match for line in process.stdout if (match := link.search(line)))
        with httpx.Client(base_url=found[1], headers={"Origin": found[1]}) as browser:
            assert browser.post("/api/session", json={"key": found[2]}).json()["role"] == "admin"
            for number in range(20):
                task = browser.post("/api/tasks/next").json()["task"]
                ranks = list(range(1, len(task["answers"]) + 1))
                send = {"id": f"send-{number:08}", "verdicts": [{"criterion": "overall", "ranks": ranks}]}
                assert browser.post(f"/api/tasks/{task['id']}/judgement", json=send).json()["stored"] == 1
        shown, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert "Judged by: true preference" in shown
    run = tmp_path / "prefloop-demo" / "runs" / "seed-0-human"
    assert read_json(run / "label" / "manifest.json")["judgements"] == 20


def test_the_demo_leaves_a_recipe_that_was_changed(call: Call, tmp_path: Path) -> None:
    options = settings("data.world_prompts=60", "data.world_heldout=30", 'algorithms=["dpo"]')
    ok(call("demo", *options))
    place = tmp_path / "prefloop-demo" / "prefloop.toml"
    assert "was left as it is" not in ok(call("demo", *options))
    place.write_text(place.read_text(encoding="utf-8") + "# mine\n", encoding="utf-8")
    mine = place.read_text(encoding="utf-8")
    shown = ok(call("demo", "--seed", "1", *options))
    assert "prefloop.toml says something else and was left as it is" in shown.replace("\n", " ")
    assert place.read_text(encoding="utf-8") == mine


def test_a_project_from_init_to_report(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "cd mine" in ok(call("init", "mine"))
    assert names(tmp_path / "mine") == ["feedback.db", "prefloop.toml"]
    monkeypatch.chdir("mine")
    file = dialogues(tmp_path / "dialogues.jsonl")
    assert ok(call("import", file)) == (
        f"{file}: 80 rows (dialogue): 80 new prompts, 160 completions, 80 judgements, 0 demonstrations\n"
    )
    assert " 0 new prompts, 0 completions, 0 judgements" in ok(call("import", file))
    shown = ok(call("run", *settings("data.heldout_fraction=0.25", "judge.fraction=0.3")))
    assert shown.splitlines()[-1] == "Report: " + str(tmp_path / "mine" / "runs" / "mine" / "report.html")
    assert "Judged by: held-out reward model" in shown
    (tmp_path / "mine" / "runs" / "mine" / "report.html").unlink()
    assert ok(call("report", "runs/mine")) == "Report: runs/mine/report.html\n"
    assert (tmp_path / "mine" / "runs" / "mine" / "report.html").is_file()


def test_run_uses_the_recipe_that_it_is_given(call: Call, tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    dialogues(tmp_path / "recipes" / "dialogues.jsonl")
    data = '[data]\nfiles = ["dialogues.jsonl"]\nheldout_fraction = 0.25\n'
    recipe = f'name = "named"\n{data}[sft]\ndemonstrations = "preferred"\n'
    (tmp_path / "recipes" / "r.toml").write_text(recipe, encoding="utf-8")
    ok(call("run", "recipes/r.toml", *settings("judge.fraction=0.3", 'algorithms=["dpo"]', "seed=5")))
    assert read_json(tmp_path / "runs" / "named" / "summary.json")["seed"] == 5
    assert names(tmp_path) == ["cache", "feedback.db", "recipes", "runs"]


def test_import_tells_what_it_left_out(call: Call, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "response": "b", "extra": 1}, {"prompt": "a"}, {"prompt": "c", "response": "d"}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    shown = ok(call("import", "--skip-bad", "--format", "demonstration", "x.jsonl"))
    assert "x.jsonl: 3 rows (demonstration): 2 new prompts" in shown
    assert re.search(r"1 rows left out: .*missing.* \(line 2\)", shown)
    assert "1 rows: field 'extra' is not used" in shown


def test_backup_and_restore(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, postgres: Server) -> None:
    """A project moves to PostgreSQL by the environment alone."""
    rows = [{"prompt": "a", "response": "b"}, {"prompt": "c", "response": "d"}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    ok(call("import", "x.jsonl"))
    assert ok(call("backup", "out.db")) == "out.db: 2 prompts, 2 demonstrations\n"
    assert "out.db is there already" in call("backup", "out.db").err
    assert "is not empty (2 prompts, 2 demonstrations)" in call("restore", "out.db").err
    monkeypatch.setenv("PREFLOOP_DATABASE", postgres.create())
    assert ok(call("restore", "out.db")) == "Restored from out.db: 2 prompts, 2 demonstrations\n"
    assert "0 new prompts" in ok(call("import", "x.jsonl"))
    (tmp_path / "feedback.db").unlink()
    assert ok(call("backup", "again.db")) == "again.db: 2 prompts, 2 demonstrations\n"
    assert not (tmp_path / "feedback.db").exists()


# Ends


def test_ctrl_c_says_what_is_kept(tmp_path: Path) -> None:
    (tmp_path / "prefloop.toml").write_text(dump_recipe(tiny("pretrain.tokens=40_000_000")), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "prefloop", "run"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heeds_ctrl_c,
    )
    metrics = tmp_path / "runs" / "tiny" / ".pretrain.partial" / "metrics.jsonl"
    try:
        deadline = time.monotonic() + 60
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130
    assert told == "\nStopped. Finished stages are kept; the same command goes on from there.\n"
    assert not (tmp_path / "runs" / "tiny" / "pretrain").exists()


def test_a_traceback_on_demand(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PREFLOOP_TRACEBACK", "1")
    monkeypatch.setattr(sys, "argv", ["prefloop", "report", str(tmp_path / "none")])
    with pytest.raises(ValueError, match="no such folder"):
        cli.main()


# What the judgements are worth


def test_stats_tells_what_the_judgements_are_worth(
    call: Call, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setattr(cli, "console", Console(width=80))
    shown = ok(call("stats"))
    for part in ("judgements by 6 annotators", "Sent by day", "sim-careful", "η: 0", "Bias:", "weight", "█"):
        assert part in shown
    assert max(map(len, shown.splitlines())) <= 80
    figures = json.loads(ok(call("stats", "--json")))
    assert figures["criteria"][0]["name"] == "overall"
    assert ok(call("stats", "--criterion", "overall")) == shown
    wrong = call("stats", "--criterion", "tone")
    assert wrong.code == 2
    assert "no judgements by the criterion 'tone'" in wrong.err


def test_stats_of_an_empty_store_and_of_none(call: Call) -> None:
    missing = call("stats")
    assert missing.code == 2
    assert "feedback.db" in missing.err
    Store.open("feedback.db").close()
    assert "0 judgements by 0 annotators" in ok(call("stats"))


def test_a_hostile_name_does_not_steer_the_terminal(call: Call) -> None:
    prompt = Prompt.of("p")
    a, b = (Completion(prompt_id=prompt.id, text=text, origin=f"[o]{text}\x1b[2J") for text in "ab")
    said = Judgement(
        id="1",
        prompt_id=prompt.id,
        annotator="[red]eve\x1b[31m",
        source="human",
        shown=(a.id, b.id),
        ranks=(1, 2),
        flags=("\x1b]0;x\x07",),
        criterion="\x1b[1mc",
    )
    with Store.open("feedback.db") as store:
        store.add([prompt, a, b, said])
    shown = ok(call("stats"))
    assert "\x1b" not in shown
    assert "[red]eve" in shown
    assert "Whose answers win?" in shown
    assert "[o]a" in shown


# In and out


def test_import_and_export_say_how_many_of_what(call: Call, tmp_path: Path) -> None:
    good = {"prompt": "Q", "chosen": "A", "rejected": "B"}
    rows = [good, good | {"rejected": "A"}, good | {"prompt": "R", "note": "x"}]
    (tmp_path / "in.json").write_text(json.dumps(rows), encoding="utf-8")
    refused = call("import", "in.json")
    assert (refused.code, refused.err) == (2, "error: in.json, item 2: chosen and rejected are the same\n")
    shown = ok(call("import", "--skip-bad", "in.json"))
    assert shown.splitlines() == [
        "in.json: 3 rows (comparison): 2 new prompts, 4 completions, 2 judgements, 0 demonstrations",
        "  1 rows left out: chosen and rejected are the same (item 2)",
        "  The bad rows: in.json.rejected.jsonl",
        "  1 rows: field 'note' is not used",
    ]
    with Store.open("feedback.db") as store:
        said = next(store.judgements())
        store.add([said.model_copy(update={"id": "tie", "ranks": (1, 1)})])
    assert ok(call("export", "--format", "comparison", "out")).splitlines() == [
        "out: 2 rows (comparison)",
        "  1 left out: a tie",
    ]
    assert ok(call("import", "out")).startswith("out: 2 rows (comparison): 0 new prompts, 4 completions")
    assert call("export", "--format", "prefloop", "out").err.startswith("error: out is there already")


def test_the_formats_of_the_commands_are_those_that_there_are() -> None:
    from prefloop.feedback.formats import ExportFormat, Format

    told = get_type_hints(cli.import_)["format"], get_type_hints(cli.export)["format"]
    assert told == (Format | None, ExportFormat)


def test_export_needs_a_project(call: Call, tmp_path: Path) -> None:
    assert "does not exist; is this the project's folder?" in call("export", "--format", "prompt", "out.csv").err
    assert not names(tmp_path)
