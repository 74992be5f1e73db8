"""A recurrent module and a readout as one module, to be trained."""

from __future__ import annotations

from torch import Tensor, nn


class Network(nn.Module):
    """Recurrent layers followed by a readout at every time step.

    Parameters
    ----------
    recurrent : nn.RNN, nn.GRU or nn.LSTM
        With either value of ``batch_first``.
    readout : nn.Module
        Maps the last layer's hidden states (trial, time, hidden) to outputs (trial, time, output);
        usually nn.Linear. It must act only on the last dimension, and so give the same on rows.

    Raises
    ------
    TypeError
        If `recurrent` is of another class.
    ValueError
        If `readout` is an nn.Linear of the wrong input size.

    Notes
    -----
    The parts stay available as ``recurrent`` and ``readout``, for :func:`kpops.linearize`.

    Examples
    --------
    >>> import torch, kpops
    >>> network = kpops.Network(torch.nn.GRU(3, 16), torch.nn.Linear(16, 2))
    >>> network(torch.zeros(5, 90, 3)).shape
    torch.Size([5, 90, 2])
    """

    def __init__(self, recurrent: nn.RNNBase, readout: nn.Module) -> None:
        super().__init__()
        if not isinstance(recurrent, nn.RNNBase):
            raise TypeError(
                f"recurrent is a {type(recurrent).__name__}, expected nn.RNN, nn.GRU or nn.LSTM"
            )
        size = (recurrent.proj_size or recurrent.hidden_size) * (1 + recurrent.bidirectional)
        if isinstance(readout, nn.Linear) and readout.in_features != size:
            raise ValueError(
                f"readout takes {readout.in_features} features, the recurrent module returns "
                f"{size}: use nn.Linear({size}, {readout.out_features})"
            )
        self.recurrent = recurrent
        self.readout = readout

    def forward(self, inputs: Tensor, h0: Tensor | tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Return the outputs (trial, time, output).

        Parameters
        ----------
        inputs : Tensor, shape (trial, time, feature)
            In this order for either value of ``batch_first``. Other shapes raise a ValueError.
        h0 : Tensor or pair of Tensor, optional
            Initial state as the recurrent module takes it: (layer, trial, hidden), for an nn.LSTM
            the pair of h0 and c0. Default: zeros.
        """
        features = self.recurrent.input_size
        if inputs.ndim != 3 or inputs.shape[-1] != features:
            raise ValueError(
                f"inputs has shape {tuple(inputs.shape)}, expected (trial, time, {features})"
            )
        if self.recurrent.batch_first:
            states, _ = self.recurrent(inputs, h0)
        else:
            states, _ = self.recurrent(inputs.transpose(0, 1), h0)
            states = states.transpose(0, 1)
        return self.readout(states)
