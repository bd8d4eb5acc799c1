"""A false share of a secret is left out and its giver named, as long as enough others came."""

from dataclasses import replace

import numpy as np
import pytest

from fedproxy_secure.crypto.primitives import fresh_secret, sign
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.crypto.shamir import split
from fedproxy_secure.errors import ProtocolAborted
from fedproxy_secure.secagg.masking.rebuild import Rebuilder
from fedproxy_secure.secagg.masking.server import ServerSession
from fedproxy_secure.secagg.ring import read_sum
from fedproxy_secure.secagg.selftest.rehearsal import Cohort, identities, ring, terms_for

K, D = 6, 40  # threshold 5
KEYS, ROSTER = identities(K)
PLAN = ring(K, D)
TERMS = terms_for(PLAN, ROSTER)
FALSE = {"low bit": lambda s: s[:-1] + bytes([s[-1] ^ 1]), "no number": lambda s: b"\xff" * len(s)}


class Named(ServerSession):
    """A server whose findings outlive the round."""

    def finish(self):
        made = super().finish()
        found.update(self.misfits)
        return made


found: dict[str, str] = {}


def run(*, liars, column="self_shares", change=FALSE["low bit"], dropped=(), silent=()):
    """One round in which these clients alter every share of a column that they give."""
    found.clear()

    def tamper(at, who, message):
        if at != "unmask to server" or who not in liars:
            return message
        lie = replace(message, **{column: [change(s) for s in getattr(message, column)]})
        return replace(lie, signature=sign(KEYS[who], lie.signed(TERMS.context())))

    c = Cohort(
        terms=TERMS,
        keys=KEYS,
        roster=ROSTER,
        server=Named,
        tamper=tamper,
        drops={"mask": set(dropped), "unmask": set(silent)},
    )
    rng = np.random.default_rng(3)
    made = c.run({n: rng.uniform(-1, 1, D).astype(np.float32) for n in TERMS.cohort})
    assert np.array_equal(
        made.sums["update"], read_sum(PLAN, c.plain_sum(made.clients).astype(PLAN.word_type))["update"]
    )
    return made


@pytest.mark.parametrize("liar", ["c00", "c03", "c05"])
@pytest.mark.parametrize("change", FALSE.values(), ids=FALSE)
def test_one_clients_false_shares_do_not_end_the_round_and_it_is_named(liar, change):
    made = run(liars=[liar], change=change)
    assert made.clients == TERMS.cohort
    # the last by name is not asked for, unless another one's share is false
    assert set(found) == ({liar} if liar != "c05" else set())


def test_false_shares_that_no_spare_giver_makes_up_for_end_the_round_and_blame_no_one_alone():
    for liars, silent in ((["c00"], ["c04"]), (["c00", "c01"], [])):
        with pytest.raises(
            ProtocolAborted,
            match=r"self mask of c00: the secret rebuilt from the shares of [56] clients does",
        ):
            run(liars=liars, silent=silent)


def test_a_false_share_of_a_drop_outs_key_ends_a_round_without_spare_givers():
    with pytest.raises(
        ProtocolAborted, match="mask key of c02: the secret rebuilt from the shares of 5 clients does not"
    ):
        run(liars=["c00"], column="key_shares", dropped=["c02"])


def shares_of(secret, points, threshold):
    coefficients = [Secret(fresh_secret().reveal() * 2) for _ in range(threshold - 1)]
    dealt = split(secret, list(points.values()), coefficients)
    return {name: dealt[point].reveal() for name, point in points.items()}


@pytest.mark.parametrize("liars", [["a"], ["a", "b"], ["b", "g"], ["c", "f"]], ids="-".join)
def test_a_secret_is_rebuilt_around_as_many_false_shares_as_there_are_givers_to_spare(liars):
    points = {name: i + 1 for i, name in enumerate("abcdefg")}
    rebuilder = Rebuilder(points, 5)
    secrets = [fresh_secret() for _ in range(3)]
    for number, secret in enumerate(secrets):
        shares = shares_of(secret, points, 5)
        for liar in liars:
            shares[liar] = FALSE["low bit"](shares[liar])
        right = secret.reveal()
        made = rebuilder.secret(shares, lambda s, right=right: s.reveal() == right, what=f"secret {number}")
        assert made.reveal() == right
    assert rebuilder.misfits == {liar: "secret 0" for liar in liars}


def test_giving_up_takes_a_bounded_number_of_tries():
    points = {f"c{i:02}": i + 1 for i in range(40)}
    shares, tries = shares_of(fresh_secret(), points, 27), []
    with pytest.raises(
        ProtocolAborted, match="the secret rebuilt from the shares of 40 clients does not match"
    ):
        Rebuilder(points, 27).secret(shares, lambda s: tries.append(s) is not None, what="self mask of c00")
    assert len(tries) == 1000
