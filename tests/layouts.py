"""Every way in which a training pass may be laid out: what is learnt must not depend on it."""

from __future__ import annotations

import pytest

from prefloop.models import forward
from prefloop.training import comparisons


@pytest.fixture(params=["packed, in small parts", "padded, in one part"], autouse=True)
def layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences end to end with shared prompts and a few logits at a time; or rows with padding and all logits."""
    if request.param.startswith("packed"):
        monkeypatch.setattr(forward, "PART", 1500)  # five tokens of the toys' 258 words
    else:
        for module in (forward, comparisons):
            monkeypatch.setattr(module, "longest_packed", lambda _: 0)
