"""The floor: the cost of the arithmetic alone, as plain matrix products of the same sizes.

For P, all rows of all vectors go through the recurrent weights in one product, as if no time step
had to wait for another; P* has the transposed shape. K correlates, for each vector, the features
(h, x and a one for each of the two biases) with the rows of all gates, and goes back. The same at
the numerical rank r of the features is the least that K needs; an engine that knows r can reach it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import FEATURES, OPERATORS, Case
from benchmarks.contenders import Contender, Product

FLOOR, FLOOR_AT_RANK, FLOOR_OF_BYTES = "floor", "floor, K at rank r", "floor of bytes"
# Number of arrays (row, hidden) of derivatives of the gates that P reads.
_COEFFICIENTS = {"RNN": 1, "GRU": 4, "LSTM": 6}


def floor(case: Case) -> Contender:
    """P, P* and K at full features."""
    weights = torch.randn(case.hidden, case.gates * case.hidden).to(case.drive())
    products = {
        "P": _through(weights),
        "P*": _through(weights.T),
        "K": _there_and_back(case, case.hidden + FEATURES + 2),
    }
    return Contender(FLOOR, products, temporaries=2, floor=True)


def floor_at_rank(case: Case, rank: int) -> Contender:
    """K at features compressed to their numerical rank."""
    return Contender(FLOOR_AT_RANK, {"K": _there_and_back(case, rank)}, temporaries=2, floor=True)


def _through(weights: Tensor) -> Product:
    buffers: dict[int, tuple[Tensor, Tensor]] = {}

    def product(q: Tensor) -> Tensor:
        n_rows = len(q) * q.shape[1] * q.shape[2]
        if n_rows not in buffers:  # made while warming up; those of the last block are freed
            buffers.clear()
            rows, out = (q.new_empty(n_rows, size) for size in weights.shape)
            buffers[n_rows] = rows.normal_(), out
        rows, out = buffers[n_rows]
        return torch.mm(rows, weights, out=out)

    return product


def _there_and_back(case: Case, n_features: int) -> Product:
    like = case.drive()
    features = torch.randn(case.rows, n_features).to(like)
    gates = torch.randn(case.rows, case.gates * case.hidden).to(like)
    correlation = like.new_empty(n_features, gates.shape[1])
    out = torch.empty_like(gates)

    def product(q: Tensor) -> Tensor:
        for _ in range(len(q)):
            torch.mm(features.T, gates, out=correlation)
            torch.mm(features, correlation, out=out)
        return out

    return product


def bytes_moved(case: Case, operator: str, block: int) -> int:
    """Bytes of the gates, inputs and outputs of one product, each moved once."""
    gates = _COEFFICIENTS[case.kind] * case.rows * case.hidden
    vectors = 2 * block * case.rows * case.state_size
    return len(_parts(operator)) * (gates + vectors) * case.itemsize


def with_floors(
    case: Case, blocks: tuple[int, ...], records: list[dict[str, Any]], bandwidth: float
) -> list[dict[str, Any]]:
    """Complete the floors, and add to every record the fraction of the floor that it reaches.

    The floor of flow is the sum of those of its parts. A block too large to measure has, per
    vector, the floor of the largest block measured. `bandwidth` is in bytes per second.
    """
    ms = {
        (r["contender"], r["operator"], r["block"]): r["ms_per_vector"]
        for r in records
        if "ms_per_vector" in r
    }
    names = [name for name in (FLOOR, FLOOR_AT_RANK) if any(name == key[0] for key in ms)]
    completed = [r for r in records if r["contender"] not in (FLOOR, FLOOR_AT_RANK)]
    for operator in OPERATORS:
        for block in blocks:
            start = {"operator": operator, "block": block}
            for name in names:
                of_parts = [_largest(ms, name, part, block) for part in _parts(operator)]
                found = {"contender": name, **start, "ms_per_vector": sum(of_parts)}
                if name == FLOOR or "K" in _parts(operator):
                    completed.append(found)
            moved = bytes_moved(case, operator, block) / block
            bytes_ms = 1e3 * moved / bandwidth
            completed.append({"contender": FLOOR_OF_BYTES, **start, "ms_per_vector": bytes_ms})
    least = {
        (r["operator"], r["block"]): r["ms_per_vector"]
        for r in completed
        if r["contender"] == FLOOR
    }
    for record in completed:
        if "ms_per_vector" in record:
            at = least[record["operator"], record["block"]]
            record["fraction_of_floor"] = at / record["ms_per_vector"]
    return completed


def _parts(operator: str) -> tuple[str, ...]:
    return ("P", "P*", "K") if operator == "flow" else (operator,)


def _largest(ms: dict[tuple[str, str, int], float], name: str, operator: str, block: int) -> float:
    """Floor of the largest block up to this size; only for K does the rank matter."""
    name = name if operator == "K" else FLOOR
    sizes = [b for n, o, b in ms if n == name and o == operator and b <= block]
    return ms[name, operator, max(sizes)]
