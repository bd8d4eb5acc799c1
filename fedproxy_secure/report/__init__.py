"""The report of a run: estimates with intervals, `report.json`, tables and the page."""

from fedproxy_secure.evidence.estimate import (
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
