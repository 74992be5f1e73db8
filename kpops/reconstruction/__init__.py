"""Systems reconstructed from series: forecasts and how good they are, and piecewise-linear maps.

The training itself, by teacher forcing, is :func:`kpops.training.reconstruct`.
"""

from kpops.reconstruction.correlation import correlation_dimension
from kpops.reconstruction.forecast_errors import smape, valid_prediction_time
from kpops.reconstruction.forecasting import forecast, linear_forecast, persistence
from kpops.reconstruction.pieces_code import symbolic_code
from kpops.reconstruction.pieces_cycles import cycles
from kpops.reconstruction.power_spectra import power_spectrum_error
from kpops.reconstruction.published import PublishedALRNN, published_alrnn
from kpops.reconstruction.series import windows
from kpops.reconstruction.state_space import state_space_divergence

__all__ = [
    "PublishedALRNN",
    "correlation_dimension",
    "cycles",
    "forecast",
    "linear_forecast",
    "persistence",
    "power_spectrum_error",
    "published_alrnn",
    "smape",
    "state_space_divergence",
    "symbolic_code",
    "valid_prediction_time",
    "windows",
]
