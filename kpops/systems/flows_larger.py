"""Driven oscillators, mechanics, neurons, and flows of four variables or more.

A driven oscillator is autonomous here: its drive is the first variable of the oscillator

    c' = c (1 - c^2 - s^2) / 2 - omega s,    s' = s (1 - c^2 - s^2) / 2 + omega c,

whose cycle is c = cos(omega t), s = sin(omega t). The cycle attracts at the rate 1: the exponents
are those of the driven system, whose phase has exponent 0, and -1.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

import torch

from kpops.systems.registry import flow


def _drive(c, s, omega):
    inward = (1 - c * c - s * s) / 2
    return c * inward - omega * s, s * inward + omega * c


@flow(
    "Duffing",
    (-0.05, -0.63, 0.0, -1.0),
    "G. Duffing 1918; P. Holmes 1979, Phil. Trans. R. Soc. A 292, 419-448 (two wells)",
    dt=0.1,
    n_substeps=4,
    literature="0.1571 0 -0.4071 -1",
)
def _duffing(x, v, c, s, *, delta=0.25, amplitude=0.4, omega=1.0):
    return v, -delta * v + x - x**3 + amplitude * c, *_drive(c, s, omega)


@flow(
    "Ueda",
    (-0.76, -1.07, 0.0, -1.0),
    "Y. Ueda 1979, J. Stat. Phys. 20, 181-196",
    dt=0.1,
    n_substeps=4,
    literature="0.1034 0 -0.1534 -1",
)
def _ueda(x, v, c, s, *, delta=0.05, amplitude=7.5, omega=1.0):
    return v, -delta * v - x**3 + amplitude * c, *_drive(c, s, omega)


@flow(
    "VanDerPol",
    (1.75, -0.64, -0.8, 0.6),
    "U. Parlitz and W. Lauterborn 1987, Phys. Rev. A 36, 1428-1434",
    dt=0.05,
    n_substeps=18,
    literature="0.1932 0 -1 -2.0573",
)
def _van_der_pol(x, v, c, s, *, mu=3.0, amplitude=5.0, omega=1.788):
    return v, mu * (1 - x * x) * v - x + amplitude * c, *_drive(c, s, omega)


@flow(
    "Pendulum",
    (0.0, 0.0, 1.0, 0.0),
    "G. L. Baker and J. P. Gollub 1996, Chaotic Dynamics, Cambridge University Press",
    dt=0.1,
    n_substeps=4,
    literature="0.1400 0 -0.1900 -1",
)
def _pendulum(x, v, c, s, *, damping=0.05, amplitude=0.6, omega=0.7):
    return v, -damping * v - torch.sin(x) + amplitude * c, *_drive(c, s, omega)


@flow(
    "DoublePendulum",
    (1.5, 2.5, 0.0, 0.0),
    "T. Shinbrot, C. Grebogi, J. Wisdom and J. A. Yorke 1992, Am. J. Phys. 60, 491-499",
    dt=0.05,
    n_substeps=4,
)
def _double_pendulum(theta1, theta2, p1, p2, *, gravity=1.0):
    """Two unit masses on unit rods; p1 and p2 are the momenta of the angles."""
    sine, cosine = torch.sin(theta1 - theta2), torch.cos(theta1 - theta2)
    inertia = 1 + sine * sine
    torque = p1 * p2 * sine / inertia
    torque = torque - (p1 * p1 + 2 * p2 * p2 - 2 * p1 * p2 * cosine) * sine * cosine / inertia**2
    return (
        (p1 - p2 * cosine) / inertia,
        (2 * p2 - p1 * cosine) / inertia,
        -2 * gravity * torch.sin(theta1) - torque,
        -gravity * torch.sin(theta2) + torque,
    )


@flow(
    "HenonHeiles",
    (0.0, -0.1, 0.51, 0.0),
    "M. Henon and C. Heiles 1964, Astron. J. 69, 73-79",
    dt=0.1,
    n_substeps=2,
)
def _henon_heiles(x, y, p, q, *, coupling=1.0):
    return p, q, -x - 2 * coupling * x * y, -y - coupling * (x * x - y * y)


@flow(
    "HindmarshRose",
    (-1.11, -5.06, 3.24),
    "J. L. Hindmarsh and R. M. Rose 1984, Proc. R. Soc. Lond. B 221, 87-102",
    dt=0.1,
    n_substeps=24,
)
def _hindmarsh_rose(
    x, y, z, *, a=1.0, b=3.0, c=1.0, d=5.0, r=0.006, s=4.0, x_rest=-1.6, current=3.25
):
    return (
        y - a * x**3 + b * x * x - z + current,
        c - d * x * x - y,
        r * (s * (x - x_rest) - z),
    )


@flow(
    "HyperRossler",
    (-1.75, 9.87, 2.82, 30.55),
    "O. E. Rossler 1979, Phys. Lett. A 71, 155-157",
    dt=0.02,
    n_substeps=28,
)
def _hyper_rossler(x, y, z, w, *, a=0.25, b=3.0, c=0.5, d=0.05):
    return -y - z, x + a * y + w, b + x * z, -c * z + d * w


@flow(
    "Lorenz96",
    (0.7, 8.9, 5.24, 0.76, 3.66, -3.21, -0.36, -1.02),
    "E. N. Lorenz 1996, Proc. Seminar on Predictability, ECMWF, 1, 1-18",
    dt=0.05,
    n_substeps=14,
)
def _lorenz96(h, *, forcing=8.0):
    """As many variables as the initial state has, on a ring."""
    ahead, behind = torch.roll(h, -1, -1), torch.roll(h, 1, -1)
    return (ahead - torch.roll(h, 2, -1)) * behind - h + forcing
