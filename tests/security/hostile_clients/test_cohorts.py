"""The clients of a round follow from names, seed and round, not from which nodes are connected."""

import json
from contextlib import suppress

import pytest
from flwr.app import RecordDict

from fedproxy_secure import wire
from fedproxy_secure.errors import (
    RoundAborted,
)
from fedproxy_secure.flower import client_app
from tests.support.hostile_clients import OTHERS, Hostile, in_the_clear, participants, served


def cohorts_asked(world, silent):
    """The cohort that the terms name, where some nodes never get ready."""
    named_in_terms = []

    class Watching(Hostile):
        def __call__(self, message, context):
            if message.metadata.message_type == "train":
                named_in_terms.append(wire.decode_terms(message.content).cohort)
            return super().__call__(message, context)

    app = Watching(lambda kind, true: RecordDict() if kind == "query.setup" else true, silent)
    job = world[0]
    job = job.changed(federate=job.federate.model_copy(update={"participation": 0.8, "min_clients": 2}))
    with suppress(RoundAborted):
        served(world, job, app)
    (cohort,) = set(named_in_terms)
    return cohort


def test_who_takes_part_in_a_round_does_not_depend_on_who_is_there(world):
    everyone = cohorts_asked(world, ())
    assert len(everyone) == 4
    for silent in (2, 5):
        assert cohorts_asked(world, (silent,)) == everyone


def test_who_is_not_there_is_not_asked_in_the_clear_and_the_round_goes_on(world, tmp_path):
    app = Hostile(lambda kind, true: RecordDict() if kind == "query.setup" else true)
    _, seen = served(world, in_the_clear(world[0]), app, tmp_path)
    assert seen == participants(tmp_path) == OTHERS


def test_an_honest_run_cuts_no_step_and_says_so(world, tmp_path):
    served(world, world[0], client_app.app, tmp_path)
    (line,) = (tmp_path / "rounds.jsonl").read_text().splitlines()
    assert json.loads(line)["step_cut"] == 0.0


def test_a_secure_sum_of_too_few_clients_may_pass_by_itself(world):
    app = Hostile(lambda kind, true: RecordDict() if kind == "query.mask" else true, (2, 3))
    with pytest.raises(RoundAborted, match="mask: 3 of 5 clients; must be >= 4") as aborted:
        served(world, world[0], app)
    assert aborted.value.passing
