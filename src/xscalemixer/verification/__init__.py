"""Verification: how good forecasts are, in numbers that others get too."""

from xscalemixer.verification.baselines import climatology_forecast, persistence_forecast
from xscalemixer.verification.climatology import climatology
from xscalemixer.verification.diagnostics import brier, fss, power_spectrum, rank_histogram
from xscalemixer.verification.score import score

__all__ = [
    "brier",
    "climatology",
    "climatology_forecast",
    "fss",
    "persistence_forecast",
    "power_spectrum",
    "rank_histogram",
    "score",
]
