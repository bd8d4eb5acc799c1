"""What the network or a client changes makes that client count as dropped, or aborts the round."""

from dataclasses import replace

import numpy as np
import pytest

from fedproxy_secure.crypto import primitives as crypto
from fedproxy_secure.errors import ProtocolAborted, RoundAborted
from fedproxy_secure.secagg.masking.server import ServerSession
from fedproxy_secure.secagg.messages import Advertise
from fedproxy_secure.secagg.ring import read_sum
from fedproxy_secure.secagg.selftest.rehearsal import SERVER, Cohort, identities, names, ring, terms_for
from fedproxy_secure.secagg.steps import upload_key
from fedproxy_secure.secagg.terms import Roster
from tests.support.masked_cohort import (
    KEYS,
    PLAN,
    ROSTER,
    TERMS,
    D,
    K,
    cohort,
    flip,
    only,
    session,
    updates,
)


@pytest.mark.parametrize(
    ("step", "change", "line"),
    [
        ("advertise", lambda m: replace(m, mask_key=flip(m.mask_key)), "signature of c00: verification"),
        ("advertise", lambda m: replace(m, client="eve"), "eve does not belong there"),
        ("advertise", lambda m: replace(m, client="c01"), "signature of c01: verification"),
        ("share", lambda m: replace(m, sealed=m.sealed[1:]), "must be one for each other client"),
        ("share", lambda m: replace(m, receivers=m.receivers[::-1]), "must be one for each other"),
        ("mask", lambda m: replace(m, masked=flip(m.masked)), "tag of c00: verification failed"),
        ("mask", lambda m: replace(m, masked=m.masked[:-1]), "tag of c00: verification failed"),
        ("confirm", lambda m: replace(m, signature=flip(m.signature)), "signature of c00: verification"),
        ("unmask", lambda m: replace(m, self_shares=m.self_shares[::-1]), "signature of c00: verific"),
        ("unmask", lambda m: replace(m, dropped=["c01"]), "signature of c00: verification failed"),
    ],
)
def test_a_message_changed_on_the_way_counts_as_lost(step, change, line):
    c = cohort(tamper=only(f"{step} to server", "c00", change))
    made = c.run(updates())
    assert line in next(iter(c.server_errors.values()))
    expected = read_sum(PLAN, c.plain_sum(made.clients).astype(PLAN.word_type))
    assert np.array_equal(made.sums["update"], expected["update"])


def test_sealed_shares_that_do_not_open_drive_out_everyone_else_and_end_the_round():
    """A known limit: the server cannot open them, and so cannot tell who is at fault."""
    garbled = only("share to server", "c00", lambda m: replace(m, sealed=[flip(s) for s in m.sealed]))
    c = cohort(tamper=garbled)
    with pytest.raises(RoundAborted, match=f"mask: 1 of {K} clients"):
        c.run(updates())
    assert not c.server_errors
    assert c.client_errors == dict.fromkeys(names(K)[1:], "shares from c00: verification failed")


def test_a_message_that_arrives_twice_counts_once():
    for step in ("advertise", "share", "mask", "confirm", "unmask"):
        c = cohort(tamper=only(f"{step} to server", "c00", lambda m: [m, m]))
        made = c.run(updates())
        assert "c00 has answered already" in c.server_errors["c00"]
        assert made.clients == names(K)


def signed_again(message, name):
    return replace(message, signature=crypto.sign(KEYS[name], message.signed(TERMS.context())))


def with_vector(change):
    """A malicious client's own vector, rightly tagged: it knows its keys. Here the server's side tags."""
    advertised = {}

    def tamper(at, who, message):
        if isinstance(message, Advertise):
            advertised[who] = message
        if (at, who) != ("mask to server", "c00"):
            return message
        masked = change(message.masked)
        key = upload_key(SERVER, advertised["c00"].share_key, TERMS.context(), "c00", "")
        return replace(message, masked=masked, tag=crypto.tag(key, masked))

    return tamper


def test_a_malicious_clients_vector_of_another_length_is_left_out():
    c = cohort(tamper=with_vector(lambda masked: masked[:-4]))
    assert c.run(updates()).clients == names(K)[1:]
    assert "masked vector of" in c.server_errors["c00"]


@pytest.mark.parametrize("step", ["unmask", "mask"])
def test_a_malicious_clients_wrong_share_aborts_a_round_without_spare_clients(step):
    def wrong(message):
        column = "key_shares" if step == "mask" else "self_shares"
        shares = list(getattr(message, column))
        shares[0] = flip(shares[0], 32)
        return signed_again(replace(message, **{column: shares}), "c00")

    c = cohort(tamper=only("unmask to server", "c00", wrong), drops={step: {"c04"}})
    whose = "mask key of c04" if step == "mask" else "self mask of c00"
    line = f"{whose}: the secret rebuilt from the shares of 4 clients does not match"
    with pytest.raises(ProtocolAborted, match=line):
        c.run(updates())


LOW_ORDER = bytes(32)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda m, first: replace(m, share_key=LOW_ORDER), "keys of c01: verification failed"),
        (lambda m, first: replace(m, mask_key=LOW_ORDER), "keys of c01: verification failed"),
        (lambda m, first: replace(m, mask_key=m.share_key), "keys of c01: one is there twice"),
        (lambda m, first: replace(m, share_key=first.share_key), "keys of c01: one is there twice"),
        (lambda m, first: replace(m, share_key=first.mask_key), "keys of c01: one is there twice"),
        (lambda m, first: replace(m, mask_key=first.share_key), "keys of c01: one is there twice"),
        (lambda m, first: replace(m, mask_key=first.mask_key), "keys of c01: one is there twice"),
    ],
)
def test_a_malicious_client_cannot_stop_the_others_with_keys_that_they_must_refuse(change, line):
    first = {}

    def tamper(at, who, message):
        if (at, who) == ("advertise to server", "c00"):
            first["message"] = message
        if (at, who) == ("advertise to server", "c01"):
            return signed_again(change(message, first["message"]), "c01")
        return message

    c = cohort(tamper=tamper)
    made = c.run(updates())
    assert line in c.server_errors["c01"]
    assert made.clients == ("c00", "c02", "c03", "c04")


def test_one_malicious_client_moves_the_sum_as_far_as_the_ring_goes_and_no_further():
    """What masking does not stop: a client that lies is not bound to the clip."""
    far = 5 * PLAN.levels // 2  # of which a client that follows the rules can add 2 / 5

    def bend(masked):
        words = np.frombuffer(masked, np.uint32).copy()
        words[:1] += np.uint32(far)  # as an array, it wraps without a warning
        return words.tobytes()

    calm = {n: np.zeros(D, np.float32) for n in names(K)}
    made = cohort(tamper=with_vector(bend)).run(calm)
    assert made.sums["update"][0] == pytest.approx(2.5)
    assert not made.sums["update"][1:].any()
    loud = cohort(tamper=with_vector(bend)).run({n: np.ones(D, np.float32) for n in names(K)})
    assert loud.sums["update"][0] == pytest.approx(7.5 - 2 * K, abs=1e-6)  # it wraps, and stays within K
    assert np.abs(loud.sums["update"]).max() <= K * (1 + 1e-6)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: replace(m, survivors=m.survivors[1:], self_shares=m.self_shares[1:]),
        lambda m: replace(m, dropped=["c03"]),
        lambda m: replace(m, dropped=[], key_shares=[]),
        lambda m: replace(m, self_shares=m.self_shares[1:]),
        lambda m: replace(m, key_shares=[]),
        lambda m: replace(m, key_shares=[*m.key_shares, m.key_shares[-1]]),
        lambda m: replace(m, self_shares=m.self_shares[:-1], key_shares=[m.self_shares[-1], *m.key_shares]),
    ],
)
def test_shares_for_other_sets_are_refused(change):
    c = cohort(
        terms=WIDE,
        keys=WIDE_KEYS,
        roster=WIDE_ROSTER,
        drops={"mask": {"c06"}},
        tamper=only("unmask to server", "c00", lambda m: wide_signed(change(m))),
    )
    made = c.run(WIDE_UPDATES)
    assert "must be one for each client of the step" in c.server_errors["c00"]
    assert made.clients == names(6)


WIDE_KEYS, WIDE_ROSTER = identities(7)
WIDE = terms_for(ring(7, D), WIDE_ROSTER)  # threshold 5
WIDE_UPDATES = {n: np.zeros(D, np.float32) for n in names(7)}


def wide_signed(message):
    return replace(message, signature=crypto.sign(WIDE_KEYS["c00"], message.signed(WIDE.context())))


def test_answers_may_arrive_in_any_order():
    class Backwards(Cohort):
        def _ask(self, step, clients, ask, take):
            answers = []
            super()._ask(step, clients, ask, answers.append)
            for answer in reversed(answers):
                take(answer)

    c = Backwards(terms=TERMS, keys=KEYS, roster=ROSTER, drops={"mask": {"c04"}})
    made = c.run(updates())
    assert made.clients == names(4)
    expected = read_sum(PLAN, c.plain_sum(made.clients).astype(PLAN.word_type))
    assert np.array_equal(made.sums["update"], expected["update"])


def test_a_malicious_client_that_masks_wrongly_makes_the_sentinels_wrong():
    bend = with_vector(lambda masked: masked[:-1] + bytes([masked[-1] ^ 0x7F]))
    with pytest.raises(ProtocolAborted, match="sentinels: are wrong"):
        cohort(tamper=bend).run(updates())


@pytest.mark.parametrize("step", ["advertise", "share", "mask", "confirm", "unmask"])
def test_one_survivor_too_few_aborts_with_the_reason(step):
    with pytest.raises(RoundAborted, match=rf"{step}: 3 of 5 clients; must be >= 4"):
        cohort(drops={step: {"c00", "c01"}}).run(updates())


def test_the_server_machine_refuses_messages_out_of_turn():
    server = ServerSession(terms=TERMS, roster=ROSTER, private=SERVER)
    message = session().advertise()
    server.advertised(message)
    with pytest.raises(ProtocolAborted, match="share: closed when advertise is going on"):
        server.inboxes()
    for name in names(K)[1:]:
        server.advertised(session(name).advertise())
    server.key_book()
    with pytest.raises(ProtocolAborted, match="advertise: closed when share is going on"):
        server.key_book()
    with pytest.raises(ProtocolAborted, match="advertise: message of c00 when share is going on"):
        server.advertised(message)
    with pytest.raises(ProtocolAborted, match="server key: the terms name another one"):
        ServerSession(terms=TERMS, roster=ROSTER, private=crypto.fresh_secret())
    stranger = Roster(members={n: k for n, k in ROSTER.members.items() if n != "c03"})
    with pytest.raises(ProtocolAborted, match="cohort: c03 is not in the roster"):
        ServerSession(terms=TERMS, roster=stranger, private=SERVER)
