"""Checkpoints on disk: written whole or not at all, read lazily and safely."""

from __future__ import annotations

import io
import operator
import os
import re
import secrets
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

PATTERN = "step_*.pt"
KEYS = ("state_dict", "model_state_dict", "model")
TEMPORARY = ".tmp"
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

    def __init__(self, paths: dict[int, Path], key: str | None = None, prefix: str = "") -> None:
        self._paths = paths
        self._key = key
        self._prefix = prefix
        self.steps = tuple(paths)

    def __len__(self) -> int:
        return len(self.steps)

    @overload
    def __getitem__(self, index: int) -> tuple[int, dict[str, Tensor]]: ...
    @overload
    def __getitem__(self, index: slice) -> Checkpoints: ...
    def __getitem__(self, index: int | slice) -> tuple[int, dict[str, Tensor]] | Checkpoints:
        if isinstance(index, slice):
            paths = {step: self._paths[step] for step in self.steps[index]}
            return Checkpoints(paths, self._key, self._prefix)
        step = self.steps[index]
        path = self._paths[step]
        return step, _without(self._prefix, _state_dict(_read(path), self._key, path), path)

    def __repr__(self) -> str:
        return f"Checkpoints(steps={self.steps})"


def checkpoints(
    folder: str | os.PathLike[str],
    pattern: str = PATTERN,
    *,
    step: str | Callable[[Path], int] | None = None,
    key: str | None = None,
    prefix: str = "",
) -> Checkpoints:
    r"""Checkpoints in `folder`, as a sequence of ``(step, state_dict)`` in order of their steps.

    Nothing is loaded before it is asked for, and the sequence can be iterated again. The tensors
    are on the CPU; ``model.load_state_dict`` takes them to the model's device.

    Parameters
    ----------
    folder : path
        What was given to :func:`kpops.training.train`, or a folder of anybody's files written by
        ``torch.save``: state dicts, dicts that contain one, ``.ckpt`` files of Lightning.
    pattern : str
        Glob pattern of the files, relative to the folder; ``**/`` looks into folders in it.
    step : str or callable, optional
        Where a file's step stands: a regular expression with one group, searched for in the path
        relative to `folder`, or a callable from the path. By default the last number in the file's
        name, without its suffix.
    key : str, optional
        Where in the file the state dict is. By default it is the file's content, or the first of
        its entries "state_dict", "model_state_dict" and "model" that is a dict.
    prefix : str
        Only the weights whose names start with it are taken, and it is removed. DataParallel puts
        "module." before all names, ``torch.compile`` "_orig_mod.", Lightning the name of the
        attribute that holds the model, such as "model.".

    Returns
    -------
    Checkpoints

    Raises
    ------
    FileNotFoundError
        If the folder does not exist or no file matches.
    ValueError
        If a file has no step, or two files have the same. When a file is read: if `prefix` starts
        none of the names.
    OSError
        When a file is read: if it is damaged, or holds other objects than tensors and plain Python.
    TypeError
        When a file is read: if there is no state dict in it.

    Notes
    -----
    Files are read by ``torch.load(..., weights_only=True)``, which runs no code from them, after
    the checksums in them were compared: a file with a changed bit is refused. For files that need
    more, :func:`kpops.over_training` takes any iterable of (step, state_dict).

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

    Files of another library, with a version behind the step and the model under a name:

    >>> state = {f"net.{name}": value for name, value in readout.state_dict().items()}
    >>> torch.save({"epoch": 3, "state_dict": state}, folder / "epoch=3-step=400-v1.ckpt")
    >>> saved = checkpoints(folder, "*.ckpt", step=r"step=(\d+)", prefix="net.")
    >>> [(step, sorted(state)) for step, state in saved]
    [(400, ['bias', 'weight'])]
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"folder '{folder}' does not exist: pass the folder given to train")
    paths = _find(folder, pattern, step)
    if not paths:
        raise FileNotFoundError(
            f"folder '{folder}' holds no file that matches pattern={pattern!r}: "
            "pass the folder given to train, or the pattern of your files"
        )
    return Checkpoints(paths, key, prefix)


def _find(
    folder: Path, pattern: str, step: str | Callable[[Path], int] | None = None
) -> dict[int, Path]:
    """Step to path, in the order of the steps."""
    paths: dict[int, Path] = {}
    for path in sorted(folder.glob(pattern)):
        number = operator.index(step(path)) if callable(step) else _step(path, folder, step)
        if number in paths:
            raise ValueError(
                f"'{paths[number]}' and '{path}' are both of step {number}: narrow the pattern"
            )
        paths[number] = path
    return dict(sorted(paths.items()))


def _step(path: Path, folder: Path, expression: str | None) -> int:
    if expression is None:
        found = re.findall(r"\d+", path.stem)
        if not found:
            raise ValueError(
                f"'{path}' has no number in its name to be its step: rename it, or pass step="
            )
        return int(found[-1])
    if re.compile(expression).groups != 1:
        raise ValueError(rf"step={expression!r}: put one group around the step, as in 'step=(\d+)'")
    match = re.search(expression, path.relative_to(folder).as_posix())
    if match is None or not (match[1] or "").isdecimal():
        raise ValueError(
            f"step={expression!r} finds no number in '{path.relative_to(folder)}': "
            "correct it, or narrow the pattern"
        )
    return int(match[1])


def _read(path: Path) -> Any:
    try:
        data = path.read_bytes()
        _compare_checksums(data)
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises errors of any kind
        raise OSError(
            f"checkpoint '{path}' cannot be read: it is damaged (delete it), or holds more than "
            "tensors and plain Python (save its state_dict alone, or, if you trust the file, allow "
            f"its classes by torch.serialization.add_safe_globals): {error}"
        ) from error


def _compare_checksums(data: bytes) -> None:
    """Compare the checksum of every record, which PyTorch writes and does not read."""
    if not data.startswith(b"PK"):  # the format before PyTorch 1.6, which has none
        return
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        # All are zero where torch.serialization.set_crc32_options(False) was called.
        damaged = archive.testzip() if any(r.CRC for r in archive.infolist()) else None
    if damaged is not None:
        raise ValueError(f"the checksum of its record {damaged} is another")


def _state_dict(content: Any, key: str | None, path: Path) -> dict[str, Tensor]:
    """The state dict in what a file holds."""
    if not isinstance(content, dict):
        raise TypeError(f"'{path}' holds a {type(content).__name__}, expected a state dict")
    candidates = KEYS if key is None else (key,)
    state = next((content[k] for k in candidates if isinstance(content.get(k), dict)), None)
    if state is None and key is None:
        state = content
    if state is None or not any(isinstance(value, Tensor) for value in state.values()):
        where = "" if key is None else f" under key={key!r}"
        raise TypeError(
            f"'{path}' holds no state dict{where}, its entries are {list(content)[:10]}: "
            "pass the one that is as key="
        )
    return state


def _without(prefix: str, state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    if not prefix:
        return state
    chosen = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if not chosen:
        raise ValueError(
            f"prefix={prefix!r} starts no name in '{path}', whose names are {list(state)[:5]}..."
        )
    return chosen


def newest_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Content of the newest readable checkpoint of `train`, None if there is none."""
    for path in reversed(_find(folder, PATTERN).values()):
        try:
            content = _read(path)
        except OSError as error:
            warnings.warn(f"{error}; trying the one before", stacklevel=3)
            continue
        if not (isinstance(content, dict) and content.keys() >= CONTENT):
            raise ValueError(f"'{path}' was not written by train: use another folder")
        return content
    return None


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a file that is either complete or not there, whenever the process dies."""
    # In memory first: Ctrl-C while PyTorch writes to a file comes out as an error of its writer.
    data = io.BytesIO()
    torch.save(content, data)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY}")
    try:
        with open(temporary, "xb") as file:
            file.write(data.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what processes that were killed while they wrote have left."""
    for path in folder.glob(f".step_*{TEMPORARY}"):
        path.unlink(missing_ok=True)
