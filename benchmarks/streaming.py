"""What many rows cost: seconds and memory until training begins, the first time and again.

    python benchmarks/streaming.py [--what demonstrations] [--rows 10000 100000 1000000] [--steps 10] [--seed 0]
    python benchmarks/streaming.py --what comparisons
    python benchmarks/streaming.py --what text

For each number of rows a store of short demonstrations is made (prompts of 12 words, answers of 25 on average), or of
judged pairs of such answers; the stage ``label`` freezes these, in its own process for each of ``label.weights``.
Then the stage ``sft``, or the stages ``reward`` and ``dpo``, are run twice, each time in a process of its own: the
first tokenises, the others find what it has kept. For ``text`` the demonstrations are documents for the stage
``pretrain``, without figures: each would be a word of its own, which the tokenizer counts. The model is a tiny one
from its configuration and takes few steps; in 1,000 rows one is held out. Of each process one line:

* read: seconds until the data are split, and for demonstrations and text until their hash is known; in ``label``
  until the hash of what it will freeze is known.
* write: seconds of the stage ``label`` itself.
* tokens: seconds from there until the first step begins, loading the model included; for ``reward`` also those from
  the last step to the end, for ``dpo`` also those of the pass of the reference, for ``pretrain`` also those in which
  the tokenizer learns its merges.
* train: seconds of the steps, the looks at held-out rows included.
* processor: seconds of the processor in all, which others' work on the machine disturbs less.
* before, peak: the most resident memory (MB) when everything is imported, and at the end.
"""

from __future__ import annotations

import argparse
import random
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch

from prefloop.config import ModelConfig
from prefloop.context import Context
from prefloop.dataset import Dataset, prepare
from prefloop.feedback.records import Completion, Demonstration, Judgement, Prompt
from prefloop.feedback.store import AnyRecord, Store
from prefloop.labelling import judged_so_far
from prefloop.models.precision import computing_in
from prefloop.recipes import make_recipe
from prefloop.runs import StageWriter, peak_memory_mb, read_lines, write_json
from prefloop.stages import STAGES
from prefloop.training.loop import Metrics
from prefloop.training.pretrain import make_policy

WORDS = ("the", "a", "of", "to", "and", "in", "is", "that", "it", "was", "for", "on", "are", "as", "with", "they")
BATCH = 16
BLOCK = 128
SHAPE: dict[str, Any] = {"vocabulary": 2000, "width": 64, "layers": 2, "heads": 2, "context": 512}
NOTHING = Dataset([], [], [], [], [], [])
"""The label stage of a store's judgements reads no other data."""
T = TypeVar("T")


def text(draw: random.Random, longest: int) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(1, longest)))


def spelled(number: int) -> str:
    return " ".join(WORDS[int(digit, 16)] for digit in f"{number:x}")


def demonstrations(rows: int, seed: int, name: Callable[[int], str] = str) -> Iterator[Prompt | Demonstration]:
    for prompt, draw in prompts(rows, seed, name):
        yield prompt
        yield Demonstration(prompt_id=prompt.id, text=text(draw, 50), origin="benchmark")


def comparisons(rows: int, seed: int) -> Iterator[Prompt | Completion | Judgement]:
    """Pairs: one in ten is a tie, the others like the one or the other better."""
    for number, (prompt, draw) in enumerate(prompts(rows, seed)):
        answers = [Completion(prompt_id=prompt.id, text=f"{n} {text(draw, 50)}", origin="benchmark") for n in "ab"]
        ranks = draw.choices(((1, 2), (2, 1), (1, 1)), (45, 45, 10))[0]
        shown = (answers[0].id, answers[1].id)
        yield prompt
        yield from answers
        yield Judgement(
            id=f"benchmark-{number}",
            prompt_id=prompt.id,
            annotator=f"annotator {draw.randrange(20)}",
            source="imported",
            shown=shown,
            ranks=ranks,
        )


def prompts(rows: int, seed: int, name: Callable[[int], str] = str) -> Iterator[tuple[Prompt, random.Random]]:
    draw = random.Random(seed)
    for number in range(rows):
        yield Prompt.of(f"{name(number)} {text(draw, 24)}", split="train" if number % 1000 else "heldout"), draw


RECORDS: dict[str, Callable[[int, int], Iterator[AnyRecord]]] = {
    "demonstrations": demonstrations,
    "comparisons": comparisons,
    "text": partial(demonstrations, name=spelled),
}
LEARN: dict[str, tuple[str, ...]] = {
    "demonstrations": ("sft",),
    "comparisons": ("reward", "dpo"),
    "text": ("pretrain",),
}
"""The stages that learn from them."""


def make_project(folder: Path, what: str, rows: int, seed: int) -> None:
    """A store of such rows, a model to begin with, and what is there when the stages begin."""
    with Store.open(folder / "feedback.db") as store:
        store.add(RECORDS[what](rows, seed))
    draw = random.Random(seed)
    policy = make_policy([text(draw, 50) for _ in range(1000)], ModelConfig(**SHAPE), seed)
    policy.save(folder / "model")
    policy.save(folder / "runs" / "run" / "sft" / "model")


def freeze(folder: Path, weights: str) -> dict[str, float]:
    """What the pipeline does before the stage ``label``, and the stage, in this process: its seconds and memory."""
    before = peak_memory_mb()
    recipe = make_recipe({"name": "run", "label": {"weights": weights}})
    writer = StageWriter(folder / "runs" / "run" / "label")
    shutil.rmtree(writer.folder, ignore_errors=True)
    writer.folder.mkdir(parents=True)
    clock, used = [time.perf_counter()], time.process_time()
    with Store.open(folder / "feedback.db") as store:
        context = Context(recipe, writer.folder.parent, NOTHING, store)
        context.judged = judged_so_far(context)
        _ = [one.hash for one in context.judged]
        clock.append(time.perf_counter())
        STAGES["label"](context, writer)
        clock.append(time.perf_counter())
    write_json(writer.folder / "manifest.json", writer.extra)
    return {
        "read": clock[1] - clock[0],
        "write": clock[2] - clock[1],
        "processor": time.process_time() - used,
        "before": before,
        "peak": peak_memory_mb(),
    }


def train(folder: Path, stage: str, rows: int, steps: int, seed: int) -> dict[str, float]:
    """A stage in this process: its seconds and memory."""
    before = peak_memory_mb()
    recipe = make_recipe({"name": "run", "seed": seed, **settings(folder, stage, rows, steps)})
    writer = StageWriter(folder / "runs" / "run" / stage)
    writer.folder.mkdir(parents=True, exist_ok=True)
    seen: list[Metrics] = []
    clock, used = [time.perf_counter()], time.process_time()
    torch.set_num_threads(1)
    with Store.open(folder / "feedback.db") as store, computing_in("float32"):
        data = prepare(recipe, store, folder)
        _ = data.documents_hash if stage == "pretrain" else data.demonstrations_hash
        clock.append(time.perf_counter())
        STAGES[stage](Context(recipe, writer.folder.parent, data, store, seen.append), writer)
        clock.append(time.perf_counter())
    lines = read_lines(writer.folder / "metrics.jsonl")
    trained = lines[-1]["seconds"]
    return {
        "read": clock[1] - clock[0],
        "tokens": clock[2] - clock[1] - trained,
        "train": trained,
        "processor": time.process_time() - used,
        "before": before,
        "peak": peak_memory_mb(),
        "eval_loss": lines[-1]["eval_loss"],
    }


def settings(folder: Path, stage: str, rows: int, steps: int) -> dict[str, Any]:
    if stage == "pretrain":
        size = BATCH * BLOCK
        return {"model": SHAPE, "pretrain": {"tokens": steps * size, "batch_tokens": size, "block": BLOCK}}
    epochs = {"batch_size": BATCH, "epochs": steps * BATCH / rows}
    return {"model": {"path": str(folder / "model")}, stage: epochs}


def alone(work: Callable[..., T], *given: Any) -> T:
    """What a function returns in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(work, *given).result()


def measure(what: str, rows: int, steps: int, seed: int) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        begin = time.perf_counter()
        alone(make_project, folder, what, rows, seed)
        print(f"{rows:>9} {what}, written in {time.perf_counter() - begin:.0f} s", flush=True)
        if what == "comparisons":
            for weights in ("reliability", "equal"):  # what is learnt from is the last
                show(f"label {weights}", alone(freeze, folder, weights))
        for stage in LEARN[what]:
            losses = set()
            for which in ("first", "again"):
                found = alone(train, folder, stage, rows, steps, seed)
                losses.add(found.pop("eval_loss"))
                show(f"{stage} {which}", found)
            if len(losses) > 1:
                raise AssertionError(f"what is kept trains another model: held-out losses {losses}")
        kept = sum(path.stat().st_size for path in folder.rglob("cache/tokens/*/*") if path.is_file())
        store = (folder / "feedback.db").stat().st_size
        print(f"{'on disk':>15}: store {store / 1e6:.0f} MB, tokens {kept / 1e6:.0f} MB", flush=True)


def show(what: str, found: dict[str, float]) -> None:
    print(f"{what:>15}: " + ", ".join(f"{key} {value:.1f}" for key, value in found.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=RECORDS, default="demonstrations")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for rows in given.rows:
        measure(given.what, rows, given.steps, given.seed)


if __name__ == "__main__":
    main()
