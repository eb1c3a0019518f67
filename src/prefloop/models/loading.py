"""Reading model folders, with errors that say what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from prefloop.garbage import uncollected
from prefloop.models.heads import RewardEnsemble, RewardModel, check_score

PAD_TOKEN = "<|pad|>"


def load_tokenizer(path: str | Path) -> Any:
    """The tokenizer of a model folder or hub name."""
    return _from_pretrained(AutoTokenizer, path)


def load_reward_model(path: str | Path, device: str | None = None) -> RewardModel:
    """A reward model from a folder of a sequence classifier with one label, or with several and their weights.

    Where ``config.json`` says that it is the first of several (``reward_members``), the ensemble with those below it.

    Raises:
        ValueError: the folder is missing or unreadable, the classifier has more than one label and no weights
            for them, or members are missing or of other criteria.
    """
    first = _load_member(path, device)
    # As many as were saved together: a folder may hold members of an ensemble that stood there before.
    wanted = [f"member-{number}" for number in range(2, getattr(first.model.config, "reward_members", 1) + 1)]
    if not wanted:
        return first
    missing = [name for name in wanted if not (Path(path) / name).is_dir()]
    if missing:
        raise ValueError(f"{path}: an ensemble of {len(wanted) + 1}, of which {', '.join(missing)} is missing")
    members = [first, *(_load_member(Path(path) / name, device) for name in wanted)]
    odd = [name for name, member in zip(wanted, members[1:], strict=True) if member.criteria != first.criteria]
    if odd:
        raise ValueError(f"{path}: {', '.join(odd)} has other criteria than the first member, {first.criteria}")
    return RewardEnsemble(members, getattr(first.model.config, "reward_pessimism", 0.0))


def _load_member(path: str | Path, device: str | None) -> RewardModel:
    model, tokenizer = load_pretrained(AutoModelForSequenceClassification, path, device)
    config = model.config
    weights = getattr(config, "reward_weights", None) or {}
    if config.num_labels != 1 and not weights:
        raise ValueError(
            f"{path}: a reward model has one label; this classifier has {config.num_labels}, and its config.json "
            "does not say by reward_weights what each of them counts"
        )
    labels = [config.id2label[label] for label in range(config.num_labels)]
    if weights and sorted(weights) != sorted(labels):
        raise ValueError(
            f"{path}: reward_weights in config.json names {sorted(weights)}, the classifier's labels are {labels}"
        )
    if not hasattr(config, "reward_shift"):
        config.reward_shift = [0.0] * len(labels) if weights else 0.0
    shift = config.reward_shift
    numbers = [*weights.values(), *(shift if isinstance(shift, list) else [shift])]
    if not all(isinstance(one, int | float) for one in numbers):
        raise ValueError(f"{path}: reward_weights and reward_shift in config.json must be numbers; got {numbers}")
    if isinstance(shift, list) != bool(weights) or (weights and len(shift) != len(labels)):
        wanted = f"a list of {len(labels)} numbers, one for each label" if weights else "one number"
        raise ValueError(f"{path}: reward_shift in config.json is {shift!r}; expected {wanted}")
    check_score(model)
    return RewardModel(model, tokenizer)


def load_pretrained(kind: Any, path: str | Path, device: str | None) -> tuple[Any, Any]:
    """A model of some kind in float32, in evaluation mode, and its tokenizer.

    Raises:
        ValueError: the folder is missing or unreadable.
    """
    # A pickle may run code as it is opened.
    model, report = _from_pretrained(kind, path, dtype=torch.float32, use_safetensors=True, output_loading_info=True)
    if report["missing_keys"]:
        raise ValueError(
            f"{path}: the folder has no weights for {', '.join(sorted(report['missing_keys'])[:5])}, so it is no "
            f"whole {kind.__name__.removeprefix('AutoModelFor')} model; they would be random numbers"
        )
    return model.eval().to(device or default_device()), load_tokenizer(path)


def _from_pretrained(kind: Any, path: str | Path, **options: Any) -> Any:
    try:
        with uncollected():  # most of which is importing the architecture
            return kind.from_pretrained(path, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        folder = Path(path)
        found = (
            f"the folder is there and holds {', '.join(sorted(p.name for p in folder.iterdir())) or 'nothing'}"
            if folder.is_dir()
            else "there is no such folder, and no hub answered under that name"
        )
        reason = str(error).splitlines()[0]
        if reason.startswith("Unrecognized configuration class"):
            raise ValueError(
                f"{path}: transformers has no {kind.__name__.removeprefix('AutoModelFor')} model of this "
                "architecture, as of encoders and encoder-decoders. Use a decoder-only model; docs/models.md lists "
                "those that are tested"
            ) from error
        raise ValueError(
            f"cannot load a model from {str(path)!r}: {found}. A model folder needs config.json, *.safetensors "
            f"and a tokenizer. ({reason})"
        ) from error


def default_device() -> str:
    """The accelerator of this machine, or its processor."""
    return "cuda" if torch.cuda.is_available() else "cpu"
