"""Where a recipe does not fit: which settings to change, and to what, in the order of least harm.

Every change is tried in the prediction. What costs time alone comes first, then what changes how a run learns, then
what it learns from. A change is kept where it helps a stage that does not fit, no stronger than needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from prefloop.config import ON_POLICY
from prefloop.planning.planner import Planner
from prefloop.planning.prediction import Stage
from prefloop.recipes import Recipe, make_recipe

LOWERS = 0.995
"""A change must leave at most this share of what is too much."""
MOST_GPUS = 1024

Settings = list[str]
"""As behind ``--set``."""


@dataclass(frozen=True)
class Change:
    """A change, and what it leads to together with those before it."""

    settings: tuple[str, ...]
    """As behind ``--set``; none where it is no setting of the recipe."""
    what: str
    memory: float
    """Bytes: the peak over all stages."""
    fits: bool


@dataclass(frozen=True)
class Knob:
    what: str
    """What it does, and what it costs."""
    turns: Callable[[Recipe, list[Stage]], Iterator[Settings]]
    """(recipe, stages that do not fit) → settings, from weak to strong."""


Step = tuple[Knob, Settings]


def advise(planner: Planner) -> list[Change]:
    """Changes after which the recipe fits, one upon the other; empty where it fits as it is.

    Where no settings are enough: a smaller model or more devices, each enough by itself with the settings beside it.
    Where these are not enough either: what helps.
    """
    trial = _Trial(planner)
    if trial.fits([]):
        return []
    steps = trial.steps()
    if trial.fits(steps):
        return trial.told(steps)
    return [*_smaller(planner), *_more_devices(planner)] or trial.told(steps)


class _Trial:
    """Tries settings in the prediction."""

    def __init__(self, planner: Planner) -> None:
        self._planner = planner

    def steps(self) -> list[Step]:
        """From the least harm on until it fits; all that help, where it does not."""
        steps: list[Step] = []
        for knob in KNOBS:
            if self.fits(steps):
                return self.eased(steps)
            settings = self.turned(steps, knob)
            if settings is not None:
                steps.append((knob, settings))
        return self.eased(steps) if self.fits(steps) else steps

    def recipe(self, steps: Sequence[Step]) -> Recipe:
        settings = [one for _, settings in steps for one in settings]
        return make_recipe(self._planner.recipe.model_dump(mode="json"), settings)

    def peak(self, steps: Sequence[Step]) -> float:
        return max(stage.memory for stage in self._planner.stages(self.recipe(steps)))

    def excess(self, steps: Sequence[Step]) -> float:
        """Bytes that are too much, of all stages: a change that helps one of several is a step."""
        stages = self._planner.stages(self.recipe(steps))
        return sum(max(0.0, stage.memory - self._planner.usable) for stage in stages)

    def fits(self, steps: Sequence[Step]) -> bool:
        return all(map(self._planner.fits, self._planner.stages(self.recipe(steps))))

    def options(self, steps: Sequence[Step], knob: Knob) -> Iterator[Settings]:
        """The knob's settings that the recipe allows after these steps."""
        recipe = self.recipe(steps)
        misfits = [stage for stage in self._planner.stages(recipe) if not self._planner.fits(stage)]
        for settings in knob.turns(recipe, misfits):
            try:
                self.recipe([*steps, (knob, settings)])
            except ValueError:
                continue
            yield settings

    def turned(self, steps: Sequence[Step], knob: Knob) -> Settings | None:
        """The weakest settings that make it fit; else the weakest of those that lower what is too much, if any do."""
        best, least = None, LOWERS * self.excess(steps)
        for settings in self.options(steps, knob):
            tried = [*steps, (knob, settings)]
            if self.fits(tried):
                return settings
            if (excess := self.excess(tried)) < least:
                best, least = settings, LOWERS * excess
        return best

    def eased(self, steps: list[Step]) -> list[Step]:
        """Without what is not needed, and no stronger than needed."""
        for step in steps:
            others = [one for one in steps if one is not step]
            if self.fits(others):
                steps = others
                continue
            for settings in self.options(others, step[0]):
                if self.fits([*others, (step[0], settings)]):
                    steps = [(step[0], settings) if one is step else one for one in steps]
                    break
        return steps

    def told(self, steps: Sequence[Step]) -> list[Change]:
        """Each step with what it leads to."""
        return [
            Change(tuple(settings), knob.what, self.peak(steps[: number + 1]), self.fits(steps[: number + 1]))
            for number, (knob, settings) in enumerate(steps)
        ]


def _smaller(planner: Planner) -> Iterator[Change]:
    """The largest model of this kind that fits with the settings as they are."""
    recipe = planner.recipe
    subject = planner.subject(recipe, planner.precision_of(recipe))
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        fit = all(map(planner.fits, planner.stages(recipe, middle)))
        low, high = (middle, high) if fit else (low, middle)
    if low > 0:
        memory = max(stage.memory for stage in planner.stages(recipe, low))
        sizes = f"about {low * subject.weights / 1e9:.2g} B weights instead of {subject.weights / 1e9:.2g} B"
        yield Change((), f"a smaller model, of {sizes}", memory, True)


def _more_devices(planner: Planner) -> Iterator[Change]:
    """The least number of devices, with settings where those are needed besides."""
    for count in (2**power for power in range(1, MOST_GPUS.bit_length())):
        if count <= planner.machine.count:
            continue
        trial = _Trial(replace(planner, machine=replace(planner.machine, count=count)))
        steps = trial.steps()
        if trial.fits(steps):
            settings = tuple(one for _, settings in steps for one in settings)
            what = f"{count} devices that share the models (--gpus {count})"
            yield Change(settings, what, trial.peak(steps), True)
            return


def _halves(start: int, least: int) -> Iterator[int]:
    while (start := start // 2) >= least:
        yield start


def _micro_batches(_recipe: Recipe, misfits: list[Stage]) -> Iterator[Settings]:
    trained = [stage for stage in misfits if stage.micro_batch_tokens]
    for tokens in (2**power for power in range(13, 4, -1)):
        larger = [stage.work.stage for stage in trained if stage.micro_batch_tokens > tokens]
        found = [f"{name}.micro_batch_tokens={tokens}" for name in larger]
        if found:
            yield found


def _decoded_together(recipe: Recipe, misfits: list[Stage]) -> Iterator[Settings]:
    sections = {"sample": "sample", "evaluation": "evaluate"}
    names = [sections[one.work.stage] for one in misfits if one.work.stage in sections]
    for rows in (64, 32, 16, 8):
        found = [f"{name}.batch_size={rows}" for name in names if getattr(recipe, name).batch_size > rows]
        if found:
            yield found


def _precision(recipe: Recipe, misfits: list[Stage]) -> Iterator[Settings]:
    if recipe.precision == "float32" and misfits:
        yield ["precision=bfloat16"]


def _critic(recipe: Recipe, misfits: list[Stage]) -> Iterator[Settings]:
    if recipe.ppo.critic == "separate" and any(one.work.stage == "ppo" for one in misfits):
        yield ["ppo.critic=shared"]


def _ensemble(recipe: Recipe, misfits: list[Stage]) -> Iterator[Settings]:
    for members in _halves(recipe.reward.ensemble if misfits else 1, 1):
        yield [f"reward.ensemble={members}", *(["reward.pessimism=0.0"] if members == 1 else [])]


def _episodes(recipe: Recipe, misfits: list[Stage]) -> Iterator[Settings]:
    names = [one.work.stage for one in misfits if one.work.stage in ON_POLICY]
    for share in (2, 4, 8, 16):
        found = []
        for name in names:
            config = getattr(recipe, name)
            episodes = config.episodes // share
            found += [f"{name}.episodes={episodes}"]
            found += [f"{name}.minibatch_episodes={min(config.minibatch_episodes, episodes)}"]
        if found:
            yield found


def _answers(recipe: Recipe, misfits: list[Stage]) -> Iterator[Settings]:
    asked = [name for name in ("sample", "evaluate", *ON_POLICY) if name in (*recipe.stages, "evaluate")]
    longest = max(getattr(recipe, name).max_response_tokens for name in asked)
    for tokens in _halves(max(longest, recipe.data.max_response_tokens) if misfits else 1, 8):
        names = [name for name in ("data", *asked) if getattr(recipe, name).max_response_tokens > tokens]
        yield [f"{name}.max_response_tokens={tokens}" for name in names]


def _prompts(recipe: Recipe, misfits: list[Stage]) -> Iterator[Settings]:
    for tokens in _halves(recipe.data.max_prompt_tokens if misfits else 1, 16):
        yield [f"data.max_prompt_tokens={tokens}"]


def _layers(recipe: Recipe, misfits: list[Stage]) -> Iterator[Settings]:
    if not recipe.model.path and misfits:
        yield from ([f"model.layers={layers}"] for layers in _halves(recipe.model.layers, 1))


KNOBS = (
    Knob("fewer tokens in a pass: the same result, somewhat slower", _micro_batches),
    Knob("fewer answers decoded together: the same result, slower", _decoded_together),
    Knob("half the bytes for what a pass keeps: results differ by rounding", _precision),
    Knob("the critic as a head on the policy, not a model of its own", _critic),
    Knob("fewer members of the reward ensemble", _ensemble),
    Knob("fewer episodes an iteration: noisier updates", _episodes),
    Knob("shorter prompts: longer ones lose their oldest turns", _prompts),
    Knob("shorter answers: longer ones are left out or cut off", _answers),
    Knob("fewer layers: a weaker model", _layers),
)
"""From the least harm to the most."""
