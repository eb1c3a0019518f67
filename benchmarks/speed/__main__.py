"""prefloop and TRL in turn, on the same models and rows, beside the limit of the machine.

    python -m benchmarks.speed [--data FILE] [--sizes tiny small gpt2] [--works sft reward …] [--repeats 3]

For every size and work TRL's settings are tried in a short run each, and its fastest is kept. Then prefloop, TRL and
the bare model run in turn, each in a process of its own, ``--repeats`` times; ratios are of neighbours in time, and
the table has their median. TRL's environments are made below ``--folder`` when they are missing: 1.12 for PPO, the
last release that has it, and the newest for the rest.

Both train on the same rows for the same optimiser steps, and both trained models are measured on held-out rows by
the same code, so that speed bought by skipped work would show.

After each row ``benchmarks/results.json`` is written, with the table (.md) and a plot (.svg) beside it; rows of other
works and sizes stay.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.speed.heldout import loss
from benchmarks.speed.jobs import ROUNDS, Job, run
from benchmarks.speed.materials import LONGEST, Size, make
from benchmarks.speed.results import Row, Turn, line, summarise, write

PEERS = {"sft": "1.16.0", "reward": "1.16.0", "dpo": "1.16.0", "ppo": "1.12.0"}
"""TRL's release for each work."""
DATA = Path(__file__).parents[2] / "../shared/data/hh-rlhf-harmless.jsonl"
SHORT = 8
"""Optimiser steps in which a setting of TRL's is tried."""
WORKS = ("sft", "reward", "dpo", "ppo", "ppo-separate", "sample")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["tiny", "small", "gpt2"])
    parser.add_argument("--works", nargs="+", default=list(WORKS), choices=WORKS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("build/speed"))
    parser.add_argument("--data", type=Path, default=DATA, help="comparisons in the hh-rlhf form")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results.json")
    options = parser.parse_args()
    if not options.data.exists():
        parser.error(f"there is no file {options.data}; name one of comparisons in the hh-rlhf form with --data")
    for name in options.sizes:
        size = make(options.folder, name, options.data)
        for work in options.works:
            row = measure(work, name, size, options.folder, options.repeats)
            print(line(row), flush=True)
            write(options.out, [row])


def measure(work: str, name: str, size: Size, folder: Path, repeats: int) -> Row:
    """One row of the results."""
    job = job_of(work, name, size, folder)
    peer = None if work == "sample" else python_of(PEERS[job.work], folder)
    best = fastest(peer, job, folder) if peer else {"bf16": True}
    turns = [turn(job, peer, best, folder, number) for number in range(repeats)]
    trained = [folder / "out" / side for side in ("ours", "trl")] if job.work in ("sft", "reward", "dpo") else []
    losses = [loss(job, path, folder / "heldout.jsonl") for path in trained]
    return summarise(work, name, best, items_of(job), turns, losses)


def python_of(release: str, folder: Path) -> Path:
    """The interpreter of an environment with a release of TRL; made when it is missing."""
    place = folder / f"trl-{release}"
    python = place / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "torch==2.13.0", f"trl=={release}"], check=True)
    return python


def job_of(work: str, name: str, size: Size, folder: Path) -> Job:
    """What is measured under a name of `WORKS`."""
    sampled = work in ("ppo", "ppo-separate", "sample")
    return Job(
        work=work.removesuffix("-separate"),
        model=str(folder / name / "model"),
        reward=str(folder / name / "reward"),
        rows=str(folder / ("prompts.jsonl" if sampled else "rows.jsonl")),
        count=2 * size.episodes if sampled else size.comparisons if work == "reward" else size.rows,
        out=str(folder / "out"),
        batch_size=size.episodes if sampled else size.batch_size,
        # Whoever learns to end sooner would have less to do: in PPO the policies stay about as they are.
        learning_rate=1e-6 if sampled else size.learning_rate,
        seed=0,
        setting={"critic": "separate"} if work.endswith("-separate") else {},
        iterations=size.iterations,
    )


def items_of(job: Job) -> int:
    """What is counted by the second: tokens of the rows as they are, without padding; of PPO, episodes."""
    if job.work == "ppo":
        return job.batch_size * job.iterations
    if job.work == "sample":
        return ROUNDS * job.batch_size * job.response_tokens
    sides = 1 if job.work == "sft" else 2
    with Path(job.rows).open(encoding="utf-8") as file:
        return sum(sum(json.loads(next(file))["tokens"][:sides]) for _ in range(job.count))


def fastest(peer: Path, job: Job, folder: Path) -> dict[str, Any]:
    """The setting with which TRL is quickest."""
    precisions: list[dict[str, Any]] = [{"bf16": False}, {"bf16": True}]
    tried = list(precisions)
    if job.work == "sft":  # as many optimiser steps as without packing
        batch = max(1, round(items_of(job) / LONGEST / (job.count / job.batch_size)))
        tried += [one | {"packing": True, "packed_batch": batch} for one in precisions]
    rows = job.count if job.work == "ppo" else min(job.count, SHORT * job.batch_size)
    short = replace(job, iterations=2, count=rows)
    rates = [
        run(peer, "trl_worker", replace(short, setting=one), folder / "logs" / f"trl-{job.work}-{number}.log").steady
        for number, one in enumerate(tried)
    ]
    return tried[rates.index(max(rates))]


def turn(job: Job, peer: Path | None, best: dict[str, Any], folder: Path, number: int) -> Turn:
    """One after the other, so that a slow minute of the machine slows all of them."""
    logs = folder / "logs"
    shutil.rmtree(folder / "out", ignore_errors=True)
    ours = run(
        sys.executable, "prefloop_worker", replace(job, out=str(folder / "out/ours")), logs / f"ours-{number}.log"
    )
    theirs = None
    if peer is not None:
        theirs = run(
            peer, "trl_worker", replace(job, setting=best, out=str(folder / "out/trl")), logs / f"trl-{number}.log"
        )
    limits = [
        run(sys.executable, "limit_worker", replace(job, setting=one), logs / f"limit-{number}.log")
        for one in ({"bf16": False, "tokens": 4096}, {"bf16": True, "tokens": 4096})
    ]
    return Turn(ours, theirs, max(limits, key=lambda one: one.steady))


if __name__ == "__main__":
    main()
