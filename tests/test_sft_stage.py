"""The supervised stage: its demonstrations are tokenised once, and nobody can tell from the result."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.runs import MODEL
from tests.toys import CHATML, byte_tokenizer, llama

from prefloop import stages
from prefloop.chat import Chat, Rendered
from prefloop.context import Context
from prefloop.dataset import _uniform, prepare
from prefloop.feedback.records import Demonstration, Message, Prompt
from prefloop.feedback.store import Store
from prefloop.policy import Policy
from prefloop.recipes import make_recipe
from prefloop.runs import StageWriter, file_hash, read_lines
from prefloop.tokens import Make

COUNT = 60


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Conversations of one or two questions, and a model to start from."""
    save(tmp_path)
    with Store.open(tmp_path / "feedback.db") as store:
        show(store, (conversation(i) for i in range(COUNT)))
    return tmp_path


def save(project: Path, template: str | None = None) -> None:
    shutil.rmtree(project / "base", ignore_errors=True)
    tokenizer = byte_tokenizer(template=template)
    Policy(llama(len(tokenizer), max_position_embeddings=256), tokenizer).save(project / "base")


def conversation(number: int) -> Prompt:
    asked = [Message(role="user", content=f"What about {number}?\nAnd why?")]
    if number % 2:
        asked = [Message(role="user", content="Hi."), Message(role="assistant", content="Hello."), *asked]
    return Prompt(messages=tuple(asked))


def show(store: Store, prompts: Any) -> None:
    for prompt in prompts:
        text = f"About {prompt.text[11:13]}. " * (1 + int(prompt.id, 16) % 4)
        store.add([prompt, Demonstration(prompt_id=prompt.id, text=text, origin="me")])


@dataclass
class Result:
    weights: str
    lines: list[dict[str, float]]
    notes: list[str]
    rendered: int = field(compare=False)
    """How many answers were tokenised."""


def trained(project: Path, *settings: str) -> Result:
    table = {**MODEL, "model": {"path": str(project / "base")}, "sft": {"batch_size": 8, "epochs": 2.0}}
    recipe = make_recipe(table, ["data.heldout_fraction=0.3", *settings])
    folder = project / "runs" / recipe.name / "sft"
    folder.mkdir(parents=True, exist_ok=True)
    notes: list[str] = []
    with Store.open(project / "feedback.db") as store, pytest.MonkeyPatch.context() as patch:
        calls = Counter[str]()
        answered = Chat.answered

        def spy(chat: Chat, prompt: Prompt, answer: str) -> Rendered:
            calls["answered"] += 1
            return answered(chat, prompt, answer)

        patch.setattr(Chat, "answered", spy)
        context = Context(recipe, folder.parent, prepare(recipe, store, project), store, note=notes.append)
        stages.sft(context, StageWriter(folder))
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in read_lines(folder / "metrics.jsonl")]
    return Result(file_hash(folder / "model" / "model.safetensors"), lines, notes, calls["answered"])


class Listed(list[Rendered]):
    """As it was without a cache: a list, made anew each time."""

    def __init__(self, _folder: Path, _made_from: Any, make: Make) -> None:
        self.counts = Counter[str]()
        super().__init__(make(self.counts))


CUT = ("data.max_prompt_tokens=40", "data.max_response_tokens=25")


@pytest.mark.parametrize("settings", [(), ("sft.loss_on=all",), CUT, ("seed=3", "sft.micro_batch_tokens=256")])
def test_what_is_kept_trains_the_same_model_to_the_bit(
    project: Path, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...]
) -> None:
    first, second = (trained(project, *settings) for _ in range(2))
    monkeypatch.setattr(stages, "cached_tokens", Listed)
    without = trained(project, *settings)
    assert first == second == without
    assert (first.rendered, second.rendered, without.rendered) == (COUNT, 0, COUNT)
    assert "eval_loss" in first.lines[-1]


def test_another_run_finds_what_is_kept(project: Path) -> None:
    first = trained(project)
    other = trained(project, "name=other", "sft.learning_rate=0.01", "seed=1", "sft.epochs=1.0")
    assert other.rendered == 0
    assert other.weights != first.weights


def test_a_run_that_tokenises_nothing_says_what_was_cut_and_left_out(project: Path) -> None:
    first, second = (trained(project, *CUT) for _ in range(2))
    assert first.notes == second.notes
    assert second.rendered == 0
    told = " ".join(second.notes)
    assert "prompts were cut to 40 tokens" in told
    assert "demonstrations are longer than 25 tokens and were left out" in told


@pytest.mark.parametrize(
    "setting",
    ["data.max_prompt_tokens=40", "data.max_response_tokens=25", "sft.loss_on=all", "data.heldout_fraction=0.5"],
)
def test_other_limits_are_tokenised_anew(project: Path, setting: str) -> None:
    first, changed = trained(project), trained(project, setting)
    assert changed.rendered == COUNT
    assert changed.lines != first.lines
    assert trained(project) == first


def test_other_data_and_another_tokenizer_are_tokenised_anew(project: Path) -> None:
    trained(project)
    with Store.open(project / "feedback.db") as store:
        show(store, [conversation(COUNT)])
    grown = trained(project)
    save(project, CHATML)
    other = trained(project)
    save(project)
    again = trained(project)
    assert (grown.rendered, other.rendered, again.rendered) == (COUNT + 1, COUNT + 1, 0)
    assert grown == again
    assert grown.lines != other.lines


def test_parts_that_are_the_same_end_to_end_are_told_apart(tmp_path: Path) -> None:
    """Another share is held out, and yet the one hash of all demonstrations is the same."""
    save(tmp_path)
    prompts = sorted(map(conversation, range(40)), key=lambda prompt: -_uniform(prompt.id, "heldout"))
    with Store.open(tmp_path / "feedback.db") as store:
        show(store, prompts)
        shares = ("data.heldout_fraction=0.3", "data.heldout_fraction=0.6")
        hashes = {prepare(make_recipe({}, [share]), store, tmp_path).demonstrations_hash for share in shares}
    assert len(hashes) == 1
    found = [trained(tmp_path, share) for share in shares]
    assert [one.rendered for one in found] == [40, 40]
    assert found[0].lines[-1]["tokens"] > found[1].lines[-1]["tokens"]


def test_what_is_damaged_is_tokenised_anew(project: Path) -> None:
    first = trained(project)
    for path in project.glob("cache/tokens/*/tokens.uint32"):
        path.write_bytes(path.read_bytes()[:-4])
    second = trained(project)
    assert (second, second.rendered) == (first, COUNT)
