"""The benchmark of importing, scaled down; and that memory does not grow with the file."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
from benchmarks.import_ import make_file, measure

from prefloop.feedback.formats import read_file


def test_a_small_measurement() -> None:
    seconds, used, megabytes = measure(2000)
    assert 0 < seconds < 60
    assert used > 0
    assert megabytes > 20


@pytest.mark.parametrize("ending", [".jsonl", ".json"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, ending: str) -> None:
    """But for the few bytes that tell equal rows apart: a row of 1 kB is not kept."""
    peaks = []
    for rows in (1000, 6000):
        make_file(tmp_path / "lines.jsonl", rows)
        path = tmp_path / f"{rows}{ending}"
        lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text(encoding="utf-8").splitlines()]
        if ending == ".json":
            path.write_text(json.dumps([row | {"prompt": row["prompt"] + "x" * 1000} for row in lines]))
        else:
            path.write_text("".join(json.dumps(row | {"prompt": row["prompt"] + "x" * 1000}) + "\n" for row in lines))
        del lines
        tracemalloc.start()
        for _ in read_file(path):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 5000 < 300
