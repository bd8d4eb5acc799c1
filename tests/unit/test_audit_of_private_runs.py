"""What a run's log says of privacy that was spent; private seeds and cells are not trained twice."""

import shutil
from dataclasses import fields

import pytest

from fedproxy_secure.audit.chain import Entry
from fedproxy_secure.audit.keys import own_key_file
from fedproxy_secure.audit.vouched import remedy_for_cell
from fedproxy_secure.audit.witness import Witness
from fedproxy_secure.config import parse_config
from fedproxy_secure.errors import AuditError
from fedproxy_secure.runtime.artifacts import RunFolder
from tests.support.run_logs import events


def private_run(place):
    """A run whose seed has one round that `clinic` paid for; its folder and witness."""
    config = parse_config({"seeds": [0]})
    folder = RunFolder.create(place / "run", config)
    witness = Witness.open(folder, config, command="c")
    folder.append_jsonl("seed-0/federation/privacy/clinic.ledger.jsonl", {"schema_version": 1})
    paid = {"round": 0, "inputs": "00", "event": {"noise_multiplier": 1.5}}
    folder.append_jsonl("seed-0/federation/privacy/clinic.ledger.jsonl", paid)
    line = {"round": 0, "participants": ["clinic"]}
    folder.append_jsonl("seed-0/federation/rounds.jsonl", line)
    folder.append_jsonl("seed-0/federation/ledger.jsonl", {"round": 0})
    witness.started(0)
    return folder, witness, paid


def test_a_round_that_was_paid_for_twice_has_both_events_in_the_log(tmp_path):
    folder, witness, paid = private_run(tmp_path)
    folder.append_jsonl("seed-0/federation/privacy/clinic.ledger.jsonl", paid)
    witness.round(0, {"round": 0, "participants": ["clinic"]})
    assert events(folder.path)[-1].body["spends"] == {"clinic": [paid["event"]] * 2}


def test_a_private_seed_whose_ledgers_are_gone_is_not_trained_again(tmp_path):
    """Its records would pay twice, and the report would tell one of the two epsilons."""
    folder, witness, _ = private_run(tmp_path)
    witness.round(0, {"round": 0, "participants": ["clinic"]})
    witness.finished(0, b"{}", epsilon={"clinic": 3.25})
    shutil.rmtree(folder.path / "seed-0")
    again = Witness.open(folder, parse_config({"seeds": [0]}), command="c")
    with pytest.raises(AuditError, match=r"clinic paid for round 0.*choose another --out, and add"):
        again.started(0)


@pytest.mark.parametrize(
    "keep",
    [
        lambda paid: [paid | {"event": {"noise_multiplier": 1000.0}}] * 2,
        lambda paid: [paid],
        lambda paid: [paid | {"round": 1}] * 2,
    ],
    ids=["more noise", "one of two events", "another round"],
)
def test_a_seed_whose_ledger_has_other_events_than_the_log_does_not_go_on(tmp_path, keep):
    """Otherwise, the owner's key would sign an epsilon that nobody computed from what was spent."""
    folder, witness, paid = private_run(tmp_path)
    name = "seed-0/federation/privacy/clinic.ledger.jsonl"
    folder.append_jsonl(name, paid)
    witness.round(0, {"round": 0, "participants": ["clinic"]})
    folder.append_jsonl(name, paid | {"round": 1})  # paid for, and killed before it was logged
    again = Witness.open(folder, parse_config({"seeds": [0]}), command="c")
    again.started(0)
    (folder.path / name).unlink()
    for line in ({"schema_version": 1}, *keep(paid)):
        folder.append_jsonl(name, line)
    with pytest.raises(AuditError, match=r"clinic paid for round 0, which its ledger .* does not have so"):
        again.started(0)


def test_nobody_is_told_to_delete_a_private_seed(tmp_path):
    folder, witness, _ = private_run(tmp_path)
    witness.round(0, {"round": 0, "participants": ["clinic"]})
    witness.finished(0, b"{}", epsilon={"clinic": 3.25})
    (folder.path / "seed-0/result.json").write_text('{"better": true}')
    with pytest.raises(AuditError, match=r"result\.json: is not as .*; put it back; with private training"):
        Witness.open(folder, parse_config({"seeds": [0]}), command="c")


def test_a_private_cell_that_the_matrix_has_logged_is_not_trained_again_when_it_is_gone(tmp_path):
    """Its ledgers went with it: a second training would be in no epsilon."""
    config = parse_config({"seeds": [0]})
    above = Witness.open(RunFolder.create(tmp_path / "m", config), config, command="matrix")
    keyed = config.with_signing_key(str(own_key_file(tmp_path / "m")))
    cell = RunFolder.create(tmp_path / "m/cells/a", config)
    own = Witness.open(cell, keyed, command="run")
    for name in ("rounds.jsonl", "ledger.jsonl"):
        cell.append_jsonl(f"seed-0/federation/{name}", {"round": 0, "participants": ["clinic"]})
    own.started(0)
    own.finished(0, b"{}", epsilon={"clinic": 3.25})
    above.check_kept("cells/a")  # it is not logged yet
    above.inner("cells/a")
    above.check_kept("cells/a")
    shutil.rmtree(cell.path)
    with pytest.raises(AuditError, match="cells/a: is gone, and its clients have paid"):
        above.check_kept("cells/a")


@pytest.mark.parametrize(
    "body",
    [
        {"seed": [0], "round": 0, "spends": {"clinic": []}},
        {"seed": 0, "spends": {"clinic": []}},
        {"seed": 0, "round": 0, "spends": 5},
        {},
    ],
)
def test_a_foreign_log_ends_in_no_traceback_when_a_remedy_is_chosen(body):
    entry = Entry(**{f.name: "" for f in fields(Entry)} | {"event": "round", "body": body})
    assert remedy_for_cell([entry], "cells/a").startswith("put it back")
