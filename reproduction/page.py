"""The page of the documentation, from the committed files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.tables import DASH, heading, paragraph, table
from reproduction import claims_of_learning, claims_of_ranks, figures, results
from reproduction.claims import TASKS, Claim, listed
from reproduction.results import Results
from reproduction.verdicts import UNKNOWN, spread

DOCS = Path(__file__).parents[1] / "docs"
PICTURES = "_static/reproduction"

CLAIMS = (
    claims_of_ranks.initial,
    claims_of_ranks.memory,
    claims_of_ranks.flip_flop,
    claims_of_ranks.ordering,
    claims_of_learning.over_g,
    claims_of_ranks.eigenfunctions,
    claims_of_learning.tasks,
    claims_of_learning.steps,
)

_INTRODUCTION = """\
What does the KPFlow paper (Hazelden, Driscoll, Shlizerman and Shea-Brown, arXiv 2507.06381) say,
and what do we find? Each claim below was turned into criteria, with bounds, that code asks of every
network. A claim is *reproduced* if each criterion holds for all networks (or seeds), *not
reproduced* if none holds for more than half of them, and *reproduced in part* otherwise. The bounds
are ours: the paper shows figures. Numbers are medians over networks, with the least and the largest
in brackets."""

_SETTINGS = """\
Networks have 256 units and are trained as in the paper (Adam, learning rate 1e-3, 5,000 noisy
trials, until a minibatch has a loss of 1e-3), but for two things: minibatches have {batch} trials
instead of 500, and training ends after {steps} iterations at the latest (10,000 in the paper).
Smaller batches are noisier, and their iterations are not comparable one by one with the paper's.
Measured are {checkpoints} of the checkpoints, the first and the last among them and more of the
early ones, on 20 noise-free trials with evenly spaced angles (for the flip-flop, 20 noise-free
trials). *Variance rank over time* is the paper's effective rank: the operator is reduced to time
(:meth:`~kpops.TrajectoryOperator.expand_average`), and the number of eigenvalues that hold 95 % of
the sum of squares is counted, with interpolation, so that a single mode gives about 0.95.
*Participation* is that of the whole operator on (trial, time, unit); see
:func:`kpops.effective_rank`. P stands as P P\\*.

``make checkpoints`` trains the networks, ``python -m reproduction measure`` measures them into
``reproduction/results``, and ``python -m reproduction page`` writes this page from there."""


def write(folder: Path, docs: Path) -> Path:
    """Write the page and its figures into `docs` from the files in `folder`."""
    found = results.load(folder)
    claims = [claim(found) for claim in CLAIMS]
    pictures = docs / PICTURES
    pictures.mkdir(parents=True, exist_ok=True)
    for claim in claims:
        for name in claim.figures if len(claim.results) else ():
            figures.save(name, found, pictures)
    target = docs / "reproduction.rst"
    target.write_text("\n".join(lines(found, claims)).rstrip() + "\n")
    return target


def lines(found: Results, claims: list[Claim]) -> list[str]:
    """Lines of the page."""
    page = [
        ".. Written by python -m reproduction page: edit reproduction/ instead",
        "",
        *heading("Reproduction", "="),
        *_INTRODUCTION.splitlines(),
        "",
        *summary(claims),
        *_missing(found),
        *heading("Networks and settings", "-"),
        *_settings(found),
        *_trained(found),
    ]
    for claim in claims:
        page += section(claim)
    return page


def summary(claims: list[Claim]) -> list[str]:
    """The table of all claims."""
    header = ["claim of the paper", "our number", "verdict", "script"]
    rows = [
        [_escaped(c.paper), _escaped(c.number), f"**{c.verdict}**", _scripts(c.script)]
        for c in claims
    ]
    return _plain_table("Claims", header, rows, "34 34 16 16")


def section(claim: Claim) -> list[str]:
    """Claim, criteria, numbers and figures."""
    page = [
        *heading(claim.title, "-"),
        *paragraph(_escaped(claim.paper) + f" **{claim.verdict[0].upper()}{claim.verdict[1:]}.**"),
    ]
    header = ["criterion", "found", "holds for"]
    rows = [
        [_escaped(c.text), _escaped(c.found), f"{c.passed} of {c.of}" if c.of else UNKNOWN]
        for c in claim.checks
    ]
    page += _plain_table("Criteria", header, rows, "55 30 15")
    for note in claim.notes:
        page += paragraph(_escaped(note))
    for title, head, body in claim.tables:
        if body:
            page += table(
                title,
                [_escaped(h) for h in head],
                [[_escaped(c) or " " for c in row] for row in body],
            )
    for name, caption in claim.figures.items() if len(claim.results) else ():
        page += [
            f".. figure:: {PICTURES}/{name}.png",
            f"   :alt: {caption.split('.')[0]}",
            "",
            *(f"   {line}".rstrip() for line in paragraph(_escaped(caption))),
        ]
    return page


def _settings(found: Results) -> list[str]:
    trained = [n for n in found.planned.values() if "batch_size" in n]
    most = sorted({(n["max_steps"], n["cell"]) for n in trained})
    counts = {r.sizes["step"] for r in found if "operator" in r.sizes or "task" in r.sizes}
    text = _SETTINGS.format(
        batch=listed([str(size) for size in sorted({n["batch_size"] for n in trained})]),
        steps=listed(
            [f"{steps:,} ({cell.upper()}{_which(trained, steps, cell)})" for steps, cell in most]
        ),
        checkpoints=f"{min(counts)} to {max(counts)}" if counts else "some",
    )
    paragraphs = text.split("\n\n")
    return [line for p in paragraphs for line in paragraph(p.replace("\n", " "))]


def _which(trained: list[dict[str, Any]], steps: int, cell: str) -> str:
    """What those networks have in common that end after so many iterations, if there are others."""
    alike = [n for n in trained if n["cell"] == cell]
    group = [n for n in alike if n["max_steps"] == steps]
    if len(group) == len(alike):
        return ""
    if all(n["stop_loss"] is None for n in group):
        return ", on four tasks, whatever the loss"
    scales = {n["g"] for n in group}
    if 1.0 in scales:
        return ""
    return f", g = {scales.pop():g}" if len(scales) == 1 else ", g other than 1"


def _trained(found: Results) -> list[str]:
    """How far the networks were trained."""
    header = ["", "networks", "stopped at loss", "updates", "last loss", "evaluation", "accuracy"]
    rows = []
    kinds = dict.fromkeys(
        (n["task"], n["cell"], n["g"]) for n in found.planned.values() if "task" in n
    )
    for task, cell, g in kinds:
        group = found.of(task=task, cell=cell, g=g)
        stopped = sum(int(r.last_iteration) < results.network_of(r)["max_steps"] for r in group)
        values = (
            [float(r.last_iteration) for r in group],
            [float(r.loss[-1]) for r in group],
            [float(r.evaluation_loss[-1]) for r in group],
            [float(r.accuracy[-1]) for r in group],
        )
        measured = f"{len(group)} of {len(group.planned)}"
        rows.append(
            [
                f"{TASKS[task]}, {cell.upper()}, g = {g:g}",
                measured,
                f"{stopped} of {len(group)}" if len(group) else DASH,
            ]
            + [spread(v) for v in values]
        )
    text = (
        "The last loss is the mean over the last minibatches (up to 25, noisy); loss and accuracy "
        "are of the evaluation trials, without noise. The accuracy is that of "
        ":func:`kpops.tasks.accuracy`."
    )
    return [*table("How far training went", header, rows), *paragraph(text)]


def _missing(found: Results) -> list[str]:
    missing = found.missing()
    if not missing:
        return []
    names = ", ".join(f"``{name}``" for name in missing)
    total = len(found.planned)
    return paragraph(f"Not measured yet are {len(missing)} of {total} networks: {names}.")


def _plain_table(title: str, header: list[str], rows: list[list[str]], widths: str) -> list[str]:
    """A table whose first column is as light as the others."""
    made = table(title, header, rows)
    made[made.index("   :stub-columns: 1")] = f"   :widths: {widths}"
    return made


def _scripts(paths: str) -> str:
    """Paths, those of examples with links into the gallery."""
    examples = {p: Path(p).stem for p in paths.split(", ") if p.startswith("examples/")}
    return ", ".join(
        f":doc:`{p} <gallery/{examples[p]}>`" if p in examples else f"``{p}``"
        for p in paths.split(", ")
    )


def _escaped(text: str) -> str:
    """Text without the stars of adjoints as markup."""
    return text.replace("P*", "P\\*").replace("P_j*", "P_j\\*").replace("|", "\\|")
