"""Products with P, P*, K and flow: every contender on the same trajectory, in turn."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import peers, stored, torch_func
from benchmarks.cases import OPERATORS, Case, Grid
from benchmarks.contenders import (
    UNSUPPORTED,
    Contender,
    build,
    engine,
    engines,
    first_sentence,
    require_setup_time,
    state_jacobian_flops,
)
from benchmarks.floor import FLOOR, FLOOR_AT_RANK, floor, floor_at_rank, with_floors
from benchmarks.reference import Reference
from benchmarks.timing import median, seconds, take_turns
from kpops.engines.memory import free_bytes

Say = Callable[[str], None]
_SHARE_FOR_BLOCKS = 0.7


def makers(case: Case, rate: float, most_setup_s: float) -> dict[str, Callable[[], Contender]]:
    """Functions that make the contenders, in table order; `rate` in operations per second."""
    ours = engines(case)

    def stored_by_kpops() -> Contender:
        require_setup_time(state_jacobian_flops(case), rate, most_setup_s)
        return engine(case, "jacobian")

    ours["kpops jacobian"] = stored_by_kpops
    return {
        **ours,
        "torch.func unrolled": partial(torch_func.unrolled, case),
        "torch.func traced": partial(torch_func.unrolled, case, traced=True),
        "torch.func fused": partial(torch_func.fused, case),
        "curvlinops": partial(peers.curvlinops, case),
        "stored Jacobians": partial(stored.stored, case, rate, most_setup_s),
    }


def measure(case: Case, grid: Grid, abilities: dict[str, float], say: Say) -> dict[str, Any]:
    """The entry of one model in the JSON file."""
    contenders = []
    for name, make in makers(case, abilities["gemm_flops"], grid.most_setup_s).items():
        say(f"{case.name}: {name}")
        contenders.append(build(name, make, case))
    ranks = feature_ranks(contenders)
    floors = [build(FLOOR, partial(floor, case), case)]
    if ranks is not None:
        floors.append(build(FLOOR_AT_RANK, partial(floor_at_rank, case, sum(ranks)), case))
    table = Table(case, grid, [*contenders, *floors])
    records = []
    for operator in OPERATORS:
        for size in grid.blocks:
            say(f"{case.name}: {operator}, block of {size}")
            records += table.cell(operator, size)
    return {
        "model": case.kind,
        "hidden": case.hidden,
        "feature_ranks": ranks,
        "setup_s": {c.name: c.setup_s for c in contenders if c.setup_s is not None},
        "notes": {c.name: c.note for c in contenders if c.note},
        "hidden_only": [c.name for c in contenders if c.hidden_only],
        "products": with_floors(case, grid.blocks, records, abilities["copy_bytes_per_s"]),
    }


def feature_ranks(contenders: list[Contender]) -> list[int] | None:
    """Numerical ranks of the features, from an engine that knows them."""
    for contender in contenders:
        known = getattr(getattr(contender.linearization, "engine", None), "feature_ranks", None)
        if known is not None:
            return [int(rank) for rank in known()]
    return None


class Table:
    """Fills cell after cell, each with all contenders in turn."""

    def __init__(self, case: Case, grid: Grid, contenders: list[Contender]) -> None:
        self.case, self.grid, self.contenders = case, grid, contenders
        self.block = case.block(max(grid.blocks))
        self.reference = Reference(case, self.block)
        self.ms: dict[tuple[str, str, int], float] = {}
        """Per vector, by contender, operator and block."""
        self.given_up: dict[tuple[str, str], str] = {}
        """Why a contender drops out for an operator; larger blocks would only take longer."""

    def cell(self, operator: str, size: int) -> list[dict[str, Any]]:
        """Every contender on one operator and one size of block."""
        q = self.block[:size]
        records, acts = {}, {}
        for contender in self.contenders:
            if contender.floor and operator not in contender.products:
                continue  # assembled from its parts afterwards
            start = {"contender": contender.name, "operator": operator, "block": size}
            result = self.known(contender, operator, size) or self.warm_up(contender, operator, q)
            records[contender.name] = start | result
            if "ms_per_vector" not in result and "dash" not in result:
                acts[contender.name] = partial(contender.products[operator], q)
        for name, times in take_turns(acts, self.case.device, self.grid.limits).items():
            records[name] |= {"repetitions": len(times)} | self.result(name, operator, size, times)
        return list(records.values())

    def known(self, contender: Contender, operator: str, size: int) -> dict[str, Any] | None:
        """A result that needs no measurement: a dash, or the time of a loop over vectors."""
        key = contender.name, operator
        limit = self.grid.limits.longest_call_s
        smaller = [b for b in self.grid.blocks if b < size and (*key, b) in self.ms]
        if operator not in contender.products:
            return {"dash": contender.dashes[operator]}
        if key in self.given_up:
            return {"dash": self.given_up[key]}
        if not smaller:
            return None
        per_vector = self.ms[*key, smaller[-1]]
        if contender.one_by_one:
            return {"ms_per_vector": per_vector, "how": "loop"}
        # Per vector, a block may be somewhat faster than a smaller one.
        if per_vector * size / 1e3 > 1.5 * limit:
            return self.give_up(key, per_vector * size / 1e3)
        if self.bytes_needed(contender, size) > _SHARE_FOR_BLOCKS * self.free():
            dash = {"dash": "left out: the block does not fit in memory"}
            return self.in_parts(contender, operator) or dash
        return None

    def warm_up(self, contender: Contender, operator: str, q: Tensor) -> dict[str, Any]:
        """Compute one product and check it."""
        try:
            took, product = seconds(partial(contender.products[operator], q), self.case.device)
        except UNSUPPORTED as error:
            if contender.linearization is not None:
                raise  # kpops has no excuse
            return self.in_parts(contender, operator) or {"dash": first_sentence(error)}
        if contender.floor:
            return {}
        error = {"error": self.reference.check(contender, operator, product)}
        if took > self.grid.limits.longest_call_s:
            return error | self.give_up((contender.name, operator), took)
        return error

    def in_parts(self, contender: Contender, operator: str) -> dict[str, Any] | None:
        """What a user can do if a block cannot be computed at once."""
        parts = self.of_parts(contender, operator)
        if not parts:
            return None
        size = min(parts, key=parts.__getitem__)
        return {"ms_per_vector": parts[size], "how": "only in parts", "at_a_time": size}

    def of_parts(self, contender: Contender, operator: str) -> dict[int, float]:
        """Times per vector of the sizes so far, if a user may split a block into parts."""
        sizes = self.grid.blocks if contender.divisible else ()
        keys = {size: (contender.name, operator, size) for size in sizes}
        return {size: self.ms[key] for size, key in keys.items() if key in self.ms}

    def give_up(self, key: tuple[str, str], took: float) -> dict[str, Any]:
        limit = self.grid.limits.longest_call_s
        self.given_up[key] = f"left out: one product would take more than {limit:g} s"
        return {"dash": self.given_up[key], "product_s": took}

    def result(self, name: str, operator: str, size: int, times: list[float]) -> dict[str, Any]:
        """Median time, or that of a loop over smaller blocks where that is faster and allowed."""
        contender = next(c for c in self.contenders if c.name == name)
        ms = 1e3 * median(times) / size
        in_parts = self.in_parts(contender, operator)
        self.ms[name, operator, size] = ms
        if in_parts is None:
            return {"ms_per_vector": ms}
        if in_parts["ms_per_vector"] < ms:
            return in_parts | {"how": "faster in parts", "at_once_ms_per_vector": ms}
        return {"ms_per_vector": ms, "how": "vmap"}

    def bytes_needed(self, contender: Contender, size: int) -> float:
        case = self.case
        return size * contender.temporaries * case.rows * case.gates * case.hidden * case.itemsize

    def free(self) -> int:
        return free_bytes(torch.device(self.case.device))
