"""Tables of all parts but the products of single layers and the spectra."""

from __future__ import annotations

from typing import Any

from benchmarks import scan as scans
from benchmarks.cases import OPERATORS
from benchmarks.page_products import label
from benchmarks.tables import (
    DASH,
    Footnotes,
    heading,
    number,
    paragraph,
    percent,
    scientific,
    size,
    table,
)

Found = dict[str, Any]

_AXES = {"trials": "trials :math:`B`", "steps": "steps :math:`T`", "hidden": "units :math:`H`"}
MATH = {"P": ":math:`P`", "P*": ":math:`P^{*}`", "K": ":math:`K`", "flow": ":math:`P K P^{*}`"}


def large(found: Found) -> list[str]:
    """Fractions of the rate of matrix products, on a problem for a GPU."""
    first = found["large"][0]
    problem = f"{first['model']}, {first['hidden']} units, {first['trials']} trials, "
    problem += f"{first['steps']} steps, blocks of {first['block']} vectors"
    rate = number(first["gemm_flops_per_s"] / 1e9)
    rows = [
        [MATH[r["operator"]], number(r["ms"]), percent(r["fraction_of_gemm"])]
        for r in found["large"]
    ]
    return [
        *heading("A large problem", "~"),
        *paragraph(
            f"{problem}, by the engine ``{first['engine']}``. One matrix product of the size of a "
            f"time step ran at {rate} GFLOP/s in the same turns. "
            "The operations are those of the products with the recurrent weights, and for "
            ":math:`P K P^{*}` those of :math:`K` at the rank of the features."
        ),
        *table("Time, and share of the rate of matrix products", ["", "ms", "share"], rows),
    ]


def stacks(found: Found) -> list[str]:
    """Times of stacks, and how many times the floor they are."""
    records = found["stacks"]
    cells = {(_stack(r), r["block"], r["operator"]): r for r in records}
    rows = []
    for name, block in dict.fromkeys(key[:2] for key in cells):
        of_row = [cells[name, block, operator] for operator in OPERATORS]
        times = [f"{number(r['ms_per_vector'])} ({number(r['times_the_floor'])})" for r in of_row]
        rows.append([name, str(block), *times, f"``{of_row[0]['engine']}``"])
    first = records[0]
    worst = max(
        r["times_the_floor"]
        for r in records
        if r["operator"] == "flow" and _stack(r) == _stack(first)
    )
    return [
        *heading("Stacks of layers", "~"),
        *paragraph(
            f"{first['trials']} trials of {first['steps']} steps, by the engine that kpops chooses "
            "by itself. The floor of a stack is the arithmetic of all its layers, measured in the "
            "same turns: for :math:`P` one product of all rows with the recurrent weights of each "
            "layer, and one more with the weights that take in the layer below; for :math:`K` the "
            "features of each layer times the rows of its gates and back; for :math:`P K P^{*}` "
            "the sum. As above, kpops compresses the features to their numerical rank, so that "
            ":math:`K` may be below its floor. The aim is twice the floor at most: for the "
            f"{_stack(first)}, :math:`P K P^{{*}}` takes {number(worst)} times its floor or less."
        ),
        *table(
            "ms per vector (times the floor)",
            ["Stack", "block", *(MATH[operator] for operator in OPERATORS), "engine"],
            rows,
        ),
    ]


def _stack(record: Found) -> str:
    return f"{record['model']} of {record['layers']} layers of {record['hidden']} units"


def scan(found: Found) -> list[str]:
    """Scans and loops of state-space layers: a table for each layer, then ratios of all."""
    part = found["scan"]
    apart = scientific(max(part["agreement"].values()))
    page = [
        *heading("State-space layers: the scan and the loops", "~"),
        *paragraph(
            f":math:`P` of the state-space layers of :doc:`models`, {part['trials']} trials, "
            f"{part['units']} units, white noise as inputs. The state Jacobians of DiagonalSSM "
            "(here of complex modes, two units each) and SelectiveSSM are blocks of two by two and "
            "diagonals, so that the engine ``scan`` works for them: on a CPU by one compiled pass "
            "over these, on a GPU by a scan in torch, in about :math:`2 \\log_2 T` rounds instead "
            "of :math:`T`. *Scan in torch* is the latter on either device (on a CPU, where it is "
            "not in use, large blocks leave the caches in each round), *loop in torch* one step "
            "after the other over the same numbers; LinearTimeVarying couples its units, and "
            "its loop is over stored matrices. The engine ``jacobian`` goes step by step over "
            "stored matrices, too, compiled on a CPU. In float64 and over the largest number of "
            f"steps, all products differ by at most {apart}, relative to their norm; more than "
            "1e-12 would stop the run."
        ),
    ]
    for model in part["agreement"]:
        page += _scan_table(model, [r for r in part["records"] if r["model"] == model])
    cells = list(dict.fromkeys((r["steps"], r["block"]) for r in part["records"]))
    value = {(r["model"], r["pair"], r["steps"], r["block"]): r["ratio"] for r in part["ratios"]}
    rows = [
        [f"{model}, {' over '.join(label(name) for name in scans.PAIRS[pair])}"]
        + [number(value[model, pair, *c]) if (model, pair, *c) in value else DASH for c in cells]
        for model, pair in dict.fromkeys(key[:2] for key in value)
    ]
    return page + table("Time of the loop over that of the scan", ["", *_lengths(cells)], rows)


def _scan_table(model: str, records: list[Found]) -> list[str]:
    notes = Footnotes()
    by_cell = {(r["contender"], r["steps"], r["block"]): r for r in records}
    cells = list(dict.fromkeys(key[1:] for key in by_cell))
    rows = []
    for name in dict.fromkeys(key[0] for key in by_cell):
        row = [label(name)]
        for cell in cells:
            r = by_cell[name, *cell]
            dash = "dash" in r
            row.append(DASH + notes.mark(r["dash"]) if dash else number(r["ms_per_vector"]))
        rows.append(row)
    title = f"{model}: {MATH['P']}, ms per vector"
    return table(title, ["Contender", *_lengths(cells)], rows, notes)


def _lengths(cells: list[tuple[int, int]]) -> list[str]:
    return [f":math:`T` = {steps:,}, block of {block}" for steps, block in cells]


def exponents(found: Found) -> list[str]:
    """Seconds of Lyapunov exponents."""
    part = found["exponents"]
    rows = [
        [
            f"{r['k']} of {r['trials']} trial{'s' if r['trials'] > 1 else ''}",
            number(r["kpops_s"]),
            number(r["by_hand_s"]),
            number(r["ratio"]),
        ]
        for r in part["records"]
    ]
    return [
        *heading("Lyapunov exponents", "~"),
        *paragraph(
            f"``kpops.lyapunov_spectrum(model, k, inputs=noise)`` for a tanh ``nn.RNN`` of "
            f"{part['hidden']} units and {part['steps']:,} steps, against a loop in torch as one "
            "would write it: each step makes the Jacobian "
            ":math:`\\mathrm{diag}(1 - h^2) W` of every trial, multiplies it with the tangent "
            "vectors and takes a QR of them by ``torch.linalg.qr``; kpops leaves out the QRs that "
            "rounding does not ask for. Both run the model as they go. The loop is timed "
            f"on {part['by_hand_steps']:,} steps and scaled to {part['steps']:,}. In float64, from "
            "the same tangent vectors, all exponents over these steps differ by at most "
            f"{scientific(part['agreement'])}; more than 1e-9 would stop the run."
        ),
        *table(
            f"Exponents of {part['hidden']} units, {part['steps']:,} steps",
            ["Exponents", "kpops, s", "by hand, s", "by hand over kpops"],
            rows,
        ),
    ]


def growth(found: Found) -> list[str]:
    """Slopes, then the points they were fitted to."""
    slopes, points = found["growth"]["slopes"], found["growth"]["points"]
    settings = found["settings"]
    curves = list(dict.fromkeys((s["operator"], s["block"]) for s in slopes))
    names = [f"{MATH[o]}, block of {b}" for o, b in curves]
    value = {(s["axis"], s["operator"], s["block"]): f"{s['slope']:.2f}" for s in slopes}
    rows = [[_AXES[axis], *(value[axis, *curve] for curve in curves)] for axis in _AXES]
    page = [
        *heading("Growth", "~"),
        *paragraph(
            f"{settings['model']}, with the engine that kpops chooses by itself. The slope in the "
            "log-log plane is the exponent with which the time of a product grows; those of the "
            "arithmetic of :math:`P` are 1, 1 and 2. The slope with the units is fitted from "
            f"{settings['hidden_from']} on: overheads hide the arithmetic of smaller networks."
        ),
        *table("Exponents of growth", ["With", *names], rows),
    ]
    for axis in _AXES:
        of_axis = [p for p in points if p["axis"] == axis]
        ms = {(p["at"], p["operator"], p["block"]): number(p["ms_per_vector"]) for p in of_axis}
        engines = {p["at"]: p["engine"] for p in of_axis}
        rows = [
            [str(at), *(ms[at, *curve] for curve in curves), f"``{engine}``"]
            for at, engine in engines.items()
        ]
        page += table(f"ms per vector with {_AXES[axis]}", ["", *names, "engine"], rows)
    return page


def memory(found: Found) -> list[str]:
    """Peaks of fresh processes."""
    notes, rows = Footnotes(), []
    header = [
        "Problem",
        "engine",
        "peak",
        "growth",
        "code",
        "estimate",
        "kept",
        "states",
        "vectors",
    ]
    for r in found["memory"]:
        problem = f"{r['model']} {r['hidden']}, {r['trials']} x {r['steps']}"
        engine = f"``{r['engine']}``" + (" (chosen)" if r["asked"] == "auto" else "")
        if "dash" in r:
            rows.append([problem, engine, DASH + notes.mark(r["dash"]), *[""] * 6])
            continue
        first = (r[k] for k in ("peak", "growth", "code", "estimate"))
        share = f" ({r['kept_ratio']:.2f})" if "kept_ratio" in r else ""
        kept = size(max(0, r["kept"])) + share
        others = map(size, (r["trajectory"], r["vectors"]))
        rows.append([problem, engine, *map(size, first), kept, *others])
    return [
        *heading("Memory", "~"),
        *paragraph(
            "One product with :math:`P K P^{*}` in a process of its own, trials x steps as named. "
            "*Peak* is the largest memory of the whole process. *Growth* is what comes on top of a "
            "process that has imported kpops and made the model and its inputs; *code* is the part "
            "of it that a tiny problem shows as well, libraries and kernels loaded at first use. "
            "*Estimate* is what ``lin.memory_estimate()`` foretells. *Kept* is by how much the "
            "process has grown between the linearization and the time after the product, vectors "
            "and code apart, and in brackets this over the estimate; for a problem of some MiB it "
            "is the system's noise. *States* is the trajectory with its inputs, *vectors* the "
            "vector and its product."
        ),
        *table("Peak memory", header, rows, notes),
    ]


def busy(found: Found) -> list[str]:
    """Ratios of loaded to quiet times."""
    records, settings = found["busy"], found["settings"]
    threads = found["environment"]["threads"]
    columns = list(dict.fromkeys((r["operator"], r["block"]) for r in records))
    ratio = {(r["contender"], r["operator"], r["block"]): r["ratio"] for r in records}
    names = list(dict.fromkeys(r["contender"] for r in records))
    rows = [
        [label(n), *(f"{ratio[n, *c]:.2f}" if (n, *c) in ratio else "" for c in columns)]
        for n in names
    ]
    return [
        *heading("A busy machine", "~"),
        *paragraph(
            f"{settings['model']}, {settings['hidden']} units: the time of a product while another "
            "process keeps one core busy, over its time on the quiet machine before and after. "
            f"Where there are as many cores as threads ({threads}), to share one of them fairly "
            f"costs a factor of {number(threads / (threads - 0.5))}. Threads that wait for each "
            "other at every time step lose much more."
        ),
        *table(
            "Busy over quiet",
            ["Contender", *(f"{MATH[o]}, block of {b}" for o, b in columns)],
            rows,
        ),
    ]
