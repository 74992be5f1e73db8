"""The symbolic code of a piecewise-linear network: the regions that its states visit, in order."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
import xarray as xr
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from kpops.arrays import to_numpy
from kpops.learning.required import labelled
from kpops.learning.trajectories import read_states
from kpops.linearization import Linearization
from kpops.precision import in_full_precision
from kpops.reconstruction.pieces import read_pieces, written
from kpops.scalars import check_count

PADDED = -1
"""Symbol of a masked step."""


@in_full_precision
@torch.inference_mode(False)
@torch.no_grad()
def symbolic_code(
    model: Any,
    states: Any = None,
    *,
    mask: Any = None,
    longest_word: int = 4,
    dtype: torch.dtype | None = None,
) -> xr.Dataset:
    """Linear regions that the states visit, their transitions, and the entropy of this code.

    Parameters
    ----------
    model : Linearization or nn.Module
        A :class:`kpops.models.PLRNNCell` or :class:`kpops.models.ShallowPLRNNCell`, or a
        linearization of one.
    states : Tensor, array_like, DataArray or Linearization, optional
        States (trial, time, unit). Default: those of the linearization.
    mask : array_like of bool, optional
        Shape (trial, time), True at valid steps. A linearization has its own.
    longest_word : int
        Most symbols of the words whose entropy is returned.
    dtype : torch.dtype, optional
        float32 or float64 to convert the model and the states to.

    Returns
    -------
    Dataset
        Of the steps: ``symbol(trial, time)``, the region of the state. Regions are numbered by
        falling number of visits; -1 where masked. Of the regions:

        - ``pattern(region, relu)``, True for an open relu, and the same as a string, the
          coordinate ``bits(region)``;
        - ``visits(region)`` and ``share(region)``, their fraction of all;
        - ``log_determinant(region)``, ``log |det A|`` of the region's Jacobian: its mean, weighted
          by the shares, is the sum of all Lyapunov exponents along these states;
        - ``transitions(region, next_region)``, counts of steps within trials, and ``probability``,
          the same over the sum of its row; NaN for a region that is not left within the series.

        Of the code, in nats for each step:

        - ``topological_entropy``: the logarithm of the spectral radius of the transition graph;
        - ``entropy_rate(length)``: the entropy of a symbol given the ``length - 1`` before it. At
          length 1 this is the Shannon entropy of the shares, at length 2 that of the Markov chain
          with these transitions; it falls with the length to the metric entropy of the code;
        - ``block_entropy(length)`` and ``n_words(length)``: entropy of the words of so many
          symbols, and how many different ones occur, of ``n_windows(length)`` seen.

        And ``n_regions``. Attributes: ``model``, ``dtype``, ``n_relus`` and ``configuration``
        (JSON).

    Raises
    ------
    TypeError
        If the model has no known linear pieces, dtypes are mixed, or no states are given.
    ValueError
        If `states` or `mask` have the wrong shape or are not finite, or no step is valid.

    See Also
    --------
    cycles : Fixed points and cycles of the same pieces, without any states.

    Notes
    -----
    A relu whose argument is 0 is closed. Region numbers are those of one result: compare codes of
    several by their ``bits``.

    Entropies are those of observed frequencies, which underestimate them where ``n_words`` is not
    small against ``n_windows``. The code is that of the linear regions, which need not be a
    generating partition: its metric entropy is at most that of the dynamics, the sum of the
    positive exponents (:func:`kpops.entropy_bound`).

    References
    ----------
    M. Brenner et al., Almost-linear RNNs yield highly interpretable symbolic codes in dynamical
    systems reconstruction, NeurIPS 2024 (arXiv 2410.14240). D. Lind and B. Marcus, An introduction
    to symbolic dynamics and coding, Cambridge 1995.

    Examples
    --------
    The tent map of golden slope, ``x' = 1 - g |x|``: from the left of its peak the next state is
    right of it, so that two zeros never meet, and the entropy is log g.

    >>> import math, torch, kpops
    >>> g = (1 + 5**0.5) / 2
    >>> cell = kpops.models.PLRNNCell(1, 1).double()
    >>> with torch.no_grad():
    ...     for parameter, value in zip(cell.parameters(), (g, -2 * g, 0.0, 1.0)):
    ...         _ = parameter.fill_(value)
    >>> still = torch.zeros(1, 5000, 1, dtype=torch.float64)
    >>> lin = kpops.linearize(cell, still, h0=torch.full((1, 1), 0.3, dtype=torch.float64))
    >>> code = kpops.reconstruction.symbolic_code(lin)
    >>> code.bits.values.tolist(), bool(code.transitions.sel(region=1, next_region=1) == 0)
    (['1', '0'], True)
    >>> math.isclose(float(code.topological_entropy), math.log(g))
    True
    """
    check_count("longest_word", longest_word, 1)
    given = model if states is None else states
    if states is None and not isinstance(model, Linearization):
        raise TypeError(
            "states=None: pass states (trial, time, unit), or a linearization of the model"
        )
    recurrence, pieces, x = read_pieces(model, None, dtype)
    values, valid, space, _ = read_states(given, mask)
    if values.dtype != x.dtype and dtype is None:
        raise TypeError(
            f"states is {values.dtype}, the model {x.dtype}: convert one of them, for example both "
            f"by dtype={values.dtype}"
        )
    values = values.to(x)
    if values.shape[-1] != len(pieces.M):
        raise ValueError(
            f"states has {values.shape[-1]} units, the model {len(pieces.M)}: pass states of this "
            "model"
        )
    if not valid.any():
        raise ValueError("states has no valid step: pass a mask that is True somewhere")
    symbol, patterns, visits = _visited(to_numpy(pieces.patterns(values)), to_numpy(valid))
    n_regions = len(patterns)
    counts = _transitions(symbol, n_regions)
    leaving = counts.sum(1, keepdims=True)
    chance = np.where(leaving, counts / np.maximum(leaving, 1), np.nan)
    slogdet = torch.linalg.slogdet(pieces.maps(torch.from_numpy(patterns).to(x.device))[0])
    pair = "region", "next_region"
    topological = {"long_name": "topological entropy of the transitions", "units": "1/step"}
    return xr.Dataset(
        {
            "symbol": space.keep(("trial", "time")).label(symbol, long_name="linear region"),
            "pattern": labelled(("region", "relu"), patterns, "whether the relu is open"),
            "visits": labelled("region", visits, "number of visits"),
            "share": labelled("region", visits / visits.sum(), "share of the visits"),
            "log_determinant": labelled(
                "region", to_numpy(slogdet.logabsdet), "log |det A| of the region"
            ),
            "transitions": labelled(pair, counts, "number of transitions"),
            "probability": labelled(pair, chance, "probability of the transition"),
            "topological_entropy": ((), _topological(counts > 0), topological),
            **_words(symbol, int(longest_word)),
            "n_regions": labelled((), n_regions, "number of visited regions"),
        },
        coords={
            "relu": labelled("relu", np.arange(patterns.shape[1]), "relu"),
            "region": labelled("region", np.arange(n_regions), "linear region"),
            "next_region": labelled("next_region", np.arange(n_regions), "next linear region"),
            "bits": ("region", written(patterns), {"long_name": "which relus are open"}),
        },
        attrs={
            "model": type(recurrence.module).__name__,
            "dtype": str(x.dtype).removeprefix("torch."),
            "n_relus": patterns.shape[1],
            "configuration": json.dumps({"longest_word": int(longest_word)}),
        },
    )


def _visited(patterns: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Symbols (trial, time), their patterns (region, relu), and numbers of visits, falling."""
    seen = patterns[valid]
    packed = np.packbits(np.concatenate([seen, np.ones((len(seen), 1), bool)], 1), axis=1)
    _, first, number, visits = np.unique(
        packed, axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    order = np.argsort(-visits, kind="stable")
    symbol = np.full(valid.shape, PADDED, np.int64)
    symbol[valid] = np.argsort(order)[number.ravel()]
    return symbol, seen[first[order]], visits[order]


def _transitions(symbol: np.ndarray, n_regions: int) -> np.ndarray:
    """How often a region follows another within trials, (region, next_region)."""
    before, after = symbol[:, :-1], symbol[:, 1:]
    both = (before != PADDED) & (after != PADDED)
    counts = np.zeros((n_regions, n_regions), np.int64)
    np.add.at(counts, (before[both], after[both]), 1)
    return counts


def _topological(follows: np.ndarray) -> float:
    """Logarithm of the spectral radius of a 0-1 matrix; 0 if its graph has no circle.

    That is the largest radius of its strongly connected parts, where it is a simple eigenvalue, so
    that rounding changes it by no more than itself.
    """
    n_parts, part = connected_components(csr_array(follows), connection="strong")
    members = (np.flatnonzero(part == i) for i in range(n_parts))
    blocks = (follows[np.ix_(m, m)].astype(float) for m in members)
    return float(np.log(max([1.0, *(np.abs(np.linalg.eigvals(b)).max() for b in blocks)])))


def _words(symbol: np.ndarray, longest: int) -> dict[str, Any]:
    """Entropies and numbers of the words of 1 to `longest` symbols."""
    n_words, n_windows = np.zeros((2, longest), np.int64)
    block, rate = np.full((2, longest), np.nan)
    base = symbol.max() + 1
    word = np.where(symbol != PADDED, 0, PADDED)  # words of no symbol
    for i in range(longest):
        prefix, last = word[:, : symbol.shape[1] - i], symbol[:, i:]
        whole = (prefix != PADDED) & (last != PADDED)
        if not whole.any():
            break
        before = prefix[whole]
        _, number, counts = np.unique(
            before * base + last[whole], return_inverse=True, return_counts=True
        )
        word = np.full(whole.shape, PADDED, np.int64)
        word[whole] = number.ravel()
        n_words[i], n_windows[i], block[i] = len(counts), counts.sum(), _entropy(counts)
        # Of the prefixes of these words, not of all: so the rate is an average of entropies.
        rate[i] = max(block[i] - _entropy(np.unique(before, return_counts=True)[1]), 0.0)
    lengths = "length", np.arange(1, longest + 1), {"long_name": "symbols of a word", "units": "1"}
    nats, each_step = {"units": "1"}, {"units": "1/step"}
    return {
        "entropy_rate": ("length", rate, {"long_name": "entropy of the next symbol"} | each_step),
        "block_entropy": ("length", block, {"long_name": "entropy of the words"} | nats),
        "n_words": ("length", n_words, {"long_name": "number of different words"} | nats),
        "n_windows": ("length", n_windows, {"long_name": "number of words seen"} | nats),
        "length": lengths,
    }


def _entropy(counts: np.ndarray) -> float:
    """Shannon entropy of observed frequencies, in nats."""
    share = counts / counts.sum()
    return float(-(share * np.log(share)).sum())
