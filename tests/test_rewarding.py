"""Rewards that a recipe names: functions from files, models from folders, and what is said when they fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.runs import TINY, Recorder, dialogues, from_store

from prefloop import pipeline
from prefloop.config import RewardSource
from prefloop.feedback.store import Store
from prefloop.judging import NO_OTHER_JUDGE, TRAINED_JUDGE
from prefloop.labelers.simulated import PANEL
from prefloop.models.loading import load_reward_model
from prefloop.recipes import Recipe, make_recipe
from prefloop.rewarding import load_function
from prefloop.rollout.reward import Batched
from prefloop.runs import read_json, read_lines
from prefloop.tasks import evaluate_pair

FILE = """
from helper import LIMIT

def brevity(prompt, response):
    assert isinstance(prompt, str) and isinstance(response, str)
    return -len(response) / LIMIT

def loudness(prompts, responses):
    return [float(response.count("!")) for response in responses]

NUMBER = 3
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "rewards.py").write_text(FILE, encoding="utf-8")
    (tmp_path / "helper.py").write_text("LIMIT = 40\n", encoding="utf-8")
    return tmp_path


def recipe(*rewards: dict[str, Any], settings: tuple[str, ...] = ('algorithms=["rloo"]',)) -> Recipe:
    return make_recipe(TINY | {"rewards": list(rewards)}, settings)


BREVITY = {"name": "brevity", "function": "rewards.py:brevity", "weight": 0.5}
LOUDNESS = {"name": "loudness", "function": "rewards.py:loudness", "batched": True, "weight": -1.0}


def test_functions_and_the_own_reward_model_add_up(project: Path) -> None:
    run = pipeline.run(recipe({"name": "learned"}, BREVITY, LOUDNESS), project)
    for line in read_lines(run / "rloo" / "metrics.jsonl"):
        total = line["reward_learned"] + 0.5 * line["reward_brevity"] - line["reward_loudness"]
        assert line["reward"] == pytest.approx(total, abs=1e-5)
        assert line["reward_brevity"] < 0
    # The whole recipe, with absolute paths, is in the run's folder.
    assert str(project / "rewards.py") in (run / "recipe.toml").read_text(encoding="utf-8")


def test_rewards_from_elsewhere_need_neither_judgements_nor_a_reward_model(project: Path) -> None:
    watcher = Recorder()
    run = pipeline.run(recipe(BREVITY), project, listener=watcher)
    assert watcher.done == ["pretrain", "sft", "rloo", "evaluation"]
    assert read_json(run / "evaluation" / "rloo.json")["judge"] == "true preference"
    assert read_json(run / "summary.json")["stages"]["rloo"].keys() == {
        *("seconds", "kl", "reward_before", "reward_after")
    }
    assert (run / "report.html").exists()


def test_where_nobody_else_can_judge_the_rewards_do_with_an_alarm(project: Path) -> None:
    rows = [{"prompt": f"Say {i}", "response": "yes " * (i % 5 + 1)} for i in range(40)]
    (project / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    table = {key: value for key, value in TINY.items() if key not in ("label", "data")}
    table |= {
        "data": {"files": ["rows.jsonl"], "max_prompt_tokens": 64, "max_response_tokens": 60},
        "algorithms": ["reinforce"],
        "rewards": [BREVITY, LOUDNESS],
    }
    with pytest.warns(UserWarning, match="The judge is the reward"):
        run = pipeline.run(make_recipe(table), project)
    found = read_json(run / "evaluation" / "reinforce.json")
    assert found["judge"] == TRAINED_JUDGE
    assert found["alarms"][0] == NO_OTHER_JUDGE
    for row in read_lines(run / "evaluation" / "reinforce.samples.jsonl"):
        expected = -0.5 * len(row["after"]) / 40 - row["after"].count("!")
        assert row["true_after"] == pytest.approx(expected)


def test_a_reward_models_folder_is_a_reward(project: Path) -> None:
    first = pipeline.run(recipe({"name": "learned"}), project)
    model = {"name": "other", "model": str(first / "reward" / "model")}
    watcher = Recorder()
    second = pipeline.run(recipe(model, settings=("name=second", 'algorithms=["rloo"]')), project, listener=watcher)
    assert "reward" not in watcher.ran
    one, other = (read_lines(run / "rloo" / "metrics.jsonl") for run in (first, second))
    assert one[0]["reward"] == other[0]["reward"]


def test_a_changed_function_is_trained_again(project: Path) -> None:
    pipeline.run(recipe(BREVITY), project)
    watcher = Recorder()
    pipeline.run(recipe(BREVITY), project, listener=watcher)
    assert watcher.ran == []
    (project / "rewards.py").write_text(FILE.replace("-len", "len"), encoding="utf-8")
    pipeline.run(recipe(BREVITY), project, listener=watcher)
    assert watcher.ran == ["rloo", "evaluation"]


def test_a_function_that_raises_names_the_texts_and_the_run_goes_on_once_it_is_mended(project: Path) -> None:
    (project / "rewards.py").write_text(
        FILE.replace("return -len", "raise KeyError('lost') or -len"), encoding="utf-8"
    )
    watcher = Recorder()
    with pytest.raises(ValueError, match=r"'brevity' raised KeyError\('lost'\) for prompt '.+' and response '"):
        pipeline.run(recipe(BREVITY), project, listener=watcher)
    assert watcher.done == ["pretrain", "sft"]
    assert not (project / "runs" / "tiny" / "rloo").exists()
    (project / "rewards.py").write_text(FILE, encoding="utf-8")
    pipeline.run(recipe(BREVITY), project, listener=watcher)
    assert watcher.done == ["pretrain", "sft", "rloo", "evaluation"]
    assert watcher.kept == ["pretrain", "sft"]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("missing.py:f", r"'short': function = '.*missing\.py:f': there is no file"),
        ("rewards.py:nothing", "has no function 'nothing'"),
        ("rewards.py:NUMBER", "has no function 'NUMBER'"),
        ("broken.py:f", r"running .*broken\.py raised ZeroDivisionError"),
        ("syntax.py:f", r"running .*syntax\.py raised SyntaxError"),
    ],
)
def test_a_function_that_cannot_be_had_is_refused_before_anything_runs(
    project: Path, function: str, message: str
) -> None:
    (project / "broken.py").write_text("1 / 0\n", encoding="utf-8")
    (project / "syntax.py").write_text("def f(:\n", encoding="utf-8")
    watcher = Recorder()
    with pytest.raises(ValueError, match=message):
        pipeline.run(recipe({"name": "short", "function": function}), project, listener=watcher)
    assert watcher.ran == []


def test_a_function_is_what_its_name_says(project: Path) -> None:
    one = load_function(RewardSource(name="a", function=f"{project}/rewards.py:brevity"))
    many = load_function(RewardSource(name="b", function=f"{project}/rewards.py:loudness", batched=True))
    assert one("x", "y" * 40) == -1.0  # type: ignore[arg-type]
    assert isinstance(many, Batched)
    assert many.function(["x", "x"], ["!", "a!!"]) == [1.0, 2.0]


def test_a_file_of_rewards_may_be_any_python(project: Path) -> None:
    """A dataclass with deferred annotations looks its module up; not every text is UTF-8; two files, two modules."""
    text = "# -*- coding: latin-1 -*-\nfrom __future__ import annotations\nfrom dataclasses import dataclass\n"
    text += "@dataclass\nclass Ruler:\n    unit: float = 40.0\n\ndef size(prompt, response):\n"
    text += "    # gr\xf6\xdfer\n    return len(response) / Ruler().unit\n"
    (project / "any.py").write_bytes(text.encode("latin-1"))
    size = {"name": "size", "function": "any.py:size"}
    run = pipeline.run(recipe(size, BREVITY), project)
    line = read_lines(run / "rloo" / "metrics.jsonl")[0]
    assert line["reward_size"] == pytest.approx(-line["reward_brevity"])


def test_a_folder_that_is_not_there_is_refused_before_anything_runs(project: Path) -> None:
    watcher = Recorder()
    with pytest.raises(ValueError, match="reward 'other': there is no folder models/of/harm"):
        pipeline.run(recipe({"name": "other", "model": "models/of/harm"}), project, listener=watcher)
    assert watcher.ran == []


def test_prefloop_evaluate_judges_a_run_without_a_reward_model(project: Path) -> None:
    rows = [{"prompt": f"Say {i}", "response": "yes " * (i % 5 + 1)} for i in range(40)]
    (project / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    table = {key: value for key, value in TINY.items() if key not in ("label", "data")}
    table |= {
        "data": {"files": ["rows.jsonl"], "max_prompt_tokens": 64, "max_response_tokens": 60},
        "algorithms": ["rloo"],
        "rewards": [BREVITY | {"function": f"{project}/rewards.py:brevity"}],
    }
    made = make_recipe(table)
    with pytest.warns(UserWarning, match="Name an independent one"):
        run = pipeline.run(made, project)
    with pytest.warns(UserWarning, match="Name an independent one"):
        [found] = evaluate_pair(made, project, project, f"{run}/rloo/model", f"{run}/sft/model", "")
    assert found["win_rate"] == read_json(run / "evaluation" / "rloo.json")["win_rate"]
    assert found["alarms"][0] == NO_OTHER_JUDGE


def test_a_reward_model_that_no_policy_was_rewarded_by_judges_without_alarm(project: Path) -> None:
    dialogues(project / "dialogues.jsonl")
    table = from_store("judge.fraction=0.0").model_dump(mode="json") | {"algorithms": ["rloo", "dpo"]}
    run = pipeline.run(make_recipe(table | {"rewards": [BREVITY]}), project)
    for name in ("rloo", "dpo"):
        found = read_json(run / "evaluation" / f"{name}.json")
        assert found["judge"] == "the run's reward model"
        assert NO_OTHER_JUDGE not in found["alarms"]


def test_annotators_may_be_asked_about_a_prompt_twice_and_not_always_the_same_ones(project: Path) -> None:
    """More prompts in an iteration than there are: what is said of one set of answers stays with it."""
    settings = (
        *('algorithms=["online_dpo"]', "online_dpo.judge=annotators", "data.world_prompts=3", "sample.prompts=3"),
        *("online_dpo.episodes=32", "online_dpo.minibatch_episodes=8", "online_dpo.iterations=3"),
    )
    run = pipeline.run(recipe(settings=settings), project)
    lines = read_lines(run / "online_dpo" / "metrics.jsonl")
    assert [line["judgements"] for line in lines] == [line["comparisons"] for line in lines]  # one for each pair
    with Store.open(project / "feedback.db") as store:
        mine = {c.id: c.origin for c in store.completions() if c.origin.startswith("runs/tiny/online_dpo@")}
        asked = [j.annotator for j in store.judgements("overall") if set(j.shown) <= mine.keys()]
    assert len(set(mine.values())) == 3
    assert len(set(asked)) == len(PANEL)


def test_annotators_take_turns_over_the_iterations(project: Path) -> None:
    """Two prompts an iteration: with the same lots each time the same two would be asked for ever."""
    settings = ('algorithms=["online_dpo"]', "online_dpo.judge=annotators", "online_dpo.iterations=8")
    settings += ("online_dpo.episodes=4", "online_dpo.minibatch_episodes=4")
    pipeline.run(recipe(settings=settings), project)
    with Store.open(project / "feedback.db") as store:
        mine = {c.id for c in store.completions() if c.origin.startswith("runs/tiny/online_dpo@")}
        asked = [j.annotator for j in store.judgements("overall") if set(j.shown) <= mine]
    assert len(asked) == 16
    assert len(set(asked)) > 2


def test_a_critic_of_its_own_is_kept_as_a_reward_models_folder(project: Path) -> None:
    run = pipeline.run(recipe(settings=('algorithms=["ppo"]', "ppo.critic=separate")), project)
    critic, start = (load_reward_model(run / place) for place in ("ppo/critic", "reward/model"))
    assert critic.model.config.reward_shift == start.model.config.reward_shift
    assert not (run / "ppo" / "model" / "value_head.safetensors").exists()


def test_online_dpo_writes_its_annotators_judgements_to_the_store(project: Path) -> None:
    settings = ('algorithms=["online_dpo"]', "online_dpo.judge=annotators", "label.overlap=2")
    run = pipeline.run(recipe(settings=settings), project)
    lines = read_lines(run / "online_dpo" / "metrics.jsonl")
    assert all("reward" not in line and line["true_reward"] >= 0 for line in lines)
    with Store.open(project / "feedback.db") as store:
        mine = {c.id for c in store.completions() if c.origin.startswith("runs/tiny/online_dpo@")}
        judged = [j for j in store.judgements("overall") if set(j.shown) <= mine]
    assert len(judged) == sum(line["judgements"] for line in lines) > 0
    assert {j.source for j in judged} == {"simulated"}
