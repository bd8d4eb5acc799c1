"""Write a report in every form it has, into one folder.

report.html     for people: opens offline
report.md       for people: text
report.json     for programs and gates; written last, so that where it is, the others are
report.sarif    for dashboards of code scanners
summary.md      for a pull request
*.png           the page's charts
"""

from __future__ import annotations

from pathlib import Path

from fedproxy_secure.report.charts import write_pngs
from fedproxy_secure.report.page import write_page
from fedproxy_secure.report.pull_request import write_pull_request_summary
from fedproxy_secure.report.report import Report
from fedproxy_secure.report.sarif import write_sarif


def publish(report: Report, folder: Path) -> Path:
    """Write every form, each file whole or not at all; returns the path of `report.html`.

    Raises `RunFolderError` if the folder cannot be written; files already there then stay.
    """
    page = write_page(report, folder)
    write_pngs(report, folder)
    write_sarif(report, folder)
    write_pull_request_summary(report, folder)
    report.write(folder)
    return page
