"""The example of a protection from outside: one file, chosen in the settings, seen on the report."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict

from fedproxy_secure.config import parse_config
from fedproxy_secure.config.kinds import PROTECTIONS
from fedproxy_secure.errors import ConfigError, DataError
from fedproxy_secure.experiments.run import run
from fedproxy_secure.federate.update import ClientUpdate
from fedproxy_secure.record.view import view
from fedproxy_secure.report.report import Report
from tests.support.examples import lines_of, load_example
from tests.support.tiny import tiny_settings
from threat_models import get


@pytest.fixture(scope="module")
def example() -> object:
    """The example's protection, not yet one of the known ones."""
    return load_example("own_protection").SIGNS


@pytest.fixture
def signs(example) -> Iterator[object]:
    with PROTECTIONS.added("unsafe_signs", example):
        yield example


@pytest.fixture(scope="module")
def ran(example, tmp_path_factory) -> tuple[Report, Path]:
    """The report and the folder of a recorded run under it."""
    folder = tmp_path_factory.mktemp("signs")
    settings = tiny_settings(folder, protect={"scheme": "unsafe_signs"}, audit={"record": True})
    with PROTECTIONS.added("unsafe_signs", example):
        return run(parse_config(settings), folder / "run", in_cell=True), folder / "run"


def test_the_example_is_short():
    assert lines_of("own_protection") <= 60


def test_a_run_under_it_is_stamped_and_counts_its_bytes(ran, tmp_path):
    report, _ = ran
    configuration = report.configurations[0]
    assert configuration.settings["protection"] == "unsafe_signs"
    assert configuration.unsafe == (
        "unsafe_signs: the server sees the sign of every number of every client's update.",
    )
    assert any("unsafe_signs: the server sees the sign" in note for note in report.notes)
    upload = configuration.measure("upload_bytes")
    assert upload is not None
    unprotected = run(parse_config(tiny_settings(tmp_path)), tmp_path / "plain", in_cell=True)
    plain = unprotected.configurations[0]
    assert upload.estimate.value < plain.measure("upload_bytes").estimate.value / 20


def test_an_evaluation_gives_the_server_what_it_decodes(signs, ran):
    _, folder = ran
    seen = view(folder / "seed-0", get("server"))
    assert seen.updates
    for update in seen.updates.values():
        assert len(np.unique(np.abs(update))) == 1  # signs and one length


def test_what_a_hostile_client_sends_instead_is_refused(signs):
    update = ClientUpdate(
        client="a", update=np.array([1, -1, 1], np.float32), loss=0.0, steps=1, seconds=0.0, truncated=0
    )
    sent = signs.encode(update, None)
    np.testing.assert_array_equal(signs.decode(sent, None, d=3).update, update.update)
    for change in ({"scale": float("nan")}, {"bits": b""}, {"more": 1}, {"client": "a" * 1000}):
        with pytest.raises(DataError):
            signs.decode(RecordDict({"signs": ConfigRecord({**sent["signs"], **change})}), None, d=3)


def test_without_it_the_name_is_not_known(tmp_path):
    with pytest.raises(ConfigError, match=r"protect\.scheme=unsafe_signs: is not known"):
        parse_config(tiny_settings(tmp_path, protect={"scheme": "unsafe_signs"}))
