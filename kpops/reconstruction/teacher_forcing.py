"""Train a cell on series of a system, its observed units forced towards the data."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ExponentialLR, LRScheduler

from kpops.learning.options import Keep, Stop
from kpops.learning.training import train
from kpops.models.wrapping import pulled, sizes_of_cell
from kpops.reconstruction.free_step import free_step
from kpops.reconstruction.series import read_series, windows
from kpops.scalars import check_count, check_real


def reconstruct(
    model: nn.Module,
    series: Any,
    *,
    folder: str | os.PathLike[str],
    alpha: float = 1.0,
    interval: int = 10,
    length: int = 30,
    every: int | None = None,
    noise: float = 0.0,
    max_steps: int = 25_000,
    batch_size: int = 64,
    learning_rate: float = 1e-2,
    final_learning_rate: float | None = None,
    clip: float | None = 10.0,
    optimizer: Callable[[list[nn.Parameter], float], Optimizer] = torch.optim.Adam,
    stop_loss: float | None = None,
    stop: Stop | None = None,
    checkpoint_every: int | Iterable[int] | Keep = 1000,
    rng: int | np.random.Generator | None = None,
    progress: bool = False,
) -> xr.Dataset:
    r"""Train a cell, in place, to continue series of a system, by teacher forcing.

    The first N units of the state are read as the N observed units. They start at the first
    observation, the others at 0, and the loss is the mean squared error of every next observation.
    Before step t the observed units are forced towards the data,

    .. math:: h \leftarrow (1 - \alpha)\, h + \alpha\, d_t, \qquad t = \tau, 2\tau, \ldots

    With alpha = 1 and an interval tau this is *sparse teacher forcing*, of the order of the time in
    which the system forgets; with tau = 1 and alpha < 1 *generalised teacher forcing*.

    Parameters
    ----------
    model : nn.Module
        A cell with ``forward(x_t, h)`` whose state is one tensor of N units or more, as
        :class:`kpops.models.PLRNNCell` or :class:`kpops.models.ShallowPLRNNCell`. Inputs that it
        may have are 0.
    series : DataArray, Tensor or array_like, shape (trial, time, unit) or (time, unit)
        The observations, at equal steps of time; best each with mean 0 and standard deviation 1.
    folder : path
        Folder of the checkpoints, as for :func:`kpops.training.train`. Names of the weights there
        start with ``cell.``: read them by ``kpops.training.checkpoints(folder, prefix="cell.")``.
    alpha : float
        Strength of the forcing, above 0 and up to 1.
    interval : int
        Steps tau from one forcing to the next.
    length : int
        Steps of the stretches of the series, of which each batch takes some.
    every : int, optional
        Steps from the start of one stretch to the next. Default: a quarter of `length`.
    noise : float
        Standard deviation of Gaussian noise on the observations that force; those in the loss have
        none.
    max_steps, batch_size, stop_loss, stop, checkpoint_every, progress
        As for :func:`kpops.training.train`; a batch has as many stretches.
    learning_rate, final_learning_rate : float
        The learning rate decays geometrically from the first to the second, which it has at
        `max_steps`. Default of the second: a thousandth of the first.
    clip : float or None
        Largest norm of the gradient; larger ones are scaled down to it.
    optimizer : callable
        ``optimizer(params, learning_rate)`` returns a ``torch.optim.Optimizer``.
    rng : int, Generator or None
        Seed of batches and noise, as for :func:`kpops.training.train`.

    Returns
    -------
    Dataset
        ``loss`` (step), as of :func:`kpops.training.train`.

    Raises
    ------
    ValueError
        If the series is shorter than ``length + 1``, not finite or constant, has more units than
        the model, or an argument is out of range; if `folder` holds another training.
    TypeError
        If the model is no cell whose state is one tensor.
    FloatingPointError
        If the loss is not finite.

    Notes
    -----
    Between two forcings a gradient passes the product of the Jacobians, and at each forcing the
    factor 1 - alpha in the observed units. Where all units are observed and forced at every step,
    ``(1 - alpha) sigma_max <= 1`` bounds the norms of all products, and so the gradients, by 1;
    all Lyapunov exponents of the forced network move by ``log(1 - alpha)``
    (:class:`kpops.models.TeacherForced`).

    The default settings are those that reconstruct the Lorenz system, sampled at steps of 0.01. A
    training that was interrupted goes on by the same call. The schedule belongs to `max_steps`: to
    train longer, begin anew.

    References
    ----------
    J. Mikhaeil, Z. Monfared and D. Durstewitz, On the difficulty of learning chaotic dynamics with
    RNNs, NeurIPS 2022 (arXiv 2110.07238). F. Hess et al., Generalized teacher forcing for learning
    chaotic dynamics, ICML 2023 (arXiv 2306.04406). M. Brenner et al., Almost-linear RNNs yield
    highly interpretable symbolic codes in dynamical systems reconstruction, NeurIPS 2024 (arXiv
    2410.14240).

    Examples
    --------
    >>> import tempfile, torch, kpops
    >>> time = torch.arange(200.0)
    >>> series = torch.stack([torch.sin(time / 5), torch.cos(time / 5)], dim=-1)
    >>> _ = torch.manual_seed(0)
    >>> cell = kpops.models.PLRNNCell(0, 6, rectified=2)
    >>> history = kpops.training.reconstruct(
    ...     cell, series, folder=tempfile.mkdtemp(), max_steps=50, length=20, batch_size=8, rng=0
    ... )
    >>> bool(history.loss[-1] < history.loss[0])
    True
    """
    check_count("length", length, 1)
    check_count("max_steps", max_steps, 0)
    final = learning_rate / 1000 if final_learning_rate is None else final_learning_rate
    for name, rate in (("learning_rate", learning_rate), ("final_learning_rate", final)):
        check_real(name, rate)
    if not 0 < final <= learning_rate:
        raise ValueError(
            f"learning_rate={learning_rate} and final_learning_rate={final}: choose positive "
            "numbers, the second not above the first"
        )
    read_series(series, "series", least=length + 1, varying=True)
    every = max(1, length // 4) if every is None else every
    cut = windows(series, length + 1, every=every)
    forced = Forced(model, cut.sizes["unit"], alpha, interval, noise, clip)
    task = xr.Dataset(
        {
            "inputs": (("trial", "time", "input"), cut.values[:, :-1]),
            "targets": (("trial", "time", "output"), cut.values[:, 1:]),
            "mask": (("trial", "time"), np.ones((len(cut), length), dtype=bool)),
        }
    )
    decay = float((final / learning_rate) ** (1 / max(max_steps, 1)))

    def updates(parameters: list[nn.Parameter], rate: float) -> tuple[Optimizer, LRScheduler]:
        made = optimizer(parameters, rate)
        if clip is not None:
            made.register_step_pre_hook(lambda *_: _clip(parameters, clip))
        return made, ExponentialLR(made, decay)

    return train(
        forced,
        task,
        folder=folder,
        max_steps=max_steps,
        batch_size=batch_size,
        learning_rate=float(learning_rate),
        optimizer=updates,
        stop_loss=stop_loss,
        stop=stop,
        checkpoint_every=checkpoint_every,
        rng=rng,
        progress=progress,
    )


def _clip(parameters: list[nn.Parameter], largest: float) -> None:
    nn.utils.clip_grad_norm_(parameters, largest)


class Forced(nn.Module):
    """The predictions of a cell under forcing, (trial, time, unit) from data of the same shape.

    The prediction at step t is of the observation at t + 1.
    """

    def __init__(
        self,
        cell: nn.Module,
        observed: int,
        alpha: float,
        interval: int,
        noise: float,
        clip: float | None,
    ) -> None:
        super().__init__()
        self.input_size, self.state_size = sizes_of_cell(cell)
        if observed > self.state_size:
            raise ValueError(
                f"series has {observed} units, the model {self.state_size}: the first units of the "
                "model are the observed ones, so give it as many or more"
            )
        check_count("interval", interval, 1)
        for name, value in (("alpha", alpha), ("noise", noise)):
            check_real(name, value)
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha={alpha}: the strength of the forcing is in (0, 1]")
        if not 0 <= noise < np.inf:
            raise ValueError(f"noise={noise}: pass a standard deviation, 0 or more")
        if clip is not None:
            check_real("clip", clip)
            if not clip > 0:
                raise ValueError(f"clip={clip}: pass a positive norm, or None")
        self.cell = cell
        self.alpha = alpha
        self.interval = interval
        self.noise = noise
        self.clip = clip  # by the optimizer; here it tells trainings apart

    def forward(self, data: Tensor) -> Tensor:
        """Predictions of the next observations."""
        if self.noise and self.training:
            data = data + self.noise * torch.randn_like(data)
        n_trials, _, observed = data.shape
        step = free_step(self.cell, self.input_size, data)
        h = pulled(data.new_zeros(n_trials, self.state_size), data[:, 0], 1.0)
        predictions = []
        for t, seen in enumerate(data.unbind(1)):
            if t and t % self.interval == 0:
                h = pulled(h, seen, self.alpha)
            h = step(h)
            predictions.append(h[:, :observed])
        return torch.stack(predictions, dim=1)
