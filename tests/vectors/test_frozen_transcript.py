"""A round of version 1 of the masking protocol, byte for byte: what a client of another build must speak.

Every label, order and length that enters a hash, a key or a signature shows here. A change that is meant
gets a new `terms.VERSION` and a new file: `python -m tests.vectors.test_frozen_transcript`.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from fedproxy_secure.crypto import primitives as crypto
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.secagg.control import SEGMENTS, Control, encode_control
from fedproxy_secure.secagg.masking.client import ClientSession
from fedproxy_secure.secagg.masking.server import ServerSession
from fedproxy_secure.secagg.messages import Inbox
from fedproxy_secure.secagg.ring import RingPlan, Segment, quantise
from fedproxy_secure.secagg.selftest.rehearsal import names, terms_for
from fedproxy_secure.secagg.terms import Roster

FILE = Path(__file__).with_name("masking_transcript.json")
K, DROPPED = 4, "c03"


def fixed(label: str) -> Secret:
    return Secret(crypto.digest(b"frozen transcript", label.encode()))


IDENTITIES = {n: fixed(f"identity {n}") for n in names(K)}
ROSTER = Roster(members={n: crypto.signing_public(k) for n, k in IDENTITIES.items()})
PLAN = RingPlan(bits=24, clients=K, segments=(Segment(name="update", length=3, clip=0.5), *SEGMENTS))
TERMS = terms_for(
    PLAN,
    ROSTER,
    run="a run",
    round=7,
    attempt=2,
    server_key=crypto.agreement_public(fixed("server")),
    gram_sha256=b"g" * 32,
)


def transcript(letters=None):
    """Every message by step and client, hex; `letters`: sealed ones from another time, to be opened now."""
    server = ServerSession(terms=TERMS, roster=ROSTER, private=fixed("server"))
    clients = {
        n: ClientSession(
            name=n, identity=IDENTITIES[n], terms=TERMS, roster=ROSTER, root=fixed(f"root {n}")
        )
        for n in names(K)
    }
    said = {
        "context": TERMS.context().hex(),
        "roster": ROSTER.sha256().hex(),
        "plan": PLAN.canonical().decode(),
    }

    def note(step, name, message):
        said[f"{step} {name}"] = {
            k: [v.hex() if isinstance(v, bytes) else v for v in value]
            if isinstance(value, list)
            else (value.hex() if isinstance(value, bytes) else value)
            for k, value in message.to_fields().items()
        }
        return message

    for n, client in clients.items():
        server.advertised(note("advertise", n, client.advertise()))
    book = note("key book for", "all", server.key_book())
    for client in clients.values():
        server.shared(client.share(book))
    inboxes = {n: note("inbox for", n, inbox) for n, inbox in server.inboxes().items()}
    if letters is not None:
        inboxes = {
            n: Inbox(
                senders=i.senders, sealed=[bytes.fromhex(s) for s in letters[f"inbox for {n}"]["sealed"]]
            )
            for n, i in inboxes.items()
        }
    control = Control(weight=0.75, clipped=1, loss=2.5, steps=10, largest=0.25)
    values = {"update": np.array([0.0, 0.25, -0.5]), **encode_control(control, TERMS.context())}
    for n, client in clients.items():
        words = quantise(PLAN, values, nearest=True).words
        message = note("mask", n, client.mask(inboxes[n], words))
        if n != DROPPED:
            server.masked(message)
    survivors = note("survivors for", "all", server.survivors())
    for n in survivors.clients:
        server.confirmed(note("confirm", n, clients[n].confirm(survivors)))
    signatures = note("confirmations for", "all", server.confirmations())
    for n in survivors.clients:
        server.unmasked(note("unmask", n, clients[n].unmask(signatures)))
    made = server.finish()
    said["sums"] = {name: total.tolist() for name, total in made.sums.items()}
    said["control"] = made.control.__dict__
    return said


def of_now(said):
    """All but the sealed letters: their nonces are random."""
    return {k: v for k, v in said.items() if not k.startswith("inbox")}


def test_the_round_speaks_as_version_1_did():
    frozen = json.loads(FILE.read_text())
    spoken = json.loads(json.dumps(transcript()))
    assert spoken.keys() == frozen.keys()
    for name, message in of_now(frozen).items():
        assert spoken[name] == message, name


def test_letters_that_version_1_sealed_are_opened_and_give_the_same_round():
    frozen = json.loads(FILE.read_text())
    assert of_now(json.loads(json.dumps(transcript(frozen)))) == of_now(frozen)


def test_the_frozen_round_is_the_sum_of_its_survivors():
    frozen = json.loads(FILE.read_text())
    step = 1.5 * PLAN.step_of(PLAN.segments[0])  # half a step each
    assert frozen["sums"]["update"] == pytest.approx([0.0, 0.75, -1.5], abs=step)
    assert frozen["control"] == {
        "clients": 3,
        "weight": 2.25,
        "clipped": 3,
        "loss": 7.5,
        "steps": 30,
        "largest": 0.75,
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(transcript(), indent=1) + "\n")
