"""How long importing takes: a file of plain comparisons (prompt, chosen, rejected) into a new store.

    python benchmarks/import_.py --rows 1000000

One line: rows, seconds, rows per second, processor time, peak resident memory; the process that reads is counted in.
Every prompt is another one and every text is new, which is the most work that a row can be; texts are as long as
hh-rlhf's shorter ones. ``docs/data.md`` has figures.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from prefloop.feedback.formats import import_file
from prefloop.feedback.store import Counts, Store

WORDS = ("the", "a", "of", "to", "and", "in", "is", "that", "it", "was", "for", "on", "are", "as", "with", "they")


def make_file(path: Path, rows: int, seed: int = 0) -> None:
    """``rows`` comparisons; prompts of 12 words and answers of 25 on average."""
    draw = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            row = {
                "prompt": f"{number} " + _text(draw, 24),
                "chosen": _text(draw, 50),
                "rejected": f"{_text(draw, 50)} {number}",
            }
            file.write(json.dumps(row) + "\n")


def _text(draw: random.Random, longest: int) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(1, longest)))


def measure(rows: int) -> tuple[float, float, float]:
    """Seconds, seconds of processor time, and the most memory (MB); with those of the process that reads."""
    with TemporaryDirectory() as name:
        path = Path(name) / "comparisons.jsonl"
        make_file(path, rows)
        with Store.open(Path(name) / "feedback.db") as store:
            begin, used = time.perf_counter(), sum(os.times()[:4])
            added = import_file(store, path).added
            seconds, used = time.perf_counter() - begin, sum(os.times()[:4]) - used
    if added != Counts(prompts=rows, completions=2 * rows, judgements=rows):
        raise AssertionError(f"{rows} rows became {added}")
    return seconds, used, peak_megabytes()


def peak_megabytes() -> float:
    """Of this process and of the largest of those that it waited for, together."""
    peak = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return peak / (2**20 if sys.platform == "darwin" else 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    seconds, used, megabytes = measure(rows)
    speed = f"{rows} rows in {seconds:.1f} s, {rows / seconds:.0f} rows/s"
    print(f"{speed}, {used:.1f} s of processor time, peak {megabytes:.0f} MB")


if __name__ == "__main__":
    main()
