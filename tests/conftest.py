"""Settings that every test runs under: one thread, no network, annotations checked."""

from __future__ import annotations

import os

# Before anything imports transformers: a test that asks the hub for a model fails at once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

# Shapes are checked on every call, under pytest only; an int is good enough where a float is asked for.
install_import_hook(
    ["prefloop.algorithms", "prefloop.rollout"],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)

# The same examples on every run, however slow the machine is.
settings.register_profile("prefloop", deadline=None, derandomize=True)
settings.load_profile("prefloop")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Models of these sizes are slower on many threads, and their sums differ from machine to machine."""
    import torch

    torch.set_num_threads(1)
