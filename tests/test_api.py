"""The library: five lines in a notebook, and what they refuse."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import toys

import prefloop
from prefloop.feedback.aggregate import Comparison
from prefloop.feedback.records import Prompt
from prefloop.models.heads import RewardEnsemble, RewardModel
from prefloop.policy import Policy
from prefloop.training.loop import Metrics

EVEN: dict[str, Any] = {"episodes": 8, "minibatch_episodes": 4}
PPO: dict[str, Any] = {"iterations": 2, "episodes": 4, "minibatch_episodes": 2, "max_response_tokens": 6}
QUESTIONS = ["What?", "Why?", "Where is it?"]
TRIPLE = ("a", "b", "c")
PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
RANKING = {"prompt": "a", "responses": ["b", "c", "d"], "ranks": [1, 2, 2]}
COMPARISONS = [(f"question {i}", "yes", "no, never") for i in range(6)]
DEMONSTRATIONS = [(f"question {i}", "yes") for i in range(6)]


@pytest.fixture(scope="module")
def base() -> Policy:
    return toys.policy()


def state(policy: Policy | RewardModel) -> list[torch.Tensor]:
    return toys.parameters(policy.model)


@pytest.mark.parametrize("before", ["enable", "disable"])
def test_what_is_imported_is_not_searched_for_garbage(before: str, base: Policy, tmp_path: Path) -> None:
    base.save(tmp_path)
    program = (
        f"import gc, sys\ngc.{before}()\nimport prefloop\nassert 'torch' not in sys.modules\nseen = []\n"
        "gc.callbacks.append(lambda phase, _: seen.append(phase))\n"
        "load = prefloop.load\nprint('torch' in sys.modules, gc.isenabled(), len(seen) < 50)\n"
        "architecture = 'transformers.models.llama.modeling_llama'\nassert architecture not in sys.modules\n"
        f"seen.clear()\nload({str(tmp_path)!r})\ngc.callbacks.clear()\n"
        "print(architecture in sys.modules, gc.isenabled(), len(seen) < 50)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", str(before == "enable"), "True"] * 2


def test_no_database_is_imported_for_lists() -> None:
    program = "import sys, prefloop\nprefloop.load\nprint('torch' in sys.modules, 'sqlalchemy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


# Training


def test_five_lines(base: Policy, tmp_path: Path) -> None:
    base.save(tmp_path / "model")
    policy = prefloop.load(str(tmp_path / "model"))
    result = prefloop.ppo(policy, QUESTIONS, reward=lambda _, response: len(response) / 100, **PPO)
    text = result.policy.generate("Why is the sky blue?", max_response_tokens=5)
    assert isinstance(text, str)
    assert text == result.policy.generate("Why is the sky blue?", max_response_tokens=5)


Train = Callable[..., Any]
TRAINERS: dict[str, tuple[Train, list[Any], dict[str, Any]]] = {
    "sft": (prefloop.sft, [DEMONSTRATIONS], {"epochs": 2.0, "batch_size": 2}),
    "reward_model": (prefloop.reward_model, [COMPARISONS], {"epochs": 2.0, "batch_size": 2}),
    "ppo": (prefloop.ppo, [QUESTIONS, lambda _, response: float(len(response))], PPO),
    **{
        name: (getattr(prefloop, name), [COMPARISONS], {"epochs": 2.0, "batch_size": 2})
        for name in ("dpo", "ipo", "kto", "orpo", "simpo")
    },
}


@pytest.mark.parametrize("name", TRAINERS)
def test_each_function_trains_a_copy_and_tells_how_it_went(base: Policy, name: str) -> None:
    train, data, options = TRAINERS[name]
    before, seen = state(base), list[Metrics]()
    result = train(base, *data, log=seen.append, seed=3, **options)
    assert toys.same(state(base), before)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in base.model.parameters())
    assert not base.model.training
    model = result.model if name == "reward_model" else result.policy
    assert not model.model.training
    trunk = [(a, b) for a, b in zip(state(model), before, strict=False) if a.shape == b.shape]
    assert any(not torch.equal(a, b) for a, b in trunk)
    assert result.metrics == seen
    assert len(seen) == (2 if name == "ppo" else 6)
    assert all(math.isfinite(value) for line in seen for value in line.values())
    assert [line["iteration" if name == "ppo" else "step"] for line in seen] == list(range(1, len(seen) + 1))


@pytest.mark.parametrize("name", TRAINERS)
def test_the_same_seed_gives_the_same_model_and_another_seed_another(base: Policy, name: str) -> None:
    train, data, options = TRAINERS[name]
    first, again, other = (train(base, *data, seed=seed, **options) for seed in (0, 0, 1))
    models = [one.model if name == "reward_model" else one.policy for one in (first, again, other)]
    assert toys.same(state(models[0]), state(models[1]))
    assert not toys.same(state(models[0]), state(models[2]))


def test_each_function_learns_what_it_is_given(base: Policy) -> None:
    options = {"epochs": 20.0, "batch_size": 6, "learning_rate": 1e-2}
    sft = prefloop.sft(base, DEMONSTRATIONS, **options)
    assert sft.metrics[-1]["loss"] < 0.5 * sft.metrics[0]["loss"]
    assert sft.policy.generate("question 3", temperature=0.0) == "yes"
    model = prefloop.reward_model(base, COMPARISONS, heldout=COMPARISONS, **options).model
    assert all(model(prompt, good) > model(prompt, bad) for prompt, good, bad in COMPARISONS)
    dpo = prefloop.dpo(base, COMPARISONS, heldout=COMPARISONS, **options)
    assert dpo.metrics[-1]["eval_accuracy"] == 1.0
    assert dpo.metrics[-1]["margin"] > 0.5


def test_ppo_follows_a_plain_function(base: Policy) -> None:
    options = PPO | {"iterations": 12, "episodes": 32, "minibatch_episodes": 8, "learning_rate": 1e-2, "kl_coef": 0.0}

    def letters(_prompt: str, response: str) -> float:
        return sum(character.islower() for character in response) / 6

    lines = prefloop.ppo(base, QUESTIONS, letters, **options, missing_eos_penalty=0.0).metrics
    assert lines[-1]["reward"] > lines[0]["reward"] + 0.1


# Rewards


def test_a_function_sees_the_texts(base: Policy) -> None:
    seen: list[tuple[str, str]] = []

    def reward(prompt: str, response: str) -> int:
        seen.append((prompt, response))
        return 1

    result = prefloop.ppo(
        base, [*QUESTIONS, [{"role": "system", "content": "Be"}, {"role": "user", "content": "me"}]], reward, **PPO
    )
    assert {prompt for prompt, _ in seen} <= {*QUESTIONS, "me"}
    assert len(seen) == 8
    assert [line["reward"] for line in result.metrics] == [1.0, 1.0]


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "good"])
def test_a_reward_that_is_no_number_is_refused(base: Policy, value: Any) -> None:
    with pytest.raises(
        ValueError, match=r"reward function 'reward' returned .*no finite number, for prompt '.*' and response"
    ):
        prefloop.ppo(base, QUESTIONS, lambda _prompt, _response: value, **PPO)


@pytest.mark.parametrize("name", ["reinforce", "rloo", "grpo", "reinforce_pp", "online_dpo"])
def test_the_relatives_of_ppo_leave_the_policy_and_learn(base: Policy, name: str) -> None:
    start = state(base)
    result = getattr(prefloop, name)(base, QUESTIONS, lambda _prompt, response: len(response), **PPO | EVEN)
    assert toys.same(state(base), start)
    assert not toys.same(state(result.policy), start)
    assert len(result.metrics) == 2
    assert result.critic is None


def test_rewards_of_all_kinds_by_name_with_weights(base: Policy) -> None:
    model = prefloop.reward_model(base, [("Why?", "because", "no")], batch_size=1).model
    rewards = {
        "kind": model,
        "short": (-0.5, lambda _prompt, response: len(response)),
        "loud": (2.0, prefloop.batched(lambda _prompts, responses: [r.count("!") for r in responses])),
    }
    for line in prefloop.ppo(base, QUESTIONS, rewards, critic="separate", **PPO).metrics:
        total = line["reward_kind"] - 0.5 * line["reward_short"] + 2 * line["reward_loud"]
        assert line["reward"] == pytest.approx(total, abs=1e-5)


def test_a_critic_of_its_own_comes_back(base: Policy) -> None:
    critic = prefloop.ppo(base, QUESTIONS, lambda _prompt, response: len(response), critic="separate", **PPO).critic
    assert critic is not None
    assert math.isfinite(critic("Why?", "because"))


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ({}, "reward names nothing"),
        (3, r"reward 'reward' is 3; expected a function of \(prompt, response\)"),
        ({"a": "f"}, "reward 'a' is 'f'; expected a function"),
        ({"a": (math.nan, len)}, "the weight of reward 'a' is nan"),
        ({"a": ("0.5", len)}, "the weight of reward 'a' is '0.5'"),
    ],
)
def test_what_is_no_reward_is_refused(base: Policy, reward: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prefloop.ppo(base, QUESTIONS, reward, **PPO)


def test_an_error_in_the_reward_function_names_prompt_and_response(base: Policy) -> None:
    def reward(prompt: str, response: str) -> float:
        raise KeyError("mine")

    with pytest.raises(ValueError, match=r"raised KeyError\('mine'\) for prompt '.*' and response '") as caught:
        prefloop.ppo(base, QUESTIONS, reward, **PPO)
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_reward_model_is_a_reward(base: Policy) -> None:
    model = prefloop.reward_model(base, COMPARISONS, batch_size=2).model
    before = state(model)
    lines = prefloop.ppo(base, QUESTIONS, model, **PPO).metrics
    assert toys.same(state(model), before)
    by_text = prefloop.ppo(base, QUESTIONS, lambda prompt, response: model(prompt, response), **PPO).metrics
    # The model reads the tokens, the function the text; where an answer was cut off, the text gains an eos.
    assert lines[0]["reward"] == pytest.approx(by_text[0]["reward"], abs=1.0)


def test_a_reward_model_with_another_tokenizer_reads_the_text(base: Policy) -> None:
    tokenizer = toys.byte_tokenizer(merges=[("y", "e"), ("ye", "s")])
    other = Policy(toys.llama(len(tokenizer)), tokenizer)
    model = prefloop.reward_model(other, COMPARISONS, batch_size=2).model
    lines = prefloop.ppo(base, QUESTIONS, model, **PPO).metrics
    by_text = prefloop.ppo(base, QUESTIONS, lambda prompt, response: model(prompt, response), **PPO).metrics
    # All at once here, one by one there: the same up to rounding.
    assert [line["reward"] for line in lines] == pytest.approx([line["reward"] for line in by_text], abs=1e-5)


# Data in any shape


def test_comparisons_may_be_tuples_mappings_or_records(base: Policy) -> None:
    asked = [Prompt.of(prompt) for prompt, _, _ in COMPARISONS]
    shapes: list[Sequence[Any]] = [
        COMPARISONS,
        [{"prompt": p, "chosen": good, "rejected": bad, "extra": 1} for p, good, bad in COMPARISONS],
        [([{"role": "user", "content": p}], good, bad) for p, good, bad in COMPARISONS],
        [Comparison(p, ("yes", "no, never"), ("1", "2"), ((0, 1, 1.0),)) for p in asked],
    ]
    for train in (prefloop.dpo, prefloop.reward_model):
        metrics = [_losses(train(base, shape, batch_size=2)) for shape in shapes]
        assert metrics[0] == metrics[1] == metrics[2] == metrics[3]
    assert _losses(prefloop.dpo(base, iter(COMPARISONS), batch_size=2)) == _losses(
        prefloop.dpo(base, COMPARISONS, batch_size=2)
    )


def test_demonstrations_may_be_tuples_or_mappings(base: Policy) -> None:
    shapes: list[Sequence[Any]] = [
        DEMONSTRATIONS,
        [{"prompt": prompt, "response": answer} for prompt, answer in DEMONSTRATIONS],
        [(Prompt.of(prompt), answer) for prompt, answer in DEMONSTRATIONS],
    ]
    losses = [_losses(prefloop.sft(base, shape, batch_size=2)) for shape in shapes]
    assert losses[0] == losses[1] == losses[2]


def _losses(result: Any) -> list[float]:
    return [line["loss"] for line in result.metrics]


def test_rankings_and_weights_are_votes(base: Policy) -> None:
    """A ranking of three is its pairs; a weight of two is saying it twice."""
    ranked = [{"prompt": "q", "responses": ["b", "a", "c"], "ranks": [7, 2, 7], "weight": 2}]
    said = ((0, 1, 1.0), (1, 0, 1.0), (2, 0, 2.0), (2, 1, 2.0))
    record = [Comparison(Prompt.of("q"), ("b", "c", "a"), ("b", "c", "a"), said)]
    for train in (prefloop.dpo, prefloop.reward_model):
        assert _losses(train(base, ranked, batch_size=1)) == pytest.approx(_losses(train(base, record, batch_size=1)))
    once = [{"prompt": p, "chosen": good, "rejected": bad, "weight": None} for p, good, bad in COMPARISONS]
    half = [row | {"weight": 0.5} for row in once]
    options = {"batch_size": 6, "centre_coef": 0.0}
    one, other = (prefloop.reward_model(base, rows, **options).metrics[0] for rows in (once, half))
    assert one["loss"] == pytest.approx(other["loss"])
    heavier = [half[0] | {"weight": 40.0}, *half[1:]]
    assert prefloop.reward_model(base, heavier, **options).metrics[0]["loss"] != pytest.approx(one["loss"])


def test_strength_and_margin_say_by_how_much(base: Policy) -> None:
    def first(more: dict[str, Any], **options: Any) -> float:
        rows = [{"prompt": p, "chosen": good, "rejected": bad, **more} for p, good, bad in COMPARISONS]
        lines = prefloop.reward_model(base, rows, batch_size=6, centre_coef=0.0, **options).metrics
        return float(lines[0]["loss"])

    plain = first({})
    assert first({"strength": 4}) == plain  # no attention is paid unless asked for
    assert first({"strength": 1}, margin=0.5) == plain
    assert first({"strength": 3}, margin=0.5) == first({"margin": 1.0}) > plain
    assert first({"margin": 0}) == plain


def test_plackett_luce_ensembles_and_pessimism(base: Policy) -> None:
    rows = [{"prompt": f"q {i}", "responses": ["yes", "no", "never"], "ranks": [1, 2, 3]} for i in range(6)]
    options: dict[str, Any] = {"epochs": 6.0, "batch_size": 3, "learning_rate": 1e-2, "loss": "plackett-luce"}
    model = prefloop.reward_model(base, rows, ensemble=2, pessimism=0.5, **options).model
    assert isinstance(model, RewardEnsemble)
    assert model("q 1", "yes") > model("q 1", "no") > model("q 1", "never")
    lines = prefloop.ppo(base, QUESTIONS, model, **PPO).metrics
    by_text = prefloop.ppo(base, QUESTIONS, lambda prompt, response: model(prompt, response), **PPO).metrics
    assert lines[0]["reward"] == pytest.approx(by_text[0]["reward"], abs=3.0)


def test_criteria_have_a_head_each(base: Policy) -> None:
    data = {"kind": COMPARISONS, "short": [(p, bad, good) for p, good, bad in COMPARISONS]}
    options: dict[str, Any] = {"epochs": 15.0, "batch_size": 6, "learning_rate": 1e-2}
    for weights in ({"kind": 1.0, "short": 0.2}, {"kind": 0.2, "short": 1.0}):
        result = prefloop.reward_model(base, data, heldout={"kind": COMPARISONS}, criteria=weights, **options)
        likes = result.model("question 1", "yes") > result.model("question 1", "no, never")
        assert likes == (weights["kind"] > weights["short"])
        assert result.model.criteria == ("kind", "short")
        assert "eval_accuracy" in result.metrics[-1]
    with pytest.raises(ValueError, match=r"comparisons by criterion .*\['kind', 'short'\]; got \['kind'\]"):
        prefloop.reward_model(base, {"kind": COMPARISONS}, criteria=weights)
    with pytest.raises(ValueError, match=r"heldout by criterion .*got \['rude'\]"):
        prefloop.reward_model(base, data, heldout={"rude": COMPARISONS}, criteria=weights)
    with pytest.raises(ValueError, match=r"comparisons by criterion .*got \['one list for all of them'\]"):
        prefloop.reward_model(base, COMPARISONS, criteria=weights)
    with pytest.raises(ValueError, match=r"keys of the option criteria, \[\]; got \['kind', 'short'\]"):
        prefloop.reward_model(base, data)


# Refusals


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("sft", {"epoch": 2}, r"prefloop\.sft:\n  epoch: there is no such key; did you mean epochs\?"),
        ("reward_model", {"loss": "bt"}, r"loss = 'bt': .*'bradley-terry' or 'plackett-luce'"),
        ("reward_model", {"pessimism": 1.0}, r"pessimism \(1\.0\) .*set ensemble to 2 or more"),
        ("reward_model", {"margin": 1, "loss": "plackett-luce"}, r"margin \(1.*has no pairs"),
        ("reward_model", {"center_coef": 2}, r"prefloop\.reward_model:\n.*did you mean centre_coef\?"),
        ("ppo", {"kl_coeff": 0.1}, r"prefloop\.ppo:\n  kl_coeff: .*did you mean kl_coef\?"),
        ("dpo", {"beta": 0}, r"prefloop\.dpo:\n  beta = 0: .*greater than 0"),
        ("dpo", {"beta": "high"}, r"beta = 'high': .*valid number"),
        ("ppo", {"episodes": 5}, r"episodes \(5\) must be a multiple of minibatch_episodes \(2\)"),
        ("ppo", {"max_response_tokens": 128}, r"max_response_tokens = 128 leaves no room .* 128 tokens"),
    ],
)
def test_options_are_checked(base: Policy, name: str, option: dict[str, Any], message: str) -> None:
    train, data, options = TRAINERS[name]
    with pytest.raises(ValueError, match=message):
        train(base, *data, **options | option)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("sft", [], "no demonstrations"),
        ("sft", [("a", "b", "c")], r"a demonstration is \(prompt, response\); got 3 values"),
        ("sft", ["ab"], r"a demonstration is \(prompt, response\); got 'ab'"),
        ("sft", [3], r"a demonstration is \(prompt, response\); got 3"),
        ("sft", [{"prompt": "a", "completion": "b"}], "this one lacks response"),
        ("sft", [([{"role": "robot", "content": "a"}], "b")], "a prompt is a text.*robot"),
        ("sft", [(7, "b")], "a prompt is a text"),
        (
            "sft",
            [([{"role": "assistant", "content": "a"}], "b")],
            "must end with a message that the assistant answers",
        ),
        ("sft", [("a" * 200, "b")], r"a demonstration may have 128 tokens.*1 of 1 are longer"),
        ("dpo", [], "no comparisons"),
        ("dpo", [("a", "b")], r"a comparison is \(prompt, chosen, rejected\); got 2 values"),
        ("dpo", [("a", "b", "c"), ("a", "b", "b")], "comparison 1: chosen and rejected are the same text 'b'"),
        ("dpo", [{"prompt": "a", "chosen": "b"}], "this one lacks rejected"),
        ("dpo", [("a", "b" * 127, "c")], r"a compared answer may have 128 tokens.*1 of 2 are longer"),
        ("reward_model", [], "no comparisons"),
        ("reward_model", [("a", "b", "b")], "chosen and rejected are the same"),
        ("reward_model", [{"responses": ["a", "b"], "ranks": [1, 2]}], "a ranking needs .*lacks prompt"),
        ("reward_model", [TRIPLE, RANKING | {"ranks": [1]}], "comparison 1: 3 responses and 1 ranks"),
        ("reward_model", [TRIPLE, RANKING | {"ranks": [1, 2, "3"]}], r"comparison 1: ranks are .*whole numbers"),
        ("reward_model", [RANKING | {"responses": "abc"}], r"comparison 0: responses are a list of texts; got 'abc'"),
        ("reward_model", [RANKING | {"responses": ["a", "b", "a"]}], "comparison 0: .*different responses"),
        ("reward_model", [RANKING | {"weight": -1}], "comparison 0: weight is a finite number, 0 or more; got -1"),
        ("reward_model", [RANKING | {"weight": math.nan}], "comparison 0: weight is a finite number.*got nan"),
        ("reward_model", [RANKING | {"weight": 0}], "comparison 0: a weight of 0 says nothing"),
        ("reward_model", [TRIPLE, PAIR | {"margin": "big"}], "comparison 1: margin is a finite number.*got 'big'"),
        ("reward_model", [PAIR | {"strength": 5}], r"comparison 0: strength is 1 .* to 4; got 5"),
        ("reward_model", [PAIR | {"strength": 2.0}], r"comparison 0: strength is 1 .* to 4; got 2\.0"),
        ("reward_model", [PAIR | {"strength": 2, "margin": 0.5}], "comparison 0: strength and margin .*one of them"),
        ("ppo", [], "no prompts"),
        ("ppo", [3], "a prompt is a text"),
        ("ppo", ["a" * 200], "data.max_prompt_tokens allows"),
    ],
)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_data_are_checked(name: str, data: list[Any], message: str, kind: str) -> None:
    train, more, options = TRAINERS[name]
    with pytest.raises(ValueError, match=message):
        train(toys.policy(kind), data, *more[1:], **options)


def test_the_longest_that_fits_is_taken() -> None:
    """GPT-2 has a table of positions: one token more would be an error in the middle of training."""
    policy = toys.policy("gpt2")
    room = policy.context - len(policy.chat.prompt_ids(Prompt.of("a").messages)) - 2  # a space and the eos
    prefloop.sft(policy, [("a", "b" * room)], batch_size=1)
    prefloop.dpo(policy, [("a", "b" * room, "c")], batch_size=1)
    prefloop.ppo(policy, QUESTIONS, lambda *_: 0.0, **PPO | {"max_response_tokens": 90})
    with pytest.raises(ValueError, match="longer"):
        prefloop.sft(policy, [("a", "b" * (room + 1))], batch_size=1)


def test_a_model_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"cannot load a model from 'no/such': there is no such folder"):
        prefloop.load("no/such")


def test_the_package_has_what_it_says() -> None:
    assert all(hasattr(prefloop, name) for name in prefloop.__all__)
    with pytest.raises(AttributeError, match="'prefloop' has no attribute 'train'"):
        _ = prefloop.train
