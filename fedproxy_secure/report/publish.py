"""Write a report in every form into one folder.

report.html    for people: a page that opens offline
report.md      for people: text
report.json    for programs and gates; written last, so that the others exist if it does
report.sarif   for dashboards of code scanners
summary.md     for a pull request
*.png          the page's charts
"""

from __future__ import annotations

from pathlib import Path

from fedproxy_secure.report.html.charts import write_pngs
from fedproxy_secure.report.html.page import write_page
from fedproxy_secure.report.report import Report
from fedproxy_secure.report.text.markdown import markdown_report
from fedproxy_secure.report.text.pull_request import write_pull_request_summary
from fedproxy_secure.report.text.sarif import write_sarif
from fedproxy_secure.runtime.artifacts import write_bytes
from fedproxy_secure.runtime.files.names import REPORT_MARKDOWN


def publish(report: Report, folder: Path) -> Path:
    """Write every form, each file atomically, and return the path of `report.html`.

    Raises `RunFolderError` if the folder cannot be written; existing files then stay.
    """
    page = write_page(report, folder)
    write_pngs(report, folder)
    write_sarif(report, folder)
    write_pull_request_summary(report, folder)
    write_texts(report, folder)
    return page


def write_texts(report: Report, folder: Path) -> Path:
    """Write only `report.md` and `report.json`, each atomically; return the path of `report.json`.

    Raises `RunFolderError` if the folder cannot be written; existing files then stay.
    """
    write_bytes(folder / REPORT_MARKDOWN, markdown_report(report).encode())
    return report.write(folder)
