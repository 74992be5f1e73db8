"""Recurrent networks whose connectivity is a product of thin matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kpops.models.cells import LeakyCell, LeakyRecurrence
from kpops.models.recurrence import as_recurrence, unless_changed
from kpops.models.sizes import is_whole


class LowRankCell(LeakyCell):
    """A :class:`LeakyCell` of low-rank connectivity ``W = M N^T / S``.

    In the current form, the default here, a step is

    ``u' = (1 - alpha) u + alpha (M N^T phi(u) / S + U x + b)``

    Parameters
    ----------
    input_size, hidden_size : int
        Number of input features and of units S.
    rank : int
        Number of columns R of M and N, from 1 to S.
    form : {"current", "rate"}
        Whether the state is the input current or the firing rate.
    **options
        ``alpha``, ``activation``, ``bias`` and ``noise`` of a :class:`LeakyCell`.

    Raises
    ------
    ValueError
        If `rank` or an option is out of range.

    Notes
    -----
    The parameters are ``M`` and ``N``, both (hidden, rank), ``weight_ih`` (U) and ``bias``: K is
    that of learning M and N, not that of learning their product. It couples units, since an entry
    of N moves all of them along a column of M; so J and K are computed by automatic differentiation
    where M or N learns, while P is gated in any case.

    M and N start standard normal, U and b uniform in ``+-1/sqrt(hidden_size)``.

    References
    ----------
    F. Mastrogiuseppe and S. Ostojic, Linking connectivity, dynamics, and computations in low-rank
    recurrent neural networks, Neuron 99 (2018). A. Dubreuil et al., The role of population
    structure in computations through neural dynamics, Nature Neuroscience 25 (2022).

    Examples
    --------
    >>> import torch, kpops
    >>> cell = kpops.models.LowRankCell(3, 50, rank=2, alpha=0.2)
    >>> lin = kpops.linearize(cell, torch.randn(5, 6, 3))
    >>> list(lin.K_by_parameter)
    ['weight_ih', 'M', 'N', 'bias']
    >>> torch.linalg.matrix_rank(cell.weight_hh).item()
    2
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        rank: int,
        *,
        form: str = "current",
        **options: Any,
    ) -> None:
        if not (is_whole(rank) and 1 <= rank <= hidden_size):
            raise ValueError(f"rank={rank}: choose from 1 to hidden_size={hidden_size}")
        self.rank = rank  # `connect` needs it
        super().__init__(input_size, hidden_size, form=form, **options)
        for thin in (self.M, self.N):
            nn.init.normal_(thin)

    @classmethod
    def from_leaky(cls, cell: LeakyCell, rank: int) -> LowRankCell:
        """The cell of that rank which is nearest to a LeakyCell.

        Parameters
        ----------
        cell : LeakyCell
            It is not changed.
        rank : int
            Number of singular values of its recurrent weights that are kept.

        Returns
        -------
        LowRankCell
            ``M N^T / S`` is the truncated singular value decomposition of the weights; M and N take
            the root of each singular value. All else is as in `cell`.

        Raises
        ------
        ValueError
            If `rank` is out of range.
        """
        new = cls(
            cell.weight_ih.shape[1],
            cell.hidden_size,
            rank,
            alpha=cell.alpha,
            activation=cell.activation,
            form=cell.form,
            bias=cell.bias is not None,
            noise=cell.noise,
        ).to(cell.weight_ih)
        with torch.no_grad():
            left, values, right = torch.linalg.svd(cell.weight_hh)
            roots = (cell.hidden_size * values[:rank]).sqrt()
            new.M.copy_(left[:, :rank] * roots)
            new.N.copy_(right[:rank].mT * roots)
            new.weight_ih.copy_(cell.weight_ih)
            if new.bias is not None and cell.bias is not None:
                new.bias.copy_(cell.bias)
        return new

    def connect(self) -> None:
        """Make M and N."""
        self.M = nn.Parameter(torch.empty(self.hidden_size, self.rank))
        self.N = nn.Parameter(torch.empty(self.hidden_size, self.rank))

    @property
    def weight_hh(self) -> Tensor:  # type: ignore[override]  # made of what learns, not learning
        """The connectivity M N^T / S, shape (hidden, hidden)."""
        return self.M @ self.N.mT / self.hidden_size

    def recurrent(self, rates: Tensor) -> Tensor:
        """M N^T rates / S, without the matrix of hidden x hidden."""
        return rates @ self.N @ self.M.mT / self.hidden_size

    def extra_repr(self) -> str:
        """Return the options, for the repr."""
        return f"{super().extra_repr()}, rank={self.rank}"


as_recurrence.register(LowRankCell, unless_changed(LowRankCell, LeakyRecurrence))
