"""What the base class of protections and the check of a round ask of a scheme from another package."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import RecordDict

from fedproxy_secure import wire
from fedproxy_secure.config import FusionConfig, PrivacyConfig, ProtectConfig, parse_config
from fedproxy_secure.config.kinds import PROTECTIONS
from fedproxy_secure.errors import ConfigError, DataError
from fedproxy_secure.experiments.run_report import protection_note
from fedproxy_secure.federate.server import ServerState
from fedproxy_secure.federate.update import ClientUpdate
from fedproxy_secure.protect.base import Protection, RoundResult, ServerRound
from fedproxy_secure.protect.gathering import fuse_sum, gather
from fedproxy_secure.protect.masking import MASKING, Masking
from fedproxy_secure.protect.rounds import run_round
from fedproxy_secure.protect.secure_sum import server
from fedproxy_secure.record.leakage import Ledger

BEFORE = ServerState(round=0, adapter=np.zeros(3, np.float32))
AFTER = ServerState(round=1, adapter=np.array([3, 0, 4], np.float32))
UPDATE = np.array([3, 0, 4], np.float32)
WHOLE = RoundResult(state=AFTER, metrics={}, clients=["a"], updates={"a": UPDATE})


class Scheme(Protection):
    """A scheme whose round gives the result and notes the rows that a test wants."""

    name, title = "scheme", "scheme"

    def __init__(self, result, *, rows=1):
        self.result, self.rows = result, rows

    def sees(self, protect, fusion):
        return "scheme: a sentence."

    def upload_bytes(self, job, sizes):
        return 1

    def train(self, asked):
        return RecordDict()

    def run_round(self, round):
        for _ in range(self.rows):
            round.ledger.note("m", to="server", reveals="r", payload_bytes=1)
        return self.result


class Sums(Scheme):
    server_learns = "sums"


def a_round(unit="none"):
    job = SimpleNamespace(privacy=PrivacyConfig(unit=unit, target_epsilon=8, target_delta=1e-5))
    return ServerRound(
        ask=None,
        job=job,
        state=BEFORE,
        cohort=["a", "b"],
        ledger=Ledger(round=0),
        on_client=None,
        enough=lambda count: None,
    )


def test_a_whole_result_passes_and_has_the_length_of_its_step():
    assert run_round(Scheme(WHOLE), a_round()).metrics == {"step_norm": 5.0}
    summed = replace(WHOLE, updates={}, sums={"update": UPDATE})
    assert run_round(Sums(summed), a_round()).metrics == {"step_norm": 5.0}


def test_under_differential_privacy_a_round_keeps_no_loss():
    with_loss = replace(WHOLE, metrics={"loss": 1.0, "step_norm": 2.0})
    assert run_round(Scheme(with_loss), a_round()).metrics == {"loss": 1.0, "step_norm": 5.0}
    assert run_round(Scheme(with_loss), a_round("record")).metrics == {"step_norm": 5.0}


def test_updates_that_messages_hold_in_the_clear_need_not_be_returned_and_only_those():
    class Asks(Scheme):
        def run_round(self, round):
            list(round.ask("train", {}, "round 0"))
            return super().run_round(round)

    def answers(kind, contents, group):
        update = ClientUpdate(client="a", update=UPDATE, loss=0.0, steps=1, seconds=0.0, truncated=0)
        yield "a", wire.encode_update(update)

    asked = replace(a_round(), ask=answers)
    assert run_round(Asks(replace(WHOLE, updates={})), asked).clients == ["a"]
    with pytest.raises(ConfigError, match=r"updates\['b'\] of its round"):
        run_round(Asks(replace(WHOLE, clients=["a", "b"], updates={})), asked)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"server_learns": "sum"}, r"Odd\.server_learns='sum': must be updates or sums"),
        ({"follows": frozenset({"treshold"})}, r"Odd\.follows: treshold is no rule of protect"),
        ({"protocol": "masking"}, r"Odd\.protocol=masking: must be None outside of this package"),
    ],
)
def test_a_class_that_says_what_cannot_be_is_refused_where_it_is_defined(attributes, message):
    with pytest.raises(ConfigError, match=message):
        type("Odd", (Scheme,), attributes)


def test_no_subclass_from_outside_passes_for_masking():
    with pytest.raises(ConfigError, match="play its own rounds"):
        type("Other", (Masking,), {})


def test_a_client_whose_answer_trips_the_reader_is_left_out_and_nothing_of_it_is_told():
    left_out = {}
    round = replace(
        a_round(),
        ask=lambda kind, contents, group: iter([("a", RecordDict()), ("b", RecordDict())]),
        note_left_out=left_out.setdefault,
    )

    def read(name, reply):
        if name == "a":
            raise ValueError("a record of the client")
        return name

    parts = {"message": "m", "reveals": "r", "payload_bytes": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedproxy_secure.protect.broadcast.broadcast_of", lambda job, state: None)
        patch.setattr("fedproxy_secure.wire.encode_broadcast", lambda broadcast: RecordDict())
        assert gather(round, read, **parts) == {"b": "b"}
    assert left_out == {"a": "its answer cannot be read: ValueError"}


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        (
            Scheme(replace(WHOLE, updates={})),
            r"updates\['a'\] of its round: must be what the server learns",
        ),
        (Scheme(replace(WHOLE, updates={"a": UPDATE[:2]})), r"updates\['a'\] of its round"),
        (Scheme(replace(WHOLE, clients=["a", "b"])), r"updates\['b'\] of its round"),
        (
            Sums(replace(WHOLE, updates={})),
            r"sums\['update'\] of its round: must be what the server learns",
        ),
        (Sums(replace(WHOLE, sums={"update": UPDATE})), "updates of its round: must be empty if"),
        (
            Sums(replace(WHOLE, updates={}, sums={"update": UPDATE * np.nan})),
            r"sums\['update'\] of its round",
        ),
        (Scheme(replace(WHOLE, updates={"a": [3, 0, 4]})), r"updates\['a'\] of its round"),
        (Scheme(replace(WHOLE, clients=[])), "clients of its round: must be some of the cohort, each once"),
        (Scheme(replace(WHOLE, clients=["a", "a"])), "clients of its round: must be some of the cohort"),
        (Scheme(replace(WHOLE, clients=["z"], updates={"z": UPDATE})), "clients of its round"),
        (Scheme(WHOLE, rows=0), 'ledger of its round: must note what each of 1 clients sends to "server"'),
        (Scheme(replace(WHOLE, state=BEFORE)), "state of its round: must be the next round's"),
    ],
)
def test_a_result_that_hides_something_from_attacks_or_costs_is_refused(scheme, message):
    with pytest.raises(ConfigError, match=rf"protect\.scheme=scheme: {message}"):
        run_round(scheme, a_round())


def test_a_scheme_that_says_nothing_of_itself_is_stamped_and_one_of_sums_is_not():
    assert Scheme(WHOLE).unsafe(ProtectConfig()) == ("scheme: the server learns single clients' updates.",)
    assert Sums(WHOLE).unsafe(ProtectConfig()) == ()


def test_no_scheme_but_masking_claims_the_privacy_of_clients():
    private = PrivacyConfig(unit="client", target_epsilon=8, target_delta=1e-5)
    fusion = FusionConfig(rule="fedavg")
    for scheme in (Scheme(WHOLE), Sums(WHOLE), PROTECTIONS.get("ckks", setting="protect.scheme")):
        with pytest.raises(ConfigError, match=r"with privacy\.unit=client must be masking"):
            scheme.check_settings(ProtectConfig(), private, fusion, cohort=4)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"threshold": 99}, r"protect\.threshold=99: must be <= 4, the clients of a round"),
        ({"colluders": 50}, r"protect\.colluders=50: must be <= 2, so that two honest clients add up"),
        ({"min_cohort": 5}, r"protect\.min_cohort=5: must be <= 4"),
    ],
)
@pytest.mark.parametrize("scheme", ["masking", "ckks"])
def test_a_threshold_that_no_round_can_have_is_refused_when_settings_are_read(scheme, setting, message):
    protect = ProtectConfig(scheme=scheme, **setting)
    with pytest.raises(ConfigError, match=message):
        PROTECTIONS.get(scheme, setting="protect.scheme").check_settings(
            protect, PrivacyConfig(), FusionConfig(rule="fedavg"), cohort=4
        )


@pytest.mark.parametrize("total", [np.zeros(2, np.float32), np.array([1, np.nan, 1], np.float32)])
def test_a_sum_of_another_length_or_not_finite_is_not_fused(total):
    with pytest.raises(DataError, match="sum of updates: must be 3 finite numbers"):
        fuse_sum(a_round(), total, ["a"])


@pytest.mark.parametrize(("clients", "least"), [(3, 3), (4, 3), (6, 5)])
def test_a_report_says_over_how_many_clients_a_sum_is(clients, least):
    names = [{"name": f"c{n}", "task": "clinic"} for n in range(clients)]
    note = protection_note(parse_config({"data": {"clients": names}, "protect": {"scheme": "masking"}}))
    assert f"Each sum is over at least {least} of a round's {clients} clients." in note


@pytest.mark.parametrize(
    ("bits", "rule", "granularity", "warned"),
    [
        (16, "h_ties", "block", True),
        (16, "ties", "block", True),
        (16, "h_ties", "coordinate", False),
        (16, "fedavg", "block", False),
        (24, "h_ties", "block", False),
    ],
)
def test_elections_by_blocks_in_a_coarse_ring_are_warned_of_once(
    monkeypatch, caplog, bits, rule, granularity, warned
):
    monkeypatch.setattr(server, "run_masking", lambda work: None)
    fusion, protect = FusionConfig(rule=rule), ProtectConfig(bits=bits, granularity=granularity)
    job = SimpleNamespace(protect=protect, granularity="plain" if fusion.linear else granularity)
    for number in (0, 1):
        round = SimpleNamespace(job=job, state=SimpleNamespace(round=number))
        MASKING.run_steps(SimpleNamespace(carrier=SimpleNamespace(round=round)))
    assert caplog.text.count("the election is wrong in tensors") == warned
