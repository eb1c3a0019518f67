"""What the benchmark of speed writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.speed import results
from benchmarks.speed.jobs import Timing
from benchmarks.speed.results import Row, Turn, summarise, write


def timing(seconds: float, peak_mb: float = 100.0) -> Timing:
    """Ten steps of so many seconds, after five seconds of imports."""
    ends = [5.0 + seconds * step for step in range(11)]
    return Timing(ends, ends[-1], peak_mb, {"tokens": 50.0, "gflops": 1.0})


def row(work: str = "sft", size: str = "tiny") -> Row:
    turns = [Turn(timing(1.0), timing(times, 200.0), timing(1.0)) for times in (3.0, 2.0, 4.0)]
    return summarise(work, size, {"bf16": True}, 1000, turns, (0.5, 0.6))


def test_a_row_has_the_medians_of_its_turns() -> None:
    found = row()
    assert (found.ours, found.peer) == (pytest.approx(100.0), pytest.approx(1000 / 30))
    assert found.ratio == pytest.approx(3.0)
    assert found.ratio_range == (pytest.approx(2.0), pytest.approx(4.0))
    assert found.ratio_whole == pytest.approx(35 / 15)
    assert (found.memory_mb, found.memory_ratio, found.loss, found.peer_loss) == (100.0, 0.5, 0.5, 0.6)
    assert found.share_of_limit == pytest.approx(2.0)  # 1,000 tokens in ten steps, beside 50 in each


def test_rows_stand_in_one_order_and_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    write(path, [row("ppo", "small"), row("dpo", "tiny"), row("sft", "gpt2")])
    write(path, [row("sft", "tiny"), replace(row("ppo", "small"), ours=7.0)])
    rows = [Row(**one) for one in json.loads(path.read_text())["rows"]]
    assert [(one.work, one.size) for one in rows] == [
        *(("sft", "tiny"), ("dpo", "tiny"), ("ppo", "small"), ("sft", "gpt2"))
    ]
    assert rows[2].ours == 7.0
    table = path.with_suffix(".md").read_text().splitlines()[4:]
    assert [line.split(" | ")[0] for line in table] == ["| sft", "| dpo", "| ppo", "| sft"]
    monkeypatch.setattr(results, "machine", lambda: "another")
    write(path, [row("sft", "small")])
    assert [one["size"] for one in json.loads(path.read_text())["rows"]] == ["small"]
