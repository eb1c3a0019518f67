"""What one measured process is asked and what it answers, and the process itself: in whichever environment.

Standard library alone: the workers that run inside TRL's environments import it too.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """One piece of work, the same for everybody."""

    work: str
    """``sft``, ``reward``, ``dpo``, ``ppo`` or ``sample``."""
    model: str
    """The folder that training starts from."""
    reward: str
    """The reward model's folder (PPO)."""
    rows: str
    """JSON lines with ``prompt``, ``chosen``, ``rejected`` (texts) and ``ids`` (the prompt's tokens)."""
    count: int
    """How many of the rows are used."""
    out: str
    """Where the trained model is saved."""
    batch_size: int
    """Rows of an optimiser step; in PPO episodes of an iteration."""
    learning_rate: float
    seed: int
    setting: dict[str, Any] = field(default_factory=dict)
    """What only one of the two knows, such as TRL's ``packing``."""
    response_tokens: int = 64
    epochs: int = 4
    """PPO: passes over the episodes, in four steps each."""
    iterations: int = 6
    """PPO: rounds of sampling and updating."""


@dataclass(frozen=True)
class Timing:
    """What a process measured of itself."""

    ends: list[float]
    """Seconds since the process's start at which training began and each optimiser step (in PPO each iteration)
    ended."""
    seconds: float
    """Of the whole process: imports, loading, tokenising, training, saving."""
    peak_mb: float
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def steady(self) -> float:
        """The share of the work that is done in a second, once it is under way: the first steps do not count."""
        steps = len(self.ends) - 1
        skipped = max(1, steps // 5)
        return (steps - skipped) / steps / (self.ends[-1] - self.ends[skipped])


ROUNDS = 4
"""How often a batch is sampled."""
ROOT = Path(__file__).parents[2]
STARTED = "PREFLOOP_BENCHMARK_STARTED"


def run(python: Path | str, worker: str, job: Job, log: Path) -> Timing:
    """The job in a process of its own, whose time and memory are its own.

    Args:
        worker: a module of this package.
        log: takes what the process prints.

    Raises:
        RuntimeError: it failed; the message has the end of the log.
    """
    environment = os.environ | {
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        STARTED: repr(time.time()),
    }
    log.parent.mkdir(parents=True, exist_ok=True)
    answer = log.with_suffix(".json")
    answer.unlink(missing_ok=True)
    command = [str(python), "-m", f"{__package__}.{worker}", json.dumps(asdict(job)), str(answer.resolve())]
    with log.open("w", encoding="utf-8") as file:
        started = time.perf_counter()
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=ROOT, check=False)
        seconds = time.perf_counter() - started
    if done.returncode or not answer.exists():
        raise RuntimeError(f"{worker} failed on {job.work}; the end of {log}:\n{log.read_text()[-2000:]}")
    return Timing(**{**json.loads(answer.read_text()), "seconds": seconds})


def read_job() -> Job:
    """The job of this process."""
    return Job(**json.loads(sys.argv[1]))


def answer(ends: list[float], **figures: float) -> None:
    """Hand the result over; ``ends`` by ``time.time()``."""
    started = float(os.environ[STARTED])
    made = Timing([end - started for end in ends], 0.0, _peak_mb(), figures)
    Path(sys.argv[2]).write_text(json.dumps(asdict(made)))


def _peak_mb() -> float:
    """Linux's getrusage would count what the process held that started this one."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)


def read_rows(job: Job) -> list[dict[str, Any]]:
    """The first rows of the file, as many as the job is about."""
    with Path(job.rows).open(encoding="utf-8") as file:
        return [json.loads(next(file)) for _ in range(job.count)]
