"""Open-Assistant: trees of messages, nested (``prompt`` with ``replies``) or as a table with ``parent_id``.

Wherever two or more of the assistant's replies carry a ``rank`` (0 is best), the conversation up to there is a
prompt, and they are one judgement. Ranks are the consensus of several people, whose number the format does not say:
it counts as one.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..records import Message, Role, dense_ranks
from .items import Answer, Asked, Ranked, need
from .rows import Row, RowError, Turns, criterion_of, kind_of, not_among, split_of, strength_of, text_at

FIELDS = frozenset({"message_tree_id", "tree_state", "prompt", "origin", "split", "strength", "criterion"})
LEFT_OUT = "replies that were deleted or are spam are left out"
UNRANKED = "a tree without ranks: its first message is a prompt"
_MESSAGE = {"message_id", "text", "role"}
Numbered = tuple[int, Row | RowError]
_ROLES: dict[str, Role] = {"prompter": "user", "assistant": "assistant"}
_NAMES = {"user": "prompter", "assistant": "assistant"}


def read_oasst(row: Row) -> list[Ranked | Asked | str]:
    """The judgements of one tree; its first message as a prompt where nothing in it was ranked."""
    if not isinstance(root := row.get("prompt"), dict):
        raise RowError(f"field 'prompt' is a {kind_of(root)}", "expected the first message: {text, role, replies}")
    items = list[Ranked | Asked | str]()
    waiting: list[tuple[Turns, Row, str]] = [((), root, "prompt")]
    while waiting:  # not recursive: a tree may be as deep as its author likes
        before, node, name = waiting.pop()
        turns = (*before, _message(node, name))
        replies = [(f"{name}.replies[{i}]", reply) for i, reply in enumerate(_replies(node, name))]
        kept = [(name, reply) for name, reply in replies if not _is_out(reply)]
        if len(kept) < len(replies):
            items.append(LEFT_OUT)
        waiting += ((turns, reply, name) for name, reply in reversed(kept))
        if turns[-1].role == "user":
            items += _ranking(turns, kept, row)
    if not any(isinstance(item, Ranked) for item in items):
        items += [Asked((_message(root, "prompt"),), None, split_of(row)), UNRANKED]
    return items


def _message(node: Row, name: str) -> Message:
    role = node.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        not_among(f"{name}.role", "a role", role, tuple(_ROLES))
    return Message(role=_ROLES[role], content=text_at(node, "text"))


def _replies(node: Row, name: str) -> list[Row]:
    replies = node.get("replies") or []
    if not isinstance(replies, list) or not all(isinstance(reply, dict) for reply in replies):
        raise RowError(f"field '{name}.replies' is not a list of messages")
    return replies


def _is_out(reply: Row) -> bool:
    return reply.get("deleted") is True or reply.get("review_result") is False


def _ranking(turns: Turns, replies: list[tuple[str, Row]], row: Row) -> Iterator[Ranked]:
    """What was said about the replies to one message; those without a rank are context for others at most."""
    ranked: dict[str, tuple[Answer, int]] = {}
    for name, reply in replies:
        if _message(reply, name).role != "assistant":
            raise RowError(f"field '{name}.role' is not assistant", "a prompter's reply to a prompter")
        answer, rank = Answer(text_at(reply, "text"), _author(reply)), reply.get("rank")
        if rank is not None and type(rank) is not int:
            raise RowError(f"field '{name}.rank' is a {kind_of(rank)}", "expected 0, 1, 2, … or null")
        # Of equal texts the best place counts.
        if rank is not None and (answer.text not in ranked or rank < ranked[answer.text][1]):
            ranked[answer.text] = answer, rank
    if len(ranked) > 1:
        answers, ranks = zip(*ranked.values(), strict=True)
        dense = dense_ranks([-rank for rank in ranks])
        yield Ranked(turns, answers, dense, split_of(row), strength_of(row), criterion_of(row))


def _author(reply: Row) -> str | None:
    model = reply.get("model_name")
    return model if isinstance(model, str) and model else None


def trees(rows: Iterator[Numbered]) -> Iterator[Numbered]:
    """Rows of a table of messages as rows of trees, numbered by the tree's first row; trees pass as they are.

    The messages of a tree follow one another, each after the one that it replies to, as in the published tables.
    """
    first, root, nodes = 0, None, dict[str, Row]()
    for number, row in rows:
        if isinstance(row, RowError) or not row.keys() >= _MESSAGE:
            yield number, row
            continue
        try:
            key, parent = text_at(row, "message_id"), row.get("parent_id")
            node = row | {"replies": []}
            if parent is None:
                if root is not None:
                    yield first, _tree(root)
                first, root, nodes = number, node, {}
            elif isinstance(parent, str) and parent in nodes:
                nodes[parent]["replies"].append(node)
            else:
                raise RowError(
                    "field 'parent_id' names no message before it in its tree",
                    f"{parent!r:.60}; sort the table by message_tree_id, replies after what they answer",
                )
            nodes[key] = node
        except RowError as error:
            error.row = row
            yield number, error
    if root is not None:
        yield first, _tree(root)


def _tree(root: Row) -> Row:
    return {"message_tree_id": root["message_id"], "prompt": root}


# Writing


def write_oasst(item: Ranked) -> Row:
    roles = [turn.role for turn in item.turns]
    need("system" not in roles, "a system message")
    need(roles == ["user", "assistant"] * (len(roles) // 2) + ["user"], "a conversation that is not in turn")
    need(len({answer.text for answer in item.answers}) == len(item.answers), "two answers with the same text")
    replies: list[Row] = [
        {"text": answer.text, "role": "assistant", "rank": rank - 1, "model_name": answer.origin}
        for answer, rank in zip(item.answers, item.ranks, strict=True)
    ]
    for turn in reversed(item.turns):
        replies = [{"text": turn.content, "role": _NAMES[turn.role], "replies": replies}]
    return {"prompt": replies[0]}
