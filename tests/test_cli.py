"""Every command, with tiny models, as a person would call it."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, get_type_hints

import httpx
import pytest
import sqlalchemy as sa
import typer
from rich.console import Console
from tests.databases import Server
from tests.runs import MODEL, dialogues, tiny
from tests.toys import byte_tokenizer, heeds_ctrl_c, judge_some

from prefloop import cli
from prefloop.chat import Chat
from prefloop.console import comparison_table, printable
from prefloop.dataset import place
from prefloop.feedback.assignment import Queue
from prefloop.feedback.records import Completion, Judgement, Prompt
from prefloop.feedback.store import Store
from prefloop.feedback.tables import ITEMS
from prefloop.recipes import dump_recipe, load_recipe
from prefloop.runs import folder_hash, read_json
from prefloop.tasks import coloured, coloured_examples


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Call = Callable[..., Outcome]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs ``prefloop ARGUMENTS`` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["prefloop", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code = ended.value.code
        assert isinstance(code, int)
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a finished run."""
    from prefloop import pipeline

    project = tmp_path_factory.mktemp("finished")
    (project / "prefloop.toml").write_text(dump_recipe(tiny()), encoding="utf-8")
    pipeline.run(tiny(), project)
    return project


def settings(*more: str) -> list[str]:
    """MODEL as --set options."""
    chosen = [f"{section}.{key}={value}" for section, table in MODEL.items() for key, value in table.items()]
    return [part for one in [*chosen, *more] for part in ("--set", one)]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def ok(outcome: Outcome) -> str:
    assert outcome.code == 0, outcome
    assert outcome.err == ""
    return outcome.out


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


# Single tasks


def test_sample_judge_import(call: Call, finished: Path, tmp_path: Path) -> None:
    model = finished / "runs" / "tiny" / "sft" / "model"
    shutil.copy(finished / "feedback.db", tmp_path)
    arguments = ("sample", model, "--prompts", 7, "--answers", 3, "--max-response-tokens", 8, "--seed", 1)
    shown = ok(call(*arguments, "--sheet", "a.jsonl"))
    assert "7 prompts with 3 answers each: a.jsonl\n" in shown
    assert "prefloop import a.jsonl" in shown
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [len(row["answers"]) for row in rows] == [3] * 7
    filled = [
        row | {"choice": choice} for row, choice in zip(rows, ["1", 2, "tie", "2>1=3", "3", "", ""], strict=True)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in filled), encoding="utf-8")
    shown = ok(call("import", "a.jsonl"))
    assert "7 rows (sheet): 0 new prompts, 0 completions, 5 judgements" in shown
    assert "2 rows left out: not judged (line 6, 7)" in shown
    with Store.open("feedback.db") as store:
        found = [judgement for judgement in store.judgements() if judgement.source == "human"]
        assert len(found) == 5
        origins = {c.origin for c in store.completions() if c.id in {key for j in found for key in j.shown}}
    assert origins == {f"{model}@{folder_hash(model)}"}


def test_sampling_again_asks_about_other_prompts(call: Call, finished: Path, tmp_path: Path) -> None:
    """The second round of feedback must not be the first once more; and a held-out prompt is never asked about."""
    model = finished / "runs" / "tiny" / "sft" / "model"
    with Store.open("feedback.db") as store:
        store.add(Prompt.of(f"question {i}") for i in range(30))
        wanted = {p.text for p in store.prompts() if place(p, 0.5) == "train"}
    (tmp_path / "prefloop.toml").write_text('[data]\nheldout_fraction = 0.5\ncriterion = "tone"\n', encoding="utf-8")
    rounds = []
    for sheet in ("a.jsonl", "b.jsonl", "c.jsonl"):
        count = 5 if sheet != "c.jsonl" else 30
        ok(call("sample", model, "--prompts", count, "--max-response-tokens", 8, "--sheet", sheet))
        rows = [json.loads(line) for line in (tmp_path / sheet).read_text(encoding="utf-8").splitlines()]
        assert {row["criterion"] for row in rows} == {"tone"}
        rounds.append({row["prompt"] for row in rows})
    assert len(rounds[0]) == len(rounds[1]) == 5
    assert not rounds[0] & rounds[1]
    assert rounds[2] == wanted


def test_sample_fills_the_queue_until_enough_is_collected(call: Call, finished: Path, tmp_path: Path) -> None:
    shutil.copy(finished / "feedback.db", tmp_path)
    models = finished / "runs" / "tiny"
    arguments = ("sample", models / "sft" / "model", "--prompts", 6, "--answers", 3, "--max-response-tokens", 8)
    arguments = (*arguments, "--reward", models / "reward" / "model", "--target", 4)
    shown = ok(call(*arguments))
    assert "6 prompts with 3 answers each wait for votes (0 of 4 wanted so far).\n" in shown
    assert "prefloop label" in shown
    with Store.of_project(tmp_path) as store:
        (batch,) = Queue(store).batches()
        assert (batch.criteria, batch.overlap, batch.target) == (("overall",), 1, 4)
        with store.database.reading() as db:
            priorities = db.execute(sa.select(ITEMS.c.priority)).scalars().all()
        assert len(set(priorities)) == 6, "each its own"
        assert all(0 < priority <= 1 for priority in priorities), "bits"
        assert judge_some(store, 2) == 2
    assert "(2 of 4 wanted so far)" in ok(call(*arguments))
    with Store.of_project(tmp_path) as store:
        assert judge_some(store, 99) == 2
        counts = store.counts()
    assert "Enough is collected: 4 of 4 votes" in ok(call(*arguments))
    with Store.of_project(tmp_path) as store:
        assert store.counts() == counts, "nothing was sampled"


def test_answers_are_told_apart_by_the_weights_that_gave_them(finished: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(finished / "runs" / "tiny" / "sft" / "model", tmp_path / "model"))
    before = folder_hash(model)
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    assert folder_hash(model) != before


def test_evaluate(call: Call, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    call("--help")
    monkeypatch.setattr(cli, "console", Console(width=160))
    monkeypatch.chdir(finished)
    after, before = "runs/tiny/ppo/model", "runs/tiny/sft/model"
    report = read_json(finished / "runs" / "tiny" / "evaluation" / "ppo.json")
    shown = ok(call("evaluate", after, before))
    assert f"against {before}" in shown
    assert f"{after} " in shown
    assert f"{report['win_rate']['value']:.1%} " in shown
    assert f"{report['true_reward_before']:.3f} → {report['true_reward_after']:.3f}" in shown
    assert "Judged by: true preference, 12 prompts." in shown
    arguments = ("evaluate", after, before, "--set", "evaluate.prompts=5", "--judge")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        outcome = call(*arguments, "runs/tiny/reward/model")
    assert (outcome.code, outcome.err.startswith("warning: The judge is the reward that")) == (0, True)
    judged = outcome.out
    assert "Judged by: the trained reward itself, 5 prompts." in judged
    assert f"{after}: The judge is the reward that the policy was trained on" in judged.replace("\n", " ")
    shutil.copytree("runs/tiny/reward/model", "another")
    assert "Judged by: another, 5 prompts." in ok(call(*arguments, "another"))
    assert "50.0% " in ok(call("evaluate", before, before, "--recipe", "runs/tiny/recipe.toml"))


def test_no_text_steers_the_terminal() -> None:
    """A title set, a screen cleared, a line overwritten: what a model says must not do that."""
    hostile = "a\x1b]0;title\x07b\x1b[2Jc\rd\x9be\tf\ng\u202e"
    shown = printable(hostile)
    assert shown == "a\\x1b]0;title\\x07b\\x1b[2Jc\\x0dd\\x9be\tf\ng\u202e"
    tokenizer = byte_tokenizer()
    colour = coloured(Chat(tokenizer), Chat(tokenizer).answered(Prompt.of("q"), hostile)).plain
    assert not set("\x1b\x07\r") & set(colour)
    figures = {"name": "a[/b]", "against": "[red]", "win_rate": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 2}}
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(comparison_table([{**figures, "kl": 1.0, "alarms": [], "judge": "[/x]"}]))
    text = console.export_text()
    assert "a[/b] " in text
    assert "against [red]" in text


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


def test_inspect_shows_what_is_trained_on(call: Call, finished: Path, tmp_path: Path) -> None:
    model = finished / "runs" / "tiny" / "sft" / "model"
    turns = [("user", "Hi"), ("assistant", "Hello"), ("user", "And\nso?"), ("assistant", "Bye")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n", encoding="utf-8")

    def coloured(count: int, loss_on: str) -> tuple[int, str, str]:
        head, *texts = coloured_examples(str(model), tmp_path / "x.jsonl", count, loss_on)  # type: ignore[arg-type]
        assert head.plain.startswith("Green is trained on")
        found = {"green": "", "bright_black": ""}
        for span in texts[0].spans:
            for colour in found:
                if str(span.style).startswith(colour):
                    found[colour] += texts[0].plain[span.start : span.end]
        return len(texts), found["green"], found["bright_black"]

    assert coloured(1, "last") == (
        1,
        "▁Bye<|eos|>",
        "⏎\n⏎\nHuman:▁Hi⏎\n⏎\nAssistant:▁Hello<|eos|>⏎\n⏎\nHuman:▁And⏎\nso?⏎\n⏎\nAssistant:",
    )
    number, green, grey = coloured(9, "all")
    assert (number, green) == (2, "▁Hello<|eos|>▁Bye<|eos|>")
    assert "Hello" not in grey

    shown = ok(call("inspect", model, "--file", "x.jsonl", "-n", 1))
    assert shown.count("trained on\n") == 1
    assert len(re.findall(r"^\d+ tokens, \d+ trained on$", shown, re.MULTILINE)) == 1


def test_inspect_shows_both_colours_on_a_terminal(
    call: Call, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "console", Console(force_terminal=True, color_system="standard", width=400))
    call("--help")
    monkeypatch.chdir(finished)
    shown = call("inspect", "runs/tiny/sft/model", "--count", 2).out
    assert "\x1b[32m" in shown  # green
    assert "\x1b[90m" in shown  # bright black
    assert shown.count(" trained on\x1b") == 2


def test_chat(call: Call, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = finished / "runs" / "tiny" / "sft" / "model"

    def talk(said: Sequence[str], *options: object) -> str:
        lines = iter(said)
        monkeypatch.setattr(cli.console, "input", lambda _prompt: next(lines))
        return ok(call("chat", model, *options))

    greeting = "An empty line ends the conversation.\n"
    assert talk([""]) == greeting
    first = talk(["Hello", ""])  # with the defaults: the model's context is 256, and so is the longest answer
    assert len(first) > len(greeting)
    short = ("--max-response-tokens", 12, "--seed", 4)
    twice = talk(["Hello", "Hello", " "], *short)
    assert twice == talk(["Hello", "Hello", ""], *short)
    assert twice != talk(["Hello", "Hello", ""], *short[:2], "--seed", 5)
    # With --single the model has forgotten the first question; without temperature it then answers alike.
    cold = (*short, "--temperature", 0)
    alone = talk(["Hello", ""], *cold).removeprefix(greeting)
    assert talk(["Hello", "Hello", ""], *cold, "--single") == greeting + 2 * alone


def test_chat_ends_with_the_input(call: Call, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(_prompt: str) -> str:
        raise EOFError

    monkeypatch.setattr(cli.console, "input", ended)
    assert ok(call("chat", finished / "runs" / "tiny" / "sft" / "model")).startswith("An empty line")


def test_chat_goes_on_when_the_conversation_is_longer_than_the_context(
    call: Call, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter(["word " * 20, "word " * 20, "word " * 20, ""])
    monkeypatch.setattr(cli.console, "input", lambda _prompt: next(lines))
    ok(call("chat", finished / "runs" / "tiny" / "sft" / "model", "--max-response-tokens", 100))


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
    call: Call, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished)
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
