"""The report says what the files say."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.report.fixture import figures, write_dialogues, write_json, write_lines, write_minimal
from tests.report.reader import Text, page

from prefloop.report.read import read_run
from prefloop.report.scale import wilson


def test_figures_are_those_of_the_files(demo: Path) -> None:
    text = Text(page(demo)).text
    for name in ("ppo", "dpo"):
        values = figures(demo, name)
        for key in ("win_rate", "length_controlled_win_rate"):
            rate = values[key]
            assert f"{100 * rate['value']:.1f} %" in text
            assert f"{100 * rate['low']:.1f}–{100 * rate['high']:.1f}" in text
        assert f"{values['wins']} wins, {values['ties']} ties, {values['losses']} losses" in text
        before, after = values["true_reward_before"], values["true_reward_after"]
        assert f"true reward {before:.3f} → {after:.3f}" in text
    rate = figures(demo, "ppo")["win_rate"]
    assert (
        f"PPO’s answers are preferred to SFT’s {100 * rate['value']:.0f} % of the time (95 % interval "
        f"{100 * rate['low']:.0f}–{100 * rate['high']:.0f}, {rate['n']} held-out prompts, judged by the true "
        "preference)." in text
    )
    assert "81.3 % (78.2–84.4, n = 600)" in text
    assert "Faithfulness fell while the learned reward rose." in text
    assert "0.310 → " in text
    assert "9f1c2ab47e0d5536" in text
    assert "2400" in text
    assert "4 min 10 s" in text  # PPO's manifest: 250.3 seconds


def test_the_wording_follows_the_interval(copy: Path) -> None:
    values = figures(copy, "ppo")
    cases = {(0.40, 0.35, 0.45): "are worse than", (0.52, 0.48, 0.56): "No clear difference"}
    for (value, low, high), expected in cases.items():
        values["win_rate"] = {"value": value, "low": low, "high": high, "n": 500}
        write_json(copy / "evaluation" / "ppo.json", values)
        assert expected in Text(page(copy)).text


def test_a_run_past_its_peak_is_told(demo: Path) -> None:
    assert "training went past the peak" in Text(page(demo)).text


def test_without_true_reward_or_parts(tmp_path: Path) -> None:
    text = Text(page(write_dialogues(tmp_path / "hh"))).text
    assert "judged by the held-out reward model" in text
    assert "unknown in this run" in text
    assert re.search(r"judge’s score −?[\d.]+ → −?[\d.]+", text)
    assert not re.search(r"true reward −?\d", text)
    assert "What changed in" not in text
    assert "No alarms" in text


def test_the_least_there_can_be(tmp_path: Path) -> None:
    text = Text(page(write_minimal(tmp_path / "minimal"))).text
    assert "SFT took the held-out loss from 2.79 to 1.23 nats per token." in text
    assert "Not part of this run, and so not on this page: the reward model, PPO, DPO and the evaluation." in text
    assert "Win rates" not in text


# PPO's figures


def with_ppo(run: Path, edit: Callable[[dict[str, Any]], dict[str, Any]]) -> str:
    path = run / "ppo" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    write_lines(path, [row | edit(row) for row in rows])
    return Text(page(run)).text


def test_a_true_reward_of_few_iterations_is_known_all_the_same(copy: Path) -> None:
    path = copy / "ppo" / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:5]))
    text = Text(page(copy)).text
    assert "unknown in this run" not in text
    assert "at the end; too few iterations to look for a peak" in text


def test_whose_judgement_it_is_reads_well(copy: Path) -> None:
    for judge, said in (
        ("the trained reward itself", "the trained reward itself"),
        ("held-out reward model", "the held-out reward model"),
        ("the run's reward model", "the run's reward model"),
    ):
        write_json(copy / "evaluation" / "ppo.json", figures(copy, "ppo") | {"judge": judge})
        text = Text(page(copy)).text
        assert f"Judged by {said}" in text.replace("’", "'")
        assert "the the" not in text
    write_json(copy / "evaluation" / "ppo.json", figures(copy, "ppo") | {"judge": "models/true-north"})
    assert "Judged by the models/true-north" in Text(page(copy)).text  # whose scores are no true reward


def test_a_bug_seen_by_training_is_an_alarm(copy: Path) -> None:
    quiet = Text(page(copy)).text
    for words in ("Sampling and training disagreed", "below 0 by more", "nats a token in"):
        assert words not in quiet
    text = with_ppo(copy, lambda row: {"ratio_error": {3: 0.0011, 7: 0.25}.get(row["iteration"], 0.00099)})
    assert (
        "PPO’s health Sampling and training disagreed in 2 of 200 iterations: a token’s probability differed by up "
        "to 0.250 (relative, iteration 7) before any update, and rounding explains no more than 0.001." in text
    )
    text = with_ppo(copy, lambda row: {"kl": -0.4} if row["iteration"] == 9 else {})
    assert "PPO’s health The KL from the reference was −0.400 nats at iteration 9, below 0 by more" in text
    text = with_ppo(copy, lambda row: {"kl": -0.02} if row["iteration"] <= 40 else {})
    assert "was −0.020 nats on average over iterations 1 to 40, below 0" in text
    text = with_ppo(copy, lambda row: {"kl": {11: 2.1, 12: 2.5}.get(row["iteration"], 1.9) * row["response_tokens"]})
    assert "PPO’s health The KL from the reference was above 2 nats a token in 2 of 200 iterations, at most" in text
    assert "at most 2.50 (iteration 12): the policy has left the language" in text


def test_an_ensembles_disagreement_is_shown(copy: Path) -> None:
    path = copy / "reward" / "evaluation.json"
    values = json.loads(path.read_text())
    values["by_disagreement"] = [{"low": 0.25, "high": 1.5, "accuracy": 0.7, "n": 100, "effective_n": 80.0}]
    write_json(path, values)
    said = " ".join(attributes.get("aria-label") or "" for _, attributes in Text(page(copy)).elements)
    assert "Members differ by 0.25 to 1.5 70.0 %" in said.replace("\u202f", " ")


def test_intervals_of_a_reward_model_are_as_wide_as_its_pairs_are_worth(copy: Path) -> None:
    path = copy / "reward" / "evaluation.json"
    values = json.loads(path.read_text())
    for row in (values["by_margin"][0], values["by_agreement"][0], values["reliability"][0]):
        row["effective_n"] = 25.0
    write_json(path, values)
    quality = read_run(copy).stages["reward"].quality
    assert quality
    assert [row["effective_n"] for row in quality.by_margin] == [25, 200, 200]
    assert [row["effective_n"] for row in quality.reliability] == [25, 80, 95, 110, 125, 130]
    said = " ".join(attributes.get("aria-label") or "" for _, attributes in Text(page(copy)).elements)
    for label, share, effective in (
        ("from 0 to 0.7", 0.62, 25),
        ("from 0.7 to 1.9", 0.84, 200),
        ("agree 60 %", 0.58, 25),
    ):
        low, high = wilson(share, effective)
        assert f"{label} {100 * share:.1f} %, interval {100 * low:.1f}–{100 * high:.1f}" in said.replace(
            "\u202f", " "
        )


# Odd values


def test_values_that_are_no_numbers_are_told(copy: Path) -> None:
    rows = [{"step": i, "loss": math.nan if i == 5 else 2.0 - i / 50} for i in range(1, 40)]
    write_lines(copy / "sft" / "metrics.jsonl", rows)
    text = Text(page(copy)).text
    assert "Not every value is a finite number: loss." in text
    assert "1 value is not a finite number" in text


@pytest.mark.parametrize("odd", [0.0, -1.0, 5e-324, 1e308, math.nan, math.inf, None])
def test_odd_numbers_break_nothing(copy: Path, odd: float | None) -> None:
    kept = {"step", "iteration", "n", "wins", "ties", "losses", "seed", "judgements"}

    def spoiled(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: spoiled(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [spoiled(item) for item in value]
        return odd if isinstance(value, int | float) and key not in kept else value

    for path in copy.glob("*/metrics.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        write_lines(path, [spoiled(row) if i % 9 == 4 else row for i, row in enumerate(rows)])
    for path in (copy / "reward" / "evaluation.json", copy / "ppo" / "manifest.json"):
        write_json(path, spoiled(json.loads(path.read_text())))
    source = page(copy)
    assert not re.search(r'="-?(nan|inf)"', source)
    assert " nan " not in Text(source).text


def test_at_most_sixty_samples(demo: Path) -> None:
    assert 40 < page(demo).count("data-verdict=") <= 60
