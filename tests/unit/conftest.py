"""A recorded run that attacks may read."""

import pytest


@pytest.fixture(scope="module")
def recorded_run(tmp_path_factory):
    """A run's folder with one recorded seed; enough records that some are set aside for a control."""
    from tests.support.recorded import record_run  # brings torch, without which some tests run
    from tests.support.tiny import write_records

    place = tmp_path_factory.mktemp("recorded")
    root = write_records(place / "records", clients=4, records=40)
    return record_run(place, federate={"rounds": 2}, data={"root": root}).parent


@pytest.fixture
def clean_run(recorded_run):
    """Return the recorded run after deleting the results of earlier suites."""
    for file in (recorded_run / "attacks").glob("*"):
        file.unlink()
    return recorded_run
