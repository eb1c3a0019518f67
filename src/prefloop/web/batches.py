"""Administration: what is asked, and by which guidelines."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from prefloop.feedback.tasks import Item

from .access import FOR_ADMINS, Admin, errors
from .schemas import BatchIn, BatchOut, GuidelinesIn, GuidelinesVersion, ItemIn, ItemsAdded, ItemsIn
from .state import Shared

router = APIRouter(prefix="/api", tags=["Batches"], dependencies=FOR_ADMINS, responses=errors(401, 403))
InPath = Annotated[str, Path(max_length=200)]


@router.get("/batches")
def batches(state: Shared) -> list[BatchOut]:
    """All batches, with their settings and how far they are."""
    return [BatchOut(**vars(batch)) for batch in state.queue.batches()]


@router.post("/batches")
def open_batch(state: Shared, body: BatchIn) -> BatchOut:
    """Open a batch, or change the settings of one that is there."""
    settings = body.model_dump(exclude={"name"}) | {"criteria": tuple(body.criteria)}
    return BatchOut(**vars(state.queue.open_batch(body.name, **settings)))


@router.post("/batches/{name:path}/close", status_code=204, responses=errors(401, 403, 404))
def close_batch(state: Shared, name: InPath) -> None:
    """Hand out no more tasks of a batch. Opening it again goes on with it."""
    state.queue.close_batch(name)


@router.post("/batches/{name:path}/items", responses=errors(401, 403, 404))
def add_items(state: Shared, name: InPath, body: ItemsIn) -> ItemsAdded:
    """Put prompts with their answers, which are in the store already, into a batch."""
    return ItemsAdded(added=state.queue.add_items(name, map(_item, body.items)))


@router.post("/guidelines")
def add_guidelines(state: Shared, admin: Admin, body: GuidelinesIn) -> GuidelinesVersion:
    """Write a new version; every judgement says which one its annotator was shown."""
    return GuidelinesVersion(**vars(state.store.add_guidelines(body.text, admin.name)))


@router.get("/guidelines/versions")
def guidelines_versions(state: Shared) -> list[GuidelinesVersion]:
    """Every version, newest last."""
    return [GuidelinesVersion(**vars(version)) for version in state.store.guidelines()]


def _item(item: ItemIn) -> Item:
    gold = None if item.gold is None else tuple(item.gold)
    return Item(item.prompt_id, tuple(item.completions), item.priority, gold)
