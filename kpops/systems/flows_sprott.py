"""The nineteen flows A to S of J. C. Sprott: six terms and one nonlinearity, or five and two."""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

from kpops.systems.registry import flow

_PAPER = "J. C. Sprott 1994, Phys. Rev. E 50, R647-R650"


@flow("SprottA", (0.0, 5.0, 0.0), f"{_PAPER}, case A", dt=0.1, n_substeps=4)
def _sprott_a(x, y, z, *, a=1.0):
    return y, -x + y * z, a - y * y


@flow("SprottB", (1.04, 0.79, -0.15), f"{_PAPER}, case B", dt=0.1, n_substeps=4)
def _sprott_b(x, y, z, *, a=1.0):
    return y * z, x - y, a - x * y


@flow("SprottC", (1.36, 0.89, 0.78), f"{_PAPER}, case C", dt=0.1, n_substeps=5)
def _sprott_c(x, y, z, *, a=1.0):
    return y * z, x - y, a - x * x


@flow("SprottD", (-1.91, -0.13, 0.42), f"{_PAPER}, case D", dt=0.1, n_substeps=5)
def _sprott_d(x, y, z, *, a=3.0):
    return -y, x + z, x * z + a * y * y


@flow("SprottE", (0.17, 0.56, -1.95), f"{_PAPER}, case E", dt=0.1, n_substeps=4)
def _sprott_e(x, y, z, *, a=4.0):
    return y * z, x * x - y, 1 - a * x


@flow("SprottF", (1.01, -1.35, 0.87), f"{_PAPER}, case F", dt=0.1, n_substeps=4)
def _sprott_f(x, y, z, *, a=0.5):
    return y + z, -x + a * y, x * x - z


@flow("SprottG", (-1.4, 0.27, 0.03), f"{_PAPER}, case G", dt=0.1, n_substeps=4)
def _sprott_g(x, y, z, *, a=0.4):
    return a * x + z, x * z - y, -x + y


@flow("SprottH", (-1.09, 1.72, -1.42), f"{_PAPER}, case H", dt=0.1, n_substeps=4)
def _sprott_h(x, y, z, *, a=0.5):
    return -y + z * z, x + a * y, x - z


@flow("SprottI", (-0.16, 0.27, 0.0), f"{_PAPER}, case I", dt=0.1, n_substeps=4)
def _sprott_i(x, y, z, *, a=-0.2):
    return a * y, x + z, x + y * y - z


@flow("SprottJ", (-4.45, -1.91, -2.74), f"{_PAPER}, case J", dt=0.1, n_substeps=6)
def _sprott_j(x, y, z, *, a=2.0, b=-2.0):
    return a * z, b * y + z, -x + y + y * y


@flow("SprottK", (-0.27, -0.79, -0.18), f"{_PAPER}, case K", dt=0.1, n_substeps=4)
def _sprott_k(x, y, z, *, a=0.3):
    return x * y - z, x - y, x + a * z


@flow("SprottL", (-0.39, 23.73, -10.88), f"{_PAPER}, case L", dt=0.1, n_substeps=8)
def _sprott_l(x, y, z, *, a=3.9, b=0.9):
    return y + a * z, b * x * x - y, 1 - x


@flow("SprottM", (0.37, -0.48, 1.2), f"{_PAPER}, case M", dt=0.1, n_substeps=4)
def _sprott_m(x, y, z, *, a=1.7, b=1.7):
    return -z, -x * x - y, a + b * x + y


@flow("SprottN", (-15.79, 1.99, 2.53), f"{_PAPER}, case N", dt=0.1, n_substeps=6)
def _sprott_n(x, y, z, *, a=-2.0, b=-2.0):
    return a * y, x + z * z, 1 + y + b * z


@flow("SprottO", (-0.26, 0.0, -0.3), f"{_PAPER}, case O", dt=0.1, n_substeps=4)
def _sprott_o(x, y, z, *, a=2.7):
    return y, x - z, x + x * z + a * y


@flow("SprottP", (0.35, 0.52, 0.02), f"{_PAPER}, case P", dt=0.1, n_substeps=4)
def _sprott_p(x, y, z, *, a=2.7):
    return a * y + z, -x + y * y, x + y


@flow("SprottQ", (-3.81, -3.86, -4.77), f"{_PAPER}, case Q", dt=0.1, n_substeps=4)
def _sprott_q(x, y, z, *, a=3.1, b=0.5):
    return -z, x - y, a * x + y * y + b * z


@flow("SprottR", (-1.44, 1.87, -1.18), f"{_PAPER}, case R", dt=0.1, n_substeps=5)
def _sprott_r(x, y, z, *, a=0.9, b=0.4):
    return a - y, b + z, x * y - z


@flow("SprottS", (-0.97, -0.85, -1.15), f"{_PAPER}, case S", dt=0.1, n_substeps=4)
def _sprott_s(x, y, z, *, a=-4.0, b=1.0):
    return -x + a * y, x + z * z, b + x
