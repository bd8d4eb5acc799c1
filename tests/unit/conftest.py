"""A recorded run that attacks may read."""

import shutil

import pytest


@pytest.fixture(scope="session")
def recorded_run(tmp_path_factory):
    """A run's folder with one recorded seed; enough records that some are set aside for a control."""
    from tests.support.recorded import record_run  # brings torch, without which some tests run
    from tests.support.tiny import write_records

    place = tmp_path_factory.mktemp("recorded")
    root = write_records(place / "records", clients=4, records=40)
    return record_run(place, federate={"rounds": 2}, data={"root": root}).parent


@pytest.fixture
def clean_run(recorded_run, tmp_path):
    """A copy of the recorded run, which nobody has attacked yet."""
    return shutil.copytree(recorded_run, tmp_path / "recorded", symlinks=True)
