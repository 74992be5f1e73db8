"""A row of the page: a claim of a paper, how it is measured, and the criteria of its verdict."""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from reproduction import results
from reproduction.verdicts import Check, verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VERSIONS = ("kpops-flow", "torch", "numpy", "scipy", "xarray")


def _no_notes(found: xr.Dataset) -> Sequence[str]:
    return ()


@dataclass(frozen=True)
class Row:
    """A claim, how it is measured, and how it is judged.

    Attributes
    ----------
    name : str
        Of the row and of its file, ``results/<name>.nc``.
    title : str
        Heading of its section.
    paper : str
        Number on arXiv, such as ``"2507.06381"``; ``"kpops"`` for a finding that no paper has.
    where : str
        The figure, table or section of the paper that it answers.
    says : str
        What the paper says or shows, with its numbers.
    measure : callable
        ``measure(seed, **settings)`` returns a labelled Dataset without a dim ``seed``, of the same
        dims for all seeds. It must be a function of a module, and depend on its arguments alone.
    settings : mapping
        Arguments of `measure` besides the seed: numbers, strings, and lists of them.
    quick : mapping
        Those that replace them in a small version, which takes less than two minutes.
    judge : callable
        ``judge(found)`` applies the criteria to the Dataset (seed, ...) of all seeds. Criteria are
        written, and committed, before their numbers are seen.
    draw : callable, optional
        ``draw(found)`` draws ours and the paper's values, in the axes of the paper.
    notes : callable
        ``notes(found)`` returns paragraphs: what differs from the paper, what was tried.
    seeds : int
        Number of seeds, 0, 1, ...; fewer than five need a reason in the notes.
    of : str
        Name of another row, with the same measure and settings, whose file it judges.
    """

    name: str
    title: str
    paper: str
    where: str
    says: str
    measure: Callable[..., xr.Dataset]
    settings: Mapping[str, Any]
    quick: Mapping[str, Any]
    judge: Callable[[xr.Dataset], Sequence[Check]]
    draw: Callable[[xr.Dataset], Figure] | None = None
    notes: Callable[[xr.Dataset], Sequence[str]] = _no_notes
    seeds: int = 5
    of: str = ""

    @property
    def path(self) -> Path:
        """Its committed file."""
        return results.FOLDER / self.file

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"{self.of or self.name}.nc"

    def read(self) -> xr.Dataset:
        """Read the committed file."""
        return results.read(self.path)

    def verdict(self, found: xr.Dataset) -> str:
        """The verdict in words."""
        return verdict(self.judge(found))


def run(
    row: Row, *, quick: bool = False, again: bool = False, executor: Any = None, folder: Path
) -> xr.Dataset:
    """Measure a row by a study over seeds, and write its file into a folder.

    Parameters
    ----------
    row : Row
        What to measure.
    quick : bool
        Measure the small version, with two seeds.
    again : bool
        Forget the seeds that an interrupted run has done.
    executor : executor, optional
        As for :meth:`kpops.Study.run`. Default: this process.
    folder : path
        Where the file and, until all is done, the store of the study go.

    Returns
    -------
    Dataset
        The result (seed, ...), whose attributes name the row, the settings, the seeds, the versions
        and the SHA-256 of the script.
    """
    import kpops  # the page, which draws files, needs no PyTorch

    settings = {**row.settings, **(row.quick if quick else {})}
    seeds = list(range(min(row.seeds, 2) if quick else row.seeds))
    store = folder / f"{row.of or row.name}.zarr"
    if again:
        shutil.rmtree(store, ignore_errors=True)
    measure = partial(row.measure, **settings)
    study = kpops.Study(store, measure, seed=seeds)
    study.run(executor, retry_failed=True, progress=False)
    if study.missing:
        raise RuntimeError("\n".join(filter(None, study.status().error.values.tolist())))
    found = study.open().load()
    found = found.drop_vars(["done", *(v for v in found if str(v).endswith("_length"))])
    found = found.drop_attrs(deep=False).assign_attrs(_provenance(row, settings, seeds))
    results.write(found, folder / row.file)
    shutil.rmtree(store)
    return found


def _provenance(row: Row, settings: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, str]:
    """What a file says of its origin."""
    script = Path(inspect.getsourcefile(row.measure) or "")
    return {
        "row": row.of or row.name,
        "paper": row.paper,
        "settings": json.dumps(settings, sort_keys=True),
        "seeds": json.dumps(seeds),
        "versions": json.dumps({name: importlib.metadata.version(name) for name in VERSIONS}),
        "script": script.name,
        "script_sha256": hashlib.sha256(script.read_bytes()).hexdigest(),
    }
