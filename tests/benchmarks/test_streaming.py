"""The benchmark of many demonstrations, scaled down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmarks.streaming import make_project, train

from prefloop import stages


def test_a_small_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_project(tmp_path, 300, seed=0)
    first = train(tmp_path, 300, steps=5, seed=0)
    monkeypatch.setattr(stages, "_render", _never)
    again = train(tmp_path, 300, steps=5, seed=0)
    assert first["eval_loss"] == again["eval_loss"]
    assert all(value > 0 for value in (*first.values(), *again.values()))


def _never(*_: Any) -> None:
    raise AssertionError("the second time nothing is tokenised")
