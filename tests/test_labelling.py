"""The label stage asks people: what a run waits for, goes on with, and asks again."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from tests.eager import eager_judged, eager_weighed
from tests.feedback.queues import Clock, fill, send
from tests.feedback.test_freezing import everything
from tests.runs import Recorder, dialogues, from_store, run, tiny
from tests.toys import judge_some

from prefloop import labelling, pipeline
from prefloop.context import Context
from prefloop.dataset import Dataset, part_of
from prefloop.feedback import assignment
from prefloop.feedback.aggregate import read_snapshot
from prefloop.feedback.assignment import Queue
from prefloop.feedback.records import CANNOT_JUDGE, Completion, Prompt, content_id, dense_ranks
from prefloop.feedback.store import Store
from prefloop.feedback.tasks import Submission, Verdict
from prefloop.labelling import WaitingForPeopleError
from prefloop.runs import StageWriter, read_json
from prefloop.training.loop import Metrics


def test_a_run_waits_for_people_and_goes_on_with_what_they_said(tmp_path: Path) -> None:
    """Nor do the judgements come back as demonstrations or text, so that the run would begin anew."""
    dialogues(tmp_path / "dialogues.jsonl")
    recipe = from_store("label.by=human", "label.minimum=20", "judge.fraction=0.5")
    with pytest.raises(WaitingForPeopleError) as waiting:
        run(recipe, tmp_path)
    folder = tmp_path / "runs" / "tiny"
    told = str(waiting.value)
    assert "(0 of 20 votes so far)" in told
    assert f"In {tmp_path}: prefloop label\n" in told
    assert "give the command that brought you here once more" in told
    assert (folder / "sample").is_dir()
    assert not (folder / "label").exists()

    with Store.of_project(tmp_path) as store:
        assert judge_some(store, 3) == 3
        assert judge_some(store, 2, "could not", flags=(CANNOT_JUDGE,)) == 2
    with pytest.raises(WaitingForPeopleError, match="3 of 20 votes so far"):
        run(recipe, tmp_path)

    with Store.of_project(tmp_path) as store:
        assert judge_some(store, 99) == 17, "what could not be judged is asked beyond; what is enough is enough"
    recorder = run(recipe, tmp_path)
    assert recorder.kept == ["pretrain", "sft", "sample"]
    assert recorder.ran == ["label", "reward", "judge", "ppo", "dpo", "evaluation"]
    assert read_json(folder / "label" / "manifest.json")["judgements"] == 22
    assert run(recipe, tmp_path).ran == []
    with Store.of_project(tmp_path) as store:
        assert judge_some(store, 1) == 0, "the batch is closed"

    more = from_store("label.by=human", "label.minimum=22", "judge.fraction=0.5")
    with pytest.raises(WaitingForPeopleError, match="20 of 22 votes"):
        run(more, tmp_path)
    with Store.of_project(tmp_path) as store:
        assert judge_some(store, 99) == 2
    assert run(more, tmp_path).ran == ["label", "reward", "judge", "ppo", "dpo", "evaluation"]


def test_a_run_that_waits_goes_on_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelling, "POLL_SECONDS", 0.01)
    dialogues(tmp_path / "dialogues.jsonl")
    recipe = from_store("label.by=human", "label.minimum=12", "judge.fraction=0.2", 'algorithms=["dpo"]')
    recorder = Recorder()
    shown: list[float] = []

    def line(stage: str, metrics: Metrics) -> None:
        """Somebody who judges three more whenever the run tells how far it is."""
        if stage == "label":
            shown.append(metrics["votes"])
            with Store.of_project(tmp_path) as store:
                assert judge_some(store, 3) == min(3, metrics["wanted"] - metrics["votes"])

    monkeypatch.setattr(recorder, "line", line)
    pipeline.run(recipe, tmp_path, listener=recorder, wait=True)
    assert shown[:5] == [0, 3, 6, 9, 12], "the votes were shown as they came in"
    assert sum("prefloop label" in note for note in recorder.notes) == 1
    assert recorder.ran[-1] == "evaluation"
    assert run(recipe, tmp_path).ran == [], "nothing is done again because people were waited for"


def test_an_edit_while_judging_does_not_begin_the_run_anew(tmp_path: Path) -> None:
    """Nor does gold that came into the store: neither is among what this run learns from."""
    dialogues(tmp_path / "dialogues.jsonl")
    gold = {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}
    (tmp_path / "gold.jsonl").write_text(json.dumps(gold) + "\n", encoding="utf-8")
    recipe = from_store(
        *("label.by=human", "label.minimum=20", "judge.fraction=0.5", "label.gold=gold.jsonl"),
        'algorithms=["dpo"]',
    )
    with pytest.raises(WaitingForPeopleError):
        run(recipe, tmp_path)
    with Store.of_project(tmp_path) as store:
        queue = Queue(store)
        task = queue.next("mia")
        assert task is not None
        verdicts = (Verdict("overall", tuple(range(1, len(task.shown) + 1))),)
        queue.submit("mia", task.id, Submission("edited", verdicts, demonstration=(0, "Better so.")))
        assert "Better so." in {one.text for one in store.demonstrations()}
        judge_some(store, 99)
    recorder = run(recipe, tmp_path)
    assert recorder.kept == ["pretrain", "sft", "sample"]
    assert run(recipe, tmp_path).ran == []


def test_people_are_asked_until_each_part_has_a_vote(tmp_path: Path) -> None:
    """Which prompts are asked about first is chance; without a comparison set aside for it there is no judge."""
    dialogues(tmp_path / "dialogues.jsonl")
    recipe = from_store("label.by=human", "label.minimum=1", "judge.fraction=0.2", 'algorithms=["dpo"]')
    parts: set[str] = set()
    for _ in range(100):
        with suppress(WaitingForPeopleError):
            run(recipe, tmp_path)
            break
        assert parts != {"train", "heldout", "judge"}
        with Store.of_project(tmp_path) as store:
            assert judge_some(store, 1) == 1
            judged = {one.prompt_id for one in store.judgements() if one.source == "human"}
            parts = {part_of(recipe, prompt) for prompt in store.prompts(ids=judged)}
    assert parts == {"train", "heldout", "judge"}


def test_a_run_says_so_when_there_is_nothing_left_to_ask(tmp_path: Path) -> None:
    dialogues(tmp_path / "dialogues.jsonl")
    recipe = from_store("label.by=human", "label.minimum=20", "judge.fraction=0.5", 'algorithms=["dpo"]')
    with pytest.raises(WaitingForPeopleError):
        run(recipe, tmp_path)
    with Store.of_project(tmp_path) as store:
        assert judge_some(store, 99, "could not", flags=(CANNOT_JUDGE,)) == 20
    for _ in range(2):  # a batch's target is met, and raised by what is missing
        with suppress(WaitingForPeopleError, ValueError):
            run(recipe, tmp_path)
        with Store.of_project(tmp_path) as store:
            judge_some(store, 99, "could not", flags=(CANNOT_JUDGE,))
    with pytest.raises(ValueError, match="every answer has been judged, and 20 votes are missing"):
        run(recipe, tmp_path)


def test_another_criterion_is_asked_about_in_another_batch(project: Path) -> None:
    human = ("label.by=human", "label.minimum=20", 'algorithms=["dpo"]')
    with pytest.raises(WaitingForPeopleError):
        run(tiny(*human), project)
    with Store.of_project(project) as store:
        assert judge_some(store, 99) == 20
    more = (*human, "reward.criteria={overall = 1.0, tone = 0.5}")
    with pytest.raises(WaitingForPeopleError, match="0 of 20"):
        run(tiny(*more), project)
    with Store.of_project(project) as store:
        assert [batch.closed for batch in Queue(store).batches()] == [True, False]
        assert judge_some(store, 99) == 20
    assert "label" in run(tiny(*more), project).ran


def test_a_gold_file_that_tests_nobody_is_found_at_once(project: Path) -> None:
    (project / "gold.jsonl").write_text('{"prompt": "Hi", "response": "Hello"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"label.gold: .*gold.jsonl has no comparisons"):
        run(tiny("label.by=human", "label.gold=gold.jsonl"), project)


def test_other_answers_are_another_batch(project: Path) -> None:
    human = ("label.by=human", "label.minimum=20")
    for settings in (human, (*human, "sample.temperature=0.8")):
        with pytest.raises(WaitingForPeopleError):
            run(tiny(*settings), project)
    with Store.of_project(project) as store:
        names = [batch.name for batch in Queue(store).batches()]
    assert len(set(names)) == 2
    assert all(name.startswith("tiny/") for name in names)


def test_more_votes_than_there_can_be(project: Path) -> None:
    with pytest.raises(
        ValueError, match=r"label.minimum = 1000 cannot be reached: \d+ prompts .* raise sample.prompts"
    ):
        run(tiny("label.by=human", "label.minimum=1000"), project)


def test_people_are_asked_by_each_criterion_and_tested_with_gold(project: Path) -> None:
    gold = project / "gold.jsonl"
    gold.write_text(json.dumps({"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}) + "\n", encoding="utf-8")
    recipe = tiny(
        *("label.by=human", "label.minimum=20", "label.gold=gold.jsonl", "label.gold_share=0.9"),
        *("reward.criteria={overall = 1.0, tone = 0.5}", 'algorithms=["dpo"]'),
    )
    with pytest.raises(WaitingForPeopleError):
        run(recipe, project)
    with Store.of_project(project) as store:
        before = store.counts()
        queue = Queue(store)
        assert queue.batches()[0].criteria == ("overall", "tone")
        asked = judge_some(store, 99)
        assert asked == 21, "twenty votes, and one about gold"
        assert store.counts().judgements - before.judgements == 2 * asked
        (right,) = queue.gold_ranks().values()
        assert sorted(right) == [1, 2]
    assert "label" in run(recipe, project).ran
    criteria = {path.name for path in (project / "runs" / "tiny" / "label").glob("*.jsonl")}
    assert criteria == {"snapshot.jsonl", "snapshot-tone.jsonl"}
    frozen = read_snapshot(project / "runs" / "tiny" / "label" / "snapshot.jsonl")
    assert len(frozen.judgements) == 20, "gold teaches nobody"


# With every judgement in memory, and without


def asked_people(store: Store, seed: int) -> list[tuple[Prompt, list[Completion]]]:
    """People judge sampled answers and are tested with gold; some are good at it. The answers."""
    draw = random.Random(seed)
    queue = Queue(store, Clock())
    gold, own = fill(store, 12, 2), fill(store, 30, 3, first=12)
    queue.open_batch("a", criteria=("overall", "tone"), overlap=3, gold_share=0.3, control_share=0.0)
    queue.add_items("a", [replace(item, gold=(1, 2)) for item in gold])
    queue.add_items("a", own)
    answers = [answer for item in (*gold, *own) for answer in item.completions]
    for _ in range(60):
        for annotator, skill in {"ann": 0.95, "bob": 0.8, "Zoë": 0.6}.items():
            if task := queue.next(annotator):
                places = [answers.index(one.id) for one in task.shown]
                liked = [-place if draw.random() < skill else draw.randint(0, 2) for place in places]
                verdicts = tuple(Verdict(one, dense_ranks(liked)) for one in task.criteria)
                flags = (CANNOT_JUDGE,) if draw.random() < 0.1 else ()
                queue.submit(annotator, task.id, Submission(f"{annotator}-{task.number}", verdicts, flags))
    queue.open_batch("b", control_share=0.0, gold_share=0.9)  # somebody who judges none of the answers
    tests, others = fill(store, 3, first=42), fill(store, 3, first=45)
    queue.add_items("b", [*(replace(item, gold=(1, 2)) for item in tests), *others])
    while task := queue.next("guest"):
        send(queue, "guest", task)
    guest = {one.id for one in store.judgements() if one.annotator == "guest"}
    assert guest & queue.gold_ranks().keys()
    told = next(one for one in store.judgements("overall") if one.prompt_id == own[0].prompt_id)
    store.add([told.model_copy(update={"id": "told", "source": "imported"})])
    prompts = {prompt.id: prompt for prompt in store.prompts()}
    return [(prompts[item.prompt_id], [*store.completions([item.prompt_id])]) for item in own]


@pytest.mark.parametrize("by", ["none", "human"])
@pytest.mark.parametrize("seed", range(2))
def test_what_the_stage_leaves_is_what_it_would_with_every_judgement_in_memory(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str, seed: int
) -> None:
    drawn = count()  # what is drawn is the same on every run
    monkeypatch.setattr(assignment.secrets, "token_hex", lambda size: f"{next(drawn):0{2 * size}x}")
    items = asked_people(store, seed)
    given = items if by == "human" else None
    store.add(everything(seed))
    settings = (f"label.by={by}", "label.weights=reliability", "reward.criteria={overall = 1.0, tone = 0.5}")
    context = Context(from_store(*settings), tmp_path, Dataset([], [], [], [], [], []), store)
    context.judged = labelling.judged_so_far(context, given)
    wanted = eager_judged(context, given)
    writer = StageWriter(tmp_path / "label")
    writer.folder.mkdir()
    labelling.label(context, writer)
    weights = read_json(writer.folder / "annotators.json")
    assert weights == {one.criterion: eager_weighed(context, one) for one in wanted}
    assert len({one["weight"] for one in weights["overall"].values()}) == 3 + (by == "none")
    hashes = [one.hash for one in wanted]
    assert [one.hash for one in context.judged] == hashes
    assert writer.extra == {
        "snapshot": content_id("snapshots", hashes),
        "judgements": sum(len(one.judgements) for one in wanted),
    }
    for one, name in zip(wanted, ("snapshot.jsonl", "snapshot-tone.jsonl"), strict=True):
        one.write(tmp_path / name)
        assert (writer.folder / name).read_bytes() == (tmp_path / name).read_bytes()
