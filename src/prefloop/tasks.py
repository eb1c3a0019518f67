"""What single commands do apart from a run: sample for people, compare two policies, look at masks, talk."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from rich.text import Text

from prefloop.chat import Chat, Rendered
from prefloop.config import Recipe
from prefloop.dataset import place, prepare
from prefloop.evaluation.win_rate import compare
from prefloop.feedback.formats import read_file, write_sheet
from prefloop.feedback.records import Completion, Demonstration, Message, Prompt
from prefloop.feedback.store import AnyRecord, Store
from prefloop.models.loading import load_tokenizer
from prefloop.policy import Policy, load_policy
from prefloop.rollout.sampler import sample
from prefloop.seeds import derive
from prefloop.stages import Context, answers_of, choose_judge, user_name


def sample_to_sheet(
    policy: Policy,
    store: Store,
    sheet: Path,
    origin: str,
    prompts: int,
    answers: int,
    temperature: float,
    max_response_tokens: int,
    seed: int,
) -> int:
    """Answer the store's first training prompts, keep the answers, write a judging sheet; returns its rows."""
    if sheet.exists():
        raise ValueError(f"{sheet} is there already and may hold judgements; name another with --sheet")
    chosen = list(islice((p for p in store.prompts() if place(p, 0.1) == "train"), prompts))
    if not chosen:
        raise ValueError("the store has no training prompts. Import some first (`prefloop import FILE`)")
    longest = policy.context - max_response_tokens
    if longest < 1:
        raise ValueError(
            f"max_response_tokens = {max_response_tokens} leaves no room for a prompt; the model reads "
            f"{policy.context} tokens in all"
        )
    rollout = sample(
        policy.model,
        [policy.chat.fitted_prompt_ids(prompt, longest)[0] for prompt in chosen],
        eos_id=policy.chat.eos_id,
        max_response_tokens=max_response_tokens,
        temperature=temperature,
        seed=derive(seed, "sample"),
        answers=answers,
    )
    items: list[tuple[Prompt, list[Completion]]] = []
    for index, prompt in enumerate(chosen):
        texts = {policy.chat.text(rollout.response_ids(index * answers + k)): k for k in range(answers)}
        made = [
            Completion(
                prompt_id=prompt.id,
                text=text,
                origin=origin,
                metadata={"temperature": temperature, "sample": k, "seed": seed},
            )
            for text, k in texts.items()
        ]
        if len(made) > 1:
            items.append((prompt, made))
    store.add(completion for _, made in items for completion in made)
    return write_sheet(sheet, items, annotator=user_name())


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
    with Store.open(project / "feedback.db") as store:
        data = prepare(recipe, store, folder)
        run = Context(recipe, project / "runs" / recipe.name, data, store)
        name, judge_answers = choose_judge(run, judge)
        prompts = data.heldout[: recipe.evaluate.prompts]
        new, old = (answers_of(run, policy, policies[1], prompts, judge_answers, None) for policy in policies)
    report, _ = compare(after, new, before, old, prompts, name)
    return [report]


def coloured_examples(model: str, file: Path | None, count: int, loss_on: Literal["all", "last"]) -> Iterator[Text]:
    """Conversations token by token: green is trained on, grey is context."""
    chat = Chat(load_tokenizer(model))
    records: Iterable[AnyRecord]
    if file is not None:
        records = read_file(file)
    else:
        with Store.open("feedback.db", create=False) as store:
            records = [*store.prompts(), *store.demonstrations(), *store.completions()]
    yield Text.assemble("Green is trained on, grey is context. ", ("▁ marks a space, ⏎ a new line.", "dim"))
    yield from (coloured(chat, chat.render(turns, loss_on)) for turns in islice(_conversations(records), count))


def coloured(chat: Chat, rendered: Rendered) -> Text:
    """One rendered sequence for a terminal; tokens are told apart by underlining every second one."""
    text = Text()
    for index, (token, trained) in enumerate(zip(rendered.ids, rendered.mask, strict=True)):
        shown = chat.tokenizer.decode([token]).replace(" ", "▁").replace("\n", "⏎\n")
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
