"""The benchmark of many rows, scaled down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmarks.streaming import LEARN, freeze, make_project, train

from prefloop import stages
from prefloop.training import encoding


@pytest.mark.parametrize("what", ["demonstrations", "comparisons", "text"])
def test_a_small_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    make_project(tmp_path, what, 300, seed=0)
    if what == "comparisons":
        frozen = [freeze(tmp_path, weights) for weights in ("reliability", "equal")]
        assert all(value > 0 for found in frozen for value in found.values())
    first = train(tmp_path, LEARN[what][0], 300, steps=5, seed=0)
    monkeypatch.setattr(stages, "_render", _never)
    monkeypatch.setattr(encoding, "_answers", _never)
    monkeypatch.setattr(stages, "blocks_of", _never)
    again = train(tmp_path, LEARN[what][0], 300, steps=5, seed=0)
    assert first["eval_loss"] == again["eval_loss"]
    assert all(value > 0 for value in (*first.values(), *again.values()))
    for stage in LEARN[what][1:]:
        train(tmp_path, stage, 300, steps=1, seed=0)


def _never(*_: Any) -> None:
    raise AssertionError("the second time nothing is tokenised")
