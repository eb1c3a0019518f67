"""What is advised is tried again, in a prediction of the changed recipe."""

from __future__ import annotations

from typing import Any

import pytest
from tests.planning.test_work import AMOUNTS

from prefloop.planning.advice import Change, advise
from prefloop.planning.planner import CODES, PIECES, Asked, Planner
from prefloop.planning.prediction import GIB, USABLE, Machine
from prefloop.planning.rates import Rates
from prefloop.recipes import Recipe, make_recipe

RATES = Rates("made up", 1e-4, 1e-3, 1e-5, 3e-5, 1e-3, 1e-5, 1e-2, 1e-2, 1e-3)
TRAINED = ("pretrain", "sft", "reward", "ppo", "dpo")
TABLE: dict[str, Any] = {
    **{name: {"micro_batch_tokens": 4096} for name in TRAINED},
    "data": {"world": "rewriter", "max_prompt_tokens": 128, "max_response_tokens": 64},
    "label": {"by": "simulated"},
    "model": {"width": 256, "layers": 8, "heads": 4, "vocabulary": 4096, "context": 512},
}


def planner(gib: float, *settings: str, is_processor: bool = False, **asked: Any) -> Planner:
    """On a machine with so much memory; nothing is measured."""
    machine = Machine("a machine", gib * GIB, 0.3 * GIB, gib * GIB / 4, asked.get("gpus", 1), is_processor)
    recipe = make_recipe(TABLE, settings)
    return Planner(recipe, Asked(**asked), AMOUNTS, machine, "float32", RATES, RATES)


def peak(found: Planner, recipe: Recipe) -> float:
    return max(stage.memory for stage in found.stages(recipe))


def applied(found: Planner, changes: list[Change]) -> Recipe:
    settings = [one for change in changes for one in change.settings]
    return make_recipe(found.recipe.model_dump(mode="json"), settings)


@pytest.mark.parametrize(
    ("precision", "overhead"), [("float32", PIECES["float32"]), ("bfloat16", PIECES["bfloat16"] + CODES)]
)
def test_a_processors_libraries_take_memory_by_precision(precision: str, overhead: float) -> None:
    """Of the recipe that is asked about, not of the one that was planned first."""
    recipe = make_recipe(TABLE, [f"precision={precision}"])
    peaks = [peak(planner(64, is_processor=is_processor), recipe) for is_processor in (True, False)]
    assert peaks[0] - peaks[1] == pytest.approx(overhead)


def test_what_fits_needs_no_advice() -> None:
    assert advise(planner(64)) == []


@pytest.mark.parametrize(
    ("share", "settings"),
    [
        (0.9, ()),
        (0.7, ("ppo.critic=separate",)),
        (0.8, ("reward.ensemble=8",)),
        (0.6, ("ppo.critic=separate", "reward.ensemble=4")),
        (0.5, ("sample.batch_size=2048",)),
        (0.5, ("sft.batch_size=256", "precision=float32")),
    ],
)
def test_changes_make_it_fit_when_they_are_made(share: float, settings: tuple[str, ...]) -> None:
    whole = peak(planner(1024, *settings), make_recipe(TABLE, settings))
    found = planner(share * whole / USABLE / GIB, *settings)
    assert not all(map(found.fits, found.stages(found.recipe)))
    changes = advise(found)
    assert changes
    assert changes[-1].fits
    for number, change in enumerate(changes):
        assert change.settings
        made = applied(found, changes[: number + 1])
        assert peak(found, made) == change.memory
        assert all(map(found.fits, found.stages(made))) == change.fits
    assert [one.fits for one in changes] == [False] * (len(changes) - 1) + [True]


def test_nothing_is_changed_without_need() -> None:
    settings = ("ppo.critic=separate", "reward.ensemble=4")
    whole = peak(planner(1024, *settings), make_recipe(TABLE, settings))
    found = planner(0.6 * whole / USABLE / GIB, *settings)
    changes = advise(found)
    for left_out in changes:
        others = applied(found, [one for one in changes if one is not left_out])
        assert not all(map(found.fits, found.stages(others)))


def test_the_least_harm_comes_first() -> None:
    """Shorter passes are enough for a stage whose passes are what is large."""
    table = ("sft.batch_size=256", "sft.micro_batch_tokens=8192")
    whole = peak(planner(1024, *table), make_recipe(TABLE, table))
    (change,) = advise(planner(0.8 * whole / USABLE / GIB, *table))
    assert all("micro_batch_tokens" in one for one in change.settings)
    assert change.fits


def test_a_recipe_that_cannot_fit_is_told_of_models_and_devices_that_would() -> None:
    found = planner(4, size=7e9)
    smaller, more = advise(found)
    assert smaller.fits
    assert not smaller.settings
    assert "smaller model" in smaller.what
    assert smaller.memory <= USABLE * 4 * GIB
    assert smaller.memory > 0.9 * USABLE * 4 * GIB, "the largest that fits"
    assert more.fits
    assert "--gpus" in more.what
    made = make_recipe(found.recipe.model_dump(mode="json"), more.settings)
    count = int(more.what.split()[0])
    assert peak(planner(4, size=7e9, gpus=count), made) == more.memory <= USABLE * 4 * GIB
    assert peak(planner(4, size=7e9, gpus=count // 2), made) > USABLE * 4 * GIB


def test_where_nothing_helps_nothing_is_promised() -> None:
    assert all(not one.fits for one in advise(planner(0.2)))


def test_a_budget_that_is_left_open_follows_the_memory() -> None:
    """What would not fit with passes as long elsewhere fits with shorter ones."""
    settings = [f"{name}.micro_batch_tokens=0" for name in TRAINED]
    settings += ["sft.batch_size=256"]
    large, small = planner(64, *settings), planner(3, *settings)
    tokens = [p.stages(p.recipe)[1].micro_batch_tokens for p in (large, small)]
    assert tokens[0] > tokens[1] >= 512


def test_more_devices_share_the_models_and_the_work() -> None:
    one, four = planner(64, size=1e9), planner(64, size=1e9, gpus=4)
    for alone, shared in zip(one.stages(one.recipe), four.stages(four.recipe), strict=True):
        assert shared.memory <= alone.memory
        if alone.seconds is not None:
            assert shared.seconds == pytest.approx(alone.seconds / 4)
    sft = [p.stages(p.recipe)[1] for p in (one, four)]
    weights = one.subject(one.recipe, "float32").weights
    assert sft[0].memory - sft[1].memory == pytest.approx(16 * weights * 3 / 4, rel=1e-6)


def test_a_critic_of_its_own_takes_sixteen_bytes_a_weight() -> None:
    found = planner(64, size=1e9)
    shared, separate = (
        next(s for s in found.stages(make_recipe(TABLE, [f"ppo.critic={kind}"])) if s.work.stage == "ppo")
        for kind in ("shared", "separate")
    )
    weights = found.subject(found.recipe, "float32").weights
    assert separate.memory - shared.memory == pytest.approx(16 * weights, rel=1e-6)
    assert (separate.seconds or 0) > (shared.seconds or 0)


def test_what_was_tried_on_the_way_and_is_not_needed_is_not_advised() -> None:
    """Shorter passes come first and are not enough; a shared critic is, alone."""
    short = [f"{name}.micro_batch_tokens=64" for name in TRAINED if name != "ppo"]
    wide = ("model.width=512", "ppo.critic=separate", *short)
    enough = peak(planner(1024, *wide), make_recipe(TABLE, [*wide, "ppo.critic=shared"]))
    (change,) = advise(planner(1.01 * enough / USABLE / GIB, *wide))
    assert change.settings == ("ppo.critic=shared",)
