"""What many demonstrations cost: seconds and memory until supervised fine-tuning begins, the first time and again.

    python benchmarks/streaming.py [--rows 10000 100000 1000000] [--steps 10] [--seed 0]

For each number of rows a store of short demonstrations is made (prompts of 12 words, answers of 25 on average), and
the stage ``sft`` is run on it twice, each time in a process of its own: the first tokenises, the second finds what
the first has kept. The model is a tiny one from its configuration and takes few steps; in 1,000 rows one is held out.
Of each process one line:

* read: seconds until it is known what there is to learn from, and its hash.
* tokens: seconds from there until the first step begins, loading the model included.
* train: seconds of the steps, the looks at held-out rows included.
* processor: seconds of the processor in all, which others' work on the machine disturbs less.
* before, peak: the most resident memory (MB) when everything is imported, and at the end.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch

from prefloop.config import ModelConfig
from prefloop.context import Context
from prefloop.dataset import prepare
from prefloop.feedback.records import Demonstration, Prompt
from prefloop.feedback.store import Store
from prefloop.models.precision import computing_in
from prefloop.recipes import make_recipe
from prefloop.runs import StageWriter, read_lines
from prefloop.stages import STAGES
from prefloop.training.loop import Metrics
from prefloop.training.pretrain import make_policy

WORDS = ("the", "a", "of", "to", "and", "in", "is", "that", "it", "was", "for", "on", "are", "as", "with", "they")
BATCH = 16
T = TypeVar("T")


def text(draw: random.Random, longest: int) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(1, longest)))


def records(rows: int, seed: int) -> Iterator[Prompt | Demonstration]:
    draw = random.Random(seed)
    for number in range(rows):
        prompt = Prompt.of(f"{number} {text(draw, 24)}", split="train" if number % 1000 else "heldout")
        yield prompt
        yield Demonstration(prompt_id=prompt.id, text=text(draw, 50), origin="benchmark")


def make_project(folder: Path, rows: int, seed: int) -> None:
    """A store of demonstrations, and a model to begin with."""
    with Store.open(folder / "feedback.db") as store:
        store.add(records(rows, seed))
    draw = random.Random(seed)
    config = ModelConfig(vocabulary=2000, width=64, layers=2, heads=2, context=512)
    make_policy([text(draw, 50) for _ in range(1000)], config, seed).save(folder / "model")


def train(folder: Path, rows: int, steps: int, seed: int) -> dict[str, float]:
    """The stage in this process: its seconds and memory."""
    before = peak_megabytes()
    epochs = {"sft": {"batch_size": BATCH, "epochs": steps * BATCH / rows}}
    recipe = make_recipe({"model": {"path": str(folder / "model")}, "seed": seed, **epochs})
    writer = StageWriter(folder / "runs" / "run" / "sft")
    writer.folder.mkdir(parents=True, exist_ok=True)
    seen: list[Metrics] = []
    clock, used = [time.perf_counter()], time.process_time()
    torch.set_num_threads(1)
    with Store.open(folder / "feedback.db") as store, computing_in("float32"):
        data = prepare(recipe, store, folder)
        _ = data.demonstrations_hash
        clock.append(time.perf_counter())
        STAGES["sft"](Context(recipe, writer.folder.parent, data, store, seen.append), writer)
        clock.append(time.perf_counter())
    last = read_lines(writer.folder / "metrics.jsonl")[-1]
    trained = last["seconds"]
    return {
        "read": clock[1] - clock[0],
        "tokens": clock[2] - clock[1] - trained,
        "train": trained,
        "processor": time.process_time() - used,
        "before": before,
        "peak": peak_megabytes(),
        "eval_loss": last["eval_loss"],
    }


def peak_megabytes() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 1000)


def alone(work: Callable[..., T], *given: Any) -> T:
    """What a function returns in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(work, *given).result()


def measure(rows: int, steps: int, seed: int) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        begin = time.perf_counter()
        alone(make_project, folder, rows, seed)
        print(f"{rows:>9} rows, written in {time.perf_counter() - begin:.0f} s", flush=True)
        losses = set()
        for which in ("first", "again"):
            found = alone(train, folder, rows, steps, seed)
            losses.add(found.pop("eval_loss"))
            print(f"{which:>9}: {', '.join(f'{key} {value:.1f}' for key, value in found.items())}", flush=True)
        if len(losses) > 1:
            raise AssertionError(f"what is kept trains another model: held-out losses {losses}")
        kept = sum(path.stat().st_size for path in folder.rglob("cache/tokens/*/*") if path.is_file())
        store = (folder / "feedback.db").stat().st_size
        print(f"{'on disk':>9}: store {store / 1e6:.0f} MB, tokens {kept / 1e6:.0f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for rows in given.rows:
        measure(rows, given.steps, given.seed)


if __name__ == "__main__":
    main()
