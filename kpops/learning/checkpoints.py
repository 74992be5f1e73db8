"""Checkpoints on disk: written whole or not at all, by one process; read lazily and safely."""

from __future__ import annotations

import errno
import io
import operator
import os
import re
import secrets
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from socket import gethostname
from typing import Any, overload

import torch
from torch import Tensor

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PATTERN = "step_*.pt"
KEYS = ("state_dict", "model_state_dict", "model")
TEMPORARY = ".tmp"
CONTENT = {"step", "model", "optimizer", "loss", "seed", "configuration"}
LOCK = ".lock"
FINISHED = "finished"
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK}  # of file systems that cannot lock


FoundBy = tuple[Path, str, "str | Callable[[Path], int] | None"]
"""Folder, pattern and step, as of :func:`checkpoints`."""


class Checkpoints(Sequence[tuple[int, dict[str, Tensor]]]):
    """Checkpoints of a training in the order of their steps, as :func:`checkpoints` returns them.

    An integer index loads and returns ``(step, state_dict)``; a slice returns Checkpoints.

    ``steps`` is the tuple of the training steps.
    """

    def __init__(
        self,
        paths: dict[int, Path],
        key: str | None = None,
        prefix: str = "",
        found_by: FoundBy | None = None,
    ) -> None:
        self._paths = paths
        self._key = key
        self._prefix = prefix
        self._found_by = found_by
        self.steps = tuple(paths)

    def at(self, steps: Iterable[int]) -> Checkpoints:
        """Those of some of the steps."""
        return Checkpoints({step: self._paths[step] for step in steps}, self._key, self._prefix)

    @property
    def folder(self) -> Path | None:
        """The folder that was searched, None for a part of its checkpoints."""
        return None if self._found_by is None else self._found_by[0]

    def again(self) -> Checkpoints:
        """Checkpoints that are in the folder now."""
        assert self._found_by is not None
        return Checkpoints(_find(*self._found_by), self._key, self._prefix, self._found_by)

    def __len__(self) -> int:
        return len(self.steps)

    @overload
    def __getitem__(self, index: int) -> tuple[int, dict[str, Tensor]]: ...
    @overload
    def __getitem__(self, index: slice) -> Checkpoints: ...
    def __getitem__(self, index: int | slice) -> tuple[int, dict[str, Tensor]] | Checkpoints:
        if isinstance(index, slice):
            return self.at(self.steps[index])
        step = self.steps[index]
        return step, _state_dict(self._paths[step], self._key, self._prefix)

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

    Each is loaded when it is accessed, and the sequence can be iterated repeatedly. The tensors
    are on the CPU; ``model.load_state_dict`` moves them to the model's device.

    Parameters
    ----------
    folder : path
        The folder passed to :func:`kpops.training.train`, or one with other files written by
        ``torch.save``: state dicts, dicts that contain one, ``.ckpt`` files of Lightning.
    pattern : str
        Glob pattern of the files, relative to the folder; ``**/`` searches subfolders.
    step : str or callable, optional
        How to find a file's step: a regular expression with one group, searched for in the path
        relative to `folder`, or a function of the path. Default: the last number in the file's
        name, without its suffix.
    key : str, optional
        Entry of the file that holds the state dict. Default: the first of "state_dict",
        "model_state_dict" and "model" that is a dict, or else the whole content.
    prefix : str
        Take only the weights whose names start with it, and remove it. DataParallel puts "module."
        before all names, ``torch.compile`` "_orig_mod.", Lightning the name of the attribute that
        holds the model, such as "model.".

    Returns
    -------
    Checkpoints
        Files are read by ``torch.load(..., weights_only=True)``, which runs no code from them,
        after their checksums are verified.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist or no file matches.
    ValueError
        If a file has no step, or two files have the same. On access: if no name starts with
        `prefix`.
    OSError
        On access: if the file is damaged, or holds anything but tensors and plain Python. For such
        files, :func:`kpops.over_training` takes any iterable of (step, state_dict).
    TypeError
        On access: if the file holds no state dict.

    Examples
    --------
    >>> import tempfile, torch
    >>> from pathlib import Path
    >>> from kpops.training import checkpoints
    >>> folder = Path(tempfile.mkdtemp())
    >>> readout = torch.nn.Linear(4, 2)
    >>> for step in (100, 20):
    ...     torch.save(readout.state_dict(), folder / f"step_{step}.pt")
    >>> [(step, sorted(state)) for step, state in checkpoints(folder)]
    [(20, ['bias', 'weight']), (100, ['bias', 'weight'])]

    A file of another library, with a version after the step and a prefix before the names:

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
    return Checkpoints(paths, key, prefix, (folder, pattern, step))


def _find(
    folder: Path, pattern: str, step: str | Callable[[Path], int] | None = None
) -> dict[int, Path]:
    """Paths by step, in the order of the steps."""
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
        if found := re.findall(r"\d+", path.stem):
            return int(found[-1])
        raise ValueError(f"'{path}' has no number in its name: rename it, or pass step=")
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
        if data.startswith(b"PK"):  # the format before PyTorch 1.6 has no checksums
            # PyTorch writes them, but does not read them. All are zero where
            # torch.serialization.set_crc32_options(False) was called.
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                damaged = archive.testzip() if any(r.CRC for r in archive.infolist()) else None
            if damaged is not None:
                raise ValueError(f"the checksum of its record {damaged} does not match")
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises errors of any kind
        raise OSError(
            f"checkpoint '{path}' cannot be read: it is damaged (delete it), or holds more than "
            "tensors and plain Python (save its state_dict alone, or, if you trust the file, allow "
            f"its classes by torch.serialization.add_safe_globals): {error}"
        ) from error


def _state_dict(path: Path, key: str | None, prefix: str) -> dict[str, Tensor]:
    """The state dict in a file, without the prefix of its names."""
    content = _read(path)
    if not isinstance(content, dict):
        raise TypeError(f"'{path}' holds a {type(content).__name__}, expected a state dict")
    candidates = [content.get(k) for k in (KEYS if key is None else (key,))]
    default = content if key is None else {}
    state = next((c for c in candidates if isinstance(c, dict)), default)
    if not any(isinstance(value, Tensor) for value in state.values()):
        where = "" if key is None else f" under key={key!r}"
        raise TypeError(
            f"'{path}' holds no state dict{where}, its entries are {list(content)[:10]}: "
            "pass the one that is as key="
        )
    if not prefix:
        return state
    chosen = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if not chosen:
        raise ValueError(
            f"prefix={prefix!r} starts no name in '{path}', whose names are {list(state)[:5]}...: "
            "pass what they start with"
        )
    return chosen


def newest_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Content of the newest readable checkpoint of `train`, or None."""
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
    """Write a file that is either complete or absent, whenever the process dies."""
    # In memory first: PyTorch's file writer turns Ctrl-C into an error of its own.
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
    """Remove the temporary files of processes that were killed while writing."""
    for path in folder.glob(f".step_*{TEMPORARY}"):
        path.unlink(missing_ok=True)


@contextmanager
def only_trainer(folder: Path) -> Iterator[str | None]:
    """Keep other trainings out of `folder`; yields what keeps this one out, or None.

    The operating system locks a file, which is removed at the end. The lock ends with its process,
    so a killed one blocks nobody.
    """
    if fcntl is None:
        yield None
        return
    path = folder / LOCK
    try:
        descriptor, busy = _take(path)
    except OSError as error:
        yield f"cannot be written to or locked: {error}"
        return
    try:
        yield busy
    finally:
        if busy is None:
            with suppress(OSError):
                path.unlink()  # while the lock still holds
        os.close(descriptor)


def _take(path: Path) -> tuple[int, str | None]:
    """Open the file, and lock it or name the holder."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    os.truncate(descriptor, 0)
                    os.write(descriptor, f"process {os.getpid()} on {gethostname()}".encode())
                    return descriptor, None
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
            return descriptor, f"is being trained in by {holder}"
        except BaseException as error:
            if isinstance(error, OSError) and error.errno in _NO_LOCKS:
                return descriptor, None
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder has removed the file meanwhile
