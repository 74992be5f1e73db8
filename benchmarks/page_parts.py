"""Tables of growth, memory and the busy core."""

from __future__ import annotations

from typing import Any

from benchmarks.page_products import label
from benchmarks.tables import (
    DASH,
    Footnotes,
    heading,
    number,
    paragraph,
    percent,
    size,
    table,
)

Found = dict[str, Any]

_AXES = {"trials": "trials :math:`B`", "steps": "steps :math:`T`", "hidden": "units :math:`H`"}
MATH = {"P": ":math:`P`", "K": ":math:`K`", "flow": ":math:`P K P^{*}`"}


def large(found: Found) -> list[str]:
    """Fractions of the rate of matrix products, on a problem for a GPU."""
    first = found["large"][0]
    problem = f"{first['model']}, {first['hidden']} units, {first['trials']} trials, "
    problem += f"{first['steps']} steps, blocks of {first['block']} vectors"
    rate = number(first["gemm_flops_per_s"] / 1e9)
    rows = [
        [MATH.get(r["operator"], ":math:`P^{*}`"), number(r["ms"]), percent(r["fraction_of_gemm"])]
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
