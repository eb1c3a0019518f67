"""The only place where messages become token ids and loss masks.

A conversation is rendered piece by piece: what asks (masked out) and what the assistant answered (trained on, its
end-of-sequence token included). Each piece is tokenised by itself, so the ids of a prompt are the same whether an
answer follows or not, and no token straddles the border between the two.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from typing import Any, Literal, NamedTuple

from prefloop.feedback.records import Message, Prompt

# Around the number of a special token that somebody typed; characters for private use.
_QUOTE, _UNQUOTE = "\ue000", "\ue001"

RECENT = 64
"""Pieces whose ids are remembered."""
ROLE_NAMES = {"system": "System", "user": "Human", "assistant": "Assistant"}


@dataclass(frozen=True, slots=True)
class Rendered:
    """One sequence: token ids and, for each, whether it is a response token (trained on, scored)."""

    ids: list[int]
    mask: list[bool]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def response_tokens(self) -> int:
        return sum(self.mask)


class Piece(NamedTuple):
    text: str
    answer: bool
    """Said by the assistant (without the words that announce it)."""


class Chat:
    """Renders conversations for one tokenizer.

    With a chat template, the tokenizer's own; without one, ``\\n\\nHuman: …\\n\\nAssistant: …``, the form of the
    published helpful-and-harmless comparisons.

    Raises:
        ValueError: the tokenizer has no end-of-sequence token, without which no answer can end.
    """

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer.eos_token_id is None:
            raise ValueError(
                f"the tokenizer of {tokenizer.name_or_path or 'this model'} has no eos token, so the model could "
                "never end an answer. Set eos_token in its tokenizer_config.json"
            )
        self.tokenizer = tokenizer
        self.eos_id: int = tokenizer.eos_token_id
        plain, special = tokenizer("a", add_special_tokens=False), tokenizer("a", add_special_tokens=True)
        starts_with_bos = tokenizer.bos_token_id is not None and special["input_ids"][:1] != plain["input_ids"][:1]
        self._prefix: list[int] = [tokenizer.bos_token_id] if starts_with_bos else []
        known = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._special = sorted(known | set(tokenizer.all_special_tokens), key=lambda name: (-len(name), name))
        self._quoted = re.compile(f"{_QUOTE}({'|'.join(map(str, range(len(self._special))))}){_UNQUOTE}")
        # A prompt is wanted once more with each of its answers, and what announces them always.
        self._tokenise = lru_cache(RECENT)(self._tokenised)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The conversation and the words that announce the assistant's answer, as token ids."""
        return self._encode(self._pieces(messages), loss_on="last").ids

    def render(self, messages: Sequence[Message], loss_on: Literal["all", "last"] = "last") -> Rendered:
        """A whole conversation whose last message is the assistant's, with the mask of what is trained on."""
        if messages[-1].role != "assistant":
            raise ValueError(f"the last message must be the assistant's; it is the {messages[-1].role}'s")
        pieces = self._pieces(messages)
        if loss_on == "all" and sum(piece.answer for piece in pieces) < sum(m.role == "assistant" for m in messages):
            raise ValueError(
                "the tokenizer's chat template rewrites earlier turns when a later one is added, so the model cannot "
                'be trained on all of them at once. Use sft.loss_on = "last", or another chat_template'
            )
        return self._encode(pieces, loss_on)

    def answered(self, prompt: Prompt, answer: str) -> Rendered:
        """A prompt and one answer to it; the answer is masked in."""
        return self.render([*prompt.messages, Message(role="assistant", content=answer)])

    def answered_within(self, prompt: Prompt, answer: str, max_tokens: int) -> Rendered:
        """As ``answered``, the prompt cut so that both together have at most ``max_tokens``."""
        rendered = self.answered(prompt, answer)
        if len(rendered) <= max_tokens:
            return rendered
        _, fitted = self.fitted_prompt_ids(prompt, max_tokens - rendered.response_tokens)
        return self.answered(fitted, answer)

    def fitted_prompt_ids(self, prompt: Prompt, max_tokens: int) -> tuple[list[int], Prompt]:
        """Ids of at most ``max_tokens``, and the prompt that they say.

        A longer conversation loses its oldest turns (its system messages stay, and what is left begins with a
        message to the assistant), then the first lines of the message that is left; never half a line.

        Raises:
            ValueError: the last line that says anything is too long, alone or with the system message.
        """
        ids = self.prompt_ids(prompt.messages)
        if len(ids) <= max_tokens:
            return ids, prompt
        count, cut = _cuts(prompt)
        # Each is shorter than the one before it, so the first that fits is found by halves.
        number = bisect_left(range(count), True, key=lambda number: len(self.prompt_ids(cut(number))) <= max_tokens)
        if number == count:
            start = prompt.messages[-1].content[:60].replace("\n", " ")
            least = len(self.prompt_ids(cut(count - 1))) if count else len(ids)
            beside = " beside its system message" if prompt.messages[0].role == "system" else ""
            raise ValueError(
                f"the prompt {start!r}… (id {prompt.id}) needs {least} tokens for its last line{beside}; "
                f"data.max_prompt_tokens allows {max_tokens}. Raise the limit (and model.context with it), or leave "
                "the prompt out of the data"
            )
        kept = Prompt(messages=cut(number), split=prompt.split, metadata=prompt.metadata)
        return self.prompt_ids(kept.messages), kept

    def text(self, response_ids: Sequence[int]) -> str:
        """The text of sampled ids, without special tokens and surrounding space."""
        return str(self.tokenizer.decode(response_ids, skip_special_tokens=True)).strip()

    def _encode(self, pieces: Sequence[Piece], loss_on: Literal["all", "last"]) -> Rendered:
        ids, mask = list(self._prefix), [False] * len(self._prefix)
        for index, (text, answer) in enumerate(pieces):
            piece = self._ids(text)
            trained = answer and (loss_on == "all" or index == len(pieces) - 1)
            if answer and piece[-1:] != [self.eos_id]:
                piece = [*piece, self.eos_id]
            ids += piece
            mask += [trained] * len(piece)
        return Rendered(ids, mask)

    def _ids(self, text: str) -> list[int]:
        """Ids of a piece. Only a template's own words may be special tokens: an eos that somebody typed is text."""
        if not self.tokenizer.chat_template:
            return [*self._tokenise(text, plain=True)]
        ids: list[int] = []
        for index, part in enumerate(self._quoted.split(text)):
            ids += self._tokenise(self._special[int(part)], plain=True) if index % 2 else self._tokenise(part)
        return ids

    def _tokenised(self, text: str, plain: bool = False) -> tuple[int, ...]:
        if not text:
            return ()
        return tuple(self.tokenizer(text, add_special_tokens=False, split_special_tokens=plain)["input_ids"])

    def _quote(self, content: str) -> str:
        """A message with the names of special tokens in it replaced by marks, which ``_ids`` reads as plain text."""
        for number, name in enumerate(self._special):
            content = content.replace(name, f"{_QUOTE}{number}{_UNQUOTE}")
        return content

    def _pieces(self, messages: Sequence[Message]) -> list[Piece]:
        """The conversation cut at the borders of the assistant's answers."""
        if self.tokenizer.chat_template:
            return self._template_pieces(messages)
        return _default_pieces(messages)

    def _template_pieces(self, messages: Sequence[Message]) -> list[Piece]:
        if messages[-1].role != "assistant":
            return self._asked_pieces(messages)
        asked, answer = messages[:-1], messages[-1]
        announced, answered = self._template(asked, announce=True), self._template(messages, announce=False)
        if not answered.startswith(announced):
            raise ValueError(
                "the tokenizer's chat template asks for an answer with words that it does not write before one that "
                f"is there ({_tail(announced)} against {_tail(answered)}), so what the model is to go on from and "
                "what it is trained on would differ. Use another chat_template"
            )
        text = self._until_eos(answered[len(announced) :])
        if _letters(self._quote(answer.content)) not in _letters(text):
            raise ValueError(
                f"the tokenizer's chat template leaves out a part of the answer {answer.content[:60]!r}, so the "
                "model would be trained on another one. Use another chat_template"
            )
        return [*self._asked_pieces(asked), Piece(text, True)]

    def _asked_pieces(self, messages: Sequence[Message]) -> list[Piece]:
        """A conversation up to the words that announce an answer: what longer and longer starts of it add.

        Some templates write an earlier turn otherwise than the last (Qwen3 leaves out its thoughts, Phi-3 its eos).
        Then all of it is one piece, as the template has it, and no earlier answer can be told from what surrounds it.
        """
        whole = self._template(messages, announce=True)
        pieces, done = [], ""
        for index in (index for index, message in enumerate(messages) if message.role == "assistant"):
            announced = self._template(messages[:index], announce=True)
            answered = self._template(messages[: index + 1], announce=False)
            if not (announced.startswith(done) and answered.startswith(announced)):
                return [Piece(whole, False)]
            answer = self._until_eos(answered[len(announced) :])
            pieces += [Piece(announced[len(done) :], False), Piece(answer, True)]
            done = announced + answer
        return [*pieces, Piece(whole[len(done) :], False)] if whole.startswith(done) else [Piece(whole, False)]

    def _until_eos(self, answer: str) -> str:
        """What a template writes after the eos (often a newline) belongs to the next question."""
        before, eos, _ = answer.rpartition(self.tokenizer.eos_token)
        return before + eos if eos else answer

    def _template(self, messages: Sequence[Message], announce: bool) -> str:
        turns = [{"role": message.role, "content": self._quote(message.content)} for message in messages]
        try:
            return str(
                self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=announce)
            ).removeprefix(self.tokenizer.bos_token if self._prefix else "")
        except Exception as error:
            roles = ", ".join(message.role for message in messages)
            raise ValueError(f"the tokenizer's chat template refuses a conversation of {roles}: {error}") from error


def _letters(text: str) -> str:
    """Without white space, which templates trim and add."""
    return "".join(text.split())


def _tail(text: str) -> str:
    return repr("…" + text[-30:])


def _cuts(prompt: Prompt) -> tuple[int, Callable[[int], tuple[Message, ...]]]:
    """What a prompt may be cut to, longest first: fewer turns, then fewer lines of the last message.

    Returns their number and how to make each. (A list of them would take space quadratic in the lines.)
    """
    system = tuple(takewhile(lambda message: message.role == "system", prompt.messages[:-1]))
    turns = prompt.messages[len(system) :]
    lines = turns[-1].content.split("\n")
    first_turns = [index for index, turn in enumerate(turns) if index and turn.role != "assistant"]
    last_words = max((index for index, line in enumerate(lines) if line.strip()), default=0)

    def cut(number: int) -> tuple[Message, ...]:
        if number < len(first_turns):
            return (*system, *turns[first_turns[number] :])
        kept = "\n".join(lines[number - len(first_turns) + 1 :])
        return (*system, turns[-1].model_copy(update={"content": kept}))

    return len(first_turns) + last_words, cut


def plain_text(messages: Sequence[Message]) -> str:
    """A conversation in the default form, as text to pretrain on."""
    return "".join(text for text, _ in _default_pieces(messages))


def _default_pieces(messages: Sequence[Message]) -> list[Piece]:
    pieces = []
    for message in messages:
        announce = f"\n\n{ROLE_NAMES[message.role]}:"
        if message.role == "assistant":
            pieces += [Piece(announce, False), Piece(f" {message.content}", True)]
        else:
            pieces.append(Piece(f"{announce} {message.content}", False))
    if messages[-1].role != "assistant":
        pieces.append(Piece(f"\n\n{ROLE_NAMES['assistant']}:", False))
    return pieces
