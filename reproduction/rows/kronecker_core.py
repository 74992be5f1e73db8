"""The tangent kernel of all states factors exactly, and K is read off a forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from reproduction.results import attributes
from reproduction.row import Row
from reproduction.verdicts import Check, check

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    import kpops

EXACT = 1e-10
NETWORKS = ("RNN", "MLP", "transformer")
QUANTITIES = {
    "factors": "P K P* of kpops",
    "gram": "K of kpops and the Gram matrix",
    "forward": "P G P* with the Gram matrix in the place of K",
}


def measure(
    seed: int,
    *,
    trials: int,
    time: int,
    units: int,
    inputs: int,
    heads: int,
    scales: Sequence[float],
) -> xr.Dataset:
    """Relative differences of P K P* and of K from what autograd and a forward pass give.

    At a linear part ``a = W v``, called at positions p (trial, time), K is ``G kron I`` with
    ``G[p, q] = v_p . v_q``: what the weights see, in a forward pass alone. A bias is a weight of 1.
    The reference of P K P* is ``D D^T`` with the dense Jacobian D of all values of all parts by all
    parameters, by autograd. An RNN is unrolled: ``h <- (1 - alpha) h + [W, U] v`` with
    ``v = alpha [tanh h, x]``.

    Returns
    -------
    Dataset
        ``difference`` (network, scale, quantity): Frobenius norms; ``parameters`` and ``size`` of
        the kernel (network).
    """
    found = np.empty((len(NETWORKS), len(scales), len(QUANTITIES)))
    sizes = np.empty((2, len(NETWORKS)), int)
    rng = np.random.default_rng(seed)
    data = rng.normal(size=(trials, time, inputs))
    for i, name in enumerate(NETWORKS):
        for j, scale in enumerate(scales):
            model, lin = linearize(name, data, seed, units, heads, scale)
            D, gram = jacobian(name, model, data), grams(name, model, data)
            eye = np.eye(lin.P.shape[0])
            P, K, flow = (np.asarray(operator @ eye) for operator in (lin.P, lin.K, lin.flow))
            kernel = D @ D.T
            pairs = ((flow, kernel), (K, gram), (P @ gram @ P.T, kernel))
            found[i, j] = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs]
            sizes[:, i] = D.shape[::-1]
    return xr.Dataset(
        {
            "difference": (
                ("network", "scale", "quantity"),
                found,
                attributes("relative difference, Frobenius norm"),
            ),
            "parameters": ("network", sizes[0], attributes("parameters")),
            "size": ("network", sizes[1], attributes("rows of the kernel")),
        },
        coords={
            "network": ("network", list(NETWORKS), attributes("network")),
            "scale": ("scale", list(scales), attributes("factor of the weights")),
            "quantity": ("quantity", list(QUANTITIES), attributes("quantity")),
        },
    )


def linearize(
    name: str, data: np.ndarray, seed: int, units: int, heads: int, scale: float
) -> tuple[nn.Module, kpops.Linearization | kpops.SiteLinearization]:
    """A network with its weights times a factor, and kpops' operators."""
    import torch
    from torch import nn

    import kpops
    from reproduction.attention import Block

    model: Any
    n_inputs = data.shape[-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "RNN":
            model = kpops.models.LeakyCell(n_inputs, units, alpha=0.7, form="current", bias=False)
        elif name == "MLP":
            model = nn.Sequential(
                nn.Linear(n_inputs, units), nn.Tanh(), nn.Linear(units, units), nn.Tanh(),
                nn.Linear(units, 2, bias=False),
            )  # fmt: skip
        else:
            model = Block(n_inputs, units, heads, 2 * units, seed)
    model.double()
    with torch.no_grad():
        for p in model.parameters():
            p *= scale
    if name == "RNN":
        return model, kpops.linearize(model, data)
    return model, kpops.linearize(model, torch.from_numpy(data), sites=list(linear_parts(model)))


def linear_parts(model: nn.Module) -> dict[str, nn.Module]:
    """The linear parts, by their names."""
    from torch import nn

    return {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}


def run(
    name: str, model: Any, inputs: Tensor, parameters: dict[str, Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """The v of each site and its values (trial, time, unit), by plain PyTorch.

    The sites are the linear parts, in the order of their calls; v is what they are given, and 1 if
    they have a bias. An RNN is one site, with v = alpha [tanh h, x].
    """
    import torch
    from torch.func import functional_call

    if name == "RNN":
        U, W = parameters["weight_ih"], parameters["weight_hh"]
        h = inputs.new_zeros(len(inputs), len(W))
        seen, states = [], []
        for x in inputs.unbind(1):
            seen.append(model.alpha * torch.cat([h.tanh(), x], 1))
            h = (1 - model.alpha) * h + seen[-1] @ torch.cat([W, U], 1).T
            states.append(h)
        return [(torch.stack(seen, 1), torch.stack(states, 1))]
    found = []

    def keep(part: Any, given: tuple[Tensor], value: Tensor) -> None:
        v = given[0]
        if part.bias is not None:
            v = torch.cat([v, torch.ones_like(v[..., :1])], -1)
        found.append((v, value))

    hooks = [part.register_forward_hook(keep) for part in linear_parts(model).values()]
    try:
        functional_call(model, parameters, (inputs,))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def jacobian(name: str, model: Any, data: np.ndarray) -> np.ndarray:
    """The dense Jacobian of the values (trial, site, time, unit) by all parameters, by autograd."""
    import torch
    from torch.func import jacrev

    inputs = torch.from_numpy(data)
    parameters = {n: p.detach() for n, p in model.named_parameters()}

    def values(chosen: dict[str, Tensor]) -> Tensor:
        return torch.cat([v.flatten(1) for _, v in run(name, model, inputs, chosen)], 1).flatten()

    parts = jacrev(values)(parameters)
    return torch.cat([parts[n].flatten(1) for n in parameters], 1).numpy()


def grams(name: str, model: Any, data: np.ndarray) -> np.ndarray:
    """The Gram matrices of all sites times identities, as one matrix like K; no derivatives."""
    import torch

    parameters = {n: p.detach() for n, p in model.named_parameters()}
    sites = run(name, model, torch.from_numpy(data), parameters)
    blocks = []
    for features, value in sites:
        v, units = features.numpy(), value.shape[-1]
        block = np.einsum("ati,bsi,uv->atubsv", v, v, np.eye(units), optimize=True)
        blocks.append(block.reshape(len(v), value[0].numel(), len(v), -1))
    size = sum(block.shape[1] for block in blocks)
    K = np.zeros((len(data), size, len(data), size))
    at = 0
    for block in blocks:
        here = slice(at, at + block.shape[1])
        K[:, here, :, here] = block
        at += block.shape[1]
    return K.reshape(len(data) * size, -1)


def judge(found: xr.Dataset) -> list[Check]:
    """All three, to rounding, for each network."""
    texts = {
        "factors": "P K P* is the kernel D D^T of autograd",
        "gram": "K is the Gram matrix of what the weights are given",
        "forward": "P with that Gram matrix makes the whole kernel",
    }
    return [
        check(
            f"{network}: {text}, largest relative difference at most 1e-10",
            found.difference.sel(network=network, quantity=quantity).max("scale").values,
            lambda value: value <= EXACT,
        )
        for network in NETWORKS
        for quantity, text in texts.items()
    ]


def draw(found: xr.Dataset) -> Figure:
    """The differences, for each network and scale."""
    from reproduction.figures import COLOURS, grid
    from reproduction.rows.ntk_models import legend_below

    figure, axes = grid(7.2, 2.6, 1, len(NETWORKS), sharey=True)
    for ax, network in zip(axes[0], NETWORKS, strict=True):
        for colour, quantity in zip(COLOURS, QUANTITIES, strict=False):
            values = found.difference.sel(network=network, quantity=quantity)
            label = QUANTITIES[quantity]
            ax.plot(found.scale, values.T, ".-", color=colour, label=label, linewidth=0.8)
        ax.axhline(EXACT, color="0.4", linestyle=":")
        ax.set(title=network, yscale="log", xlabel="factor of the weights")
    axes[0, 0].set_ylabel("relative difference")
    legend_below(figure, len(QUANTITIES))
    return figure


def notes(found: xr.Dataset) -> list[str]:
    """What is compared."""
    sizes = "; ".join(
        f"{name}: {int(found['size'].sel(network=name)[0])} values and "
        f"{int(found.parameters.sel(network=name)[0])} parameters"
        for name in found.network.values
    )
    return [
        "A theorem, checked in float64 on small networks at each of the weight sites: the dense "
        "Jacobian of autograd and the forward pass share no code with kpops. The third check "
        "follows from the two others. "
        f"{sizes}. The RNN is the paper's, h <- 0.3 h + 0.7 (W tanh h + U x).",
    ]


ROW = Row(
    name="kronecker_core",
    title="The kernel factors, and K is a Gram matrix",
    paper="2605.08746",
    where="its theorem on the Kronecker core",
    says="For networks built from linear maps, RNNs and transformers among them, the tangent "
    "kernel of all states is exactly P K P*, and K is the Gram matrix of what the weights are "
    "given, times the identity, so that a forward pass is enough for it.",
    measure=measure,
    settings={
        "trials": 3,
        "time": 6,
        "units": 16,
        "inputs": 5,
        "heads": 4,
        "scales": [0.5, 1.0, 2.0],
    },
    quick={"units": 8, "time": 3, "trials": 2},
    judge=judge,
    draw=draw,
    notes=notes,
)
