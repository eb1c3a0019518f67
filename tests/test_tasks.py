"""The commands for single tasks, each on a finished run: sample, evaluate, inspect, chat."""

from __future__ import annotations

import io
import json
import re
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa
from rich.console import Console
from tests.commands import Call, ok
from tests.toys import byte_tokenizer, judge_some

from prefloop import cli
from prefloop.chat import Chat
from prefloop.console import comparison_table, printable
from prefloop.dataset import place
from prefloop.feedback.assignment import Queue
from prefloop.feedback.records import Prompt
from prefloop.feedback.store import Store
from prefloop.feedback.tables import ITEMS
from prefloop.runs import folder_hash, read_json
from prefloop.tasks import coloured, coloured_examples


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


def test_evaluate(call: Call, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    call("--help")
    monkeypatch.setattr(cli, "console", Console(width=160))
    monkeypatch.chdir(project)
    after, before = "runs/tiny/ppo/model", "runs/tiny/sft/model"
    report = read_json(project / "runs" / "tiny" / "evaluation" / "ppo.json")
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


def test_inspect_shows_both_colours_on_a_terminal(call: Call, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "console", Console(force_terminal=True, color_system="standard", width=400))
    call("--help")
    monkeypatch.chdir(project)
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
