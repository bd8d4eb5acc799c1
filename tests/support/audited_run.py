"""A finished run with its audit log, and ways to tamper with it."""

import shutil
from dataclasses import replace

from fedproxy_secure.audit.chain import START, make_entry, parse_line
from fedproxy_secure.audit.keys import own_key_file
from fedproxy_secure.audit.verify import verify_run
from fedproxy_secure.audit.witness import Witness
from fedproxy_secure.config import parse_config
from fedproxy_secure.crypto.primitives import fresh_secret, signing_public
from fedproxy_secure.report.publish import write_texts
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.names import AUDIT_LOG
from tests.support.sample_report import sample_report

ROUNDS = 4
CONFIG = parse_config({"seeds": [0]})
LINES = 1 + 1 + ROUNDS + 2  # opened, started, rounds, finished, files


def finished_run(place, *, before_the_end=lambda folder: None):
    """Make a finished run, told and signed as `run` does it, without the training; return its folder.

    `before_the_end` may write further files of the seed.
    """
    folder = RunFolder.create(place / "run", CONFIG)
    witness = Witness.open(folder, CONFIG, command="fedproxy-secure run x")
    witness.started(0)
    for number in range(ROUNDS):
        line = {"round": number, "participants": ["bank", "clinic"]}
        folder.append_jsonl("seed-0/federation/rounds.jsonl", line)
        folder.append_jsonl("seed-0/federation/ledger.jsonl", {"round": number})
        witness.round(0, line)
    folder.write_bytes("seed-0/fused/model.safetensors", bytes(100))
    before_the_end(folder)
    witness.finished(0, b'{"seed": 0}\n', epsilon={})
    head = witness.settle()
    write_texts(replace(sample_report(), audit_head=head), folder.path)
    witness.sign()
    assert verify_run(folder.path).whole
    return folder.path


def copied(folder, place):
    """Copy a run and the key beside it; return the copy's folder."""
    shutil.copytree(folder, place)
    shutil.copy(own_key_file(folder), own_key_file(place))
    return place


def lines_of(run):
    return (run / AUDIT_LOG).read_bytes().splitlines()


def put(run, lines):
    (run / AUDIT_LOG).write_bytes(b"".join(line + b"\n" for line in lines))


def forged(folder, *told):
    """Write a log that anybody can make, of events and their bodies, signed by a key of its own."""
    key, previous, lines = fresh_secret(), START, []
    for seq, (event, body) in enumerate(told):
        more = {"public_key": signing_public(key).hex(), "schema_version": 1} if seq == 0 else {}
        entry = make_entry(key, previous=previous, seq=seq, time="", event=event, body={**body, **more})
        lines.append(entry.line())
        previous = entry.hash
    folder.mkdir(parents=True, exist_ok=True)
    put(folder, lines)


def inner(*names):
    return [("inner", {"folder": name, "head": START}) for name in names]


def problems(run, **more):
    return verify_run(run, **more).problems


def public_of(run):
    return bytes.fromhex(parse_line(lines_of(run)[0]).body["public_key"])
