"""Plausible run folders for the report: a demo-like run, one on dialogues, and the least there can be."""

from __future__ import annotations

import json
import math
from pathlib import Path
from random import Random
from typing import Any

Row = dict[str, Any]

VERSIONS = {"python": "3.11.7", "prefloop": "0.1.0", "torch": "2.9.0", "transformers": "5.1.0"}
HOSTILE = [
    "<script>alert('prompt')</script>",
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)> and &lt;b&gt; and \"quotes' ` ",
    "right to left \u202egnp.exe\u202c and a zero\u200bwidth and a bell \u0007 and half a pair \ud800",
    "W" * 900,
    ("A very long answer that goes on and on. " * 260)[:10_000],
]


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def write_lines(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def figures(run: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((run / "evaluation" / f"{name}.json").read_text()))


def interval(value: float, n: int) -> Row:
    half = 1.96 * math.sqrt(max(value * (1 - value), 1e-9) / n)
    return {
        "value": round(value, 4),
        "low": round(max(0, value - half), 4),
        "high": round(min(1, value + half), 4),
        "n": n,
    }


READS = {
    "sft": ("pretrain",),
    "sample": ("sft",),
    "label": ("sample",),
    "reward": ("sft", "label"),
    "judge": ("sft", "label"),
    "ppo": ("sft", "reward"),
    "dpo": ("sft", "label"),
    "evaluation": ("sft", "reward", "judge", "ppo", "dpo"),
}


def key(stage: str) -> str:
    return f"{hash_of(stage):016x}"


def manifest(run: Path, stage: str, seconds: float, **more: object) -> None:
    """Of a stage made from whichever it reads of those that are there."""
    values = {
        "stage": stage,
        "key": key(stage),
        "inputs": {name: key(name) for name in READS.get(stage, ()) if (run / name).exists()},
        "outputs": {},
        "versions": VERSIONS,
        "seed": 7,
        "seconds": seconds,
        "peak_memory_mb": 600 + 9 * seconds,
        "finished": "2026-03-02T14:05:09+00:00",
    }
    write_json(run / stage / "manifest.json", values | more)


def hash_of(text: str) -> int:
    value = 1469598103934665603
    for byte in text.encode():
        value = (value ^ byte) * 1099511628211 % 2**64
    return value


def language_rows(random: Random, steps: int, start: float, end: float) -> list[Row]:
    rows = []
    for step in range(1, steps + 1):
        level = end + (start - end) * math.exp(-4 * step / steps)
        row: Row = {
            "step": step,
            "loss": level + random.gauss(0, 0.05),
            "learning_rate": 3e-4 * (1 - step / steps),
            "grad_norm": 0.8 + 0.4 * random.random(),
            "tokens": 4096,
            "seconds": step * 0.11,
        }
        if step == 1 or step % max(1, steps // 10) == 0:
            row["eval_loss"] = level + 0.06 + 0.04 * step / steps
        rows.append(row)
    return rows


def pair_rows(random: Random, steps: int, dpo: bool = False) -> list[Row]:
    rows = []
    for step in range(1, steps + 1):
        done = 1 - math.exp(-3.5 * step / steps)
        row: Row = {
            "step": step,
            "loss": 0.693 - 0.36 * done + random.gauss(0, 0.035),
            "accuracy": min(1.0, max(0.0, 0.5 + 0.36 * done + random.gauss(0, 0.05))),
            "learning_rate": 1e-4,
            "grad_norm": 1.5 + random.random(),
            "seconds": step * 0.2,
        }
        if dpo:
            row["chosen_logp"] = -2.1 * done + random.gauss(0, 0.15)
            row["rejected_logp"] = -6.4 * done + random.gauss(0, 0.25)
            row["margin"] = 0.1 * (row["chosen_logp"] - row["rejected_logp"])
        if step % max(1, steps // 8) == 0:
            row["eval_loss"] = 0.693 - 0.30 * done + 0.03 * (step / steps) ** 2
            row["eval_accuracy"] = 0.5 + 0.31 * done
        rows.append(row)
    return rows


def ppo_rows(random: Random, iterations: int, true: bool) -> list[Row]:
    """The learned reward flattens; the true one follows d(α − β log d) and passes its peak."""
    rows = []
    for iteration in range(1, iterations + 1):
        t = iteration / iterations
        kl = 34 * t**1.4 + abs(random.gauss(0, 0.3))
        distance = math.sqrt(kl)
        row: Row = {
            "iteration": iteration,
            "reward": -0.4 + 2.9 * (1 - math.exp(-3.2 * t)) + random.gauss(0, 0.08),
            "kl": kl,
            "kl_coef": 0.05 * (1 + 0.8 * t),
            "entropy": 2.4 - 1.1 * t + random.gauss(0, 0.04),
            "response_tokens": 27 - 5 * t + random.gauss(0, 0.6),
            "ended": min(1.0, 0.91 + 0.08 * t + random.gauss(0, 0.008)),
            "policy_loss": -0.01 + random.gauss(0, 0.004),
            "value_loss": 0.9 * math.exp(-5 * t) + 0.08 + 0.02 * random.random(),
            "explained_variance": 0.85 - 1.4 * math.exp(-9 * t) + random.gauss(0, 0.02),
            "clip_fraction": 0.09 + 0.05 * random.random(),
            "approx_kl": 0.012 + 0.006 * random.random(),
            "ratio_error": 10 ** random.uniform(-6.6, -5.4),
            "learning_rate": 2e-5,
            "grad_norm": 0.9 + 0.5 * random.random(),
            "sample_seconds": 0.62 + 0.05 * random.random(),
            "score_seconds": 0.11,
            "update_seconds": 0.48,
            "seconds": 1.25,
        }
        if true:
            gain = distance * (0.92 - 0.42 * math.log(max(distance, 0.05)))
            row["true_reward"] = 0.05 + 0.8 * gain + random.gauss(0, 0.05)
        rows.append(row)
    return rows


def reward_quality(n: int = 600, agreement: bool = False) -> Row:
    bins = [(0.54, 0.52), (0.63, 0.60), (0.72, 0.68), (0.81, 0.77), (0.89, 0.83), (0.96, 0.91)]
    value: Row = {
        "accuracy": interval(0.813, n),
        "loss": 0.431,
        "ece": 0.038,
        "brier": 0.141,
        "length_correlation": 0.22,
        "pairs": n,
        "reliability": [
            {"predicted": p, "observed": o, "n": c}
            for (p, o), c in zip(bins, (60, 80, 95, 110, 125, 130), strict=True)
        ],
        "by_margin": [
            {"low": 0.0, "high": 0.7, "accuracy": 0.62, "n": n // 3},
            {"low": 0.7, "high": 1.9, "accuracy": 0.84, "n": n // 3},
            {"low": 1.9, "high": 6.2, "accuracy": 0.97, "n": n // 3},
        ],
        "by_agreement": [],
    }
    if agreement:
        value["by_agreement"] = [
            {"agreement": 0.6, "accuracy": 0.58, "n": 140},
            {"agreement": 1.0, "accuracy": 0.83, "n": 220},
        ]
    return value


_THINGS = ["the report", "my invoice", "a refund", "the meeting notes", "your slides", "the new contract"]
_WHENS = ["today", "by Friday", "before the call", "this evening", "as soon as it is done"]
_ROUGH = ["send me {} {}, what takes so long", "i want {} {} or i call your boss", "{} {} now"]


def rewriter_sample(random: Random, index: int, skill: float) -> Row:
    thing, when = random.choice(_THINGS), random.choice(_WHENS)
    prompt = f"Rewrite politely: {random.choice(_ROUGH).format(thing, when)} (#{index})"
    before = f"Send me {thing} {when}, please. It takes long."
    after = f"Could you please send me {thing} {when}? Thank you very much."
    true_before = random.gauss(0.1, 0.35)
    true_after = true_before + random.gauss(skill, 0.7)
    if random.random() < 0.08:
        after, true_after = before, true_before
    elif true_after < true_before:
        after = "Thank you so much. Thank you. Please, thank you, you are very kind. Thank you."
    verdict = "tie" if after == before else "win" if true_after > true_before else "loss"
    return {
        "prompt": prompt,
        "before": before,
        "after": after,
        "verdict": verdict,
        "true_before": true_before,
        "true_after": true_after,
        "learned_before": true_before + random.gauss(-0.3, 0.3),
        "learned_after": true_after + random.gauss(0.6, 0.5),
    }


def dialogue_sample(random: Random, index: int, skill: float) -> Row:
    row = rewriter_sample(random, index, skill)
    thing = random.choice(_THINGS)
    row["prompt"] = f"Human: How do I ask for {thing} without being rude? ({index})\n\nAssistant:"
    return row


def evaluation(run: Path, name: str, judge: str, samples: list[Row], **more: object) -> Row:
    """The counts and means are those of the samples, as in a true run."""

    def mean(key: str) -> float:
        return float(sum(row[key] for row in samples)) / len(samples)

    counts = {f"{v}s" if v != "loss" else "losses": sum(row["verdict"] == v for row in samples) for v in
              ("win", "tie", "loss")}  # fmt: skip
    rate = (counts["wins"] + counts["ties"] / 2) / len(samples)
    values: Row = {
        "name": name,
        "against": "sft",
        "judge": judge,
        "win_rate": interval(rate, len(samples)),
        **counts,
        "length_controlled_win_rate": interval(rate - 0.06, len(samples)),
        **{f"true_reward_{w}": mean(f"true_{w}") for w in ("before", "after")},
        **{f"learned_reward_{w}": mean(f"learned_{w}") for w in ("before", "after")},
        "response_tokens_before": 26.4,
        "response_tokens_after": 22.1,
        "kl": 12.37,
        "alarms": [],
        **more,
    }
    write_json(run / "evaluation" / f"{name}.json", values)
    write_lines(run / "evaluation" / f"{name}.samples.jsonl", samples)
    return values


RECIPE = """name = "{name}"
seed = 7

[sft]
steps = 200
learning_rate = 0.0003

[ppo]
iterations = 200
episodes = 64
kl_coef = 0.05
"""


def _summary(run: Path, seconds: float) -> None:
    values = {"name": run.name, "seed": 7, "seconds": seconds, "peak_memory_mb": 2311.0}
    stages = {path.parent.name: {"seconds": 1.0} for path in run.glob("*/manifest.json")}
    judged = {name: {} for name in ("ppo", "dpo") if (run / "evaluation" / f"{name}.json").exists()}
    write_json(run / "summary.json", values | {"stages": stages, "evaluation": judged})
    (run / "recipe.toml").write_text(RECIPE.format(name=run.name), encoding="utf-8")


def write_demo(run: Path) -> Path:
    """Every stage, a true preference with parts, PPO past its peak, hostile text among the samples."""
    random = Random(7)
    for stage, seconds, first, last in (("pretrain", 61.2, 5.1, 1.4), ("sft", 22.4, 2.9, 0.71)):
        write_lines(run / stage / "metrics.jsonl", language_rows(random, 200, first, last))
        manifest(run, stage, seconds)
    manifest(run, "sample", 14.9)
    manifest(run, "label", 0.8, snapshot="9f1c2ab47e0d5536", judgements=2400)
    for stage in ("reward", "judge"):
        write_lines(run / stage / "metrics.jsonl", pair_rows(random, 160))
        write_json(run / stage / "evaluation.json", reward_quality(agreement=stage == "reward"))
        manifest(run, stage, 31.0)
    write_lines(run / "ppo" / "metrics.jsonl", ppo_rows(random, 200, true=True))
    manifest(run, "ppo", 250.3)
    write_lines(run / "dpo" / "metrics.jsonl", pair_rows(random, 150, dpo=True))
    manifest(run, "dpo", 41.7)
    parts = {"politeness": (0.31, 0.92), "brevity": (0.55, 0.61), "faithfulness": (0.94, 0.86)}
    for name, skill in (("ppo", 0.95), ("dpo", 0.45)):
        samples = [rewriter_sample(random, i, skill) for i in range(500)]
        samples += [
            samples[i]
            | {"prompt": text, "after": text, "verdict": "loss", "true_before": 1.2, "true_after": -3 - i / 9}
            for i, text in enumerate(HOSTILE)
        ]
        changed = {key: {"before": b, "after": b + (a - b) * skill} for key, (b, a) in parts.items()}
        alarms = ["Faithfulness fell while the learned reward rose."] if name == "ppo" else []
        evaluation(run, name, "true preference", samples, parts=changed, alarms=alarms)
    manifest(run, "evaluation", 19.5)
    _summary(run, 442.0)
    return run


def write_dialogues(run: Path) -> Path:
    """No true preference and no parts: a second reward model judges, one policy, no alarm."""
    random = Random(11)
    write_lines(run / "sft" / "metrics.jsonl", language_rows(random, 900, 3.4, 2.1))
    manifest(run, "sft", 5400.0)
    for stage in ("reward", "judge"):
        write_lines(run / stage / "metrics.jsonl", pair_rows(random, 400))
        write_json(run / stage / "evaluation.json", reward_quality(2000))
        manifest(run, stage, 2100.0)
    write_lines(run / "ppo" / "metrics.jsonl", ppo_rows(random, 60, true=False))
    manifest(run, "ppo", 7900.0)
    samples = [dialogue_sample(random, i, 0.4) for i in range(300)]
    evaluation(run, "ppo", "held-out reward model", samples)
    manifest(run, "evaluation", 300.0)
    _summary(run, 17800.0)
    return run


def write_minimal(run: Path) -> Path:
    """Supervised fine-tuning alone, cut off before a summary was written."""
    write_lines(run / "sft" / "metrics.jsonl", language_rows(Random(3), 40, 2.9, 1.1))
    manifest(run, "sft", 9.0)
    (run / "recipe.toml").write_text(RECIPE.format(name="minimal"), encoding="utf-8")
    return run
