"""What single commands do apart from a run: sample for people, compare two policies, look at masks, talk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from rich.text import Text

from prefloop.chat import Chat, Rendered
from prefloop.config import DataConfig
from prefloop.console import printable
from prefloop.context import Context
from prefloop.dataset import place, prepare
from prefloop.feedback.assignment import Queue
from prefloop.feedback.formats import read_file, write_sheet
from prefloop.feedback.people import user_name
from prefloop.feedback.records import Completion, Demonstration, Message, Prompt, content_id
from prefloop.feedback.store import AnyRecord, Store
from prefloop.feedback.tasks import Batch, Item
from prefloop.judging import answers_of, choose_judge, judged
from prefloop.labelling import priorities
from prefloop.models.loading import load_reward_model, load_tokenizer
from prefloop.policy import Policy, load_policy
from prefloop.recipes import Recipe
from prefloop.rollout.sampler import sample
from prefloop.runs import folder_hash
from prefloop.seeds import derive


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn for people to judge, and how people are asked."""

    prompts: int
    answers: int
    """K: answers to each prompt."""
    temperature: float
    max_response_tokens: int
    seed: int
    overlap: int = 1
    target: int | None = None
    """Votes that are enough; None: all."""
    reward_model: str = ""
    """Decides which pairs teach most, and come first."""


SAMPLED = "sample"
"""The batch that `prefloop sample` fills."""


@dataclass(frozen=True)
class Sampled:
    """What came of filling the queue."""

    added: int
    """Prompts that wait for judgement now and did not before."""
    done: int
    target: int | None


def sample_to_queue(model: str, store: Store, recipe: Recipe, how: Sampling, sheet: Path | None = None) -> Sampled:
    """Answer training prompts with a policy, keep the answers, and put them into the queue; or write a judging sheet.

    Nothing is sampled when the target is reached already.
    """
    if sheet is not None:
        _check_sheet(sheet)
    else:
        reward = load_reward_model(how.reward_model) if how.reward_model else None
        batch = _open_batch(store, recipe, how)
        if batch.target is not None and batch.done >= batch.target:
            return Sampled(0, batch.done, batch.target)
    items = _sample(model, store, recipe.data, how)
    if sheet is not None:
        rows = write_sheet(sheet, items, annotator=user_name(), criterion=recipe.data.criterion)
        return Sampled(rows, 0, None)
    found = [0.0] * len(items)
    if reward is not None:
        found = priorities(reward, items, recipe.data.max_prompt_tokens)
    added = Queue(store).add_items(
        SAMPLED,
        [
            Item(prompt.id, tuple(answer.id for answer in answers), priority)
            for (prompt, answers), priority in zip(items, found, strict=True)
        ],
    )
    return Sampled(added, batch.done, batch.target)


def _check_sheet(sheet: Path) -> None:
    if sheet.exists():
        raise ValueError(f"{sheet} is there already and may hold judgements; name another with --sheet")
    if not sheet.resolve().parent.is_dir():
        raise ValueError(f"{sheet}: there is no folder {sheet.parent}; make it or name another with --sheet")


def _open_batch(store: Store, recipe: Recipe, how: Sampling) -> Batch:
    queue = Queue(store)
    before = next((batch for batch in queue.batches() if batch.name == SAMPLED), None)
    kept = {"gold_share": before.gold_share, "lease_seconds": before.lease_seconds} if before else {}
    return queue.open_batch(
        SAMPLED,
        criteria=tuple(dict.fromkeys((recipe.data.criterion, *recipe.criteria))),
        overlap=how.overlap,
        target=how.target,
        control_share=recipe.label.control_share,
        **kept,  # type: ignore[arg-type]
    )


def _sample(model: str, store: Store, data: DataConfig, how: Sampling) -> list[tuple[Prompt, list[Completion]]]:
    """Prompts with two or more different answers, which are in the store then."""
    chosen = _next_prompts(store, data, how.prompts)
    policy = load_policy(model)
    room = policy.context - how.max_response_tokens
    if room < 1:
        raise ValueError(
            f"max_response_tokens = {how.max_response_tokens} leaves no room for a prompt; the model reads "
            f"{policy.context} tokens in all"
        )
    rollout = sample(
        policy.model,
        [policy.chat.fitted_prompt_ids(prompt, room)[0] for prompt in chosen],
        eos_id=policy.chat.eos_id,
        max_response_tokens=how.max_response_tokens,
        temperature=how.temperature,
        seed=derive(how.seed, "sample"),
        answers=how.answers,
    )
    origin = f"{model}@{folder_hash(Path(model))}" if Path(model).is_dir() else model
    settings = {
        "temperature": how.temperature,
        "max_response_tokens": how.max_response_tokens,
        "seed": how.seed,
    }
    items: list[tuple[Prompt, list[Completion]]] = []
    for index, prompt in enumerate(chosen):
        texts = {policy.chat.text(rollout.responses[index * how.answers + k]): k for k in range(how.answers)}
        made = [
            Completion(
                prompt_id=prompt.id,
                text=text,
                origin=origin,
                metadata={**settings, "sample": k},
            )
            for text, k in texts.items()
        ]
        if len(made) > 1:
            items.append((prompt, made))
    store.add(completion for _, made in items for completion in made)
    return items


def _next_prompts(store: Store, data: DataConfig, count: int) -> list[Prompt]:
    """Training prompts, those with the fewest answers so far first, else in an order by hash."""
    answered = Counter(completion.prompt_id for completion in store.completions())
    training = [prompt for prompt in store.prompts() if place(prompt, data.heldout_fraction) == "train"]
    if not training:
        raise ValueError("the store has no training prompts. Import some first (`prefloop import FILE`)")
    return sorted(training, key=lambda prompt: (answered[prompt.id], content_id("order", prompt.id)))[:count]


def evaluate_pair(
    recipe: Recipe, project: Path, folder: Path, after: str, before: str, judge: str
) -> list[dict[str, Any]]:
    """Compare two policies on the recipe's held-out prompts; KL is taken to ``before``."""
    policies = [load_policy(path) for path in (after, before)]
    if policies[0].tokenizer.get_vocab() != policies[1].tokenizer.get_vocab():
        raise ValueError(f"{after} and {before} have different tokenizers, so there is no KL between them")
    needed = recipe.data.max_prompt_tokens + recipe.evaluate.max_response_tokens
    context = min(policy.context for policy in policies)
    if needed > context:
        raise ValueError(
            f"the models read at most {context} tokens; data.max_prompt_tokens and evaluate.max_response_tokens "
            f"together need {needed}. Lower one of them"
        )
    with Store.of_project(project, create=False) as store:
        data = prepare(recipe, store, folder)
        run = Context(recipe, project / "runs" / recipe.name, data, store)
        referee = choose_judge(run, judge)
        prompts = list(data.heldout[: recipe.evaluate.prompts])
        new, old = (answers_of(run, policy, policies[1], prompts, referee.scores, None) for policy in policies)
    report, _ = judged(after, new, before, old, prompts, referee)
    return [report]


def coloured_examples(model: str, file: Path | None, count: int, loss_on: Literal["all", "last"]) -> Iterator[Text]:
    """Conversations token by token: green is trained on, grey is context."""
    chat = Chat(load_tokenizer(model))
    records: Iterable[AnyRecord]
    if file is not None:
        records = read_file(file)
    else:
        with Store.of_project(Path.cwd(), create=False) as store:
            records = [*store.prompts(), *store.demonstrations(), *store.completions()]
    yield Text.assemble("Green is trained on, grey is context. ", ("▁ marks a space, ⏎ a new line.", "dim"))
    yield from (coloured(chat, chat.render(turns, loss_on)) for turns in islice(_conversations(records), count))


def coloured(chat: Chat, rendered: Rendered) -> Text:
    """One rendered sequence for a terminal; tokens are told apart by underlining every second one."""
    text = Text()
    for index, (token, trained) in enumerate(zip(rendered.ids, rendered.mask, strict=True)):
        shown = printable(chat.tokenizer.decode([token]).replace(" ", "▁").replace("\n", "⏎\n"))
        style = "green" if trained else "bright_black"
        text.append(shown, style=f"{style} underline" if index % 2 else style)
    tokens = f"\n{len(rendered)} tokens, {rendered.response_tokens} trained on\n"
    return text.append(tokens, style="dim")


def converse(
    policy: Policy, temperature: float, max_response_tokens: int, seed: int, single: bool
) -> Generator[str, str, None]:
    """A conversation: send it what the person says, and it yields the answer (and an empty string to begin)."""
    messages: list[Message] = []
    turn = 0
    longest = min(max_response_tokens, policy.context // 2)  # the other half is for what was said
    while True:
        said = yield ""
        messages = [*([] if single else messages), Message(role="user", content=said)]
        _, prompt = policy.chat.fitted_prompt_ids(Prompt(messages=tuple(messages)), policy.context - longest)
        answer = policy.generate(
            prompt, max_response_tokens=longest, temperature=temperature, seed=derive(seed, turn)
        )
        messages, turn = [*messages, Message(role="assistant", content=answer)], turn + 1
        yield answer


def _conversations(records: Iterable[AnyRecord]) -> Iterator[Sequence[Message]]:
    """Prompts with each of their answers."""
    prompts: dict[str, Prompt] = {}
    for record in records:
        if isinstance(record, Prompt):
            prompts[record.id] = record
        elif isinstance(record, Demonstration | Completion):
            yield [*prompts[record.prompt_id].messages, Message(role="assistant", content=record.text)]
