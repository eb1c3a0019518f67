"""The recipe, a whole run: what its sections allow together; read from TOML, changed and written.

An unknown key, a wrong type or a contradictory pair is refused before anything is loaded, with the key, the value,
what is allowed and the nearest right name.
"""

from __future__ import annotations

import copy
import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar, get_args, get_origin

import tomli_w
from pydantic import Field, ValidationError, model_validator

from prefloop.config import (
    ALGORITHMS,
    DIRECT,
    ON_POLICY,
    POLICY_GRADIENTS,
    AlgorithmName,
    DataConfig,
    DPOConfig,
    EvaluateConfig,
    GRPOConfig,
    IPOConfig,
    JudgeConfig,
    KTOConfig,
    LabelConfig,
    ModelConfig,
    OnlineDPOConfig,
    ORPOConfig,
    PPOConfig,
    Precision,
    PretrainConfig,
    REINFORCEConfig,
    REINFORCEPPConfig,
    RewardConfig,
    RewardSource,
    RLOOConfig,
    SampleConfig,
    Section,
    SFTConfig,
    SimPOConfig,
    StageName,
)

S = TypeVar("S", bound=Section)
PANEL_SIZE = 6
"""How many simulated annotators there are (`labelers.simulated.PANEL`)."""


class Recipe(Section):
    """A whole run."""

    name: str = "run"
    """The run's folder below ``runs/``."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Everything random follows from it: the same seed gives the same figures."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads; 0 leaves the choice to torch."""
    precision: Precision = "auto"
    """What a model's layers are computed in while it is trained: the quicker one on this machine, measured at the
    start, or always this one. Weights and losses are float32 in any case."""
    algorithms: tuple[AlgorithmName, ...] = ("ppo", "dpo")
    """Which policies are trained from the preferences."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    pretrain: PretrainConfig = PretrainConfig()
    sft: SFTConfig = SFTConfig()
    sample: SampleConfig = SampleConfig()
    label: LabelConfig = LabelConfig()
    reward: RewardConfig = RewardConfig()
    judge: JudgeConfig = JudgeConfig()
    rewards: tuple[RewardSource, ...] = ()
    """What responses are rewarded for while a policy learns from them; empty: the run's own reward model."""
    ppo: PPOConfig = PPOConfig()
    reinforce: REINFORCEConfig = REINFORCEConfig()
    rloo: RLOOConfig = RLOOConfig()
    grpo: GRPOConfig = GRPOConfig()
    reinforce_pp: REINFORCEPPConfig = REINFORCEPPConfig()
    online_dpo: OnlineDPOConfig = OnlineDPOConfig()
    dpo: DPOConfig = DPOConfig()
    ipo: IPOConfig = IPOConfig()
    kto: KTOConfig = KTOConfig()
    orpo: ORPOConfig = ORPOConfig()
    simpo: SimPOConfig = SimPOConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.name or any(c in self.name for c in "/\\") or self.name.startswith("."):
            raise ValueError(f"name {self.name!r} must be a plain folder name")
        if not self.algorithms:
            raise ValueError(f"algorithms is empty; allowed are any of {', '.join(ALGORITHMS)}")
        if len(set(self.algorithms)) != len(self.algorithms):
            raise ValueError(f"algorithms names one twice: {list(self.algorithms)}")
        if self.label.by == "simulated" and not self.data.world:
            raise ValueError(
                'label.by = "simulated" needs data.world: simulated annotators answer by a true preference, '
                'which only an embedded world knows. Use label.by = "human" or "none"'
            )
        if self.label.by == "simulated" and self.data.criterion != "overall":
            raise ValueError(
                'label.by = "simulated" judges by data.criterion = "overall" only; '
                f"data.criterion is {self.data.criterion!r}"
            )
        if self.label.by == "simulated" and self.reward.criteria:
            raise ValueError(
                'label.by = "simulated" judges by one criterion only, "overall"; '
                f"reward.criteria are {', '.join(self.reward.criteria)}"
            )
        if self.label.by == "simulated" and self.label.overlap > PANEL_SIZE:
            raise ValueError(
                f"label.overlap = {self.label.overlap}: the simulated panel has {PANEL_SIZE} annotators, so 1 to "
                f"{PANEL_SIZE} can judge each"
            )
        if self.data.world and self.sft.demonstrations == "preferred":
            raise ValueError(
                'sft.demonstrations = "preferred" is for judgements in the store; data.world writes demonstrations '
                'itself, so use "written"'
            )
        if self.data.world and self.judge.fraction:
            raise ValueError(
                "judge.fraction is for data without a true preference; data.world has one, so set it to 0"
            )
        names = [source.name for source in self.rewards]
        if len(set(names)) != len(names):
            raise ValueError(f"rewards names one twice: {names}")
        annotators = "online_dpo" in self.algorithms and self.online_dpo.judge == "annotators"
        if annotators and self.label.by != "simulated":
            raise ValueError(
                'online_dpo.judge = "annotators" needs simulated annotators, who answer at once: '
                'label.by = "simulated" in an embedded world. Use online_dpo.judge = "reward"'
            )
        if self.judge.fraction and "label" not in self.stages:
            raise ValueError(
                "judge.fraction sets comparisons aside, but nothing in this recipe reads comparisons: all rewards "
                "come from elsewhere"
            )
        if not self.model.path:
            self.check_context(self.model.context)
        if not self.model.path and self.pretrain.block > self.model.context:
            raise ValueError(
                f"pretrain.block ({self.pretrain.block}) does not fit model.context ({self.model.context})"
            )
        return self

    def check_context(self, context: int) -> None:
        """Raise a ValueError unless every stage's prompts and responses fit a model that reads ``context`` tokens."""
        limits = {"data": self.data.max_response_tokens, "evaluate": self.evaluate.max_response_tokens}
        for name in ("sample", *ON_POLICY):
            if name in self.stages:
                limits[name] = getattr(self, name).max_response_tokens
        section = max(limits, key=lambda name: limits[name])
        needed = self.data.max_prompt_tokens + limits[section]
        if needed > context:
            raise ValueError(
                f"the model reads at most {context} tokens; data.max_prompt_tokens ({self.data.max_prompt_tokens}) "
                f"and {section}.max_response_tokens ({limits[section]}) together need {needed}. Lower one of them, "
                "or give the model a longer context"
            )

    @property
    def criteria(self) -> tuple[str, ...]:
        """What the reward model and the judge learn from."""
        return tuple(self.reward.criteria) or (self.data.criterion,)

    @property
    def ignored(self) -> dict[str, list[str]]:
        """Why settings change nothing, and the settings: those that differ from their defaults.

        Sections of algorithms that are not asked for are not named: they may stand ready.
        """
        reasons: dict[str, str] = {}

        def unused(reason: str, *keys: str) -> None:
            reasons.update(dict.fromkeys(keys, reason))

        def all_of(section: Section, name: str, *but: str) -> list[str]:
            return [f"{name}.{field}" for field in type(section).model_fields if field not in but]

        if self.model.path:
            unused("model.path is set", *all_of(self.model, "model", "path"), *all_of(self.pretrain, "pretrain"))
        if self.label.by == "none":
            unused('label.by is "none"', "label.overlap")
        if self.label.by != "human":
            unused(f'label.by is "{self.label.by}"', *all_of(self.label, "label", "by", "overlap", "weights"))
        if not self.label.gold:
            unused("label.gold is empty", "label.gold_share")
        if not self.label.reward_model:
            unused("label.reward_model is empty", "label.control_share")
        if self.label.by == "none":
            unused('label.by is "none"', *all_of(self.sample, "sample"))
        if not self.needs_comparisons:
            nothing = "nothing learns from comparisons"
            unused(nothing, *all_of(self.label, "label", "by"), *all_of(self.sample, "sample"))
            unused(nothing, *all_of(self.reward, "reward"))
        if not self.judge.fraction:
            unused("judge.fraction is 0", *all_of(self.judge, "judge"))
        for name in POLICY_GRADIENTS:
            if not getattr(self, name).kl_target:
                unused(f"{name}.kl_target is 0", f"{name}.kl_horizon")
        if self.online_dpo.judge == "annotators":
            unused('online_dpo.judge is "annotators"', "online_dpo.missing_eos_penalty")
        if self.data.world:
            unused("data.world is set", "data.files", "data.heldout_fraction")
        else:
            unused("data.world is not set", "data.world_prompts", "data.world_heldout")
        mine, default = self.model_dump(), Recipe.model_construct().model_dump()

        def value(of: dict[str, Any], key: str) -> Any:
            section, field = key.split(".")
            return of[section][field]

        found: dict[str, list[str]] = {}
        if self.rewards and not any(name in ON_POLICY for name in self.algorithms):
            found["no algorithm samples responses to reward"] = ["rewards"]
        for key, reason in reasons.items():
            if value(mine, key) != value(default, key):
                found.setdefault(reason, []).append(key)
        return found

    @property
    def needs_comparisons(self) -> bool:
        """Not so when all rewards come from elsewhere and nothing else learns from comparisons."""
        return self.rewards_itself or any(name in DIRECT for name in self.algorithms)

    @property
    def rewards_itself(self) -> bool:
        """Whether the run's own reward model is among the rewards."""
        return not self.rewards or any(not (source.function or source.model) for source in self.rewards)

    @property
    def stages(self) -> tuple[StageName, ...]:
        """The stages that this recipe runs, in the papers' order."""
        wanted: dict[StageName, bool] = {
            "pretrain": not self.model.path,
            "sft": True,
            "sample": self.needs_comparisons and self.label.by != "none",
            "label": self.needs_comparisons,
            "reward": self.needs_comparisons,
            "judge": self.judge.fraction > 0,
            **{name: name in self.algorithms for name in ALGORITHMS},
            "evaluation": True,
        }
        return tuple(stage for stage, runs in wanted.items() if runs)


def load_recipe(path: Path, settings: Iterable[str] = ()) -> Recipe:
    """Read a recipe and apply ``section.key=value`` settings on top.

    Raises:
        ValueError: the file is missing or not TOML, or a key or value is not allowed; the message names it.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such recipe. `prefloop init` writes one to start from.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a TOML file: {error}") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a folder; give the recipe itself, a TOML file") from None
    return make_recipe(table, settings, where=str(path))


def make_recipe(table: Mapping[str, Any], settings: Iterable[str] = (), where: str = "recipe") -> Recipe:
    """A checked recipe from a nested table and ``section.key=value`` settings.

    A value is read as TOML; what is not TOML is taken as a string, so ``--set model.path=/data/gpt2`` works.
    """
    merged = copy.deepcopy(dict(table))
    for setting in settings:
        key, value = _parse_setting(setting)
        *sections, last = key.split(".")
        target = merged
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise ValueError(f"--set {setting}: {section} is a value, not a section")
        target[last] = value
    return check(Recipe, merged, where)


def check(section: type[S], table: Mapping[str, Any], where: str) -> S:
    """Validate ``table`` as ``section``; raise one ValueError that lists every fault and its remedy."""
    try:
        return section.model_validate(_tuples(table))
    except ValidationError as error:
        faults = "\n".join(f"  {_explain(section, dict(fault))}" for fault in error.errors())
        raise ValueError(f"{where}:\n{faults}") from None


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as TOML, every field, defaults included."""
    return tomli_w.dumps(recipe.model_dump(mode="json"))


def _parse_setting(setting: str) -> tuple[str, Any]:
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"--set {setting}: expected SECTION.KEY=VALUE, for example --set ppo.kl_coef=0.1")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    return key.strip(), value


def _tuples(value: Any) -> Any:
    """TOML has arrays; the frozen sections hold tuples."""
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    return value


def _explain(root: type[Section], fault: dict[str, Any]) -> str:
    path = [str(part) for part in fault["loc"]]
    key = ".".join(path)
    if fault["type"] == "extra_forbidden":
        allowed = list(_fields(root, path[:-1]))
        nearest = _owners(path[-1]) or _nearest(root, path, allowed)
        return f"{key}: there is no such key{nearest} Allowed here: {', '.join(allowed)}."
    if fault["type"] == "value_error":
        return f"{key + ': ' if key else ''}{fault['ctx']['error']}."
    return f"{key} = {fault['input']!r}: {fault['msg'][0].lower()}{fault['msg'][1:]}."


def _fields(root: type[Section], path: list[str]) -> Iterable[str]:
    for part in path:
        if part.isdigit():  # a place in a list of tables
            continue
        annotation = root.model_fields[part].annotation
        if get_origin(annotation) is tuple:
            annotation = get_args(annotation)[0]
        assert isinstance(annotation, type)
        assert issubclass(annotation, Section)
        root = annotation
    return root.model_fields


def _owners(field: str) -> str:
    """Whose key it is, where it belongs to one section or two: another algorithm's, most likely."""
    owners = [
        name
        for name, info in Recipe.model_fields.items()
        if isinstance(info.annotation, type)
        and issubclass(info.annotation, Section)
        and field in info.annotation.model_fields
    ]
    return f"; it belongs to {' and '.join(owners)}." if 0 < len(owners) <= 2 else ""


def _nearest(root: type[Section], path: list[str], allowed: list[str]) -> str:
    """What was meant, perhaps: look for the misspelt key here first, then in every section."""
    here = difflib.get_close_matches(path[-1], allowed, n=1)
    if here:
        return f"; did you mean {'.'.join([*path[:-1], here[0]])}?"
    elsewhere: dict[str, str] = {}  # of several sections with the same key the first
    for section, info in root.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            for field in info.annotation.model_fields:
                elsewhere.setdefault(field, f"{section}.{field}")
    close = difflib.get_close_matches(path[-1], elsewhere, n=1, cutoff=0.75)
    return f"; did you mean {elsewhere[close[0]]}?" if close else "."
