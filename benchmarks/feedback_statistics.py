"""How long `prefloop stats` takes, and how much memory, on a store of simulated judgements.

    python benchmarks/feedback_statistics.py --judgements 1000000 > statistics.jsonl

Each prompt has two answers and is judged by two of 64 annotators, who follow Crowd-BT. One JSON line: what was read,
the seconds of reading alone (the store's iterators) and of everything, and the peak memory of the process.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from scipy.special import expit

from prefloop.feedback.records import Completion, Judgement, Prompt
from prefloop.feedback.statistics import statistics
from prefloop.feedback.store import Store
from prefloop.runs import peak_memory_mb

WORDS = ("the", "quick", "answer", "explains", "what", "was", "asked", "and", "gives", "one", "reason", "for", "it")
ANNOTATORS = 64


def records(prompts: int, overlap: int) -> Iterator[Prompt | Completion | Judgement]:
    rng = random.Random(0)
    reliability = [rng.uniform(0.6, 1.0) for _ in range(ANNOTATORS)]
    start = datetime(2026, 1, 1, tzinfo=UTC)
    for number in range(prompts):
        prompt = Prompt.of(f"question {number}")
        pair = [
            Completion(
                prompt_id=prompt.id, text=" ".join(rng.choices(WORDS, k=rng.randint(20, 60))), origin=f"model {k}"
            )
            for k in range(2)
        ]
        yield prompt
        yield from pair
        difference = rng.gauss(0, 2)
        for who in rng.sample(range(ANNOTATORS), overlap):
            turned = rng.random() < 0.5
            eta, worth = reliability[who], float(expit(difference))
            first = rng.random() < eta * worth + (1 - eta) * (1 - worth)
            shown = (pair[1], pair[0]) if turned else (pair[0], pair[1])
            yield Judgement(
                id=f"{number}-{who}",
                prompt_id=prompt.id,
                annotator=f"annotator {who}",
                source="human",
                shown=(shown[0].id, shown[1].id),
                ranks=(1, 2) if first != turned else (2, 1),
                seconds=rng.uniform(5, 60),
                created=start + timedelta(minutes=number / 10),
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judgements", type=int, default=1_000_000)
    parser.add_argument("--store", type=Path, help="kept there, and used again when it is there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.store or Path(folder) / "feedback.db"
        if not path.exists():
            with Store.open(path) as store:
                store.add(records(arguments.judgements // 2, 2))
        with Store.open(path, create=False) as store:
            started = time.perf_counter()
            read = sum(1 for _ in store.completions()) + sum(1 for _ in store.judgements())
            reading = time.perf_counter() - started
            found = statistics(store)
            seconds = time.perf_counter() - started - reading
    print(
        json.dumps(
            {
                "judgements": found.totals.judgements,
                "records": read,
                "reading_seconds": round(reading, 1),
                "statistics_seconds": round(seconds, 1),
                "peak_mb": round(peak_memory_mb()),
            }
        )
    )


if __name__ == "__main__":
    main()
