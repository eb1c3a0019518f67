"""What is counted of each stage, against what a run of it logs."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from tests.runs import dialogues, from_store, tiny
from tests.said import judged

from prefloop import pipeline
from prefloop.chat import Chat
from prefloop.config import ALGORITHMS, ON_POLICY
from prefloop.dataset import part_of
from prefloop.feedback.records import Prompt
from prefloop.feedback.store import AnyRecord, Store
from prefloop.planning.data import LOOKED_AT, Amounts, Lengths, amounts_of
from prefloop.planning.work import Work, work_of
from prefloop.recipes import Recipe
from prefloop.runs import read_json, read_lines

LENGTHS = Lengths(prompt=20, answer=10, longest_prompt=30, longest_answer=16)
AMOUNTS = Amounts(
    source="made up",
    demonstrations=100,
    heldout_demonstrations=10,
    prompts=100,
    heldout=10,
    groups=80,
    heldout_groups=8,
    judge_groups=20,
    answers=4,
    heldout_text=1000,
    demonstrated=LENGTHS,
    judged=LENGTHS,
)


def of(recipe: Recipe, stage: str, amounts: Amounts = AMOUNTS) -> Work:
    (found,) = (one for one in work_of(recipe, amounts) if one.stage == stage)
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    project = tmp_path_factory.mktemp("planned")
    everything = tiny('algorithms=["ppo", "rloo", "online_dpo", "dpo", "kto"]')
    return everything, pipeline.run(everything, project)


def test_steps_and_tokens_are_those_of_a_run(finished: tuple[Recipe, Path], tmp_path: Path) -> None:
    """The world is asked for other prompts, so tokens agree but for chance."""
    recipe, run = finished
    amounts = amounts_of(recipe, tmp_path, tmp_path)
    assert amounts.demonstrations == recipe.data.world_prompts
    for work in work_of(recipe, amounts):
        metrics = run / work.stage / "metrics.jsonl"
        if not metrics.exists():
            continue
        lines = read_lines(metrics)
        if work.stage in ON_POLICY:
            config = getattr(recipe, work.stage)
            assert len(lines) == config.iterations
            each = config.epochs * config.episodes // config.minibatch_episodes
            assert work.steps == config.iterations * each
            continue
        assert work.steps == len(lines), work.stage
        if "tokens" in lines[-1]:
            assert work.trained_logits == pytest.approx(lines[-1]["tokens"], rel=0.15), work.stage
    sampled = read_json(run / "sample" / "manifest.json")
    assert of(recipe, "sample", amounts).sampled <= sampled["prompts"] * recipe.sample.answers * 12
    comparisons = read_json(run / "reward" / "manifest.json")["comparisons"]
    assert amounts.groups == pytest.approx(comparisons, rel=0.15)
    assert not (tmp_path / "feedback.db").exists(), "planning writes nothing"


def test_a_store_is_counted_as_it_is(tmp_path: Path) -> None:
    dialogues(tmp_path / "dialogues.jsonl")
    recipe = from_store("judge.fraction=0.3", f'algorithms=["{ALGORITHMS[0]}", "dpo"]')
    found = amounts_of(recipe, tmp_path, tmp_path)
    run = pipeline.run(recipe, tmp_path)
    again = amounts_of(recipe, tmp_path, tmp_path)
    assert found.source == "data.files"
    assert again.source == "this project's store"
    for name in ("groups", "heldout_groups", "judge_groups", "demonstrations"):
        assert getattr(found, name) == getattr(again, name)
    for stage, groups in (("reward", found.groups), ("judge", found.judge_groups)):
        assert read_json(run / stage / "manifest.json")["comparisons"] == groups
    for stage in ("sft", "reward", "judge", "dpo"):
        assert of(recipe, stage, found).steps == len(read_lines(run / stage / "metrics.jsonl"))


def test_of_many_judgements_some_are_measured_and_all_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts that are set aside for the judge have more and longer answers; a part counts by its size."""
    recipe = from_store("judge.fraction=0.2", 'algorithms=["dpo"]')
    draw, records = random.Random(5), list[AnyRecord]()
    answers = words = 0
    for number in range(1500):
        prompt = Prompt.of(f"What is {number}?")
        part = part_of(recipe, prompt)
        texts = [f"{which} " * draw.randint(1, 4) for which in ("abcd" if part == "judge" else "ab")]
        texts = [text + "very much so" * (part == "judge") for text in texts]
        ranks = draw.sample(range(1, len(texts) + 1), len(texts))
        records += [prompt, *judged(prompt, *zip(texts, ranks, strict=True))]
        answers += len(texts)
        words += sum(len(text.split()) for text in texts)
    measured: list[str] = []
    answered = Chat.answered
    monkeypatch.setattr(
        Chat, "answered", lambda chat, prompt, answer: (measured.append(answer), answered(chat, prompt, answer))[1]
    )
    with Store.of_project(tmp_path) as store:
        store.add(records)
    found = amounts_of(recipe, tmp_path, tmp_path)
    assert found.groups + found.heldout_groups + found.judge_groups == 1500
    assert found.answers == pytest.approx(answers / 1500, rel=0.05)
    answered_texts = measured[len(range(0, found.demonstrations, -(-found.demonstrations // LOOKED_AT))) :]
    assert LOOKED_AT / 2 < len(answered_texts) <= LOOKED_AT < len(measured) <= 2 * LOOKED_AT
    mean = sum(len(text.split()) for text in answered_texts) / len(answered_texts)
    assert mean == pytest.approx(words / answers, rel=0.1)


def test_without_data_the_limits_are_taken_and_it_says_so(tmp_path: Path) -> None:
    recipe = Recipe()
    found = amounts_of(recipe, tmp_path, tmp_path)
    assert "no data" in found.source
    assert found.demonstrated.whole == recipe.data.max_prompt_tokens + recipe.data.max_response_tokens
    assert found.groups == recipe.sample.prompts


def test_answers_to_a_prompt_share_it() -> None:
    """By hand: 32 prompts of 20 tokens with 4 answers of 10 tokens."""
    work = of(tiny("reward.batch_size=32", "reward.epochs=1"), "reward")
    assert work.step_tokens == 32 * (20 + 4 * 10)
    assert work.trained == work.steps * work.step_tokens


def test_sampling_is_a_step_for_each_token_of_a_full_batch() -> None:
    one = of(tiny("ppo.episodes=64", "ppo.minibatch_episodes=16", "ppo.iterations=1"), "ppo")
    assert one.rows == 64
    assert one.decode_steps == 12, "as long as the longest answer that is allowed"
    many = of(tiny("sample.prompts=100", "sample.batch_size=50", "sample.answers=10"), "sample")
    assert many.rows == 50
    assert 100 * 10 * 10 / 50 < many.decode_steps < 2 * 100 * 10 * 10 / 50


@pytest.mark.parametrize(
    ("settings", "held"),
    [
        ((), {"policy": (1, True), "reference": (1, False), "rewards": (1, False)}),
        (("reward.ensemble=3",), {"policy": (1, True), "reference": (1, False), "rewards": (3, False)}),
        (
            ("ppo.critic=separate",),
            {"policy": (1, True), "reference": (1, False), "rewards": (1, False), "critic": (1, True)},
        ),
    ],
)
def test_models_that_are_held(settings: tuple[str, ...], held: dict[str, Any]) -> None:
    assert of(tiny(*settings), "ppo").held == held


def test_a_critic_of_its_own_is_trained_beside_the_policy() -> None:
    shared, separate = (of(tiny(f"ppo.critic={kind}"), "ppo") for kind in ("shared", "separate"))
    assert separate.trained == 2 * shared.trained
    assert separate.read > shared.read
    assert separate.trained_logits == shared.trained_logits


def test_twice_the_data_is_twice_the_work() -> None:
    few, many = (tiny("ppo.iterations=5"), tiny("ppo.iterations=10"))
    for name in ("trained", "read", "sampled", "decode_steps", "steps"):
        assert getattr(of(many, "ppo"), name) == 2 * getattr(of(few, "ppo"), name)
