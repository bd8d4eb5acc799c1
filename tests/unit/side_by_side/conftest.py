"""A report of three configurations that were attacked."""

import pytest

from tests.support.side_by_side import report_of, three


@pytest.fixture(scope="module")
def report():
    """One attack on each surface; that on the final model finds nothing even without protection."""
    return report_of(three())
