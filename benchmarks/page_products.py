"""Tables of products: milliseconds per vector, and fractions of the floor."""

from __future__ import annotations

from typing import Any

from benchmarks.cases import FEATURES, OPERATORS
from benchmarks.floor import FLOOR, FLOOR_OF_BYTES
from benchmarks.tables import DASH, Footnotes, heading, number, paragraph, percent, table

Found = dict[str, Any]

_MATH = {"P": ":math:`P`", "P*": ":math:`P^{*}`", "K": ":math:`K`", "flow": ":math:`P K P^{*}`"}
_HOW = {
    "loop": "one vector after the other, since this contender knows no blocks",
    "faster in parts": "{} at a time, which is faster than ``torch.vmap`` of more",
    "only in parts": "{} at a time, since ``torch.vmap`` of more fails or needs too much memory",
}


def headline(found: Found) -> list[str]:
    """The base case: in a few sentences, then in full."""
    settings = found["settings"]
    case = _base(found)
    name = f"{case['model']}, {case['hidden']} units"
    page = heading(f"At a glance: {name}", "~")
    for block in settings["blocks"]:
        page += in_words(case, block)
    return [*page, "", *of_case(case, settings["blocks"])]


def _base(found: Found) -> Found:
    """The base case of the settings, or the first where it was not among those measured."""
    key = found["settings"]["model"], found["settings"]["hidden"]
    cases = found["products"]
    return next((c for c in cases if (c["model"], c["hidden"]) == key), cases[0])


def in_words(case: Found, block: int) -> list[str]:
    """The fastest of kpops and the fastest of the others on the flow operator.

    The others may take a block in smaller parts, where that is faster or all that they can.
    """
    known = [
        r
        for r in case["products"]
        if r["operator"] == "flow"
        and "ms_per_vector" in r
        and r["contender"] not in case["hidden_only"]
    ]
    ours = [r for r in known if r["contender"].startswith("kpops") and r["block"] == block]
    outside = [r for r in known if not r["contender"].startswith(("kpops", "floor"))]
    others = [r for r in outside if r["block"] <= block]
    if not ours or not others:
        return []
    best, other = (min(rows, key=lambda r: r["ms_per_vector"]) for rows in (ours, others))
    what = "a single vector" if block == 1 else f"blocks of {block}"
    return paragraph(
        f"{_MATH['flow']} on {what}: {number(best['ms_per_vector'])} ms per vector by "
        f"{label(best['contender'])}. The fastest without kpops is {label(other['contender'])} "
        f"with {number(other['ms_per_vector'])} ms, which is "
        f"{number(other['ms_per_vector'] / best['ms_per_vector'])} times as long"
        + (f" (in blocks of {other['block']})." if other["block"] < block else "."),
        first="- ",
    )


def all_cases(found: Found) -> list[str]:
    """Every model and size but the one at a glance."""
    base = _base(found)
    page = []
    for case in found["products"]:
        if case is not base:
            page += heading(f"{case['model']}, {case['hidden']} units", "~")
            page += of_case(case, found["settings"]["blocks"])
    return page


def of_case(case: Found, blocks: list[int]) -> list[str]:
    """Tables of all operators, and what preparing took."""
    page = []
    for operator in OPERATORS:
        page += of_operator(case, operator, blocks)
    prepared = ", ".join(f"{label(n)} {number(s)} s" for n, s in case["setup_s"].items())
    page += paragraph(f"Preparing, with a first product of each kind: {prepared}.")
    if case["feature_ranks"] is not None:
        ranks = " + ".join(str(rank) for rank in case["feature_ranks"])
        of = case["hidden"] + FEATURES + 2
        page += paragraph(f"Numerical rank r of the features: {ranks}, of {of} features.")
    return page


def of_operator(case: Found, operator: str, blocks: list[int]) -> list[str]:
    """Rows are contenders, columns are sizes of blocks."""
    records = [r for r in case["products"] if r["operator"] == operator]
    by_cell = {(r["contender"], r["block"]): r for r in records}
    names = list(dict.fromkeys(r["contender"] for r in records))
    notes, rows = Footnotes(), []
    best = {block: _fastest(case, by_cell, names, block) for block in blocks}
    for name in names:
        cells = [by_cell.get((name, block)) for block in blocks]
        reasons = {cell.get("dash", "") if cell else "" for cell in cells}
        remark = case["notes"].get(name)
        row = [label(name) + (notes.mark(remark) if remark and reasons == {""} else "")]
        row += [_entry(c, notes, c is not None and c is best[c["block"]]) for c in cells]
        rows.append(row)
    title = f"{_MATH[operator]}, ms per vector (fraction of the floor)"
    header = ["Contender", *("1 vector" if b == 1 else f"block of {b}" for b in blocks)]
    return table(title, header, rows, notes)


def _fastest(case: Found, by_cell: Found, names: list[str], block: int) -> Found | None:
    timed = [
        by_cell[name, block]
        for name in names
        if not name.startswith("floor")
        and name not in case["hidden_only"]
        and "ms_per_vector" in by_cell.get((name, block), {})
    ]
    return min(timed, key=lambda r: r["ms_per_vector"], default=None)


def _entry(record: Found | None, notes: Footnotes, best: bool) -> str:
    if record is None:
        return ""
    if "dash" in record:
        return DASH + notes.mark(record["dash"])
    text = number(record["ms_per_vector"])
    text = f"**{text}**" if best else text
    if record["contender"] not in (FLOOR, FLOOR_OF_BYTES):
        text += f" ({percent(record['fraction_of_floor'])})"
    if record.get("how") in _HOW:
        size = record.get("at_a_time", 1)
        part = "one vector" if size == 1 else f"{size} vectors"
        text += notes.mark(_HOW[record["how"]].format(part))
    return text


def label(contender: str) -> str:
    """A contender's name as the page writes it."""
    first, _, rest = contender.partition(" ")
    if first == "kpops":
        return f"kpops ``{rest}``"
    return f"{first}, {rest}" if first == "torch.func" else contender
