"""What must be the same for a training to be continued, as flat plain Python."""

from __future__ import annotations

import hashlib
import math
import operator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kpops.arrays import to_numpy
from kpops.learning.fingerprints import NotPlainError, describe_modules, plain
from kpops.learning.trials import Trials
from kpops.scalars import generator


def choose_seed(rng: int | np.random.Generator | None, newest: dict[str, Any] | None) -> int:
    """Seed of a training; with None that of its newest checkpoint, or a fresh one."""
    if isinstance(rng, np.random.Generator):
        return int(rng.integers(2**63))
    if rng is None:
        return int(np.random.default_rng().integers(2**63)) if newest is None else newest["seed"]
    generator(rng)  # refuses what is no seed
    return operator.index(rng)


def describe_trials(trials: Trials) -> dict[str, Any]:
    """Shapes and a fingerprint of inputs, targets, mask and, if they are others, weights."""
    parts = trials._asdict()
    if torch.equal(trials.weights, trials.mask.to(trials.weights)):
        del parts["weights"]
    digest = hashlib.sha256()
    for part in parts.values():
        digest.update(to_numpy(part.contiguous()).tobytes())
    shapes = {f"task {name}": list(part.shape) for name, part in parts.items()}
    return {**shapes, "task fingerprint": digest.hexdigest()[:16]}


def describe_loss(loss: Any) -> dict[str, Any]:
    """Name of a loss, or class, attributes and code of a callable."""
    try:
        return {"loss": plain(loss)}
    except NotPlainError:
        return {"loss": type(loss).__name__}


def describe_model(model: nn.Module) -> dict[str, Any]:
    """Weights, which of them learn, how they were drawn, and what is done with them."""
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    weights = {
        f"model {name}": f"{value.dtype} {tuple(value.shape)}"
        + (" learns" if name in learning else " fixed")
        for name, value in model.state_dict().items()
    }
    return {**weights, **describe_modules(model)}


def check_same_training(
    newest: dict[str, Any], configuration: dict[str, Any], max_steps: int, folder: Path
) -> None:
    """Refuse to continue the checkpoints of another training, and say what differs."""
    theirs = newest["configuration"]
    different = [
        f"{key} is {theirs.get(key, 'absent')} there and {configuration.get(key, 'absent')} here"
        for key in {**theirs, **configuration}
        if key not in theirs or key not in configuration or theirs[key] != configuration[key]
    ]
    if different:
        more = f" and {len(different) - 5} more" if len(different) > 5 else ""
        raise ValueError(
            f"folder '{folder}' holds checkpoints of another training: "
            f"{'; '.join(different[:5])}{more}. Pass the same, or another folder"
        )
    if newest["step"] > max_steps:
        raise ValueError(
            f"max_steps={max_steps}, and folder '{folder}' holds step {newest['step']}: "
            f"pass max_steps={newest['step']} or more, or another folder"
        )


def check_same_loss(value: float, recorded: float, step: int, folder: Path) -> None:
    """Tell models apart whose parameters, attributes and code are the same; see `fingerprints`."""
    # Wide, since another device rounds differently; another model is off by much more.
    if not math.isclose(value, recorded, rel_tol=0.1, abs_tol=1e-6):
        raise ValueError(
            f"folder '{folder}' holds checkpoints of another model: at step {step} the loss "
            f"was {recorded}, with this model it is {value}. Pass the same model, or another folder"
        )
