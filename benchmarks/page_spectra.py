"""Tables of spectra and ranks: time, certainty, and the errors of estimates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.certainty import METHODS, SPECTRA
from benchmarks.estimators import MATVECS, RANKS, TRACES, against_best
from benchmarks.page_parts import MATH
from benchmarks.spectra import MODES, PROBES, TOLERANCE
from benchmarks.tables import (
    Footnotes,
    heading,
    number,
    paragraph,
    percent,
    scientific,
    table,
)

Found = dict[str, Any]

_TASKS = {
    "K": f"the whole spectrum of {MATH['K']} (the baseline: {MODES} eigenvalues)",
    "P": f"{MODES} singular triplets of {MATH['P']}",
    "flow": f"{MODES} eigenpairs of {MATH['flow']}",
    "participation": f"participation ratio of {MATH['flow']}",
}
_OUTCOMES = ("right", "unsure", "wrong")
_NAMES = {
    "hutchinson": "Hutchinson",
    "xtrace": "XTrace",
    "xnystrace": "XNysTrace",
    "auto": "``auto``",
}


def spectra(found: Found) -> list[str]:
    """Whole calls, then where their time goes."""
    tolerance = scientific(TOLERANCE, 1)
    page = [
        *heading("Spectra and ranks, end to end", "~"),
        *paragraph(
            "What a user would call, ``kpops.eigvalsh(lin.K)``, "
            f"``kpops.svds(lin.P, {MODES})``, ``kpops.eigsh(lin.flow, {MODES})`` and "
            "``kpops.effective_rank(lin.flow)``, against SciPy's ``eigsh`` (ARPACK) on the same "
            "operators by stored Jacobians, one vector at a time; singular values of :math:`P` are "
            "there those of :math:`P^{*} P`. Times are medians of three calls, but a call of the "
            "baseline that takes over ten seconds is made once. Preparing is not in them."
        ),
        *paragraph(
            "Both are held to equal residuals. Residuals are measured afterwards, with products "
            "by the stored Jacobians: the largest of all modes, relative to the largest value. "
            f"Both are given the tolerance {tolerance}, and the one that goes further is then "
            "given a looser one, until the residuals are within a factor of three or have not "
            "grown in three tries; a footnote says so. What is found without iteration has no "
            "residual, and the baseline is let off with its own. Participation ratios are compared "
            f"at equal standard errors: of {PROBES} random vectors for the baseline, and of the "
            "smallest number of products that does not give a larger one for kpops. The modes of "
            "both agree to one in a thousand, and the participation ratios within their errors; "
            "else the run would have stopped."
        ),
    ]
    for record in found["spectra"]:
        page += _of_model(record)
    return page + _shares(found["spectra"])


def _of_model(record: Found) -> list[str]:
    notes, rows = Footnotes(), []
    for task in record["tasks"]:
        ours, theirs = task["kpops"], task["stored"]
        remark = ours["chosen"] if "chosen" in ours else _loosened(task)
        error = "stderr" if "stderr" in ours else "residual"
        rows.append(
            [
                _TASKS[task["task"]] + (notes.mark(remark) if remark else ""),
                number(ours["seconds"]),
                number(theirs["seconds"]),
                f"**{number(theirs['seconds'] / ours['seconds'])}**",
                f"{ours['products']:g}, {theirs['products']}",
                f"{_error(ours[error])}, {_error(theirs[error])}",
            ]
        )
    setup = record["setup_s"]
    header = [
        "",
        "kpops, s",
        "stored Jacobians, s",
        "ratio",
        "products of each",
        "residual or standard error of each",
    ]
    return [
        *table(f"{record['model']}, {record['hidden']} units", header, rows, notes),
        *paragraph(
            f"Preparing: kpops {number(setup['kpops'])} s with a first product, stored Jacobians "
            f"{number(setup['stored'])} s."
        ),
    ]


def _loosened(task: Found) -> str:
    """What a side did at the tolerance itself, where that is not what was compared."""
    for side, name in (("kpops", "kpops"), ("stored", "ARPACK")):
        at_tol = task.get(f"{side}_at_tol", task[side])
        if at_tol.get("tol") != task[side].get("tol"):
            return (
                f"{name} to a tolerance of {scientific(task[side]['tol'])}; to one of "
                f"{scientific(at_tol['tol'], 1)} it took {number(at_tol['seconds'])} s and "
                f"{at_tol['products']} products, and reached {scientific(at_tol['residual'])}"
            )
    return ""


def _error(value: float | None) -> str:
    """A residual or a standard error; what is exact has none."""
    if not value:
        return "exact"
    return number(value) if value > 0.01 else scientific(value)


def _shares(records: Sequence[Found]) -> list[str]:
    rows = [
        [
            f"{r['model']}, {r['hidden']} units: {MATH[name]}",
            *(percent(parts[k]) for k in ("products", "orthogonalisation", "rest")),
            number(parts["seconds"]),
        ]
        for r in records
        for name, parts in r["shares"].items()
    ]
    header = ["", "products", "orthogonalisation", "rest", "in all, s"]
    return [
        *paragraph(
            f"Where kpops spends its time on the {MODES} modes: in products with operators, in "
            "making and keeping bases orthonormal, and in the rest, which is random start vectors, "
            "small dense problems, residuals and labels."
        ),
        *table("Shares of the time", header, rows),
    ]


def certainty(found: Found) -> list[str]:
    """Outcomes by method, and by spectrum where a method was unsure."""
    part = found["certainty"]
    counts = _totals(part)
    rows = [
        [
            f"``{method}``" if method in METHODS[method].values() else method,
            *(f"**{n}**" if n and o == "wrong" else str(n) for o, n in counts[method].items()),
            scientific(part["worst"][method]),
        ]
        for method in counts
    ]
    unsure = [
        [spectrum, *(str(part["outcomes"][m][spectrum].get("unsure", 0)) for m in counts)]
        for spectrum in SPECTRA
        if spectrum in next(iter(part["outcomes"].values()))
    ]
    each = part["cases"] // len(SPECTRA) * 2
    return [
        *heading("Right, unsure or wrong", "~"),
        *paragraph(
            f"``kpops.eigsh`` and ``kpops.svds`` on {part['cases']} random symmetric matrices of "
            "prescribed spectra, each with all methods, to a tolerance of "
            f"{scientific(part['tolerance'], 1)} and with 4000 products at most: 60 to 240 rows, "
            "1 to 12 modes, float32 and float64, scaled by 10 to a power between -12 and 12. The "
            "truth is a dense decomposition in float64. A call is *right* if all modes are marked "
            "as converged and all agree with it, to the tolerance or to 64 rounding units if these "
            "are more; *unsure* if some are marked as not converged and the others agree; and "
            "*wrong* if a mode that is marked as converged does not. To be wrong is the only "
            "failure: who is unsure has said so. The error is relative to the largest value."
        ),
        *table(
            "Calls by their outcome",
            ["Method", *_OUTCOMES, "largest error of those that are right"],
            rows,
        ),
        *paragraph(
            "Which spectra make a method unsure: the products run out where values are too close "
            "to each other, and a second search, which methods that may miss a mode have to pass, "
            "can end in doubt."
        ),
        *table(f"Unsure, of {each} calls each", ["Spectrum", *counts], unsure),
    ]


def _totals(part: Found) -> dict[str, dict[str, int]]:
    """Number of calls by method and outcome."""
    return {
        method: {o: sum(n.get(o, 0) for n in by_spectrum.values()) for o in _OUTCOMES}
        for method, by_spectrum in part["outcomes"].items()
    }


def outcomes_as_text(part: Found) -> list[str]:
    """The tables of :func:`certainty` for a terminal."""
    counts = _totals(part)
    lines = [f"{'method':<28}" + "".join(f"{o:>8}" for o in _OUTCOMES) + "   worst right"]
    for method, outcomes in counts.items():
        numbers = "".join(f"{n:8d}" for n in outcomes.values())
        lines.append(f"{method:<28}{numbers}   {scientific(part['worst'][method])}")
    lines += ["", f"{'right / unsure / wrong':<28}" + "".join(f"{m[:13]:>15}" for m in counts)]
    for spectrum in next(iter(part["outcomes"].values())):
        cells = [
            " / ".join(str(part["outcomes"][m][spectrum].get(o, 0)) for o in _OUTCOMES)
            for m in counts
        ]
        lines.append(f"{spectrum:<28}" + "".join(f"{cell:>15}" for cell in cells))
    return lines


def estimators(found: Found) -> list[str]:
    """Errors of traces, then of ranks."""
    records = found["estimators"]
    names = list(dict.fromkeys(r["operator"] for r in records))
    by_cell = {(r["operator"], r["quantity"], r["method"]): r for r in records}
    traces = [
        [
            name,
            *(_claim(by_cell[name, "trace", method]) for method in TRACES),
            _against_best(records, by_cell[name, "trace", "auto"], name),
        ]
        for name in names
    ]
    ranks = [
        [name, *(_claim(by_cell[name, kind, method]) for kind, method in RANKS.items())]
        for name in names
    ]
    spent = {kind: max(r["products"] for r in records if r["quantity"] == kind) for kind in RANKS}
    repetitions = sorted({r["repetitions"] for r in records}, reverse=True)
    return [
        *heading("Errors of estimates, and what they claim", "~"),
        *paragraph(
            f"Traces and effective ranks from {MATVECS} products with the operator: matrices of "
            "prescribed spectra, known by their products alone, and operators of networks as "
            "PyTorch initialises them. An entry is the root mean square of the relative error over "
            f"{' and '.join(map(str, repetitions))} repetitions, for matrices and networks; in "
            "brackets the standard error that was claimed, likewise, and how often the truth was "
            "within two of them. Errors of networks are measured against all eigenvalues of the "
            "smallest of the equivalent matrices."
        ),
        *table(
            f"Trace, {MATVECS} products",
            ["Operator", *(_NAMES[m] for m in TRACES), "``auto`` over the best"],
            traces,
        ),
        *paragraph(
            "XTrace and XNysTrace gain where few modes dominate, and Hutchinson's vectors, at half "
            "a price where a factor of the operator is known, where modes come in clusters larger "
            f"than the number of products. The trace of {MATH['K']} is exact by its structure, "
            "without any product, and is estimated here only by methods that were named. "
            "``auto`` learns from part of the products which method pays."
        ),
        *table(
            "Effective ranks",
            ["Operator", *(f"{k} (``{m}``), {spent[k]:g} products" for k, m in RANKS.items())],
            ranks,
        ),
    ]


def _claim(record: Found) -> str:
    if set(record["chosen"]) == {"exact"}:
        return f"exact ({scientific(record['rms'])})"
    return (
        f"{scientific(record['rms'])} "
        f"({scientific(record['claimed'])}; {percent(record['coverage'])})"
    )


def _against_best(records: Sequence[Found], auto: Found, name: str) -> str:
    if set(auto["chosen"]) == {"exact"}:
        return "exact"
    return f"{against_best(list(records), name):.2f}"
