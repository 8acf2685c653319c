"""Verification: how good forecasts are, in numbers that others get too."""

from xscalemixer.verification.climatology import climatology
from xscalemixer.verification.distributions import quantiles, rank_histogram
from xscalemixer.verification.events import brier, fss, reliability
from xscalemixer.verification.score import score
from xscalemixer.verification.spectra import power_spectrum

__all__ = ["brier", "climatology", "fss", "power_spectrum", "quantiles", "rank_histogram", "reliability", "score"]
