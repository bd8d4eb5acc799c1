"""What a run found: estimates with intervals, the report file and its tables."""

from fedproxy_secure.report.estimate import (
    Estimate,
    mean_interval,
    paired_difference,
    proportion_interval,
)
from fedproxy_secure.report.report import MethodRow, Report

__all__ = [
    "Estimate",
    "MethodRow",
    "Report",
    "mean_interval",
    "paired_difference",
    "proportion_interval",
]
