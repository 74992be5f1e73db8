r"""
Your own cell
=============

PyTorch has no low-rank cell, so here is one: a leaky network whose recurrent weights are
:math:`W = M N^\top / S`, with two columns in :math:`M` and in :math:`N`. kpops takes it as it is,
and checks whether each of its operators is correct. Its twin is a leaky cell of full rank with the
same :math:`W`. The two go through the same states and so share :math:`P`, but learning can change
them in different ways.

To see your own cell here, replace ``LowRankCell`` by it. It needs only a ``forward(x_t, h)`` that
returns the next state (:doc:`/your_cell` has the rules).
"""

import matplotlib.pyplot as plt
import torch
import xarray as xr
from torch import nn

import kpops
import kpops.testing


class LowRankCell(nn.Module):
    """h' = (1 - a) h + a (M N^T tanh(h) / S + U x + b), with S units."""

    def __init__(self, input_size, hidden_size, rank, alpha=0.2):
        super().__init__()
        self.input_size, self.hidden_size, self.alpha = input_size, hidden_size, alpha
        self.M = nn.Parameter(torch.randn(hidden_size, rank))
        self.N = nn.Parameter(torch.randn(hidden_size, rank))
        self.drive = nn.Linear(input_size, hidden_size)

    @property
    def W(self):
        """The recurrent weights; the step below does not need them."""
        return self.M @ self.N.T / self.hidden_size

    def forward(self, x, h):
        """Next state of every trial."""
        latent = torch.tanh(h) @ self.N / self.hidden_size
        return h + self.alpha * (latent @ self.M.T + self.drive(x) - h)


# %%
# Is it correct?
# --------------
#
# :func:`kpops.testing.check_linearization` applies each operator to random vectors and compares it
# with its adjoint, its matrix and automatic differentiation. Do this once for a new cell, on a
# small network and in float64, where rounding cannot hide an error.

torch.manual_seed(0)
task = kpops.tasks.memory_pro(20, angles="even", noise=0)
small = kpops.linearize(LowRankCell(3, 10, rank=2), task.inputs[:3, :8], dtype=torch.float64)
for law, error in kpops.testing.check_linearization(small)["laws"].items():
    print(f"{law:15} holds to rounding: {error < 1e-13}")

# %%
# A memory made by hand
# ---------------------
#
# With orthogonal columns in :math:`M` and :math:`N = 2 M`, activity along these columns sustains
# itself. The cosine and the sine of the stimulus, fed into these columns, leave a trace. No
# training is needed.

cell = LowRankCell(3, 64, rank=2)
with torch.no_grad():
    cell.M.copy_(8 * torch.linalg.qr(cell.M).Q)  # columns of norm sqrt(64)
    cell.N.copy_(2 * cell.M)
    cell.drive.weight[:, 0] = 0  # the fixation
    cell.drive.weight[:, 1:] = cell.M  # cosine and sine
    cell.drive.bias.zero_()

twin = kpops.models.LeakyCell(3, 64, alpha=cell.alpha, form="current")
with torch.no_grad():
    twin.weight_hh.copy_(cell.W)
    twin.weight_ih.copy_(cell.drive.weight)
    twin.bias.copy_(cell.drive.bias)

low, full = (kpops.linearize(c, task.inputs) for c in (cell, twin))
print(low, full, sep="\n")
print("same states, to single precision:", float(abs(low.states - full.states).max()) < 1e-5)

# %%
# kpops uses two engines. It knows that the twin consists of affine maps and functions that act unit
# by unit. It knows nothing of the cell above, and keeps the state Jacobian of every step of every
# trial.
#
# Same P, another K
# -----------------
#
# We compute the leading singular values of :math:`P` and the whole spectrum of :math:`K`. The
# spectrum of the twin is computed unit by unit. That of the cell comes from :math:`J^{*} J`, which
# has the same nonzero eigenvalues as :math:`K = J J^{*}` and only as many rows as there are
# weights.

names = ("low rank", "full rank")
gains = [kpops.svds(lin.P, k=30, rng=0).singular_value for lin in (low, full)]
spectra = [kpops.eigvalsh(lin.K).eigenvalue for lin in (low, full)]
spectra = [s[s > 1e-6 * s[0]] for s in spectra]

fig, (ring, left, right) = plt.subplots(1, 3, figsize=(10, 3.1), layout="constrained")
axes = xr.DataArray(cell.M.detach().numpy() / 64, dims=("unit", "axis"))
for trial in low.states @ axes:
    colour = plt.get_cmap("hsv")(float(trial.angle) / 6.2832)
    ring.plot(*trial.sel(time=trial.epoch != "stimulus").T, color=colour)
    ring.plot(*trial.isel(time=-1), "o", color=colour, markersize=4)
ring.set(title="states after the stimulus", xlabel="along $M_1$", ylabel="along $M_2$")
ring.set_aspect("equal")
for ax, values, title in ((left, gains, "$P$"), (right, spectra, "$K$")):
    for name, each, marker in zip(names, values, ("o", ""), strict=True):
        kpops.plot.spectrum(each, ax, label=name, marker=marker)
    ax.get_legend().remove()
    ax.set_title(title)
_ = right.legend(frameon=False)

# %%
# Left: each trial, coloured by its angle, comes to rest on a ring. It drifts a little along the
# ring, because 64 units do not make it perfectly round. The same ring appears in :math:`P`
# (middle). Twenty singular values stand out, one for each trial: they belong to pushes that move
# the state along the ring, where no dynamics counteract them. They come in pairs, since a trial and
# its opposite are mirror images. They are the same for both cells: :math:`P` depends on what a step
# does to the state, not on how the step is parametrised.
#
# :math:`K` describes the forcing that the weights can produce, and there the two differ (right). By
# how much?

for name, lin, values in zip(names, (low, full), spectra, strict=True):
    participation = float(values.sum() ** 2 / (values**2).sum())
    print(
        f"{name:9}: {sum(p.numel() for p in lin.parameters.values()):5} weights, "
        f"rank of K {values.size:5}, participation {participation:4.0f}, largest {values[0]:5.0f}"
    )
alignment = kpops.alignment(low.K, full.K, rng=0)
print(f"alignment of the two K: {alignment.estimate:.2f} +- {alignment.stderr:.2f}")

# %%
# The cell of low rank reaches fewer dimensions in all, as it must with fewer weights. Yet its
# participation ratio, which measures over how many dimensions the *strength* is spread, is larger.
# All weights of full rank see the same few patterns :math:`\tanh h`, and act much more strongly
# along these than along anything else. A claim about the rank of :math:`K` is a claim about a
# parametrisation and about a definition (:ref:`which-rank`).
#
# Declare what you know
# ---------------------
#
# The cell is gated, too: an affine map of :math:`\tanh h`, and a leak that acts unit by unit. Ten
# lines declare this. kpops compares the derivatives with automatic differentiation before it uses
# the declaration.


class LowRankRecurrence(kpops.models.GatedRecurrence):
    """The structure of a LowRankCell."""

    def __init__(self, module):
        maps = kpops.models.Affine("W", input="drive.weight", input_bias="drive.bias")
        super().__init__(module, [maps])

    def features(self, state):
        """The features that W multiplies."""
        return torch.tanh(state[0])

    def gates(self, from_x, from_h, state):
        """Next state, unit by unit."""
        return (state[0] + self.module.alpha * (from_h[0] + from_x[0] - state[0]),)


@kpops.models.as_recurrence.register
def _(model: LowRankCell) -> kpops.models.Recurrence:
    return LowRankRecurrence(model)


gated = kpops.linearize(cell, task.inputs)
difference = kpops.svds(gated.P, k=30, rng=0).singular_value / gains[0] - 1
print("same P, to single precision:", float(abs(difference).max()) < 1e-4)
n_steps = task.inputs.sizes["trial"] * task.inputs.sizes["time"]
for lin in (low, gated):
    numbers = lin.memory_estimate()[lin.engine.name] / 4  # float32
    print(f"engine {lin.engine.name:11} keeps {numbers / n_steps:7.1f} numbers per trial and step")

# %%
# A stored Jacobian has :math:`S^2 = 4096` numbers (the rest is memory for matvecs), and the
# derivatives of gates take a multiple of :math:`S = 64`, so the gain grows with the network.
# :math:`W` is a product of learning parameters, not itself a weight. So only :math:`P` uses the
# structure here; :math:`J` and :math:`K` still come from automatic differentiation. For weights
# that are parameters themselves, as in the twin, they would use it as well, and :math:`K` would be
# computed unit by unit.
