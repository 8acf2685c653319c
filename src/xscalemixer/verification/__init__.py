"""Verification: how good forecasts are, in numbers that others get too."""

from xscalemixer.verification.baselines import climatology_forecast, persistence_forecast
from xscalemixer.verification.climatology import climatology
from xscalemixer.verification.distributions import quantiles, rank_histogram
from xscalemixer.verification.events import brier, fss, reliability
from xscalemixer.verification.score import rescore, score
from xscalemixer.verification.seams import patch_seams
from xscalemixer.verification.spectra import power_spectrum

__all__ = [
    "brier",
    "climatology",
    "climatology_forecast",
    "fss",
    "patch_seams",
    "persistence_forecast",
    "power_spectrum",
    "quantiles",
    "rank_histogram",
    "reliability",
    "rescore",
    "score",
]
