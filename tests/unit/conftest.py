"""Runs that tests share: a recorded one that attacks may read, and one of two seeds."""

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


@pytest.fixture(scope="session")
def run_of_two_seeds(tmp_path_factory):
    """The settings of a finished run of two seeds, and its folder, which no test may change."""
    from fedproxy_secure.config import parse_config
    from fedproxy_secure.experiments.run import run
    from tests.support.tiny import tiny_settings

    place = tmp_path_factory.mktemp("two_seeds")
    settings = tiny_settings(place, seeds=[0, 1], federate={"rounds": 2})
    run(parse_config(settings), place / "run", command="fedproxy-secure run tiny")
    return settings, place / "run"
