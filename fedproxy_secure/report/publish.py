"""Write a report in every form it has, into the folder of its run."""

from __future__ import annotations

from pathlib import Path

from fedproxy_secure.report.report import Report


def publish(report: Report, folder: Path) -> Path:
    """`report.json` and `report.md`; returns the path of the JSON one."""
    return report.write(folder)
