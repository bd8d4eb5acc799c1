"""For all tests: slow ones count no coverage, whichever session they run in.

The floor of coverage is one for the fast tests; and to count takes a third of the time again.
"""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each slow test `no_cover`."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.no_cover)
