"""Checkpoints on disk: written whole or not at all, read lazily and safely."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

PATTERN = "step_*.pt"
CONTENT = {"step", "model", "optimizer", "loss", "seed", "configuration"}


class Checkpoints(Sequence[tuple[int, dict[str, Tensor]]]):
    """Checkpoints of a training, in the order of their steps, each loaded when asked for.

    Made by :func:`checkpoints`. An integer index gives ``(step, state_dict)``, a slice gives
    Checkpoints.

    Attributes
    ----------
    steps : tuple of int
        The training steps.
    """

    def __init__(self, paths: dict[int, Path]) -> None:
        self._paths = paths
        self.steps = tuple(paths)

    def __len__(self) -> int:
        return len(self.steps)

    @overload
    def __getitem__(self, index: int) -> tuple[int, dict[str, Tensor]]: ...
    @overload
    def __getitem__(self, index: slice) -> Checkpoints: ...
    def __getitem__(self, index: int | slice) -> tuple[int, dict[str, Tensor]] | Checkpoints:
        if isinstance(index, slice):
            return Checkpoints({step: self._paths[step] for step in self.steps[index]})
        step = self.steps[index]
        content = _read(self._paths[step])
        return step, content["model"] if content.keys() >= CONTENT else content

    def __repr__(self) -> str:
        return f"Checkpoints(steps={self.steps})"


def checkpoints(folder: str | os.PathLike[str], pattern: str = PATTERN) -> Checkpoints:
    """Checkpoints in `folder`, as a sequence of ``(step, state_dict)`` in order of their steps.

    Nothing is loaded before it is asked for, and the sequence can be iterated again. The tensors
    are on the CPU; ``model.load_state_dict`` takes them to the model's device.

    Parameters
    ----------
    folder : path
        What was given to :func:`kpops.training.train`, or a folder of state dicts saved by
        ``torch.save``.
    pattern : str
        Glob pattern of the files. The last number in a file's name is its step.

    Returns
    -------
    Checkpoints

    Raises
    ------
    FileNotFoundError
        If the folder does not exist or no file matches.
    ValueError
        If a file's name has no number, or two files have the same.

    Examples
    --------
    >>> import tempfile, torch
    >>> from pathlib import Path
    >>> from kpops.training import checkpoints
    >>> folder = Path(tempfile.mkdtemp())
    >>> readout = torch.nn.Linear(4, 2)
    >>> for step in (100, 20):
    ...     torch.save(readout.state_dict(), folder / f"step_{step}.pt")
    >>> saved = checkpoints(folder)
    >>> len(saved)
    2
    >>> [(step, sorted(state)) for step, state in saved]
    [(20, ['bias', 'weight']), (100, ['bias', 'weight'])]
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"folder '{folder}' does not exist: pass the folder given to train")
    paths = _find(folder, pattern)
    if not paths:
        raise FileNotFoundError(
            f"folder '{folder}' holds no file that matches pattern={pattern!r}: "
            "pass the folder given to train, or the pattern of your files"
        )
    return Checkpoints(paths)


def _find(folder: Path, pattern: str) -> dict[int, Path]:
    """Step to path, in the order of the steps."""
    paths: dict[int, Path] = {}
    for path in sorted(folder.glob(pattern)):
        numbers = re.findall(r"\d+", path.stem)
        if not numbers:
            raise ValueError(f"'{path}' has no number in its name to be its step: rename it")
        step = int(numbers[-1])
        if step in paths:
            raise ValueError(
                f"'{paths[step]}' and '{path}' are both of step {step}: narrow the pattern"
            )
        paths[step] = path
    return dict(sorted(paths.items()))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises errors of any kind
        raise OSError(f"checkpoint '{path}' cannot be read, delete it: {error}") from error
    if not isinstance(content, dict):
        raise TypeError(f"'{path}' holds a {type(content).__name__}, expected a state dict")
    return content


def newest_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Content of the newest readable checkpoint of `train`, None if there is none."""
    for path in reversed(_find(folder, PATTERN).values()):
        try:
            content = _read(path)
        except OSError as error:
            warnings.warn(f"{error}; trying the one before", stacklevel=3)
            continue
        if not content.keys() >= CONTENT:
            raise ValueError(f"'{path}' was not written by train: use another folder")
        return content
    return None


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a file that is either complete or not there, whenever the process dies."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
