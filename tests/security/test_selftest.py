"""The self test passes here, and would not pass on an installation with a check taken out."""

import numpy as np
import pytest
from typer.testing import CliRunner

from fedproxy_secure.cli.app import app
from fedproxy_secure.errors import ProtocolAborted
from fedproxy_secure.secagg.masking.client import ClientSession
from fedproxy_secure.secagg.selftest import attempts as selftest
from fedproxy_secure.secagg.selftest import hostile
from fedproxy_secure.secagg.selftest.rehearsal import Cohort, identities, names, ring, terms_for
from fedproxy_secure.secagg.terms import TermsPolicy


def test_every_attack_fails_and_every_known_bad_client_is_read():
    found = list(selftest.findings())
    assert all(f.ok for f in found)
    assert {f.adversary for f in found} == {"nobody", "server", "client", "network", selftest.WITH_CLIENT}
    clients = [f for f in found if "known-bad client" in f.attempt]
    assert len(clients) == 5
    assert all("all 116 words of c00 are read" in f.found for f in clients)
    servers = [f for f in found if "known-bad server" in f.attempt]
    assert len(servers) == 2
    assert all("the sum is wrong, unnoticed" in f.found for f in servers)


def test_a_client_that_helps_the_server_opens_nobody_where_the_threshold_counts_on_it():
    """It signs both sets and gives both shares; three of five would be enough then, and four are needed."""
    found = {f.attempt: f.found for f in selftest.findings() if f.adversary == selftest.WITH_CLIENT}
    assert found["lowers the threshold by one"] == "stopped: threshold=3: must be 4 to 5"
    twice = "shows two sets of survivors, both signed by it"
    assert found[twice] == "stopped: confirmations: 3 clients; must be >= 4"


@pytest.mark.parametrize(
    ("owner", "method"),
    [(ClientSession, "_check_signature"), (TermsPolicy, "check")],
    ids=["signatures", "policy"],
)
def test_an_installation_with_a_check_taken_out_is_found_bad(monkeypatch, owner, method):
    monkeypatch.setattr(owner, method, lambda *_, **__: None)
    bad = [f for f in selftest.findings() if not f.ok]
    assert "server" in {f.adversary for f in bad}


def test_a_known_bad_client_that_resists_is_found_bad(monkeypatch):
    monkeypatch.setattr(hostile.SkipsConsistency, "_check_confirmation", ClientSession._check_confirmation)
    bad = [f for f in selftest.findings() if not f.ok]
    assert [f.attempt.split(", known-bad client ")[-1] for f in bad] == ["SkipsConsistency"]


def test_a_server_that_cannot_take_the_masks_off_says_so():
    _, roster = identities(3)
    terms = terms_for(ring(3, 4), roster)
    words = [0] * terms.plan.words
    plain = np.array(words, dtype=np.uint32)
    with pytest.raises(ProtocolAborted, match="stayed masked"):
        hostile._read(terms, (plain + 1).tobytes(), [], [], plain)


def test_a_server_without_tags_that_is_not_misled_is_found_bad():
    assert selftest._altered_unnoticed("alters nothing", lambda data: data).found == "the sum is exact"


def test_a_wrong_sum_and_an_unnoticed_attack_are_found_bad(monkeypatch):
    unnoticed = selftest._tampering("network", "does nothing", "mask to server", lambda m: m)
    assert not unnoticed.ok
    assert "not noticed" in unnoticed.found
    monkeypatch.setattr(Cohort, "plain_sum", lambda self, _: self.quantised["c00"].words.astype(np.int64))
    wrong = selftest._tampering("network", "repeats a vector", "mask to server", lambda m: [m, m])
    assert wrong.found == "the sum is wrong"


def test_messages_that_are_lost_leave_their_client_out():
    keys, roster = identities(5)
    terms = terms_for(ring(5, 4), roster)

    def lose(at, who, message):
        return None if (at, who) in (("mask to server", "c01"),) else message

    made = Cohort(terms=terms, keys=keys, roster=roster, tamper=lose).run(selftest_updates())
    assert made.clients == ("c00", "c02", "c03", "c04")

    def lose_on_the_way_down(at, who, message):
        return None if (at, who) == ("share to client", "c01") else message

    cohort = Cohort(terms=terms, keys=keys, roster=roster, tamper=lose_on_the_way_down)
    assert cohort.run(selftest_updates()).clients == ("c00", "c02", "c03", "c04")
    assert cohort.client_errors == {"c01": "lost"}


def selftest_updates():
    return {n: np.full(4, 0.5, np.float32) for n in names(5)}


def test_keys_are_provisioned_by_a_command(tmp_path):
    folder = tmp_path / "keys"
    made = CliRunner().invoke(app, ["provision", "quickstart", "--out", str(folder)])
    assert made.exit_code == 0
    clients = ("bank", "clinic", "council", "insurer")
    own = {f"{c}.{part}" for c in clients for part in ("key", "journal", "sequence", "policy.yaml")}
    assert {f.name for f in folder.iterdir()} == {"roster.json", *own}
    again = CliRunner().invoke(app, ["provision", "quickstart", "--out", str(folder)])
    assert again.exit_code == 2
    assert "keys are never overwritten" in again.stderr
