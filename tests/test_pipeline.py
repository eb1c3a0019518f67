"""The whole loop with tiny models: what a run leaves, what is skipped, and what an interruption costs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.toys import heeds_ctrl_c, judge_some
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from prefloop import labelling, pipeline
from prefloop.config import ON_POLICY
from prefloop.context import Context
from prefloop.dataset import part_of
from prefloop.feedback.aggregate import read_snapshot
from prefloop.feedback.assignment import Queue
from prefloop.feedback.records import CANNOT_JUDGE
from prefloop.feedback.store import Store
from prefloop.feedback.tasks import Submission, Verdict
from prefloop.judging import NO_JUDGE
from prefloop.labelling import WaitingForPeopleError
from prefloop.pipeline import NonFiniteError, Silence
from prefloop.recipes import Recipe, dump_recipe, load_recipe, make_recipe
from prefloop.runs import StageWriter, file_hash, read_json, read_lines
from prefloop.training.loop import Metrics

MODEL: dict[str, Any] = {
    "data": {"max_prompt_tokens": 128, "max_response_tokens": 100},
    "model": {"vocabulary": 400, "width": 32, "layers": 1, "heads": 2, "context": 256},
    "pretrain": {"tokens": 4000, "batch_tokens": 512, "block": 64},
    "sft": {"batch_size": 8},
    "sample": {"prompts": 20, "heldout": 20, "max_response_tokens": 12},
    "reward": {"batch_size": 8},
    "judge": {"batch_size": 8},
    **{
        name: {"iterations": 2, "episodes": 8, "minibatch_episodes": 4, "max_response_tokens": 12}
        for name in ON_POLICY
    },
    "dpo": {"batch_size": 8},
    "evaluate": {"prompts": 12, "max_response_tokens": 12},
}
"""Settings with which a run takes a second or two."""
TINY: dict[str, Any] = {section: MODEL[section] for section in MODEL if section != "judge"} | {
    "name": "tiny",
    "precision": "float32",  # the figures of several processes are compared
    "data": MODEL["data"] | {"world": "rewriter", "world_prompts": 60, "world_heldout": 30},
    "label": {"by": "simulated"},
}
STAGES = ("pretrain", "sft", "sample", "label", "reward", "ppo", "dpo", "evaluation")


def tiny(*settings: str) -> Recipe:
    return make_recipe(TINY, settings)


class Recorder(Silence):
    """Remembers what happened."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.kept: list[str] = []
        self.done: list[str] = []
        self.notes: list[str] = []

    def started(self, stage: str) -> None:
        self.ran.append(stage)

    def skipped(self, stage: str) -> None:
        self.kept.append(stage)

    def finished(self, stage: str, seconds: float) -> None:
        assert seconds >= 0
        self.done.append(stage)

    def note(self, text: str) -> None:
        self.notes.append(text)


def run(recipe: Recipe, project: Path) -> Recorder:
    recorder = Recorder()
    pipeline.run(recipe, project, listener=recorder)
    return recorder


def figures(project: Path, name: str = "tiny") -> dict[str, Any]:
    """The summary without what no two runs have in common."""

    def strip(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: strip(item) for key, item in value.items() if key not in ("seconds", "peak_memory_mb")}

    found: dict[str, Any] = strip(read_json(project / "runs" / name / "summary.json"))
    return found


def contents(project: Path) -> dict[str, str]:
    """The hash of everything that a run made, but for times and memory."""
    run = project / "runs" / "tiny"
    return {
        f"{manifest.parent.name}/{name}": digest
        for manifest in run.glob("*/manifest.json")
        for name, digest in read_json(manifest)["outputs"].items()
        if name != "metrics.jsonl"
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with one finished run. Look, but do not touch: see ``project``."""
    folder = tmp_path_factory.mktemp("whole")
    recorder = run(tiny(), folder)
    assert tuple(recorder.ran) == tuple(recorder.done) == STAGES
    assert recorder.kept == []
    return folder


@pytest.fixture
def project(whole: Path, tmp_path: Path) -> Path:
    """A copy of the finished run to change."""
    return Path(shutil.copytree(whole, tmp_path / "project"))


@pytest.fixture
def replayed(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages that copy what the finished run made: for questions of order, not of content."""

    def replay(stage: str) -> Callable[[Context, StageWriter], None]:
        source = whole / "runs" / "tiny" / stage

        def write(_context: Context, writer: StageWriter) -> None:
            for path in source.iterdir():
                if path.name != "manifest.json":
                    (shutil.copytree if path.is_dir() else shutil.copy)(path, writer.folder / path.name)
            writer.extra |= {k: v for k, v in read_json(source / "manifest.json").items() if k.startswith("eval_")}

        return write

    for stage in STAGES:
        monkeypatch.setitem(pipeline.STAGES, stage, replay(stage))


# What a run leaves


def test_the_run_folder_is_whole(whole: Path) -> None:
    folder = whole / "runs" / "tiny"
    assert {path.name for path in folder.iterdir()} == {
        *STAGES,
        ".lock",
        "recipe.toml",
        "summary.json",
        "report.html",
    }
    model = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    for stage in STAGES:
        manifest = read_json(folder / stage / "manifest.json")
        files = {str(path.relative_to(folder / stage)) for path in (folder / stage).rglob("*") if path.is_file()}
        assert files == {"manifest.json", *manifest["outputs"]}
        for name, digest in manifest["outputs"].items():
            assert file_hash(folder / stage / name) == digest
        for name, key in manifest["inputs"].items():
            assert read_json(folder / name / "manifest.json")["key"] == key
        if (folder / stage / "model").is_dir():
            assert model <= {path.name for path in (folder / stage / "model").iterdir()}
            assert len(read_lines(folder / stage / "metrics.jsonl")) >= 2
    assert load_recipe(folder / "recipe.toml") == tiny()
    assert "<html" in (folder / "report.html").read_text(encoding="utf-8")[:200]


def test_a_run_leaves_no_pickle(whole: Path) -> None:
    suffixes = {path.suffix for path in whole.rglob("*") if path.is_file()}
    known = {".json", ".jsonl", ".toml", ".html", ".safetensors", ".db", ".uint32", ".int64", ""}
    assert suffixes <= known, suffixes
    assert {path.name for path in whole.rglob("*") if path.is_file() and not path.suffix} == {".lock"}


@pytest.mark.parametrize("stage", ["pretrain", "sft", "ppo", "dpo", "reward"])
def test_models_are_plain_folders(whole: Path, stage: str) -> None:
    folder = whole / "runs" / "tiny" / stage / "model"
    kind = AutoModelForSequenceClassification if stage == "reward" else AutoModelForCausalLM
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.num_labels == (1 if stage == "reward" else 2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer("Héllo,\n wörld")["input_ids"]) == "Héllo,\n wörld"
    assert len({tokenizer.eos_token_id, tokenizer.pad_token_id, None}) == 3


def test_the_value_function_is_kept(whole: Path) -> None:
    head = load_file(whole / "runs" / "tiny" / "ppo" / "model" / "value_head.safetensors")
    assert any(tensor.abs().max() > 0 for tensor in head.values())


def test_the_summary_repeats_the_stages(whole: Path) -> None:
    folder = whole / "runs" / "tiny"
    summary = read_json(folder / "summary.json")
    manifests = {stage: read_json(folder / stage / "manifest.json") for stage in STAGES}
    assert {stage: value["seconds"] for stage, value in summary["stages"].items()} == {
        stage: manifest["seconds"] for stage, manifest in manifests.items()
    }
    assert summary["seconds"] == pytest.approx(sum(manifest["seconds"] for manifest in manifests.values()))
    assert summary["peak_memory_mb"] == max(manifest["peak_memory_mb"] for manifest in manifests.values())
    lines = {stage: read_lines(folder / stage / "metrics.jsonl") for stage in ("sft", "ppo", "dpo")}
    assert summary["stages"]["sft"]["eval_loss"] == lines["sft"][-1]["eval_loss"]
    assert summary["stages"]["dpo"]["eval_accuracy"] == lines["dpo"][-1]["eval_accuracy"]
    ppo = summary["stages"]["ppo"]
    assert (ppo["reward_before"], ppo["reward_after"]) == (lines["ppo"][0]["reward"], lines["ppo"][-1]["reward"])
    assert ppo["kl"] == lines["ppo"][-1]["kl"]
    assert summary["stages"]["reward"]["accuracy"] == read_json(folder / "reward" / "evaluation.json")["accuracy"]
    for name in ("ppo", "dpo"):
        assert summary["evaluation"][name] == read_json(folder / "evaluation" / f"{name}.json")
        assert len(read_lines(folder / "evaluation" / f"{name}.samples.jsonl")) == 12


def test_training_changes_the_policy_and_learns_from_what_was_judged(whole: Path) -> None:
    folder = whole / "runs" / "tiny"
    weights = [
        file_hash(folder / stage / "model" / "model.safetensors") for stage in ("pretrain", "sft", "ppo", "dpo")
    ]
    assert len(set(weights)) == 4
    snapshot = read_json(folder / "label" / "manifest.json")["snapshot"]
    assert read_json(folder / "reward" / "manifest.json")["snapshot"] == snapshot
    assert read_json(folder / "label" / "manifest.json")["judgements"] > 0


def test_policies_and_reward_model_are_measured_on_prompts_that_nothing_was_trained_on(whole: Path) -> None:
    folder = whole / "runs" / "tiny"
    with Store.open(whole / "feedback.db") as store:
        heldout = list(store.prompts("heldout"))
        learnt = {prompt.id for prompt in store.prompts("train")}
    for name in ("ppo", "dpo"):
        asked = [row["prompt"] for row in read_lines(folder / "evaluation" / f"{name}.samples.jsonl")]
        assert asked == [prompt.text for prompt in heldout[:12]]
    answered = {row["prompt_id"] for row in read_lines(folder / "sample" / "completions.jsonl")}
    assert (len(answered & learnt), len(answered - learnt)) == (20, 20)
    judged = read_snapshot(folder / "label" / "snapshot.jsonl").comparisons()
    assert read_json(folder / "reward" / "manifest.json")["comparisons"] == sum(c.prompt.id in learnt for c in judged)
    assert read_json(folder / "reward" / "evaluation.json")["pairs"] == sum(c.prompt.id not in learnt for c in judged)


# What is skipped


def test_a_second_run_skips_everything(project: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in project.glob("runs/tiny/*/**/*")}
    summary = (project / "runs" / "tiny" / "summary.json").read_bytes()
    recorder = run(tiny(), project)
    assert recorder.ran == []
    assert tuple(recorder.kept) == STAGES
    assert {path: path.stat().st_mtime_ns for path in project.glob("runs/tiny/*/**/*")} == before
    assert (project / "runs" / "tiny" / "summary.json").read_bytes() == summary


@pytest.mark.parametrize(
    ("setting", "rerun"),
    [
        ("threads=1", " ".join(STAGES)),
        ("label.minimum=7", "label reward ppo dpo evaluation"),
        ("ppo.kl_coef=0.2", "ppo evaluation"),
        ("dpo.beta=0.2", "dpo evaluation"),
        ("evaluate.temperature=0.5", "evaluation"),
        ("evaluate.prompts=11", "evaluation"),
        ('algorithms=["ppo"]', "evaluation"),
        ("judge.epochs=2.0", ""),
        ("reward.epochs=2.0", "reward ppo evaluation"),
        ("label.overlap=2", "label reward ppo dpo evaluation"),
        ("label.weights=reliability", "label reward ppo dpo evaluation"),
        ("sample.temperature=0.9", "sample label reward ppo dpo evaluation"),
        ("sample.max_response_tokens=13", "sample label reward ppo dpo evaluation"),
        ("evaluate.max_response_tokens=13", "evaluation"),
        ("sft.epochs=2.0", "sft sample label reward ppo dpo evaluation"),
        ("data.max_prompt_tokens=129", "sft sample label reward ppo dpo evaluation"),
        ("model.layers=2", " ".join(STAGES)),
        ("pretrain.tokens=4001", " ".join(STAGES)),
        ("seed=1", " ".join(STAGES)),
    ],
)
def test_a_change_reruns_what_depends_on_it(project: Path, replayed: None, setting: str, rerun: str) -> None:
    recorder = run(tiny(setting), project)
    assert recorder.ran == rerun.split()
    assert run(tiny(setting), project).ran == []


def test_going_back_to_earlier_settings_gives_earlier_figures(project: Path, whole: Path) -> None:
    """What other annotators said about the same answers meanwhile is in the store, but not in this run."""
    first = read_json(whole / "runs" / "tiny" / "label" / "manifest.json")["snapshot"]
    assert run(tiny("label.overlap=3"), project).ran[0] == "label"
    assert read_json(project / "runs" / "tiny" / "label" / "manifest.json")["snapshot"] != first
    run(tiny(), project)
    assert read_json(project / "runs" / "tiny" / "label" / "manifest.json")["snapshot"] == first
    assert figures(project) == figures(whole)
    assert contents(project) == contents(whole)


# The same seed, the same result


def test_the_same_seed_gives_the_same_run_and_another_seed_another(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    run(tiny(), tmp_path / "again")
    assert figures(tmp_path / "again") == figures(whole)
    assert contents(tmp_path / "again") == contents(whole)
    (tmp_path / "other").mkdir()
    run(tiny("seed=1"), tmp_path / "other")
    assert figures(tmp_path / "other") != figures(whole)
    assert not set(contents(tmp_path / "other").values()) & {
        digest for name, digest in contents(whole).items() if name.endswith(("safetensors", "samples.jsonl"))
    }


def test_a_run_may_be_in_bfloat16(whole: Path, tmp_path: Path) -> None:
    """All of it, on machines without the units, too; weights stay in float32, and the figures are about the same."""
    run(tiny("precision=bfloat16"), tmp_path)
    trained = [path.parent.name for path in (tmp_path / "runs/tiny").glob("*/model")]
    assert sorted(trained) == ["dpo", "ppo", "pretrain", "reward", "sft"]
    for stage in trained:
        folder = tmp_path / "runs/tiny" / stage
        assert read_json(folder / "manifest.json")["precision"] == ["bfloat16"]
        assert {one.dtype for one in load_file(folder / "model/model.safetensors").values()} == {torch.float32}
    losses = [figures(place)["stages"]["sft"]["eval_loss"] for place in (tmp_path, whole)]
    assert 0 < abs(losses[0] - losses[1]) < 0.02 * losses[1]


def test_the_threads_of_a_recipe_hold_for_its_run_only(tmp_path: Path) -> None:
    """Rounding depends on their number: left behind, it would change the figures of whatever runs next."""
    seen: list[int] = []

    class Watch(Silence):
        def started(self, stage: str) -> None:
            seen.append(torch.get_num_threads())
            if stage == "sft":
                raise KeyboardInterrupt

    before = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(tiny(f"threads={before + 1}"), tmp_path, listener=Watch())
    assert seen == [before + 1, before + 1]
    assert torch.get_num_threads() == before


# Interruption


@pytest.mark.parametrize("stage", STAGES)
def test_an_error_in_a_stage_leaves_no_half_of_it(
    stage: str, project: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = pipeline.STAGES[stage]

    def fails(context: Context, writer: StageWriter) -> None:
        work(context, writer)
        (writer.folder / "half.txt").write_text("half", encoding="utf-8")
        raise RuntimeError("no space left on device")

    shutil.rmtree(project / "runs" / "tiny" / stage)
    monkeypatch.setitem(pipeline.STAGES, stage, fails)
    with pytest.raises(RuntimeError, match="no space"):
        run(tiny(), project)
    monkeypatch.setitem(pipeline.STAGES, stage, work)
    assert not (project / "runs" / "tiny" / stage).exists()
    recorder = run(tiny(), project)
    assert recorder.ran == [stage]
    assert figures(project) == figures(whole)
    assert contents(project) == contents(whole)
    assert {path.name for path in (project / "runs" / "tiny").iterdir()} == {
        path.name for path in (whole / "runs" / "tiny").iterdir()
    }


BLOCKING = """
import sys, time
from pathlib import Path
from prefloop.recipes import load_recipe
from prefloop.pipeline import Silence, run

class Blocking(Silence):
    def line(self, stage, metrics):
        if stage == sys.argv[1]:
            print("in the middle", flush=True)
            time.sleep(600)

run(load_recipe(Path("tiny.toml")), Path.cwd(), listener=Blocking())
"""


@pytest.mark.parametrize(
    ("how", "stage", "left"),
    [(signal.SIGKILL, "sft", STAGES[1:]), (signal.SIGINT, "ppo", STAGES[5:])],
    ids=["killed in sft", "Ctrl-C in ppo"],
)
def test_a_run_that_was_stopped_goes_on_to_the_same_figures(
    how: signal.Signals, stage: str, left: Sequence[str], whole: Path, tmp_path: Path
) -> None:
    (tmp_path / "tiny.toml").write_text(dump_recipe(tiny()), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-c", BLOCKING, stage],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=heeds_ctrl_c,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "in the middle\n"
        with pytest.raises(ValueError, match="another prefloop is writing"):
            run(tiny(), tmp_path)
        process.send_signal(how)
        assert process.wait(timeout=300) != 0
    finally:
        process.kill()
        process.communicate()
    assert not (tmp_path / "runs" / "tiny" / stage).exists()
    recorder = run(tiny(), tmp_path)
    assert tuple(recorder.ran) == tuple(left)
    assert figures(tmp_path) == figures(whole)
    assert contents(tmp_path) == contents(whole)
    assert not list((tmp_path / "runs" / "tiny").glob(".*.partial"))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_batch(project: Path) -> None:
    with pytest.raises(NonFiniteError, match="not finite") as caught:
        run(tiny("sft.learning_rate=1e30", "sft.max_grad_norm=1e30"), project)
    path = project / "runs" / "tiny" / "failed-sft.json"
    assert str(path) in caught.value.__notes__[0]
    batch = read_json(path)
    while not isinstance(batch, dict):
        batch = batch[0]
    assert len(batch["ids"]) == len(batch["mask"]) > 0
    assert run(tiny(), project).ran == []  # the earlier stage is still there


# Other data, other judges, other starts


def dialogues(path: Path, count: int = 80) -> Path:
    """Comparisons of dialogues in the published form; the polite answer is preferred."""
    things = ("tea", "rain", "bread", "a cat", "chess")
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            start = f"\n\nHuman: Question {i}: what about {things[i % 5]}?\n\nAssistant:"
            row = {
                "chosen": f"{start} With pleasure: {things[i % 5]} is fine.",
                "rejected": f"{start} No. {i}",
            }
            file.write(json.dumps(row) + "\n")
    return path


def from_store(*settings: str) -> Recipe:
    table = MODEL | {
        "name": "tiny",
        "data": MODEL["data"] | {"files": ["dialogues.jsonl"], "heldout_fraction": 0.25},
        "sft": {"demonstrations": "preferred", "batch_size": 8},
    }
    return make_recipe(table, settings)


def test_a_run_on_imported_comparisons_with_a_judge_of_its_own(tmp_path: Path) -> None:
    dialogues(tmp_path / "dialogues.jsonl")
    recipe = from_store("judge.fraction=0.3")
    recorder = run(recipe, tmp_path)
    assert recorder.ran == ["pretrain", "sft", "label", "reward", "judge", "ppo", "dpo", "evaluation"]
    folder = tmp_path / "runs" / "tiny"
    for name in ("ppo", "dpo"):
        report = read_json(folder / "evaluation" / f"{name}.json")
        assert report["judge"] == "held-out reward model"
        assert NO_JUDGE not in report["alarms"]
        assert report["parts"] == {}
    assert all("true_reward" not in line for line in read_lines(folder / "ppo" / "metrics.jsonl"))
    learnt, judged = (read_json(folder / stage / "manifest.json")["comparisons"] for stage in ("reward", "judge"))
    assert learnt > judged > 0
    assert learnt + judged + read_json(folder / "reward" / "evaluation.json")["pairs"] == 80
    assert {"reward", "judge"} <= {s for s, value in figures(tmp_path)["stages"].items() if "accuracy" in value}
    assert run(recipe, tmp_path).ran == []
    assert run(from_store("judge.fraction=0.3", "judge.epochs=2.0"), tmp_path).ran == ["judge", "evaluation"]
    assert run(from_store("judge.fraction=0.3", "seed=1"), tmp_path).ran == recorder.ran


def test_without_an_independent_judge_everybody_is_told(tmp_path: Path) -> None:
    dialogues(tmp_path / "dialogues.jsonl")
    with pytest.warns(UserWarning, match=r"Set judge\.fraction"):
        run(from_store('algorithms=["dpo"]'), tmp_path)
    folder = tmp_path / "runs" / "tiny"
    assert not (folder / "ppo").exists()
    assert read_json(folder / "evaluation" / "dpo.json")["alarms"][0] == NO_JUDGE
    assert set(figures(tmp_path)["evaluation"]) == {"dpo"}


def test_a_run_waits_for_people_and_goes_on_with_what_they_said(tmp_path: Path) -> None:
    """Nor do the judgements come back as demonstrations or text, so that the run would begin anew."""
    dialogues(tmp_path / "dialogues.jsonl")
    recipe = from_store("label.by=human", "label.minimum=20", "judge.fraction=0.5")
    with pytest.raises(WaitingForPeopleError) as waiting:
        run(recipe, tmp_path)
    folder = tmp_path / "runs" / "tiny"
    told = str(waiting.value)
    assert "(0 of 20 votes so far)" in told
    assert f"In {tmp_path}: prefloop label\n" in told
    assert "give the command that brought you here once more" in told
    assert (folder / "sample").is_dir()
    assert not (folder / "label").exists()

    with Store.of_project(tmp_path) as store:
        assert judge_some(store, 3) == 3
        assert judge_some(store, 2, "could not", flags=(CANNOT_JUDGE,)) == 2
    with pytest.raises(WaitingForPeopleError, match="3 of 20 votes so far"):
        run(recipe, tmp_path)

    with Store.of_project(tmp_path) as store:
        assert judge_some(store, 99) == 17, "what could not be judged is asked beyond; what is enough is enough"
    recorder = run(recipe, tmp_path)
    assert recorder.kept == ["pretrain", "sft", "sample"]
    assert recorder.ran == ["label", "reward", "judge", "ppo", "dpo", "evaluation"]
    assert read_json(folder / "label" / "manifest.json")["judgements"] == 22
    assert run(recipe, tmp_path).ran == []
    with Store.of_project(tmp_path) as store:
        assert judge_some(store, 1) == 0, "the batch is closed"

    more = from_store("label.by=human", "label.minimum=22", "judge.fraction=0.5")
    with pytest.raises(WaitingForPeopleError, match="20 of 22 votes"):
        run(more, tmp_path)
    with Store.of_project(tmp_path) as store:
        assert judge_some(store, 99) == 2
    assert run(more, tmp_path).ran == ["label", "reward", "judge", "ppo", "dpo", "evaluation"]


def test_a_run_that_waits_goes_on_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelling, "POLL_SECONDS", 0.01)
    dialogues(tmp_path / "dialogues.jsonl")
    recipe = from_store("label.by=human", "label.minimum=12", "judge.fraction=0.2", 'algorithms=["dpo"]')
    recorder = Recorder()
    shown: list[float] = []

    def line(stage: str, metrics: Metrics) -> None:
        """Somebody who judges three more whenever the run tells how far it is."""
        if stage == "label":
            shown.append(metrics["votes"])
            with Store.of_project(tmp_path) as store:
                assert judge_some(store, 3) == min(3, metrics["wanted"] - metrics["votes"])

    monkeypatch.setattr(recorder, "line", line)
    pipeline.run(recipe, tmp_path, listener=recorder, wait=True)
    assert shown[:5] == [0, 3, 6, 9, 12], "the votes were shown as they came in"
    assert sum("prefloop label" in note for note in recorder.notes) == 1
    assert recorder.ran[-1] == "evaluation"
    assert run(recipe, tmp_path).ran == [], "nothing is done again because people were waited for"


def test_an_edit_while_judging_does_not_begin_the_run_anew(tmp_path: Path) -> None:
    """Nor does gold that came into the store: neither is among what this run learns from."""
    dialogues(tmp_path / "dialogues.jsonl")
    gold = {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}
    (tmp_path / "gold.jsonl").write_text(json.dumps(gold) + "\n", encoding="utf-8")
    recipe = from_store(
        *("label.by=human", "label.minimum=20", "judge.fraction=0.5", "label.gold=gold.jsonl"),
        'algorithms=["dpo"]',
    )
    with pytest.raises(WaitingForPeopleError):
        run(recipe, tmp_path)
    with Store.of_project(tmp_path) as store:
        queue = Queue(store)
        task = queue.next("mia")
        assert task is not None
        verdicts = (Verdict("overall", tuple(range(1, len(task.shown) + 1))),)
        queue.submit("mia", task.id, Submission("edited", verdicts, demonstration=(0, "Better so.")))
        assert "Better so." in {one.text for one in store.demonstrations()}
        judge_some(store, 99)
    recorder = run(recipe, tmp_path)
    assert recorder.kept == ["pretrain", "sft", "sample"]
    assert run(recipe, tmp_path).ran == []


def test_people_are_asked_until_each_part_has_a_vote(tmp_path: Path) -> None:
    """Which prompts are asked about first is chance; without a comparison set aside for it there is no judge."""
    dialogues(tmp_path / "dialogues.jsonl")
    recipe = from_store("label.by=human", "label.minimum=1", "judge.fraction=0.2", 'algorithms=["dpo"]')
    parts: set[str] = set()
    for _ in range(100):
        with suppress(WaitingForPeopleError):
            run(recipe, tmp_path)
            break
        assert parts != {"train", "heldout", "judge"}
        with Store.of_project(tmp_path) as store:
            assert judge_some(store, 1) == 1
            judged = {one.prompt_id for one in store.judgements() if one.source == "human"}
            parts = {part_of(recipe, prompt) for prompt in store.prompts(ids=judged)}
    assert parts == {"train", "heldout", "judge"}


def test_a_run_says_so_when_there_is_nothing_left_to_ask(tmp_path: Path) -> None:
    dialogues(tmp_path / "dialogues.jsonl")
    recipe = from_store("label.by=human", "label.minimum=20", "judge.fraction=0.5", 'algorithms=["dpo"]')
    with pytest.raises(WaitingForPeopleError):
        run(recipe, tmp_path)
    with Store.of_project(tmp_path) as store:
        assert judge_some(store, 99, "could not", flags=(CANNOT_JUDGE,)) == 20
    for _ in range(2):  # a batch's target is met, and raised by what is missing
        with suppress(WaitingForPeopleError, ValueError):
            run(recipe, tmp_path)
        with Store.of_project(tmp_path) as store:
            judge_some(store, 99, "could not", flags=(CANNOT_JUDGE,))
    with pytest.raises(ValueError, match="every answer has been judged, and 20 votes are missing"):
        run(recipe, tmp_path)


def test_another_criterion_is_asked_about_in_another_batch(project: Path) -> None:
    human = ("label.by=human", "label.minimum=20", 'algorithms=["dpo"]')
    with pytest.raises(WaitingForPeopleError):
        run(tiny(*human), project)
    with Store.of_project(project) as store:
        assert judge_some(store, 99) == 20
    more = (*human, "reward.criteria={overall = 1.0, tone = 0.5}")
    with pytest.raises(WaitingForPeopleError, match="0 of 20"):
        run(tiny(*more), project)
    with Store.of_project(project) as store:
        assert [batch.closed for batch in Queue(store).batches()] == [True, False]
        assert judge_some(store, 99) == 20
    assert "label" in run(tiny(*more), project).ran


def test_a_gold_file_that_tests_nobody_is_found_at_once(project: Path) -> None:
    (project / "gold.jsonl").write_text('{"prompt": "Hi", "response": "Hello"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"label.gold: .*gold.jsonl has no comparisons"):
        run(tiny("label.by=human", "label.gold=gold.jsonl"), project)


def test_other_answers_are_another_batch(project: Path) -> None:
    human = ("label.by=human", "label.minimum=20")
    for settings in (human, (*human, "sample.temperature=0.8")):
        with pytest.raises(WaitingForPeopleError):
            run(tiny(*settings), project)
    with Store.of_project(project) as store:
        names = [batch.name for batch in Queue(store).batches()]
    assert len(set(names)) == 2
    assert all(name.startswith("tiny/") for name in names)


def test_more_votes_than_there_can_be(project: Path) -> None:
    with pytest.raises(
        ValueError, match=r"label.minimum = 1000 cannot be reached: \d+ prompts .* raise sample.prompts"
    ):
        run(tiny("label.by=human", "label.minimum=1000"), project)


def test_people_are_asked_by_each_criterion_and_tested_with_gold(project: Path) -> None:
    gold = project / "gold.jsonl"
    gold.write_text(json.dumps({"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}) + "\n", encoding="utf-8")
    recipe = tiny(
        *("label.by=human", "label.minimum=20", "label.gold=gold.jsonl", "label.gold_share=0.9"),
        *("reward.criteria={overall = 1.0, tone = 0.5}", 'algorithms=["dpo"]'),
    )
    with pytest.raises(WaitingForPeopleError):
        run(recipe, project)
    with Store.of_project(project) as store:
        before = store.counts()
        queue = Queue(store)
        assert queue.batches()[0].criteria == ("overall", "tone")
        asked = judge_some(store, 99)
        assert asked == 21, "twenty votes, and one about gold"
        assert store.counts().judgements - before.judgements == 2 * asked
        (right,) = queue.gold_ranks().values()
        assert sorted(right) == [1, 2]
    assert "label" in run(recipe, project).ran
    criteria = {path.name for path in (project / "runs" / "tiny" / "label").glob("*.jsonl")}
    assert criteria == {"snapshot.jsonl", "snapshot-tone.jsonl"}
    frozen = read_snapshot(project / "runs" / "tiny" / "label" / "snapshot.jsonl")
    assert len(frozen.judgements) == 20, "gold teaches nobody"


def test_a_run_may_start_from_a_saved_model(whole: Path, tmp_path: Path) -> None:
    start = Path(shutil.copytree(whole / "runs" / "tiny" / "pretrain" / "model", tmp_path / "start"))
    recipe = tiny(f"model.path={start}")
    recorder = run(recipe, tmp_path)
    assert tuple(recorder.ran) == STAGES[1:]
    assert not (tmp_path / "runs" / "tiny" / "pretrain").exists()
    mine, theirs = contents(tmp_path), contents(whole)
    assert mine["sft/model/model.safetensors"] == theirs["sft/model/model.safetensors"]
    assert mine["evaluation/ppo.samples.jsonl"] == theirs["evaluation/ppo.samples.jsonl"]
    os.utime(start / "config.json", ns=(0, 0))
    assert tuple(run(recipe, tmp_path).ran) == STAGES[1:]  # another checkpoint, for all that is known


def test_what_is_cut_or_left_out_is_told(tmp_path: Path) -> None:
    recorder = run(tiny("data.max_response_tokens=25", 'algorithms=["dpo"]'), tmp_path)
    assert any("demonstrations are longer than 25 tokens and were left out" in note for note in recorder.notes)


def test_relative_paths_start_at_the_recipes_folder(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "recipes").mkdir()
    dialogues(tmp_path / "recipes" / "dialogues.jsonl")
    recipe = from_store("judge.fraction=0.3", 'algorithms=["dpo"]', "pretrain.tokens=512")
    with pytest.raises(FileNotFoundError, match=r"dialogues\.jsonl"):
        pipeline.run(recipe, tmp_path / "project")
    path = pipeline.run(recipe, tmp_path / "project", folder=tmp_path / "recipes")
    assert path == tmp_path / "project" / "runs" / "tiny"
