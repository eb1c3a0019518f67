"""The whole loop with tiny models: what a run leaves, what is skipped, and what an interruption costs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.runs import STAGES, contents, dialogues, figures, from_store, run, tiny
from tests.toys import heeds_ctrl_c
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from prefloop import pipeline
from prefloop.context import Context
from prefloop.feedback.aggregate import read_snapshot
from prefloop.feedback.store import Store
from prefloop.judging import NO_JUDGE
from prefloop.pipeline import NonFiniteError, Silence
from prefloop.recipes import dump_recipe, load_recipe
from prefloop.runs import StageWriter, file_hash, read_json, read_lines


@pytest.fixture
def replayed(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages that copy what the finished run made: for questions of order, not of content."""

    def replay(stage: str) -> Callable[[Context, StageWriter], None]:
        source = finished / "runs" / "tiny" / stage

        def write(_context: Context, writer: StageWriter) -> None:
            for path in source.iterdir():
                if path.name != "manifest.json":
                    (shutil.copytree if path.is_dir() else shutil.copy)(path, writer.folder / path.name)
            writer.extra |= {k: v for k, v in read_json(source / "manifest.json").items() if k.startswith("eval_")}

        return write

    for stage in STAGES:
        monkeypatch.setitem(pipeline.STAGES, stage, replay(stage))


# What a run leaves


def test_memory_is_handed_back_after_each_stage(
    tmp_path: Path, replayed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed: list[None] = []
    monkeypatch.setattr(pipeline, "hand_back", lambda: handed.append(None))
    ran = run(tiny(), tmp_path)
    assert len(handed) == len(ran.done) > 5


def test_the_run_folder_is_whole(finished: Path) -> None:
    folder = finished / "runs" / "tiny"
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


def test_a_run_leaves_no_pickle(finished: Path) -> None:
    suffixes = {path.suffix for path in finished.rglob("*") if path.is_file()}
    known = {".json", ".jsonl", ".toml", ".html", ".safetensors", ".db", ".uint32", ".int64", ""}
    assert suffixes <= known, suffixes
    assert {path.name for path in finished.rglob("*") if path.is_file() and not path.suffix} == {".lock"}


@pytest.mark.parametrize("stage", ["pretrain", "sft", "ppo", "dpo", "reward"])
def test_models_are_plain_folders(finished: Path, stage: str) -> None:
    folder = finished / "runs" / "tiny" / stage / "model"
    kind = AutoModelForSequenceClassification if stage == "reward" else AutoModelForCausalLM
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.num_labels == (1 if stage == "reward" else 2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer("Héllo,\n wörld")["input_ids"]) == "Héllo,\n wörld"
    assert len({tokenizer.eos_token_id, tokenizer.pad_token_id, None}) == 3


def test_the_value_function_is_kept(finished: Path) -> None:
    head = load_file(finished / "runs" / "tiny" / "ppo" / "model" / "value_head.safetensors")
    assert any(tensor.abs().max() > 0 for tensor in head.values())


def test_the_summary_repeats_the_stages(finished: Path) -> None:
    folder = finished / "runs" / "tiny"
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


def test_training_changes_the_policy_and_learns_from_what_was_judged(finished: Path) -> None:
    folder = finished / "runs" / "tiny"
    weights = [
        file_hash(folder / stage / "model" / "model.safetensors") for stage in ("pretrain", "sft", "ppo", "dpo")
    ]
    assert len(set(weights)) == 4
    snapshot = read_json(folder / "label" / "manifest.json")["snapshot"]
    assert read_json(folder / "reward" / "manifest.json")["snapshot"] == snapshot
    assert read_json(folder / "label" / "manifest.json")["judgements"] > 0


def test_policies_and_reward_model_are_measured_on_prompts_that_nothing_was_trained_on(finished: Path) -> None:
    folder = finished / "runs" / "tiny"
    with Store.open(finished / "feedback.db") as store:
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


def test_going_back_to_earlier_settings_gives_earlier_figures(project: Path, finished: Path) -> None:
    """What other annotators said about the same answers meanwhile is in the store, but not in this run."""
    first = read_json(finished / "runs" / "tiny" / "label" / "manifest.json")["snapshot"]
    assert run(tiny("label.overlap=3"), project).ran[0] == "label"
    assert read_json(project / "runs" / "tiny" / "label" / "manifest.json")["snapshot"] != first
    run(tiny(), project)
    assert read_json(project / "runs" / "tiny" / "label" / "manifest.json")["snapshot"] == first
    assert figures(project) == figures(finished)
    assert contents(project) == contents(finished)


# The same seed, the same result


def test_the_same_seed_gives_the_same_run_and_another_seed_another(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    run(tiny(), tmp_path / "again")
    assert figures(tmp_path / "again") == figures(finished)
    assert contents(tmp_path / "again") == contents(finished)
    (tmp_path / "other").mkdir()
    run(tiny("seed=1"), tmp_path / "other")
    assert figures(tmp_path / "other") != figures(finished)
    assert not set(contents(tmp_path / "other").values()) & {
        digest for name, digest in contents(finished).items() if name.endswith(("safetensors", "samples.jsonl"))
    }


def test_a_run_may_be_in_bfloat16(finished: Path, tmp_path: Path) -> None:
    """All of it, on machines without the units, too; weights stay in float32, and the figures are about the same."""
    run(tiny("precision=bfloat16"), tmp_path)
    trained = [path.parent.name for path in (tmp_path / "runs/tiny").glob("*/model")]
    assert sorted(trained) == ["dpo", "ppo", "pretrain", "reward", "sft"]
    for stage in trained:
        folder = tmp_path / "runs/tiny" / stage
        assert read_json(folder / "manifest.json")["precision"] == ["bfloat16"]
        assert {one.dtype for one in load_file(folder / "model/model.safetensors").values()} == {torch.float32}
    losses = [figures(place)["stages"]["sft"]["eval_loss"] for place in (tmp_path, finished)]
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
    stage: str, project: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
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
    assert figures(project) == figures(finished)
    assert contents(project) == contents(finished)
    assert {path.name for path in (project / "runs" / "tiny").iterdir()} == {
        path.name for path in (finished / "runs" / "tiny").iterdir()
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
    how: signal.Signals, stage: str, left: Sequence[str], finished: Path, tmp_path: Path
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
    assert figures(tmp_path) == figures(finished)
    assert contents(tmp_path) == contents(finished)
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


def test_a_run_may_start_from_a_saved_model(finished: Path, tmp_path: Path) -> None:
    start = Path(shutil.copytree(finished / "runs" / "tiny" / "pretrain" / "model", tmp_path / "start"))
    recipe = tiny(f"model.path={start}")
    recorder = run(recipe, tmp_path)
    assert tuple(recorder.ran) == STAGES[1:]
    assert not (tmp_path / "runs" / "tiny" / "pretrain").exists()
    mine, theirs = contents(tmp_path), contents(finished)
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
