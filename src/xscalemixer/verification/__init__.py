"""Verification: how good forecasts are, in numbers that others get too."""

from xscalemixer.verification.climatology import climatology
from xscalemixer.verification.diagnostics import brier, fss, power_spectrum, rank_histogram
from xscalemixer.verification.score import rescore, score

__all__ = ["brier", "climatology", "fss", "power_spectrum", "rank_histogram", "rescore", "score"]
