"""Which of a run's files belong together; what may be missing, and what is broken."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.report.fixture import figures, write_json, write_lines
from tests.report.reader import Text, page, shown

from prefloop.report import write_report
from prefloop.report.entries import Interval
from prefloop.report.read import read_run


def test_an_interval_is_read(demo: Path) -> None:
    quality = read_run(demo).stages["reward"].quality
    assert quality
    assert quality.accuracy == Interval(0.813, 0.7818, 0.8442, 600)


# What may be missing


@pytest.mark.parametrize("stage", ["pretrain", "sft", "label", "reward", "judge", "ppo", "dpo", "evaluation"])
def test_any_stage_may_be_missing(copy: Path, stage: str) -> None:
    shutil.rmtree(copy / stage)
    assert Text(page(copy)).text


def test_any_key_may_be_missing(copy: Path) -> None:
    for path in (copy / "evaluation" / "ppo.json", copy / "reward" / "evaluation.json"):
        full = json.loads(path.read_text())
        for key in full:
            write_json(path, {name: value for name, value in full.items() if name != key})
            read_run(copy)
        write_json(path, {})
    for stage in ("sft", "reward", "ppo", "dpo"):
        axis = "iteration" if stage == "ppo" else "step"
        write_lines(copy / stage / "metrics.jsonl", [{axis: 1}, {axis: 2}])
    for path in copy.glob("*/manifest.json"):
        write_json(path, {})
    (copy / "summary.json").unlink()
    assert "no win rate was written" in Text(page(copy)).text


# What belongs together


def changed(run: Path, stage: str, **values: object) -> None:
    path = run / stage / "manifest.json"
    write_json(path, json.loads(path.read_text()) | values)


def test_a_stage_of_another_recipe_is_not_shown(copy: Path) -> None:
    """algorithms = ["ppo"] after a run with both: dpo/ is still there, and so may be its comparison."""
    fell = "Both log-probabilities fell against the reference"
    assert fell in Text(page(copy)).text
    path = copy / "summary.json"
    summary = json.loads(path.read_text())
    del summary["stages"]["dpo"], summary["evaluation"]["dpo"]
    write_json(path, summary)
    inputs = json.loads((copy / "evaluation" / "manifest.json").read_text())["inputs"]
    changed(copy, "evaluation", inputs={name: key for name, key in inputs.items() if name != "dpo"})
    text = Text(page(copy)).text
    assert "Not shown: DPO. The last complete run did not have this stage." in text
    assert "dpo" not in shown(copy)
    assert fell not in text
    assert "DPO’s answers" not in text
    assert "PPO’s answers are preferred" in text
    assert "7 min 22 s in all" in text

    changed(copy, "dpo", inputs={"sft": "another"})  # running this recipe to the end does not make it anew either
    text = Text(page(copy)).text
    assert "Not shown: DPO. The last complete run did not have this stage." in text
    assert "earlier version" not in text
    assert "7 min 22 s in all" in text


def test_stages_made_from_an_earlier_version_are_not_shown(copy: Path) -> None:
    everything = shown(copy)
    changed(copy, "reward", key="anew")
    text = Text(page(copy)).text
    assert (
        "Not shown: PPO and the evaluation. They were made from an earlier version of the reward model; run the "
        "recipe to the end to make them anew." in text
    )
    assert everything - shown(copy) == {"win-rates", "over-optimisation-ppo", "ppo", "samples"}
    assert "No policy has been judged" in text
    assert "Not part of this run" not in text
    assert "Faithfulness fell" not in text  # the evaluation's alarm
    assert "7 min 22 s in all" not in text  # the summary's totals are those of the run before
    assert "2.3 GB at most" not in text

    changed(copy, "sft", key="anew too")
    text = Text(page(copy)).text
    assert "the judgements, the reward model, the judge, PPO, DPO and the evaluation. They were made from an" in text
    assert "an earlier version of SFT; run" in text
    assert shown(copy) == {"sft", "pretrain", "provenance"}


def test_the_last_link_of_a_chain_may_be_the_stale_one(copy: Path) -> None:
    """The judgements were made anew; what was made from those before them is stale, however far down."""
    changed(copy, "label", key="anew")
    run = read_run(copy)
    assert [(one.stage, one.changed) for one in run.left_out] == [
        (stage, ("label",)) for stage in ("reward", "judge", "ppo", "dpo", "evaluation")
    ]
    assert "ppo" not in run.stages


def test_a_stage_that_is_gone_takes_those_made_from_it_along(copy: Path) -> None:
    shutil.rmtree(copy / "dpo")
    text = Text(page(copy)).text
    assert "Not shown: the evaluation. It was made from DPO, no longer in this folder; run the recipe" in text
    assert {"ppo", "reward"} <= shown(copy)


def test_without_a_summary_the_manifests_decide(copy: Path) -> None:
    (copy / "summary.json").unlink()
    assert {"ppo", "dpo", "win-rates"} <= shown(copy)
    assert not read_run(copy).left_out
    changed(copy, "dpo", inputs={"sft": "another"})
    assert [one.stage for one in read_run(copy).left_out] == ["dpo", "evaluation"]


# What is broken


def broken_line(run: Path) -> None:
    path = run / "ppo" / "metrics.jsonl"
    lines = path.read_text().splitlines()
    lines[16] = lines[16][:40]
    path.write_text("\n".join(lines) + "\n")


def wrong_type(run: Path) -> None:
    write_lines(run / "sft" / "metrics.jsonl", [{"step": 1, "loss": 2.0}, {"step": 2, "loss": "low"}])


def no_axis(run: Path) -> None:
    write_lines(run / "sft" / "metrics.jsonl", [{"step": 1, "loss": 2.0}, {"loss": 2.0}])


def bad_verdict(run: Path) -> None:
    path = run / "evaluation" / "dpo.samples.jsonl"
    path.write_text(path.read_text().replace('"verdict": "win"', '"verdict": "won"', 1))


def half_an_interval(run: Path) -> None:
    write_json(run / "evaluation" / "ppo.json", figures(run, "ppo") | {"win_rate": {"value": 0.5}})


def no_utf8(run: Path) -> None:
    (run / "recipe.toml").write_bytes(b'name = "a"\nother = "\xff"\n')


def no_toml(run: Path) -> None:
    (run / "recipe.toml").write_text('name = "a"\nother =\n', encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (broken_line, r"ppo/metrics\.jsonl, line 17: not valid JSON .*Delete the folder .*ppo and run"),
        (wrong_type, r'sft/metrics\.jsonl, line 2: `loss` should be a number, but it is "low"\. Delete'),
        (no_axis, r"sft/metrics\.jsonl, line 2: `step` should be a number .* but it is null"),
        (bad_verdict, r"dpo\.samples\.jsonl, line \d+: `verdict` should be `win`, `tie` or `loss`.*\"won\""),
        (half_an_interval, r"ppo\.json: `win_rate` should be an interval"),
        (no_utf8, r"recipe\.toml, line 2: this is not UTF-8"),
        (no_toml, r"recipe\.toml: not valid TOML \(.*line 2"),
    ],
)
def test_a_broken_file_is_named(copy: Path, spoil: Callable[[Path], None], expected: str) -> None:
    old = (copy / "report.html").read_bytes()
    spoil(copy)
    with pytest.raises(ValueError, match=expected):
        write_report(copy)
    assert (copy / "report.html").read_bytes() == old


def test_what_is_no_run_folder(demo: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no such folder"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"neither recipe\.toml nor summary\.json"):
        write_report(tmp_path)
    with pytest.raises(ValueError, match=r"It holds runs: give one of them, such as .*demo"):
        write_report(demo.parent)
