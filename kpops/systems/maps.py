"""Maps of one and two variables."""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

import math

import torch

from kpops.systems.registry import map_


@map_("Logistic", (0.3,), "R. M. May 1976, Nature 261, 459-467", "0.693147")
def _logistic(x, *, r=4.0):
    return (r * x * (1 - x),)


@map_("Cubic", (0.3,), "T. D. Rogers and D. C. Whitley 1983, Math. Modelling 4, 9-25")
def _cubic(x, *, a=2.6):
    return (a * x * (1 - x * x),)


@map_("Mouse", (0.1,), "R. C. Hilborn 2000, Chaos and Nonlinear Dynamics, Oxford (Gaussian map)")
def _mouse(x, *, a=6.2, b=-0.5):
    return (torch.exp(-a * x * x) + b,)


@map_("Ricker", (0.4,), "W. E. Ricker 1954, J. Fish. Res. Board Can. 11, 559-623")
def _ricker(x, *, a=20.0):
    return (a * x * torch.exp(-x),)


@map_("Henon", (0.1, 0.1), "M. Henon 1976, Commun. Math. Phys. 50, 69-77", "0.41922 -1.62319")
def _henon(x, y, *, a=1.4, b=0.3):
    return 1 - a * x * x + y, b * x


@map_("Lozi", (-0.1, 0.1), "R. Lozi 1978, J. Phys. Colloq. 39, C5-9", "0.47023 -1.16338")
def _lozi(x, y, *, a=1.7, b=0.5):
    return 1 - a * x.abs() + y, b * x


@map_(
    "Ikeda",
    (1.04, -2.01),
    "K. Ikeda 1979, Opt. Commun. 30, 257-261",
    "0.50760 -0.71832",
)
def _ikeda(x, y, *, alpha=6.0, beta=0.4, gamma=1.0, mu=0.9):
    phase = beta - alpha / (1 + x * x + y * y)
    sine, cosine = torch.sin(phase), torch.cos(phase)
    return gamma + mu * (x * cosine - y * sine), mu * (x * sine + y * cosine)


@map_("Tinkerbell", (-0.3, -0.6), "H. E. Nusse and J. A. Yorke 1997, Dynamics", "0.18997 -0.52091")
def _tinkerbell(x, y, *, a=0.9, b=-0.6, c=2.0, d=0.5):
    return x * x - y * y + a * x + b * y, 2 * x * y + c * x + d * y


@map_(
    "KaplanYorke",
    (1.0, 0.3),
    "J. L. Kaplan and J. A. Yorke 1979, Lect. Notes Math. 730, 204-227",
    "0.693147 -1.609438",
)
def _kaplan_yorke(x, y, *, alpha=0.2):
    """The angle x has period 2 pi: doubling modulo 1 would end at 0 in binary arithmetic."""
    return torch.remainder(2 * x, 2 * math.pi), alpha * y + torch.cos(2 * x)


@map_(
    "PredatorPrey",
    (0.5, 0.5),
    "J. R. Beddington, C. A. Free and J. H. Lawton 1975, Nature 255, 58-60",
    "0.19664 0.03276",
)
def _predator_prey(x, y, *, r=3.0, k=1.0, alpha=5.0):
    return x * torch.exp(r * (1 - x / k) - alpha * y), x * (1 - torch.exp(-alpha * y))


@map_(
    "Holmes",
    (1.6, 0.0),
    "P. Holmes 1979, Phil. Trans. R. Soc. A 292, 419-448 (the Duffing map)",
    "0.59458 -2.20402",
)
def _holmes(x, y, *, b=0.2, d=2.77):
    return y, -b * x + d * y - y**3


@map_(
    "Burgers",
    (-0.1, 0.1),
    "R. R. Whitehead and N. MacDonald 1984, Physica D 13, 401-407",
    "0.12076 -0.22136",
)
def _burgers(x, y, *, a=0.75, b=1.75):
    return a * x - y * y, b * y + x * y


@map_(
    "DelayedLogistic",
    (0.5, 0.5),
    "D. G. Aronson, M. A. Chory, G. R. Hall and R. P. McGehee 1982, Commun. Math. Phys. 83",
    "0.18312 -1.24199",
)
def _delayed_logistic(x, y, *, a=2.27):
    return a * x * (1 - y), x


@map_("Standard", (0.1, 0.1), "B. V. Chirikov 1979, Phys. Rep. 52, 263-379")
def _standard(angle, momentum, *, k=1.0):
    """Momentum and angle have period 2 pi."""
    new = momentum + k * torch.sin(angle)
    return torch.remainder(angle + new, 2 * math.pi), torch.remainder(new, 2 * math.pi)


@map_(
    "DissipativeStandard",
    (0.1, 0.1),
    "G. M. Zaslavsky 1978, Phys. Lett. A 69, 145-147",
    "1.46995 -3.77254",
)
def _dissipative_standard(angle, momentum, *, b=0.1, k=8.8):
    new = torch.remainder(b * momentum + k * torch.sin(angle), 2 * math.pi)
    return torch.remainder(angle + new, 2 * math.pi), new


@map_("Sinai", (0.5, 0.5), "Ya. G. Sinai 1972, Russ. Math. Surv. 27, 21-69", "0.95946 -1.07714")
def _sinai(x, y, *, delta=0.1):
    new = x + y + delta * torch.cos(2 * math.pi * y)
    return torch.remainder(new, 1.0), torch.remainder(x + 2 * y, 1.0)


@map_("Cat", (0.1, 0.3), "V. I. Arnold and A. Avez 1968, Ergodic Problems", "0.962424 -0.962424")
def _cat(x, y, *, k=1.0):
    """The matrix is [[1, 1], [k, 1 + k]], of determinant 1."""
    return torch.remainder(x + y, 1.0), torch.remainder(k * x + (1 + k) * y, 1.0)
