"""Every figure, given something else, says what it lacks and which function makes it."""

from operator import attrgetter

import numpy as np
import pytest
import xarray as xr

import kpops

SOURCES = {
    "alignment": "kpops.alignment",
    "branches": "kpops.continuation",
    "captured": "kpops.truncated_flow",
    "covariant_angles": "kpops.covariant_lyapunov_vectors",
    "density": "kpops.spectral_density",
    "effective_rank": "kpops.effective_rank",
    "eigenfunctions": "kpops.eigsh",
    "finite_time_exponents": "kpops.lyapunov_spectrum",
    "fixed_point_eigenvalues": "kpops.fixed_points",
    "fixed_points": "kpops.fixed_points",
    "frobenius_map": "kpops.frobenius_map",
    "greens_map": "kpops.greens_map",
    "interference": "kpops.interference",
    "lyapunov_history": "kpops.lyapunov_spectrum",
    "lyapunov_spectrum": "kpops.lyapunov_spectrum",
    "over_training": "kpops.over_training",
    "rank_bounds": "kpops.rank_bounds",
    "spectrum": "kpops.eigsh",
    "transitions": "kpops.reconstruction.symbolic_code",
}


def test_every_figure_has_its_source():
    assert sorted(SOURCES) == sorted(kpops.plot.__all__)
    for source in SOURCES.values():
        assert callable(attrgetter(source.removeprefix("kpops."))(kpops))


@pytest.mark.parametrize(("plot", "source"), SOURCES.items(), ids=SOURCES)
def test_what_is_something_else_is_refused(plot, source):
    draw = getattr(kpops.plot, plot)
    with pytest.raises(ValueError, match=rf"variables \['foo'\], expected .*: pass what {source}"):
        draw(xr.Dataset({"foo": 1.0}))
    for wrong in (None, np.ones(3), object()):
        with pytest.raises(
            ValueError, match=f"cannot plot a {type(wrong).__name__}: pass what {source}"
        ):
            draw(wrong)


COMPLEX = {
    "captured": ("explained", ("mode",)),
    "density": ("density", ("value",)),
    "effective_rank": ("estimate", ()),
    "eigenfunctions": ("eigenfunction", ("mode", "time")),
    "frobenius_map": ("energy", ("time", "time_in")),
    "greens_map": ("energy", ("trial", "time", "time_in")),
    "lyapunov_history": ("history", ("time", "mode")),
    "lyapunov_spectrum": ("exponent", ("mode",)),
    "over_training": ("estimate", ("step",)),
    "spectrum": ("eigenvalue", ("mode",)),
}


@pytest.mark.parametrize("plot", COMPLEX)
def test_what_is_complex_is_refused_by_name(plot):
    name, dims = COMPLEX[plot]
    wrong = xr.Dataset({name: (dims, np.full((2,) * len(dims), 1j))})
    with pytest.raises(ValueError, match=rf"{name} is complex: draw .* or abs\({name}\)"):
        getattr(kpops.plot, plot)(wrong)
