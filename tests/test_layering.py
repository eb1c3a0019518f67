"""The direction of dependencies (docs/architecture.md): a test parses the imports and fails on any other arrow."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "prefloop"

DATA = {"feedback", "seeds"}
ALLOWED: dict[str, set[str]] = {
    # Data never imports torch; maths imports torch alone.
    "feedback": {"feedback"},
    "seeds": DATA,
    "garbage": set(),
    "demo": {"demo", *DATA},
    "config": {"config"},
    "recipes": {"config"},
    "algorithms": {"algorithms"},
    # Machinery: maths and records.
    "chat": DATA,
    "models": {"models", "chat", "algorithms", "garbage", *DATA},
    "rollout": {"rollout", "models", "chat", "algorithms", *DATA},
    "policy": {"rollout", "models", "chat", *DATA},
    "training": {"training", "policy", "rollout", "models", "chat", "algorithms", "config", *DATA},
    # Between data and machinery.
    "labelers": {"labelers", *DATA},
    "evaluation": {"evaluation", "training", "models", "chat", *DATA},
    # The report reads files only.
    "report": {"report"},
    # The pages and their API stand on the data alone.
    "web": {"web", "feedback", "report", "prefloop"},
    "client": {"web"},
    # Where the islands meet.
    "runs": set(),
    "tokens": {"chat", "runs", *DATA},
    "documents": {"chat", *DATA},
    "dataset": {"config", "recipes", "documents", "demo", *DATA},
    "context": {"config", "recipes", "dataset", "demo", "policy", "rollout", "runs", "training", *DATA},
    "rewarding": {"config", "context", "chat", "models", "rollout", *DATA},
    "judging": {"context", "rewarding", "evaluation", "models", "policy", *DATA},
    "labelling": {
        "config",
        "context",
        "dataset",
        "labelers",
        "rewarding",
        "runs",
        "models",
        "policy",
        "rollout",
        "training",
        *DATA,
    },
    "stages": {
        *("config", "context", "dataset", "judging", "labelling", "rewarding", "runs"),
        *("chat", "evaluation", "policy", "models", "rollout", "tokens", "training"),
        *DATA,
    },
    "pipeline": {
        *("stages", "labelling", "context", "rewarding", "dataset", "config", "recipes", "report", "runs"),
        *("training", "models", "prefloop"),
        *DATA,
    },
    "tasks": {
        *("labelling", "context", "judging", "dataset", "config", "recipes", "console", "runs"),
        *("chat", "evaluation", "policy", "models", "rollout"),
        *DATA,
    },
    "planning": {
        *("config", "recipes", "dataset", "runs"),
        *("chat", "algorithms", "models", "rollout", "training", "planning"),
        *DATA,
    },
    "api": {"config", "recipes", "chat", "policy", "models", "rollout", "training", *DATA},
    "console": set(),
    "cli": {
        "config",
        "recipes",
        "console",
        "demo",
        "feedback",
        "labelling",
        "pipeline",
        "planning",
        "policy",
        "report",
        "runs",
        "tasks",
        "web",
    },
    "__main__": {"cli"},
    "__init__": {"api", "garbage"},
}
"""Each part of the package, and the parts that it may import."""

WITHOUT_TORCH = {
    *("feedback", "seeds", "demo", "labelers", "config", "recipes", "chat", "report", "runs", "console", "dataset"),
    *("tokens", "documents", "garbage"),
    *("web", "client"),
}
TORCH_FAMILY = {"torch", "transformers", "tokenizers", "safetensors", "accelerate", "peft", "jaxtyping"}
ONLY: dict[str, set[str]] = {
    "algorithms": {"torch", "jaxtyping"},
    "report": {"jinja2", "markupsafe"},
}
"""Parts that may use these third-party packages and no others."""


def part_of(path: Path, root: Path) -> str:
    first = path.relative_to(root).parts[0]
    return first.removesuffix(".py")


def imports(path: Path, root: Path) -> Iterator[str]:
    """Full names of everything that a file imports, at the top, inside functions and for types."""
    package = ["prefloop", *path.relative_to(root).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            yield ".".join([*base, *([node.module] if node.module else [])])
        elif isinstance(node, ast.ImportFrom) and node.module == "prefloop":
            yield from (f"prefloop.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            yield node.module


def violations(root: Path) -> list[str]:
    found = []
    for path in sorted(root.rglob("*.py")):
        part = part_of(path, root)
        if part not in ALLOWED:
            found.append(f"{path.relative_to(root)}: no rule for this part; add it to ALLOWED")
            continue
        for name in imports(path, root):
            top, _, rest = name.partition(".")
            if top == "prefloop":
                target = rest.split(".")[0]
                if target.startswith("__"):  # prefloop.__version__
                    target = "prefloop"
                if target not in ALLOWED[part]:
                    found.append(f"{path.relative_to(root)} imports {name}; {part} may not import {target}")
            elif top in sys.stdlib_module_names:
                continue
            elif part in ONLY and top not in ONLY[part]:
                found.append(f"{path.relative_to(root)} imports {name}; {part} may use only {sorted(ONLY[part])}")
            elif part in WITHOUT_TORCH and top in TORCH_FAMILY:
                found.append(f"{path.relative_to(root)} imports {name}; {part} is kept free of torch")
    return found


def test_every_import_follows_the_layering() -> None:
    assert violations(SOURCE) == []


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("feedback/store.py", "import torch", "kept free of torch"),
        ("algorithms/gae.py", "from prefloop.training.loop import Optimiser", "may not import training"),
        ("algorithms/gae.py", "import numpy", "may use only"),
        ("models/heads.py", "def f():\n    from prefloop.training import ppo", "may not import training"),
        ("report/page.py", "from prefloop.pipeline import run", "may not import pipeline"),
        ("chat.py", "from .models.policy import Policy", "may not import models"),
        ("training/ppo.py", "from prefloop import report", "may not import report"),
        ("web/tasks.py", "from prefloop.pipeline import run", "may not import pipeline"),
        ("web/app.py", "import torch", "kept free of torch"),
        ("feedback/people.py", "from prefloop.web.settings import Settings", "may not import web"),
        ("novel/idea.py", "import json", "no rule for this part"),
    ],
)
def test_an_arrow_the_wrong_way_is_found(tmp_path: Path, file: str, line: str, complaint: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line, encoding="utf-8")
    found = violations(tmp_path)
    assert len(found) == 1
    assert complaint in found[0]
