"""What a client says went wrong ends nobody else's round, and surfaces where too few are left."""

import logging

import pytest
from flwr.app import RecordDict

from fedproxy_secure import wire
from fedproxy_secure.errors import (
    DataError,
    PrivacyError,
    RoundAborted,
    TrainingError,
)
from tests.support.hostile_clients import (
    HOSTILE,
    OTHERS,
    STEPS,
    Hostile,
    in_the_clear,
    participants,
    served,
)
from tests.support.malformed import ANSI


def fails(kind, line, at="train"):
    return Hostile(lambda step, true: wire.encode_failure(kind, line) if step == at else true)


@pytest.mark.parametrize("scheme", ["masking", "unsafe_plaintext"])
@pytest.mark.parametrize("step", STEPS[:2])
def test_a_client_that_fails_on_its_own_does_not_end_the_others_round(
    world, tmp_path, caplog, scheme, step
):
    job = world[0] if scheme == "masking" else in_the_clear(world[0])
    with caplog.at_level(logging.WARNING):
        served(world, job, fails("PrivacyError", ANSI + "x" * 10_000, step), tmp_path)
    assert participants(tmp_path) == OTHERS
    (line,) = [r.getMessage() for r in caplog.records if "all is well" in r.getMessage()]
    assert line.isprintable()
    assert len(line) < 500
    assert f"node {HOSTILE}" in line


@pytest.mark.parametrize(
    ("kind", "raised"),
    [
        ("PrivacyError", PrivacyError),
        ("KeyboardInterrupt", TrainingError),
        ("RoundAborted", TrainingError),
        ("annotations", TrainingError),
    ],
)
def test_where_too_few_are_left_the_first_clients_own_line_is_raised_as_one_of_a_few(world, kind, raised):
    job = in_the_clear(world[0], min_clients=5)
    with pytest.raises(raised, match=rf"^c2 \(node {HOSTILE}\) says: \?\[2J") as caught:
        served(world, job, fails(kind, ANSI))
    assert type(caught.value) is raised
    assert str(caught.value).isprintable()


def test_an_error_of_every_client_surfaces_as_itself(world):
    everyone = tuple(range(2, 7))
    refusing = Hostile(
        lambda step, true: (
            wire.encode_failure("PrivacyError", "epsilon would be 9") if step == "train" else true
        ),
        everyone,
    )
    for job in (world[0], in_the_clear(world[0])):
        with pytest.raises(PrivacyError, match=r"c0 .* says: epsilon would be 9"):
            served(world, job, refusing)


def test_where_one_machine_plays_everybody_the_first_error_ends_the_run(world):
    with pytest.raises(DataError, match=r"node 4 says: no records"):
        served(
            world, in_the_clear(world[0]), fails("DataError", "no records", "query.setup"), one_machine=True
        )


def test_a_client_that_leaves_the_protocol_has_dropped_out_whoever_plays_it(world, tmp_path):
    app = fails("ProtocolAborted", "not mine", "query.mask")
    served(world, world[0], app, tmp_path, one_machine=True)
    assert participants(tmp_path) == OTHERS


def test_too_few_without_an_error_of_their_own_are_a_round_aborted(world):
    app = Hostile(lambda kind, true: RecordDict() if kind == "query.setup" else true, (2, 3))
    with pytest.raises(
        RoundAborted, match=r"3 clients set up: must be >= 4 \(the threshold of a secure sum\)"
    ):
        served(world, world[0], app)
    job = in_the_clear(world[0], min_clients=4)
    with pytest.raises(RoundAborted, match=r"3 clients set up: must be >= 4 \(federate.min_clients\)"):
        served(world, job, app)
