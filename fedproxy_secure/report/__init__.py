"""The report of a run: estimates with intervals, `report.json`, tables and the page."""

from fedproxy_secure.report.report import Report

__all__ = ["Report"]
