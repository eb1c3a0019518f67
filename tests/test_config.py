"""The recipe: what is refused and how, --set, and a way out and back without loss."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest

from prefloop.config import (
    ALGORITHMS,
    DIRECT,
    ON_POLICY,
    DataConfig,
    DPOConfig,
    EvaluateConfig,
    ModelConfig,
    PPOConfig,
    PretrainConfig,
    RewardConfig,
    RewardSource,
    Section,
    SFTConfig,
    StageName,
)
from prefloop.console import FIGURES, MEANINGS
from prefloop.demo.recipe import demo_table, starter_text
from prefloop.labelers.simulated import PANEL
from prefloop.recipes import PANEL_SIZE, Recipe, check, dump_recipe, load_recipe, make_recipe
from prefloop.report import read, words

RECIPES = Path(__file__).parents[1] / "recipes"

OPTIMISATION = "learning_rate warmup_fraction weight_decay max_grad_norm micro_batch_tokens"
SAMPLED = f"{OPTIMISATION} iterations episodes minibatch_episodes epochs temperature max_response_tokens "
SAMPLED += "missing_eos_penalty"
GRADIENT = f"{SAMPLED} kl_coef kl_in kl_estimator kl_target kl_horizon scale_scores clip_scores "
GRADIENT += "clip_range dual_clip entropy_coef"
FIELDS = {
    "data": "files world world_prompts world_heldout heldout_fraction criterion "
    "max_prompt_tokens max_response_tokens",
    "model": "path vocabulary width layers heads context",
    "pretrain": f"{OPTIMISATION} files tokens batch_tokens block",
    "sft": f"{OPTIMISATION} epochs batch_size loss_on demonstrations",
    "sample": "prompts heldout answers temperature max_response_tokens batch_size",
    "label": "by overlap minimum gold gold_share reward_model control_share weights",
    "reward": f"{OPTIMISATION} epochs batch_size centre_coef loss margin random_answers ensemble pessimism criteria",
    "judge": f"{OPTIMISATION} epochs batch_size centre_coef loss margin random_answers fraction",
    "ppo": f"{GRADIENT} answers critic gamma lam value_clip_range value_coef whiten_rewards",
    "reinforce": f"{GRADIENT} gamma",
    "rloo": f"{GRADIENT} answers",
    "grpo": f"{GRADIENT} answers scale_advantages",
    "reinforce_pp": f"{GRADIENT} gamma",
    "online_dpo": f"{SAMPLED} answers beta judge",
    "dpo": f"{OPTIMISATION} epochs batch_size beta label_smoothing",
    "ipo": f"{OPTIMISATION} epochs batch_size beta",
    "kto": f"{OPTIMISATION} epochs batch_size beta desirable_weight undesirable_weight",
    "orpo": f"{OPTIMISATION} epochs batch_size weight",
    "simpo": f"{OPTIMISATION} epochs batch_size beta margin",
    "evaluate": "prompts temperature max_response_tokens batch_size",
}
"""Every key of the recipe. A new option has to earn its place: it shows here, in review."""


def refusal(*settings: str, table: dict[str, Any] | None = None) -> str:
    with pytest.raises(ValueError, match="recipe:") as caught:
        make_recipe(table or {}, settings)
    assert type(caught.value) is ValueError
    return str(caught.value)


def test_the_recipe_has_these_fields_and_no_others() -> None:
    table = Recipe().model_dump()
    found = {name: " ".join(value) for name, value in table.items() if isinstance(value, dict)}
    assert found == FIELDS
    assert table.keys() - found.keys() == {"name", "seed", "threads", "precision", "algorithms", "rewards"}
    assert " ".join(RewardSource.model_fields) == "name weight function batched model"


def test_defaults_are_a_recipe() -> None:
    recipe = make_recipe({})
    assert recipe == Recipe()
    assert recipe.stages == ("pretrain", "sft", "label", "reward", "ppo", "dpo", "evaluation")


@pytest.mark.parametrize("section", [DataConfig, ModelConfig, PretrainConfig, SFTConfig, PPOConfig, DPOConfig])
def test_every_section_works_by_itself(section: type[Section]) -> None:
    assert check(section, {}, "here") == section()


def test_the_simulated_panel_is_as_large_as_overlap_allows() -> None:
    simulated = ("data.world=rewriter", "label.by=simulated")
    assert len(PANEL) == PANEL_SIZE
    make_recipe({}, [*simulated, f"label.overlap={len(PANEL)}"])
    assert "1 to 6" in refusal(*simulated, f"label.overlap={len(PANEL) + 1}")
    make_recipe({}, ["label.by=human", "label.overlap=7"])


# Refusals


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("ppo.kl_coeff=0.1", ["ppo.kl_coeff", "no such key", "did you mean ppo.kl_coef?", "Allowed here: ", "lam"]),
        ("ppo.epoch=2", ["ppo.epoch:", "did you mean ppo.epochs?"]),
        ("kl_coef=0.1", ["kl_coef:", "did you mean ppo.kl_coef?", "Allowed here: name, seed"]),
        ("pppo.kl_coef=0.1", ["pppo:", "did you mean ppo?"]),
        (
            "rloo.value_coef=0.1",
            ["rloo.value_coef: there is no such key; it belongs to ppo. Allowed here: ", "answers"],
        ),
        ("grpo.lam=0.9", ["grpo.lam: there is no such key", "Allowed here: "]),
        ("rloo.whiten_rewards=true", ["rloo.whiten_rewards: there is no such key; it belongs to ppo."]),
        ("rloo.answers=1", ["rloo.answers = 1", "greater than or equal to 2"]),
        ("sed=1", ["sed:", "did you mean seed?"]),
        ("zzz=1", ["zzz:", "no such key. Allowed here: name"]),
        ("sft.rewards=1", ["sft.rewards:", "no such key", "Allowed here: learning_rate"]),
        ('ppo.epochs="two"', ["ppo.epochs = 'two'", "valid integer"]),
        ("ppo.epochs=2.5", ["ppo.epochs = 2.5", "valid integer"]),
        ("ppo.epochs=true", ["ppo.epochs = True", "valid integer"]),
        ("ppo.epochs=0", ["ppo.epochs = 0", "greater than 0"]),
        ("seed=-1", ["seed = -1", "greater than or equal to 0"]),
        ("ppo.kl_coef=nan", ["ppo.kl_coef = nan", "finite"]),
        ("ppo.learning_rate=inf", ["ppo.learning_rate = inf", "finite"]),
        ("data.heldout_fraction=1.0", ["data.heldout_fraction = 1.0", "less than 1"]),
        ("ppo.kl_estimator=k4", ["ppo.kl_estimator = 'k4'", "'k1', 'k2', 'k3' or 'full'"]),
        ("data.world=rewriterr", ["data.world = 'rewriterr'", "'rewriter'"]),
        ('algorithms=["pop"]', ["algorithms.0 = 'pop'", "'online_dpo', 'dpo', 'ipo', 'kto', 'orpo' or 'simpo'"]),
        ("algorithms=ppo", ["algorithms = 'ppo'"]),
        ("ppo=3", ["ppo = 3"]),
        ("name.x=1", ["name = {'x': 1}", "valid string"]),
        ("reward.loss=listwise", ["reward.loss = 'listwise'", "'bradley-terry' or 'plackett-luce'"]),
        ("reward.random_answers=1.0", ["reward.random_answers = 1.0", "less than 1"]),
        ("reward.criteria={a = nan}", ["reward.criteria.a = nan", "finite"]),
        ("reward.criteria=helpful", ["reward.criteria = 'helpful'", "dict"]),
        ("judge.ensemble=3", ["judge.ensemble", "it belongs to reward."]),
        ("model.vocabulary=299", ["model.vocabulary = 299", "greater than or equal to 300"]),
    ],
)
def test_a_refusal_names_key_value_and_what_is_allowed(setting: str, parts: list[str]) -> None:
    message = refusal(setting)
    for part in parts:
        assert part in message
    assert "?." not in message


def test_all_faults_are_told_at_once() -> None:
    lines = refusal("ppo.epochs=0", "dpo.beta=0", "sfd.epochs=1").splitlines()
    assert len(lines) == 4
    assert [line.split()[0] for line in lines[1:]] == ["ppo.epochs", "dpo.beta", "sfd:"]


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (["ppo.episodes=10", "ppo.minibatch_episodes=4"], ["ppo: episodes (10)", "multiple", "(4)"]),
        (["ppo.kl_target=6.0", "ppo.kl_coef=0"], ["ppo: kl_target (6.0)", "kl_coef"]),
        (["reward.margin=0.5", "reward.loss=plackett-luce"], ["reward: margin (0.5)", "no pairs", '"bradley-terry"']),
        (["judge.margin=0.5", "judge.loss=plackett-luce"], ["judge: margin (0.5)"]),
        (["reward.pessimism=1.0"], ["reward: pessimism (1.0)", "ensemble is 1", "2 or more"]),
        (['reward.criteria={"no good" = 1.0}'], ["reward: criteria: 'no good'", "letters"]),
        (["reward.criteria={a = 0.0, b = 0}"], ["reward: criteria: all weights are 0"]),
        (
            ["data.world=rewriter", "label.by=simulated", "reward.criteria={a = 1.0, b = 1.0}"],
            ['label.by = "simulated"', "reward.criteria are a, b"],
        ),
        (["model.width=130"], ["model: width 130", "heads (4)"]),
        (["model.heads=3"], ["model: width 128", "heads (3)"]),
        (["label.by=simulated"], ['label.by = "simulated"', "data.world", '"human"', '"none"']),
        (["data.world=rewriter", "judge.fraction=0.1"], ["judge.fraction", "data.world", "0"]),
        (["data.world=rewriter", "sft.demonstrations=preferred"], ["sft.demonstrations", "data.world", "written"]),
        (
            ["data.world=rewriter", "label.by=simulated", "data.criterion=tone"],
            ['label.by = "simulated"', "data.criterion", "'tone'"],
        ),
        (["model.context=200"], ["at most 200 tokens", "data.max_response_tokens (128)", "need 384"]),
        (["ppo.max_response_tokens=257"], ["at most 512 tokens", "ppo.max_response_tokens (257)", "need 513"]),
        (["evaluate.max_response_tokens=257"], ["at most 512", "evaluate.max_response_tokens (257)", "need 513"]),
        (["label.by=human", "sample.max_response_tokens=257"], ["sample.max_response_tokens (257)", "need 513"]),
        (["pretrain.block=600"], ["pretrain.block (600)", "model.context (512)"]),
        (["algorithms=[]"], ["algorithms is empty", "ppo, reinforce, rloo", "dpo, ipo, kto, orpo, simpo"]),
        (["ppo.kl_in=loss"], ["ppo: ", '"k1" has a gradient of 0', '"k2" or "full"']),
        (["grpo.kl_in=loss"], ["grpo: ", '"k1" has a gradient of 0', 'kl_in = "reward"']),
        (["ppo.kl_estimator=full"], ["ppo: ", "holds back none", 'kl_in = "loss"']),
        (["rloo.dual_clip=1.0"], ["rloo: dual_clip (1.0)", "above 1"]),
        (["ppo.answers=3"], ["ppo: episodes (128)", "multiple of answers (3)"]),
        (["rloo.answers=3"], ["rloo: episodes (128)", "multiple of answers (3)"]),
        (["online_dpo.answers=3"], ["online_dpo: minibatch_episodes (32)", "multiple of answers (3)"]),
        (
            ["online_dpo.judge=annotators", 'algorithms=["online_dpo"]'],
            ["online_dpo.judge", "simulated", '"reward"'],
        ),
        (["data.world=rewriter", "label.by=simulated", "label.overlap=7"], ["label.overlap = 7", "1 to 6"]),
        (["label.by=human", "label.gold_share=1.0"], ["label.gold_share = 1.0", "less than 1"]),
        (['algorithms=["ppo","ppo"]'], ["algorithms", "twice"]),
        (["name=a/b"], ["name 'a/b'", "plain folder name"]),
        (["name=.."], ["name '..'"]),
        (['name=""'], ["name ''"]),
    ],
)
def test_contradictory_pairs_are_refused(settings: list[str], parts: list[str]) -> None:
    message = refusal(*settings)
    for part in parts:
        assert part in message


def test_every_stage_has_its_place_in_the_report_and_on_the_terminal() -> None:
    """Neither may import the recipe, so each has its own list of names."""
    assert set(read.STAGE_ORDER) == set(MEANINGS) == set(get_args(StageName))
    assert read.DIRECT == DIRECT
    assert read.ON_POLICY == ON_POLICY
    assert set(FIGURES) == set(get_args(StageName)) - {"sample", "evaluation"}
    assert set(words.POLICY_TONES) == set(ALGORITHMS)
    for family in (ON_POLICY, DIRECT):
        assert len({words.POLICY_TONES[name] for name in family}) == len(family)


def test_settings_that_change_nothing_are_named() -> None:
    assert make_recipe({}, []).ignored == {}
    assert make_recipe(tomllib.loads((RECIPES / "hh.toml").read_text(encoding="utf-8"))).ignored == {}
    assert make_recipe(demo_table("demo", 0, "both", human=False)).ignored == {}
    assert make_recipe(demo_table("demo", 0, "ppo", human=True)).ignored == {}
    assert make_recipe({}, ["model.path=x", "model.width=64", "pretrain.tokens=5"]).ignored == {
        "model.path is set": ["model.width", "pretrain.tokens"]
    }
    found = make_recipe({}, ["label.overlap=2", "sample.answers=4", "judge.epochs=3.0", "ppo.kl_horizon=5"]).ignored
    assert found == {
        'label.by is "none"': ["label.overlap", "sample.answers"],
        "judge.fraction is 0": ["judge.epochs"],
        "ppo.kl_target is 0": ["ppo.kl_horizon"],
    }
    assert make_recipe({}, ["data.world=rewriter", 'data.files=["x"]']).ignored == {
        "data.world is set": ["data.files"]
    }


def test_a_checkpoint_brings_its_own_context() -> None:
    assert "pretrain" not in make_recipe({}, ["model.path=x", "model.context=8"]).stages


# --set


@pytest.mark.parametrize(
    ("setting", "section", "key", "value"),
    [
        ("ppo.kl_coef=0.1", "ppo", "kl_coef", 0.1),
        ("ppo.kl_coef = 1", "ppo", "kl_coef", 1.0),
        ("sft.learning_rate=1e-5", "sft", "learning_rate", 1e-5),
        ("model.path=/data/gpt2", "model", "path", "/data/gpt2"),
        ('model.path="a b"', "model", "path", "a b"),
        ("model.path = a b ", "model", "path", "a b"),
        ("model.path=a=b", "model", "path", "a=b"),
        ("model.path=", "model", "path", ""),
        ('data.files=["a.jsonl", "b.jsonl"]', "data", "files", ("a.jsonl", "b.jsonl")),
        ("pretrain.tokens=1_000", "pretrain", "tokens", 1000),
        ("reward.criteria={a = 1.0, b = 0.5}", "reward", "criteria", {"a": 1.0, "b": 0.5}),
        ("reward.criteria.a=2.0", "reward", "criteria", {"a": 2.0}),
    ],
)
def test_settings_are_toml_or_else_text(setting: str, section: str, key: str, value: object) -> None:
    found = getattr(getattr(make_recipe({}, [setting]), section), key)
    assert found == value
    assert type(found) is type(value)


def test_settings_come_on_top_and_the_last_one_counts() -> None:
    table = {"seed": 3, "ppo": {"epochs": 3, "kl_coef": 0.5}, "reward": {"criteria": {"a": 1.0}}}
    recipe = make_recipe(table, ["ppo.epochs=4", "seed=7", "ppo.epochs=5", "reward.criteria.b=0.5"])
    assert (recipe.seed, recipe.ppo.epochs, recipe.ppo.kl_coef) == (7, 5, 0.5)
    assert recipe.criteria == ("a", "b")
    assert table == {"seed": 3, "ppo": {"epochs": 3, "kl_coef": 0.5}, "reward": {"criteria": {"a": 1.0}}}


@pytest.mark.parametrize("setting", ["ppo.kl_coef", "=3", "", " = 1"])
def test_a_setting_that_is_none_says_how_one_looks(setting: str) -> None:
    with pytest.raises(ValueError, match=r"--set .*expected SECTION\.KEY=VALUE"):
        make_recipe({}, [setting])


def test_a_setting_inside_a_value() -> None:
    with pytest.raises(ValueError, match=r"--set seed\.x\.y=1: seed is a value, not a section"):
        make_recipe({"seed": 1}, ["seed.x.y=1"])


# Files


def test_dump_and_load_give_the_same_recipe(tmp_path: Path) -> None:
    recipe = make_recipe(
        demo_table("a name", 3, "ppo", human=True),
        [
            "label.by=none",
            'data.files=["ä.jsonl"]',
            "ppo.learning_rate=1.25e-7",
            "reward.criteria={kind=1.0, b-2=-0.5}",
        ],
    )
    path = tmp_path / "recipe.toml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(path) == recipe
    dumped = tomllib.loads(dump_recipe(Recipe()))
    assert {name: " ".join(value) for name, value in dumped.items() if isinstance(value, dict)} == FIELDS


def test_a_dump_with_another_field_loads_as_another_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(dump_recipe(Recipe()), encoding="utf-8")
    assert load_recipe(path, ["dpo.beta=0.2"]).dpo.beta == 0.2


@pytest.mark.parametrize("algorithm", ["ppo", "dpo", "both"])
@pytest.mark.parametrize("human", [False, True])
def test_the_demo_is_a_recipe(algorithm: Any, human: bool) -> None:
    recipe = make_recipe(demo_table("demo", 5, algorithm, human))
    assert recipe.seed == 5
    assert recipe.algorithms == (("ppo", "dpo") if algorithm == "both" else (algorithm,))
    assert recipe.label.by == ("human" if human else "simulated")
    assert recipe.data.world == "rewriter"


def test_the_starter_is_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "prefloop.toml"
    path.write_text(starter_text("mine"), encoding="utf-8")
    recipe = load_recipe(path)
    assert recipe.name == "mine"
    assert "judge" in recipe.stages


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.name)
def test_every_recipe_in_the_repository_is_valid(path: Path) -> None:
    assert load_recipe(path).name == path.stem


def test_there_are_recipes() -> None:
    assert list(RECIPES.glob("*.toml"))


def test_sections_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe().ppo.epochs = 3  # type: ignore[misc]


def test_check_is_for_single_sections_too() -> None:
    with pytest.raises(ValueError, match=r"prefloop\.reward_model:\n  epoch: .*did you mean epochs\?"):
        check(RewardConfig, {"epoch": 2}, "prefloop.reward_model")
    assert check(EvaluateConfig, {"prompts": 3}, "x").prompts == 3


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({}, ["rewards.0.name", "required"]),
        ({"name": "short", "wieght": 2.0}, ["rewards.0.wieght", "did you mean rewards.0.weight?", "batched"]),
        ({"name": "short", "weight": float("nan")}, ["rewards.0.weight", "finite"]),
        ({"name": "a b"}, ["rewards.0: reward name 'a b'", "letters"]),
        ({"name": "short", "function": "brevity"}, ["function = 'brevity' is not FILE.py:NAME"]),
        ({"name": "short", "function": "f.py:g", "model": "x"}, ["'short' names a function and a model"]),
        ({"name": "short", "batched": True}, ["batched is about a function"]),
    ],
)
def test_a_faulty_reward_is_refused(row: dict[str, Any], parts: list[str]) -> None:
    message = refusal(table={"rewards": [row]})
    for part in parts:
        assert part in message


def test_settings_that_rewards_from_elsewhere_leave_without_effect_are_named() -> None:
    row = {"name": "short", "function": "f.py:g"}
    settings = ["label.by=human", "label.minimum=9", "reward.ensemble=4", "sample.prompts=7"]
    found = make_recipe({"rewards": [row], "algorithms": ["ppo"]}, settings).ignored
    assert found == {"nothing learns from comparisons": ["label.minimum", "sample.prompts", "reward.ensemble"]}
    assert len(PANEL) == PANEL_SIZE
    assert make_recipe({"rewards": [row], "algorithms": ["dpo"]}).ignored == {
        "no algorithm samples responses to reward": ["rewards"]
    }
    assert make_recipe({}, ["online_dpo.judge=annotators"]).ignored == {}  # it may stand ready


def test_rewards_from_elsewhere_need_no_comparisons() -> None:
    row = {"name": "short", "function": "f.py:g"}
    assert make_recipe({"rewards": [row], "algorithms": ["rloo"]}).stages == ("pretrain", "sft", "rloo", "evaluation")
    assert "reward" in make_recipe({"rewards": [row], "algorithms": ["rloo", "dpo"]}).stages
    assert "reward" in make_recipe({"rewards": [row, {"name": "own"}], "algorithms": ["rloo"]}).stages
    assert "rewards names one twice" in refusal(table={"rewards": [row, row]})
    assert "judge.fraction sets comparisons aside" in refusal(
        table={"rewards": [row], "algorithms": ["rloo"], "judge": {"fraction": 0.2}}
    )
