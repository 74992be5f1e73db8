r"""Which bifurcation of a fixed point of a map it is, and the coefficient of its normal form.

Of a simple eigenvalue of A on the unit circle, with ``A r = lambda r``, ``|r| = 1``, ``l A = lambda
l`` and ``l r = 1``, and with the derivatives B and C of second and third order of f by h, the
motion on the centre manifold is, with R(z) = (z - A)^-1 (Kuznetsov 2004, Elements of Applied
Bifurcation Theory, sections 4 and 5.4):

- lambda = 1: ``z' = z + b z^2 + c z^3`` with ``b = l B(r, r) / 2`` and ``c = l (C(r, r, r) - 3 B(r,
  (A - 1)^-1 (B(r, r) - 2 b r))) / 6``, the inverse taken beside r;
- lambda = -1: ``z' = -z + c z^3`` with ``c = l (C(r, r, r) + 3 B(r, R(1) B(r, r))) / 6``;
- lambda = e^(i a): ``z' = e^(i a) z (1 + d |z|^2)`` with ``Re d = Re e^(-i a) (l C(r, r, r*) + 2 l
  B(r, R(1) B(r, r*)) + l B(r*, R(e^(2 i a)) B(r, r))) / 2``. If e^(3 i a) = 1 there is a term in
  z*^2 as well, which decides, and d is NaN; unless it vanishes, as by symmetry.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from kpops.dynamics.continuation_path import Path
from kpops.dynamics.stability import eigenvectors
from kpops.engines.differential import Differential
from kpops.linalg.rounding import noise_floor

Map = Callable[[Tensor], Tensor]

BRANCHING = ("transcritical", "pitchfork")
_SYMMETRIC = 1e-3
"""Amplitude below which the quadratic term of a pitchfork may exceed the cubic one."""


class Bifurcation(NamedTuple):
    """Its kind, the eigenvalue on the circle and the coefficient of the normal form."""

    kind: str
    value: complex
    coefficient: float


def classify(path: Path, v: Tensor, A: Tensor, values: Tensor, *, is_fold: bool) -> Bifurcation:
    """Name the bifurcation at v.

    `is_fold` tells whether the parameter turns as the eigenvalue crosses. If no eigenvalue is on
    the circle, one has jumped across it, or mu has turned at once: at a corner of f.
    """
    near = 100 * torch.finfo(A.dtype).eps ** 0.5
    on_circle = (values.abs() - 1).abs() < near * max(1.0, float(A.norm()))
    count = int(on_circle.sum())
    if not count:
        return Bifurcation("border-collision", complex(float("nan"), float("nan")), float("nan"))
    critical = int(on_circle.nonzero()[0, 0])
    value = complex(values[critical])
    pair = abs(value.imag) > near
    if count > 1 + pair:
        return Bifurcation("multiple", value, float("nan"))
    left, right = eigenvectors(A, value if pair else complex(value.real))
    forms = _Forms(path, v)
    if pair:
        return Bifurcation("neimark-sacker", value, _of_pair(forms, A, left, right, value, near))
    second = forms.second(right, right)
    third = float(left @ forms.third(right, right, right))
    eye = torch.eye(len(A)).to(A)
    if value.real < 0:
        w = torch.linalg.solve(eye - A, second)
        return Bifurcation("flip", value, (third + 3 * float(left @ forms.second(right, w))) / 6)
    b = float(left @ second) / 2
    if is_fold:
        return Bifurcation("fold", value, b)
    # The bordered matrix inverts A - 1 beside r.
    bordered = torch.cat(
        [torch.cat([A - eye, right[:, None]], 1), torch.cat([left, left[:1] * 0])[None]]
    )
    w = torch.linalg.solve(bordered, torch.cat([second - 2 * b * right, left[:1] * 0]))[:-1]
    c = (third - 3 * float(left @ forms.second(right, w))) / 6
    if abs(b) <= _SYMMETRIC * abs(c) + noise_floor(A.dtype):
        return Bifurcation("pitchfork", value, c)
    return Bifurcation("transcritical", value, b)


def _of_pair(
    forms: _Forms, A: Tensor, left: Tensor, right: Tensor, value: complex, near: float
) -> float:
    x, y = right.real, right.imag
    xx, xy, yy = forms.second(x, x), forms.second(x, y), forms.second(y, y)
    square, modulus = torch.complex(xx - yy, 2 * xy), xx + yy
    third = torch.complex(
        forms.third(x, x, x) + forms.third(x, y, y), forms.third(x, x, y) + forms.third(y, y, y)
    )
    eye = torch.eye(len(A)).to(A)
    steady = torch.linalg.solve(eye - A, modulus)
    twice = value**2 * eye - A.to(square.dtype)
    if abs(value**3 - 1) > near:
        double = torch.linalg.solve(twice, square)
    elif float((left.conj() @ square).abs()) > near:
        return float("nan")
    else:  # the matrix is singular, beside what square has
        double = torch.linalg.pinv(twice, rtol=near) @ square
    by_steady = torch.complex(forms.second(x, steady), forms.second(y, steady))
    u, w = double.real, double.imag
    by_double = torch.complex(
        forms.second(x, u) + forms.second(y, w), forms.second(x, w) - forms.second(y, u)
    )
    total = left @ (third + 2 * by_steady + by_double)
    return float((total / value).real) / 2


class _Forms:
    """Derivatives B and C of f by h at a point."""

    def __init__(self, path: Path, v: Tensor) -> None:
        self.path, self.h, self.mu = path, path.state(v), v[-1] * path.scale[-1]

    def second(self, u: Tensor, w: Tensor) -> Tensor:
        """B(u, w)."""
        return self._along(self._along(self._f, u), w)(self.h)

    def third(self, u: Tensor, w: Tensor, z: Tensor) -> Tensor:
        """C(u, w, z)."""
        return self._along(self._along(self._along(self._f, u), w), z)(self.h)

    def _f(self, h: Tensor) -> Tensor:
        return self.path.step(h, self.mu)

    @staticmethod
    def _along(function: Map, u: Tensor) -> Map:
        return lambda h: Differential(function, h).jvp(u)
