"""Autonomous flows of three variables."""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

import torch

from kpops.systems.registry import flow


@flow(
    "Lorenz",
    (-3.2, -5.5, 13.2),
    "E. N. Lorenz 1963, J. Atmos. Sci. 20, 130-141",
    dt=0.01,
    n_substeps=5,
    literature="0.9056 0 -14.5723",
)
def _lorenz(x, y, z, *, sigma=10.0, rho=28.0, beta=8 / 3):
    return sigma * (y - x), x * (rho - z) - y, x * y - beta * z


@flow(
    "DiffusionlessLorenz",
    (0.96, -1.21, 0.43),
    "G. van der Schrier and L. R. M. Maas 2000, Physica D 141, 19-36",
    dt=0.05,
    n_substeps=2,
    literature="0.2101 0 -1.2101",
)
def _diffusionless_lorenz(x, y, z, *, r=1.0):
    return -y - x, -x * z, x * y + r


@flow(
    "Rossler",
    (0.34, 6.77, 1.04),
    "O. E. Rossler 1976, Phys. Lett. A 57, 397-398",
    dt=0.1,
    n_substeps=25,
    literature="0.0714 0 -5.3943",
)
def _rossler(x, y, z, *, a=0.2, b=0.2, c=5.7):
    return -y - z, x + a * y, b + z * (x - c)


@flow(
    "Chen",
    (5.24, 13.34, 36.77),
    "G. Chen and T. Ueta 1999, Int. J. Bifurc. Chaos 9, 1465-1466",
    dt=0.005,
    n_substeps=4,
    literature="2.0272 0 -12.0272",
)
def _chen(x, y, z, *, a=35.0, b=3.0, c=28.0):
    return a * (y - x), (c - a) * x - x * z + c * y, x * y - b * z


@flow(
    "Lu",
    (-7.07, -7.92, 17.11),
    "J. Lu and G. Chen 2002, Int. J. Bifurc. Chaos 12, 659-661",
    dt=0.005,
    n_substeps=5,
)
def _lu(x, y, z, *, a=36.0, b=3.0, c=20.0):
    return a * (y - x), c * y - x * z, x * y - b * z


@flow(
    "Chua",
    (-1.37, 0.18, 1.83),
    "T. Matsumoto, L. O. Chua and M. Komuro 1985, IEEE Trans. Circuits Syst. 32, 797-818",
    dt=0.05,
    n_substeps=30,
    literature="0.3271 0 -2.5197",
)
def _chua(x, y, z, *, alpha=9.0, beta=100 / 7, a=8 / 7, b=5 / 7):
    bent = b * x + (a - b) / 2 * ((x + 1).abs() - (x - 1).abs())
    return alpha * (y - x + bent), x - y + z, -beta * y


@flow(
    "Halvorsen",
    (-7.56, 2.48, -11.94),
    "A. Arneodo, P. Coullet and C. Tresser 1981 (form of Halvorsen, in Sprott 2003)",
    dt=0.01,
    n_substeps=4,
    literature="0.7899 0 -4.5999",
)
def _halvorsen(x, y, z, *, a=1.27, b=4.0):
    return (
        -a * x - b * (y + z) - y * y,
        -a * y - b * (z + x) - z * z,
        -a * z - b * (x + y) - x * x,
    )


@flow(
    "Thomas",
    (-1.32, -2.69, -3.34),
    "R. Thomas 1999, Int. J. Bifurc. Chaos 9, 1889-1905",
    dt=0.2,
    n_substeps=4,
    literature="0.0349 0 -0.5749",
)
def _thomas(x, y, z, *, b=0.18):
    return torch.sin(y) - b * x, torch.sin(z) - b * y, torch.sin(x) - b * z


@flow(
    "RabinovichFabrikant",
    (-1.73, 1.35, 0.17),
    "M. I. Rabinovich and A. L. Fabrikant 1979, Sov. Phys. JETP 50, 311-317",
    dt=0.05,
    n_substeps=4,
    literature="0.1981 0 -0.6581",
)
def _rabinovich_fabrikant(x, y, z, *, gamma=0.87, alpha=1.1):
    return (
        y * (z - 1 + x * x) + gamma * x,
        x * (3 * z + 1 - x * x) + gamma * y,
        -2 * z * (alpha + x * y),
    )


@flow(
    "Rucklidge",
    (-2.42, -3.06, 5.01),
    "A. M. Rucklidge 1992, J. Fluid Mech. 237, 209-229",
    dt=0.05,
    n_substeps=5,
)
def _rucklidge(x, y, z, *, kappa=2.0, lambda_=6.7):
    return -kappa * x + lambda_ * y - y * z, x, -z + y * y


@flow(
    "BurkeShaw",
    (0.01, -0.09, 0.33),
    "R. Shaw 1981, Z. Naturforsch. A 36, 80-112",
    dt=0.01,
    n_substeps=5,
)
def _burke_shaw(x, y, z, *, s=10.0, v=4.272):
    return -s * (x + y), -y - s * x * z, s * x * y + v


@flow(
    "Aizawa",
    (-0.48, 1.22, 0.16),
    "W. F. Langford 1984, Int. Ser. Numer. Math. 70, 279-293",
    dt=0.05,
    n_substeps=5,
)
def _aizawa(x, y, z, *, a=0.95, b=0.7, c=0.6, d=3.5, e=0.25, f=0.1):
    return (
        (z - b) * x - d * y,
        d * x + (z - b) * y,
        c + a * z - z**3 / 3 - (x * x + y * y) * (1 + e * z) + f * z * x**3,
    )


@flow(
    "Hadley", (0.91, -0.49, 2.06), "E. N. Lorenz 1984, Tellus A 36, 98-110", dt=0.02, n_substeps=2
)
def _hadley(x, y, z, *, a=0.25, b=4.0, f=8.0, g=1.0):
    return (
        -y * y - z * z - a * x + a * f,
        x * y - b * x * z - y + g,
        b * x * y + x * z - z,
    )


@flow(
    "Arneodo",
    (2.98, -1.56, -7.14),
    "A. Arneodo, P. Coullet, E. Spiegel and C. Tresser 1985, Physica D 14, 327-347",
    dt=0.05,
    n_substeps=3,
)
def _arneodo(x, y, z, *, a=-5.5, b=3.5, c=1.0, d=-1.0):
    return y, z, -a * x - b * y - c * z + d * x**3


@flow(
    "GenesioTesi",
    (0.14, -0.13, 0.01),
    "R. Genesio and A. Tesi 1992, Automatica 28, 531-548",
    dt=0.1,
    n_substeps=3,
)
def _genesio_tesi(x, y, z, *, a=0.44, b=1.1, c=1.0):
    return y, z, -c * x - b * y - a * z + x * x


@flow(
    "Dadras",
    (1.56, 0.08, -0.04),
    "S. Dadras and H. R. Momeni 2009, Phys. Lett. A 373",
    dt=0.02,
    n_substeps=8,
)
def _dadras(x, y, z, *, p=3.0, o=2.7, r=1.7, c=2.0, e=9.0):
    return y - p * x + o * y * z, r * y - x * z + z, c * x * y - e * z


@flow(
    "MooreSpiegel",
    (-1.83, 0.93, 17.93),
    "D. W. Moore and E. A. Spiegel 1966, Astrophys. J. 143, 871-887",
    dt=0.02,
    n_substeps=3,
)
def _moore_spiegel(x, y, z, *, t=6.0, r=20.0):
    return y, z, -z - (t - r + r * x * x) * y - t * x


@flow(
    "Windmi",
    (-8.74, 0.73, 5.31),
    "W. Horton, R. S. Weigel and J. C. Sprott 2001, Phys. Plasmas 8, 2946-2952",
    dt=0.1,
    n_substeps=4,
    literature="0.0755 0 -0.7755",
)
def _windmi(x, y, z, *, a=0.7, b=2.5):
    return y, z, -a * z - y + b - torch.exp(x)


@flow(
    "NoseHoover",
    (0.0, 5.0, 0.0),
    "W. G. Hoover 1985, Phys. Rev. A 31, 1695-1697",
    dt=0.1,
    n_substeps=4,
)
def _nose_hoover(q, p, zeta, *, temperature=1.0, mass=1.0):
    return p, -q - zeta * p, (p * p - temperature) / mass


@flow(
    "SimplestQuadratic",
    (-0.38, -0.69, 0.41),
    "J. C. Sprott 1997, Phys. Lett. A 228, 271-274",
    dt=0.1,
    n_substeps=6,
    literature="0.0551 0 -2.0721",
)
def _simplest_quadratic(x, y, z, *, a=2.017):
    return y, z, -a * z + y * y - x


@flow(
    "SimplestPiecewiseLinear",
    (-1.84, 0.63, 1.27),
    "S. J. Linz and J. C. Sprott 1999, Phys. Lett. A 259, 240-245",
    dt=0.1,
    n_substeps=4,
    literature="0.0362 0 -0.6362",
)
def _simplest_piecewise_linear(x, y, z, *, a=0.6, b=1.0):
    return y, z, -a * z - y + x.abs() - b
