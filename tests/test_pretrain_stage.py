"""The stage of pretraining: its text is tokenised once, and nobody can tell from the result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.memory import peak
from tests.runs import MODEL
from tests.training.test_pretrain import plain_blocks

from prefloop import stages
from prefloop.chat import Rendered
from prefloop.context import Context
from prefloop.dataset import prepare
from prefloop.feedback import elsewhere, store
from prefloop.feedback.records import Completion, Demonstration, Prompt
from prefloop.feedback.store import Store
from prefloop.policy import Policy
from prefloop.recipes import make_recipe
from prefloop.runs import StageWriter, folder_hash, read_lines

COUNT = 60
FILE = 'pretrain.files=["a.txt"]'


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Questions with answers of two kinds, and a file."""
    with Store.open(tmp_path / "feedback.db") as opened:
        show(opened, range(COUNT))
    (tmp_path / "a.txt").write_text("What is in a file?\nText 1, text 2. " * 40, encoding="utf-8")
    return tmp_path


def show(opened: Store, numbers: Iterable[int]) -> None:
    asked = [Prompt.of(f"What about {number}?\nAnd why?") for number in numbers]
    given = [Completion(prompt_id=one.id, text=f"About {one.text[11:13]}.", origin="file:x") for one in asked[::2]]
    written = [Demonstration(prompt_id=one.id, text=f"It is {one.id[:5]}.", origin="me") for one in asked[::3]]
    opened.add([*asked, *given, *written])


@dataclass
class Result:
    model: str
    """Hash of the weights and the tokenizer."""
    lines: list[dict[str, float]]
    extra: dict[str, float]
    tokenised: int = field(compare=False)
    """How many documents were."""


def trained(project: Path, *settings: str) -> Result:
    recipe = make_recipe(MODEL, ["data.heldout_fraction=0.3", *settings])
    folder = project / "runs" / recipe.name / "pretrain"
    folder.mkdir(parents=True, exist_ok=True)
    with Store.open(project / "feedback.db") as opened, pytest.MonkeyPatch.context() as patch:
        calls = Counter[str]()
        used = stages.blocks_of

        def spy(policy: Policy, documents: Iterable[str], length: int) -> Iterator[Rendered]:
            documents = list(documents)
            calls["tokenised"] += len(documents)
            return iter(used(policy, documents, length))

        patch.setattr(stages, "blocks_of", spy)
        writer = StageWriter(folder)
        stages.pretrain(Context(recipe, folder.parent, prepare(recipe, opened, project), opened), writer)
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in read_lines(folder / "metrics.jsonl")]
    return Result(folder_hash(folder / "model"), lines, writer.extra, calls["tokenised"])


def listed(_folder: Path, _made_from: Any, make: Any) -> list[Rendered]:
    """As it was without a cache: a list, made anew each time."""
    return list(make(Counter()))


@pytest.mark.parametrize("settings", [(), ("pretrain.block=17",), (FILE,), ("seed=3", "pretrain.weight_decay=0.1")])
def test_what_is_kept_trains_the_same_model_to_the_bit(
    project: Path, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...]
) -> None:
    first, second = (trained(project, *settings) for _ in range(2))
    monkeypatch.setattr(stages, "cached_tokens", listed)
    monkeypatch.setattr(stages, "blocks_of", plain_blocks)
    plain = trained(project, *settings)
    assert first == second == plain
    count = 1 if FILE in settings else COUNT // 2 + COUNT // 3
    assert (first.tokenised, second.tokenised, plain.tokenised) == (count, 0, count)


@pytest.mark.parametrize("settings", [(), (FILE,)])
def test_the_loss_on_heldout_text_is_known_where_there_is_some(project: Path, settings: tuple[str, ...]) -> None:
    result = trained(project, *settings)
    assert ("eval_loss" in result.extra) == ("eval_loss" in result.lines[-1]) == (not settings)


def test_another_run_finds_what_is_kept(project: Path) -> None:
    first = trained(project)
    other = trained(project, "name=other", "pretrain.learning_rate=0.01", "seed=1", "pretrain.tokens=2000")
    assert other.tokenised == 0
    assert other.model != first.model


@pytest.mark.parametrize("setting", ["pretrain.block=32", "model.vocabulary=350", "data.heldout_fraction=0.5", FILE])
def test_other_text_another_tokenizer_and_other_blocks_are_tokenised_anew(project: Path, setting: str) -> None:
    first, changed = trained(project), trained(project, setting)
    assert changed.tokenised > 0
    assert changed.lines != first.lines
    again = trained(project)
    assert (again, again.tokenised) == (first, 0)


def test_the_same_words_in_another_order_are_tokenised_anew(project: Path) -> None:
    """The tokenizer is the same one."""
    (project / "b.txt").write_text("Text 2 is in another file. " * 40, encoding="utf-8")
    found = [trained(project, f"pretrain.files={names}") for names in ('["a.txt", "b.txt"]', '["b.txt", "a.txt"]')]
    assert [one.tokenised for one in found] == [2, 2]
    assert found[0].lines != found[1].lines


def test_text_that_is_added_counts(project: Path) -> None:
    first = trained(project)
    with Store.open(project / "feedback.db") as opened:
        show(opened, range(COUNT, COUNT + 6))
    grown = trained(project)
    assert grown.tokenised == first.tokenised + 5
    assert grown.lines != first.lines


def test_what_is_damaged_is_tokenised_anew(project: Path) -> None:
    first = trained(project)
    for path in project.glob("cache/tokens/*/tokens.uint32"):
        path.write_bytes(path.read_bytes()[:-4])
    second = trained(project)
    assert (second, second.tokenised) == (first, first.tokenised)


def test_memory_hardly_grows_with_the_number_of_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Python and NumPy hold from reading the data to the first step; a memory map is not among it."""
    monkeypatch.setattr(stages, "train_pretrain", lambda *_: {})
    for part in (elsewhere, store):
        monkeypatch.setattr(part, "AT_ONCE", 50)
    peaks = []
    for count in (50, 500, 2000):
        writer = StageWriter(tmp_path / str(count) / "runs" / "run" / "pretrain")
        writer.folder.mkdir(parents=True)
        with Store.open(tmp_path / str(count) / "feedback.db") as opened:
            show(opened, range(count))
            peaks.append(peak(lambda opened=opened, writer=writer: first_step(opened, writer)))
    # 1,250 documents and 1,500 prompts more; the tokens as lists would be 700,000 bytes.
    assert peaks[2] - peaks[1] < 1500 * 150, peaks


def first_step(opened: Store, writer: StageWriter) -> None:
    run = writer.folder.parent
    data = prepare(make_recipe(MODEL), opened, run.parent.parent)
    stages.pretrain(Context(make_recipe(MODEL), run, data, opened), writer)
