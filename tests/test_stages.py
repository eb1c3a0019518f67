"""The reward stage of a run: ensembles, several criteria, other losses, and what they leave in the folder."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.eager import EagerSnapshot, eager_groups
from tests.runs import contents, dialogues, figures, from_store, run, tiny
from tests.test_docs import code, keys, sections
from tests.toys import CHATML, byte_tokenizer
from transformers import AutoModelForSequenceClassification

from prefloop.chat import Rendered
from prefloop.dataset import judged_pairs
from prefloop.feedback.aggregate import Comparison, read_snapshot
from prefloop.feedback.formats import import_file
from prefloop.feedback.records import Judgement, Prompt, content_id_of
from prefloop.feedback.store import Store
from prefloop.labelers.simulated import PANEL
from prefloop.models.heads import RewardEnsemble
from prefloop.models.loading import load_reward_model
from prefloop.recipes import Recipe
from prefloop.runs import file_hash, read_json, read_lines
from prefloop.stages import _kept_answers
from prefloop.tokens import Make, Tokens, cached_tokens
from prefloop.training.encoding import Asked

DOCUMENTED = code(sections("run-folder.md")["`reward/evaluation.json`"]) | code(sections("run-folder.md")[""])
ONLY_PPO = 'algorithms=["ppo"]'


def test_a_run_with_an_ensemble(tmp_path: Path) -> None:
    """Three members, PPO against their cautious mean; the report is written, and nothing is done twice."""
    settings = ("reward.ensemble=3", "reward.pessimism=0.5", ONLY_PPO, "sample.answers=3")
    recorder = run(tiny(*settings), tmp_path)
    folder = tmp_path / "runs" / "tiny"
    model = load_reward_model(folder / "reward" / "model")
    assert isinstance(model, RewardEnsemble)
    assert (len(model.members), model.pessimism) == (3, 0.5)
    lines = read_lines(folder / "reward" / "metrics.jsonl")
    assert {line["member"] for line in lines} == {1, 2, 3}
    assert lines[-1]["progress"] == 1.0
    found = read_json(folder / "reward" / "evaluation.json")
    assert len(found["members"]) == 3
    assert found["disagreement"] > 0
    assert sum(row["n"] for row in found["by_disagreement"]) == found["accuracy"]["n"]
    assert "Held-out pairs" in (folder / "report.html").read_text(encoding="utf-8")
    assert set(keys(found)) <= DOCUMENTED
    for member in ("model", "model/member-2", "model/member-3"):
        assert AutoModelForSequenceClassification.from_pretrained(folder / "reward" / member).config.num_labels == 1
    assert run(tiny(*settings), tmp_path).ran == []
    assert recorder.ran[-3:] == ["reward", "ppo", "evaluation"]

    first, shift = _member(folder), model.members[0].model.config.reward_shift
    run(tiny(*settings[2:]), tmp_path)
    assert _member(folder) == first, "the first member is the model without the others"
    assert load_reward_model(folder / "reward" / "model").model.config.reward_shift == shift
    assert not list((folder / "reward" / "model").glob("member-*"))


def _member(folder: Path) -> str:
    return file_hash(folder / "reward" / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a finished run of rankings by two annotators."""
    folder = tmp_path_factory.mktemp("plain")
    run(tiny(*RANKED), folder)
    return folder


RANKED = (ONLY_PPO, "sample.answers=4", "label.overlap=2", "ppo.iterations=1")


@pytest.mark.parametrize(
    "settings",
    [
        ("reward.loss=plackett-luce",),
        ("reward.margin=0.5",),
        ("reward.random_answers=0.2",),
        ("reward.loss=plackett-luce", "reward.random_answers=0.2", "reward.ensemble=2"),
    ],
)
def test_each_loss_trains_another_model_on_the_same_judgements(
    settings: tuple[str, ...], plain: Path, tmp_path: Path
) -> None:
    project = Path(shutil.copytree(plain, tmp_path / "project"))
    assert run(tiny(*RANKED, *settings), project).ran == ["reward", "ppo", "evaluation"]
    assert _member(project / "runs" / "tiny") != _member(plain / "runs" / "tiny")
    assert run(tiny(*RANKED), project).ran == ["reward", "ppo", "evaluation"]
    assert (contents(project), figures(project)) == (contents(plain), figures(plain))


def test_judged_answers_are_tokenised_once_for_all_stages_and_runs(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, made = Path(shutil.copytree(plain, tmp_path / "project")), list[str]()

    def spy(folder: Path, made_from: dict[str, Any], make: Make) -> Tokens:
        def counted(counts: Counter[str]) -> Iterable[Rendered]:
            made.append(made_from["answers"])
            return make(counts)

        return cached_tokens(folder, made_from, counted)

    monkeypatch.setattr("prefloop.stages.cached_tokens", spy)
    settings = (*RANKED, 'algorithms=["dpo"]', "dpo.batch_size=8")
    assert run(tiny(*settings, "reward.epochs=2.0"), project).ran == ["reward", "dpo", "evaluation"]
    assert made == []
    kept = contents(project)
    for stage in ("reward", "dpo"):
        shutil.rmtree(project / "runs" / "tiny" / stage)
    shutil.rmtree(project / "cache")
    assert run(tiny(*settings, "reward.epochs=2.0"), project).ran == ["reward", "dpo"]
    assert len(made) == len(set(made)) == 2, "training and held-out ones, for both stages"
    assert contents(project) == kept


def test_judged_answers_are_tokenised_anew_for_another_limit_or_tokenizer(tmp_path: Path) -> None:
    made: list[int] = []

    def make(_: Counter[str]) -> Iterator[Rendered]:
        made.append(1)
        yield Rendered([1], [True])

    def keep(limit: int, texts: tuple[str, ...], template: str | None = None) -> int:
        context: Any = SimpleNamespace(tokens=tmp_path, recipe=tiny(f"data.max_prompt_tokens={limit}"))
        policy: Any = SimpleNamespace(tokenizer=byte_tokenizer(template=template))
        _kept_answers(context, policy, Asked(1, content_id_of([(Prompt.of("q").id, texts)])), make)
        return len(made)

    assert [keep(100, ("a", "b")), keep(100, ("a", "b"))] == [1, 1]
    assert [keep(50, ("a", "b")), keep(100, ("a", "c")), keep(100, ("a", "b"), CHATML)] == [2, 3, 4]


def test_how_many_prompts_were_cut_is_told_again(tmp_path: Path) -> None:
    notes = list[str]()

    def make(counts: Counter[str]) -> Iterator[Rendered]:
        counts["cut"] += 3
        yield Rendered([1, 2], [False, True])

    recipe = tiny("data.max_prompt_tokens=40")
    context: Any = SimpleNamespace(tokens=tmp_path, recipe=recipe, note=notes.append)
    policy: Any = SimpleNamespace(tokenizer=byte_tokenizer())
    for _ in range(2):
        kept = _kept_answers(context, policy, Asked(5, "these"), make)
        assert (list(kept.response_tokens), kept.cut) == ([1], 3)
    assert notes == ["3 of 5 prompts were cut to 40 tokens."] * 2


@pytest.mark.parametrize(
    "settings",
    [
        ("reward.criteria={kind = 1.0, overall = 0.5}", "reward.margin=0.5", 'algorithms=["dpo"]', "seed=3"),
        ("reward.loss=plackett-luce", "data.max_response_tokens=8", 'algorithms=["kto"]', "kto.batch_size=8"),
    ],
)
def test_comparisons_that_stay_on_disk_train_the_same_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...]
) -> None:
    """To the bit, with the same metrics and notes, the first time and when everything is kept already."""
    found = []
    settings = (*settings, "judge.fraction=0.3", "precision=float32")
    judged_by(tmp_path, kind=True)
    for eager in (False, False, True):
        if eager:
            monkeypatch.setattr("prefloop.stages.Frozen", EagerSnapshot)
            monkeypatch.setattr("prefloop.stages.encode_criteria", eager_groups)
        recorder, folder = run(from_store(*settings), tmp_path), tmp_path / "runs" / "tiny"
        stages = [name for name in recorder.ran if name in ("reward", "judge", "dpo", "kto")]
        assert len(stages) == 3
        lines = {name: _without_seconds(read_lines(folder / name / "metrics.jsonl")) for name in stages}
        notes = [note for note in recorder.notes if "judged answers" in note]
        found.append((contents(tmp_path), lines, figures(tmp_path), notes))
        for name in stages:
            shutil.rmtree(folder / name)
    assert found[0] == found[1] == found[2]
    assert bool(found[0][-1]) == ("data.max_response_tokens=8" in settings)


def _without_seconds(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def judged_by(folder: Path, **others: bool) -> None:
    """Dialogues judged "overall" by their file; by other criteria as well, the same way or the other way round."""
    with Store.open(folder / "feedback.db") as store:
        import_file(store, dialogues(folder / "dialogues.jsonl"))
        for criterion, same in others.items():
            store.add(
                Judgement(
                    **{
                        **judgement.model_dump(),
                        "id": f"{judgement.id}-{criterion}",
                        "criterion": criterion,
                        "ranks": judgement.ranks if same else judgement.ranks[::-1],
                        "annotator": "ann",
                        "source": "human",
                    }
                )
                for judgement in list(store.judgements("overall"))
                if criterion == "kind" or int(judgement.id, 16) % 2
            )


CRITERIA = ("reward.criteria={kind = 1.0, short = 0.5}", "judge.fraction=0.3", 'algorithms=["ppo", "dpo"]')


def test_a_run_with_two_criteria(tmp_path: Path) -> None:
    judged_by(tmp_path, kind=True, short=False)
    options = (*CRITERIA, "reward.epochs=4.0")
    recorder = run(from_store(*options), tmp_path)
    assert recorder.ran == ["pretrain", "sft", "label", "reward", "judge", "ppo", "dpo", "evaluation"]
    folder = tmp_path / "runs" / "tiny"
    frozen = {path.name: read_snapshot(path) for path in (folder / "label").glob("*.jsonl")}
    names = {"snapshot.jsonl": "overall", "snapshot-kind.jsonl": "kind", "snapshot-short.jsonl": "short"}
    assert {name: one.criterion for name, one in frozen.items()} == names
    manifest = read_json(folder / "label" / "manifest.json")
    assert manifest["judgements"] == sum(len(one.judgements) for one in frozen.values())
    for stage in ("reward", "judge"):
        model = load_reward_model(folder / stage / "model")
        assert model.criteria == ("kind", "short")
        found = read_json(folder / stage / "evaluation.json")
        assert set(keys(found)) - {"kind", "short"} <= DOCUMENTED
        assert found["pairs"] == sum(part["pairs"] for part in found["criteria"].values())
        assert read_json(folder / stage / "manifest.json")["snapshot"] == manifest["snapshot"]
        assert found["criteria"]["kind"]["pairs"] > found["criteria"]["short"]["pairs"] > 0
    assert "Held-out pairs" in (folder / "report.html").read_text(encoding="utf-8")
    assert run(from_store(*options), tmp_path).ran == []
    assert run(from_store(*options, "reward.criteria.short=0.25"), tmp_path).ran == [
        "reward",
        "judge",
        "ppo",
        "evaluation",
    ]


def test_new_judgements_by_any_criterion_are_noticed(tmp_path: Path) -> None:
    judged_by(tmp_path, kind=True)
    options = ("reward.criteria={kind = 1.0}", 'algorithms=["ppo"]', "judge.fraction=0.3")
    run(from_store(*options), tmp_path)
    with Store.open(tmp_path / "feedback.db") as store:
        first = next(iter(store.judgements("kind")))
        store.add([first.model_copy(update={"id": "more", "annotator": "else"})])
    assert run(from_store(*options), tmp_path).ran == ["label", "reward", "judge", "ppo", "evaluation"]
    with pytest.raises(
        ValueError, match=r"no judgements by the criterion 'rude' \(data.criterion, reward.criteria\)"
    ):
        run(from_store(*options, "reward.criteria.rude=1.0"), tmp_path)


def test_a_single_criterion_by_name_is_learnt_like_the_runs_own(tmp_path: Path) -> None:
    """The same judgements under another name give the same weights."""
    judged_by(tmp_path, kind=True)
    found: list[Any] = []
    for options in (("reward.criteria={kind = 1.0}",), ()):
        run(from_store(*options, 'algorithms=["ppo"]', "judge.fraction=0.3", "ppo.iterations=1"), tmp_path)
        found.append(_member(tmp_path / "runs" / "tiny"))
    assert found[0] == found[1]


# Votes by reliability


def test_a_run_weights_votes_by_reliability(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights are in the label stage's folder, and the reward model and DPO learn from votes that have them."""
    settings = ("label.overlap=5", "label.weights=reliability", "sample.prompts=60", 'algorithms=["dpo"]')
    seen: list[Sequence[Comparison]] = []

    def spy(recipe: Recipe, found: Sequence[Comparison]) -> Any:
        seen.append(found)
        return judged_pairs(recipe, found)

    monkeypatch.setattr("prefloop.stages.judged_pairs", spy)
    run(tiny(*settings), tmp_path)
    label = tmp_path / "runs" / "tiny" / "label"
    annotators = read_json(label / "annotators.json")["overall"]
    told = sections("run-folder.md")["`label/annotators.json`"]
    assert set(keys(next(iter(annotators.values())))) <= code(told) | code(sections("run-folder.md")[""])
    frozen = read_snapshot(label / "snapshot.jsonl")
    cast = Counter(judgement.annotator for judgement in frozen.judgements)
    assert annotators.keys() == cast.keys() == {annotator.name for annotator in PANEL}
    weights = {name: one["weight"] for name, one in annotators.items()}
    assert len(set(weights.values())) > 1
    assert sum(weights[name] * n for name, n in cast.items()) == pytest.approx(cast.total(), rel=0.05)
    assert len(seen) == 2  # for the reward model, which measures, and for DPO
    for found in seen:
        assert [*found] == frozen.comparisons(weights) != frozen.comparisons()


def test_by_default_everybody_weighs_the_same(plain: Path) -> None:
    assert not list(plain.glob("runs/*/label/annotators.json"))
