"""For all tests: which count coverage, when the garbage collector runs, which cases Hypothesis tries.

To count coverage takes a third to a half of the time again, also in code that is not counted. So slow tests
count none in any session, and `make test-change`, which counts only what keeps secrets, counts in the files
of `secagg.txt` alone: `make coverage-secagg` shows that these run every branch of it.

Each process of a session imports torch and collects all tests, a million objects that stay. The collector
is off meanwhile and leaves them alone afterwards; each collection would go through them again, and the code
under test asks for some between trials and cells.

Properties are tried on the same cases each time, so that no change fails by chance. By night,
`HYPOTHESIS_PROFILE=nightly`, they are new ones, and what repeats a failure is printed. How many there are
of each property is said where it is, for some by that variable.

Where `CI` is set and torch is installed, all that tests need is there: what is skipped all the same, fails.
"""

import gc
import os
from collections.abc import Generator
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import none

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)

COUNTED = tuple(Path(__file__).with_name("secagg.txt").read_text().split())  # files and folders

for _name, _same_cases in {"change": True, "short": True, "nightly": False}.items():
    settings.register_profile(
        _name,
        derandomize=_same_cases,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "change"))

NOTHING_SKIPPED = bool(os.environ.get("CI")) and find_spec("torch") is not None
# besides, what a machine has too much of, and a container no use for
UNAVOIDABLE = ("there is a GPU", "systemd is not here", "takes hours; HYPOTHESIS_PROFILE=nightly")

gc.disable()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test that is skipped where none may be."""
    return _not_skipped((yield))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Fail a file that is skipped where none may be."""
    return _not_skipped((yield))


def _not_skipped(report: Report) -> Report:
    if report.skipped and NOTHING_SKIPPED and not hasattr(report, "wasxfail"):
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        if not reason.endswith(UNAVOIDABLE):
            report.outcome, report.longrepr = "failed", f"is skipped where nothing may be: {reason}"
    return report


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark `no_cover` each slow test; if only what keeps secrets is counted, tests of all else, too."""
    sources = config.getoption("cov_source", default=[]) or []
    only_secrets = bool(sources) and True not in sources
    for item in items:
        counted = item.nodeid.startswith(COUNTED) or not only_secrets
        if item.get_closest_marker("slow") or not counted:
            item.add_marker(pytest.mark.no_cover)


def pytest_collection_finish() -> None:
    """Set what is loaded by now apart from what the collector goes through."""
    _nothing()  # Hypothesis finds numpy's random state only as long as the collector sees who holds it
    gc.collect()
    gc.freeze()
    gc.enable()


@settings(max_examples=1, database=None)
@given(none())
def _nothing(_: None) -> None:
    """Hold for every None."""
