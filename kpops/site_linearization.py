"""What :func:`kpops.linearize` returns for a network with sites."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NoReturn

import torch
import xarray as xr
from torch import Tensor, nn

from kpops import site_snapshot
from kpops.arrays import to_numpy
from kpops.checks import same_random_state
from kpops.distributed.agreement import Processes, fingerprint
from kpops.engines.exclusive import exclusive_compute
from kpops.engines.random_vectors import RandomVectors
from kpops.engines.rowwise import Rowwise
from kpops.engines.site_engine import SiteEngine
from kpops.labels import Space
from kpops.linearization import Linearization
from kpops.models.sites import SiteNetwork
from kpops.models.whole import Parts as Whole
from kpops.models.whole import unwrap
from kpops.operators import (
    OutputKernel,
    ReadoutJacobian,
    ReadoutParameterJacobian,
    TrajectoryOperator,
)
from kpops.precision import check_precision
from kpops.read_inputs import Reading
from kpops.snapshot import learning_parameters


@dataclass(eq=False, kw_only=True)
class SiteLinearization(Linearization):
    """A network linearised about the values of its sites; see :doc:`/any_network`.

    It has the attributes of :class:`Linearization`, with `network`, the snapshot and its sites, in
    the place of `recurrence`. `space` has the dimensions (trial, unit), where ``site`` labels the
    units.

    Examples
    --------
    >>> import torch, kpops
    >>> net = torch.nn.Sequential(
    ...     torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2)
    ... )
    >>> lin = kpops.linearize(net, torch.randn(5, 4))
    >>> lin.flow.select(site="0")
    <R P K P* R* (trial: 5, unit: 6), float32 on cpu, PSD>
    >>> lin.output_ntk
    <dy/dtheta dy/dtheta* (trial: 5, output: 2), float32 on cpu, PSD>
    """

    recurrence: Any = field(init=False)
    network: SiteNetwork
    trajectory: Any

    def __post_init__(self) -> None:
        # Without the readout, which may be a function that does not pickle.
        network = replace(self.network, readout=None, _swapped=None)
        self.engine: Any = SiteEngine(network, self.parameters, self.trajectory)
        self.engine_reason = "runs that are pushed and cut"

    @cached_property
    def outputs(self) -> xr.DataArray:
        """The outputs of the network, dims (trial, output), or with dims of positions between."""
        with exclusive_compute(self.device):
            rows = self._outputs.function({}, self.trajectory.inputs, self.trajectory.states)
        values = to_numpy(rows).reshape(self.output_space.shape)
        return self.output_space.label(values, name="outputs", long_name="output y")

    @cached_property
    def output_space(self) -> Space:
        """The space of the outputs (trial, output), or with dims of positions between."""
        if self.readout is None:
            raise ValueError(
                "this needs outputs, and the network returns several things: pass readout=, a "
                "function from what it returns to the tensor of outputs"
            )
        run = self.network.run
        with exclusive_compute(self.device):
            _, returned = run({}, self.trajectory.inputs, lambda _, output: (output, output))
        return site_snapshot.output_space(tuple(self.readout(returned).shape), self.space)

    @cached_property
    def C(self) -> TrajectoryOperator:
        """C, how the outputs depend on the sites, each on its own."""
        self.output_space  # noqa: B018, refuses a network without
        rows = self.engine.rows(self.network.cut_outputs, self.trajectory.states)
        C = ReadoutJacobian(rows, self.trajectory, self.space, self.output_space)
        C.attrs = self.attrs
        return C

    @cached_property
    def output_sensitivity(self) -> ReadoutParameterJacobian:
        """dy/dtheta: C P J, and what the outputs depend on the parameters by beside the sites."""
        spaces = self.parameter_space, self.output_space
        S = ReadoutParameterJacobian(self._outputs, self.trajectory, *spaces, "dy/dtheta")
        S.attrs = self.attrs
        return S

    @cached_property
    def J_C(self) -> None:
        """None, where the outputs depend on the parameters by the sites alone; else an error."""
        _refuse(*self._gradients())

    def refuse_beside(self) -> None:
        """Refuse a network of which a gradient step moves the sites by more than their errors."""
        if self.readout is not None:
            _refuse(*(self.sensitivity.apply(gradient) for gradient in self._gradients()))

    def _gradients(self) -> tuple[Tensor, Tensor]:
        """Of a random sum of the outputs, by the parameters: whole, and by the sites alone."""
        shape, numbers = self.output_space.shape, range(self.output_space.size)
        y = RandomVectors(0).normal(1, numbers, self.trajectory.states).view(1, *shape)
        by_sites = self.sensitivity.apply_adjoint(self.C.apply_adjoint(y))
        return self.output_sensitivity.apply_adjoint(y), by_sites

    @cached_property
    def output_ntk(self) -> TrajectoryOperator:
        """The neural tangent kernel of the outputs, dy/dtheta (dy/dtheta)*."""
        ntk: Any = OutputKernel(self.output_sensitivity)
        return ntk if self._scale == 1 else self._scale * ntk

    def parameter_gradient(self, of_outputs: Tensor, adjoint: Tensor) -> Tensor:
        """As of :class:`Linearization`; also by what the outputs depend on beside the sites."""
        if self.readout is None:
            return self.J.apply_adjoint(adjoint)
        return self.output_sensitivity.apply_adjoint(of_outputs)

    @cached_property
    def _outputs(self) -> Rowwise:
        self.output_space  # noqa: B018
        return self.engine.rows(self.network.whole, self.trajectory.states)

    forcing_step = 1.0

    @property
    def model(self) -> nn.Module:
        """The snapshot of the network."""
        return self.network.module

    def second_order(
        self, error: Tensor, dtheta: Tensor, dy: Tensor, names: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """That of error . y(theta), applied to dtheta; and zero, since it does not depend on y.

        y are the outputs, or the sites where there are none.
        """
        rows = self.engine.pushed if self.readout is None else self._outputs
        fixed = dtheta.new_zeros(len(dtheta), *rows.h.shape)
        by_theta, _ = rows.second_order(error.flatten(1), dtheta, fixed, names)
        return by_theta, torch.zeros_like(dy)

    @property
    def structure(self) -> dict[str, bool]:
        """Which structure is known and used."""
        return {"P in blocks of trials": True}

    def memory_estimate(
        self, *, trials: int | None = None, vectors: int = 1, processes: int = 1
    ) -> dict[str, int]:
        """Return the bytes of the derivatives that are kept, about, by the name of the engine.

        Parameters
        ----------
        trials, vectors, processes
            As for :meth:`Linearization.memory_estimate`.
        """
        self._check_estimate(trials, vectors, processes)
        here = len(self.trajectory.states) if trials is None else -(-trials // processes)
        numbers = here * self.trajectory.activations
        return {self.engine.name: (8 + 3 * (vectors - 1)) * numbers * self.dtype.itemsize}

    def __repr__(self) -> str:
        sizes: dict[str, list[int]] = {}
        for site in self.network.sites:
            sizes.setdefault(site.path or "output", []).append(site.size)
        shown = ", ".join(
            f"{name} ({n[0]}" + (f" in each of {len(n)} calls)" if len(n) > 1 else ")")
            for name, n in sizes.items()
        )
        n_parameters = sum(p.numel() for p in self.parameters.values())
        return (
            f"<SiteLinearization of {self.attrs['model']} {self.space}, "
            f"{n_parameters} learning parameters\n"
            f" measure {self.measure}, {self.attrs['dtype']} on {self.device}\n"
            f" sites: {shown}>"
        )


def _refuse(whole: Tensor, by_sites: Tensor) -> None:
    if (whole - by_sites).norm() > torch.finfo(whole.dtype).eps ** 0.5 * whole.norm():
        raise ValueError(
            "the outputs depend on parameters beside the sites: add the parts that make the "
            "outputs to sites="
        )


def _no_recurrence(lin: SiteLinearization) -> NoReturn:
    raise ValueError(
        f"{lin.attrs['model']} is linearised at sites, without steps in time, and this needs a "
        "recurrence: linearise its recurrent part without sites="
    )


SiteLinearization.recurrence = property(_no_recurrence)


def linearize_sites(
    processes: Processes,
    model: Any,
    inputs: Any,
    sites: Any,
    *,
    parameters: Iterable[str] | Callable[[str], bool] | None,
    readout: Callable[[Any], Tensor] | None,
    measure: str,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    precision: str,
) -> SiteLinearization:
    """Linearise a network about the values of its sites; arguments as of `linearize`."""
    network, path = unwrap(model)
    own_names = Whole(network, path=path).own_names
    module = site_snapshot.of_network(network, dtype, device)
    readout = site_snapshot.of_readout(readout)
    learning = learning_parameters(dict(module.named_parameters()), own_names(parameters))
    like = next(iter(learning.values()))
    check_precision(precision, like.dtype)
    rows, coords = site_snapshot.read_rows(inputs, like, convert=dtype is not None)
    module.requires_grad_(False)
    with exclusive_compute(like.device), same_random_state(like):
        found = site_snapshot.find_sites(module, own_names(sites), rows, readout)
        trajectory = site_snapshot.run(found, rows, learning, precision)
    network, n_trials = found.network, len(rows)
    facts = {
        "dtype": str(like.dtype),
        "sites": tuple(map(str, network.sites)),
        "units": sum(network.sizes),
        "model": type(module).__name__,
        "learning parameters": tuple(learning),
        "measure": measure,
        "precision": precision,
        "labels": sorted(coords),
    }
    if processes.group is not None:
        facts["weights with the hash"] = fingerprint(module)
    parts, in_all = processes.spread(n_trials, n_trials, facts, like.device)
    trajectory = replace(trajectory, parts=parts, elsewhere=in_all - n_trials)
    return SiteLinearization(
        network=network,
        parameters=learning,
        trajectory=trajectory,
        space=site_snapshot.site_space(network, n_trials, coords, parts),
        reading=Reading(),
        readout=network.read if network.output_axis is not None else None,
        readout_parameters={},
        measure=measure,
        engine_asked="sites",
        gates_asked="auto",
    )
