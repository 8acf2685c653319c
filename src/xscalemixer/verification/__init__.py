"""Verification: how good forecasts are, in numbers that others get too."""

from xscalemixer.verification.climatology import climatology
from xscalemixer.verification.score import score

__all__ = ["climatology", "score"]
