"""``prefloop plan`` as a person calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.commands import Call, ok, settings
from tests.runs import tiny

from prefloop.planning.cards import CARDS
from prefloop.recipes import dump_recipe


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "prefloop.toml"
    path.write_text(dump_recipe(tiny()), encoding="utf-8")
    return path


@pytest.mark.usefixtures("recipe")
def test_a_plan_has_every_stage(call: Call, tmp_path: Path) -> None:
    found = json.loads(ok(call("plan", "--json")))
    assert [one["stage"] for one in found["stages"]] == list(tiny().stages)
    for one in found["stages"]:
        assert (one["seconds"] is None) == (one["stage"] == "label")
        assert one["fits"]
        assert 0 < one["memory"] < found["device"]["memory"]
    assert found["fits"]
    assert found["changes"] == []
    assert found["memory"] == max(one["memory"] for one in found["stages"])
    assert found["seconds"] == pytest.approx(sum(one["seconds"] or 0 for one in found["stages"]))
    assert "measured" in found["rates"]
    assert [path.name for path in tmp_path.iterdir()] == ["prefloop.toml"], "planning writes nothing"


@pytest.mark.usefixtures("recipe")
def test_the_same_for_people(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    shown = ok(call("plan"))
    for stage in tiny().stages:
        assert f"\n {stage} " in shown
    assert "it fits" in shown
    assert "measured" in shown


@pytest.mark.usefixtures("recipe")
def test_what_does_not_fit_says_what_to_change(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    size = ("--model-size", "1B", "--gpu", "A100-40", "--set", "precision=auto", "--set", "ppo.critic=separate")
    found = json.loads(ok(call("plan", "--json", *size)))
    shown = ok(call("plan", *size))
    assert not found["fits"]
    assert "it does not fit" in shown
    assert found["changes"][-1]["fits"]
    assert "--set ppo.critic=shared" in shown
    assert "assumption" in shown
    changed = [part for one in found["changes"] for each in one["settings"] for part in ("--set", each)]
    assert json.loads(ok(call("plan", "--json", *size, *changed)))["fits"]


@pytest.mark.usefixtures("recipe")
def test_cards_are_assumed_and_several_compared(call: Call) -> None:
    auto = ("--set", "precision=auto")
    one, eight = (
        json.loads(ok(call("plan", "--json", *auto, "--model-size", "1B", "--gpu", "h200", "--gpus", count)))
        for count in (1, 8)
    )
    assert one["device"]["memory"] == CARDS["H200"].gib
    assert "assumed" in one["rates"]
    assert one["precision"] == "bfloat16"
    # Tokenising is one process's.
    assert eight["stages"][0]["stage"] == "pretrain"
    assert eight["stages"][0]["seconds"] == pytest.approx(one["stages"][0]["seconds"] / 8)
    assert one["seconds"] / 8 <= eight["seconds"] < one["seconds"]
    assert not any("one device" in note for note in one["notes"])
    assert any("one device" in note for note in eight["notes"])


@pytest.mark.usefixtures("recipe")
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["no-such.toml"], "no such recipe"),
        (["--gpu", "Z9"], "known are H200"),
        (["--model-size", "large"], "for example 350M or 7B"),
        (["--set", "model.path=no/such/model"], "there is no such folder"),
        (["--set", "ppo.critics=shared"], "did you mean ppo.critic?"),
    ],
)
def test_what_cannot_be_planned_says_why(call: Call, arguments: list[str], complaint: str) -> None:
    done = call("plan", *arguments)
    assert done.code == 2
    assert complaint in done.err


def test_a_project_without_data_is_planned_by_its_limits(call: Call, tmp_path: Path) -> None:
    (tmp_path / "prefloop.toml").write_text("", encoding="utf-8")
    found = json.loads(ok(call("plan", "--json", "--gpu", "T4", *settings())))
    assert "no data" in found["data"]
    assert found["precision"] == "float32"
