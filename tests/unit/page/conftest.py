"""A report with everything that a page can show."""

import pytest

from fedproxy_secure.report.report import Report
from tests.support.sample_report import sample_report


@pytest.fixture(scope="module")
def report() -> Report:
    return sample_report()
