"""An owner and four sites on hosts of their own: the exact result, nothing readable on the wire, refusals.

The first test runs the whole federation and disturbs it before the rounds and in two of their steps; the
second, in every step. The next ones look at what the first left; others are of commands that must refuse.
"""

import base64
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedproxy_secure.audit.tracing import find_leak
from fedproxy_secure.config.loading import load_config
from fedproxy_secure.data.tasks import load_task
from fedproxy_secure.deploy.federation import open_federation
from fedproxy_secure.deploy.running import events_file
from fedproxy_secure.deploy.signed import read_document
from fedproxy_secure.deploy.site import REQUEST
from fedproxy_secure.federate.server import ServerState
from fedproxy_secure.monitor.event_log import EventLog
from tests.network.deployed import CONFIG, PORT, SITES, Deployed, deploy, wait_for
from tests.network.disturbed import GOOD, Ending, disturbed_run
from tests.network.exactness import Exactness, taken
from tests.network.schedule import BEFORE_ROUNDS, STEPS, Kind, Plan
from tests.support.network.capture import Stream, search, streams
from tests.support.network.commands import missing
from tests.support.network.talking import listening
from tests.support.network.whole import Network

MISSING = missing()
# one in each step: those after which a run goes on soonest; all others come by night (`disturbances`)
DISTURBANCES: tuple[Kind, ...] = (
    "a site's cable takes 100 ms",
    "a site's cable is cut for 5 s",
    "a SuperNode is killed",
    "a site's cable is cut for 5 s",
    "all cables lose 5 % of the frames",
    "the owner's cable is cut for 5 s",
    "a site's worker is killed",
)
PLANS = tuple(
    Plan(kind=kind, step=step, target=number % len(SITES), ahead=False)
    for number, (kind, step) in enumerate(zip(DISTURBANCES, STEPS, strict=True))
)
# those of the run that every change must pass: a run with all of them takes twice as long
FEW = tuple(plan for plan in PLANS if plan.step in (*BEFORE_ROUNDS, "share", "unmask"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(MISSING) and "CI" not in os.environ, reason=str(MISSING)),
]


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network(sites=len(SITES)) as made:
        yield made


def rounds_of(plans: Sequence[Plan]) -> int:
    """One for each step that is disturbed in a round, and one more."""
    return 1 + sum(plan.step not in BEFORE_ROUNDS for plan in plans)


def prepare(network: Network, folder: Path, plans: Sequence[Plan]) -> Deployed:
    federate = {**CONFIG["federate"], "rounds": rounds_of(plans)}
    return Deployed.prepare(network, folder, {**CONFIG, "federate": federate})


@pytest.fixture(scope="module")
def prepared(network, tmp_path_factory) -> Deployed:
    return prepare(network, tmp_path_factory.mktemp("deployed") / "prepared", FEW)


@pytest.fixture
def own(network, prepared, tmp_path) -> Iterator[Deployed]:
    """A copy of the prepared folders; what runs on the hosts is ended afterwards."""
    yield prepared.copied(tmp_path / "own")
    for host in network.hosts:
        host.end()
        host.wrong_clock(0)


def run_to_the_end(network: Network, deployed: Deployed, *, code: int = 0) -> str:
    """Start all sites and the owner, wait for her, tell the sites to stop; return what the owner said."""
    nodes = [
        deployed.start_site(host, name, log=deployed.folder / f"{name}.out")
        for host, name in zip(network.sites, SITES, strict=True)
    ]
    owner = deployed.start_owner(network.owner, log=deployed.folder / "owner.out", wait_s=20)
    ended = owner.wait(700)
    for node in nodes:
        node.terminate()
    for node in nodes:
        node.wait(60)
    said = (deployed.folder / "owner.out").read_text()
    assert ended == code, said
    assert [host.processes() for host in network.hosts] == [{}] * len(network.hosts), "nothing runs on"
    return said


@dataclass(frozen=True, kw_only=True)
class Ran:
    """A federation that has run to its end: its folders, what passed the switch, what disturbed it."""

    deployed: Deployed
    pcap: Path
    endings: list[Ending]


@pytest.fixture(scope="module")
def ran(network, prepared, tmp_path_factory) -> Ran:
    folder = tmp_path_factory.mktemp("ran")
    with network.capture(folder / "wire.pcap") as pcap:
        endings = disturbed_run(network, prepared, Exactness(), FEW, folder / "ran")
    return Ran(deployed=Deployed(folder=folder / "ran"), pcap=pcap, endings=endings)


def ended_well(endings: Sequence[Ending], plans: Sequence[Plan], folder: Path) -> None:
    """A disturbance is left out if its step does not come, because an earlier one took its site out."""
    assert {ending.outcome for ending in endings} <= set(GOOD), endings
    assert len(endings) >= len(plans) - 2, endings
    assert len(taken(folder)) == rounds_of(plans)


@pytest.mark.change
def test_its_result_is_bit_for_bit_that_of_one_process_though_it_was_disturbed(ran):
    ended_well(ran.endings, FEW, ran.deployed.state.parent)


def test_its_result_is_bit_for_bit_that_of_one_process_though_every_step_was_disturbed(network, tmp_path):
    deployed = prepare(network, tmp_path / "prepared", PLANS)
    endings = disturbed_run(network, deployed, Exactness(), PLANS, tmp_path / "ran")
    ended_well(endings, PLANS, Deployed(folder=tmp_path / "ran").state.parent)


@pytest.mark.change
def test_the_log_of_every_party_has_when_it_started_and_stopped(ran):
    """A call of the owner's that a disturbance ends without a result may write that it stops, too."""
    calls = 1 + sum(len(ending.said) for ending in ran.endings)
    for place, most in ((ran.deployed.owner, calls), *((ran.deployed.site(s), 1) for s in SITES)):
        kinds = [event.kind for event in EventLog(file=events_file(place)).read().events]
        assert (kinds[0], kinds[-1]) == ("start", "stop")
        assert 1 <= kinds.count("stop") <= most


@pytest.mark.change
def test_nothing_passes_the_wire_but_tls(ran):
    """Every byte of every connection is part of a TLS record."""
    passed = streams(ran.pcap)
    addresses = {f"10.77.0.{n}" for n in range(1, len(SITES) + 2)}
    assert {stream.source.partition(":")[0] for stream in passed} == addresses
    owner = f"10.77.0.1:{PORT}"
    assert all(owner in (stream.source, stream.target) for stream in passed), (
        "sites talk to the owner alone"
    )
    for stream in passed:
        assert_is_tls(stream)


def assert_is_tls(stream: Stream) -> None:
    (piece,) = stream.pieces
    at = 0
    while at + 5 <= len(piece):
        kind, version = piece[at], piece[at + 1 : at + 3]
        length = int.from_bytes(piece[at + 3 : at + 5], "big")
        assert kind in (20, 21, 22, 23), (stream.source, at, kind)
        assert version in (b"\x03\x01", b"\x03\x03"), (stream.source, at, version)
        assert length <= 2**14 + 256
        at += 5 + length


@pytest.mark.change
def test_no_record_no_key_and_no_weight_can_be_read_on_the_wire(ran):
    """The capture holds at least a proxy for each site, and none of what is searched for."""
    deployed, pcap = ran.deployed, ran.pcap
    proxy = deployed.owner / "run" / "seed-0" / "proxy" / "model.safetensors"
    weights, adapter = proxy.read_bytes(), ServerState.load(deployed.state).adapter.tobytes()
    assert pcap.stat().st_size > len(SITES) * len(weights)
    needles = {
        "weights of the proxy": weights[len(weights) // 2 :][:64],
        "adapter": adapter[len(adapter) // 2 :][:64],
    }
    for client in load_config(deployed.folder / "job.yaml").data.clients:
        for number, record in enumerate(load_task(client, root=None).train[: client.train_records]):
            needles[f"record {number} of {client.name}"] = record.prompt.encode()
    keys = [file for file in deployed.folder.rglob("*.key") if file.is_file()]
    assert len(keys) >= 2 * len(SITES) + 1
    for key in keys:
        needles |= {f"{key.name}, {number}": form for number, form in enumerate(forms_of(key))}
    assert search(pcap, needles) == []


def forms_of(key: Path) -> list[bytes]:
    """The digits in a key file, line by line, and the bytes that they stand for."""
    lines = [word for word in key.read_bytes().split() if len(word) >= 32]
    decoded = [
        bytes.fromhex(line.decode())
        if re.fullmatch(rb"[0-9a-f]{64}", line)
        else base64.b64decode(line + b"==")
        for line in lines
    ]
    return [*lines, *decoded]


@pytest.mark.nightly
def test_with_tracing_every_site_holds_a_copy_of_its_own_and_the_result_is_the_same(network, tmp_path):
    traced = Deployed.prepare(network, tmp_path / "traced", {**CONFIG, "compress": {"trace": True}})
    run_to_the_end(network, traced)
    assert Exactness().holds(traced.state.parent)
    for name in SITES:
        (model,) = traced.site(name).glob("cache/*")
        assert find_leak(traced.owner / "run", model, seed=0).accused == (name,)


def test_a_revoked_site_is_left_out_and_the_rest_goes_on(network, own):
    deploy(network.owner, "revoke", own.owner, SITES[-1])
    run_to_the_end(network, own)
    federation = own.state.parent
    assert taken(federation) == (tuple(sorted(SITES[:-1])),) * rounds_of(FEW)
    assert Exactness().holds(federation)


def test_a_site_refuses_a_kit_of_an_earlier_epoch(network, own, tmp_path):
    site, old = own.site(SITES[0]), tmp_path / "old.kit.json"
    shutil.copy(own.owner / "kits" / f"{SITES[0]}.kit.json", old)
    deploy(network.owner, "revoke", own.owner, SITES[-1])
    deploy(network.owner, "kit", own.owner)
    newer = own.owner / "kits" / f"{SITES[0]}.kit.json"
    said = deploy(network.sites[0], "accept", site, newer, code=2)
    assert f"({SITES[-1]} is gone); ask other sites" in one_line(said)
    deploy(network.sites[0], "accept", site, newer, "--members", one_line(said).split()[-1])
    said = deploy(network.sites[0], "accept", site, old, code=2)
    assert "epoch=1: must be >= 2" in one_line(said)


def test_a_site_refuses_a_kit_of_another_owner(network, own, tmp_path):
    other = tmp_path / "other"
    deploy(network.owner, "init", own.folder / "job.yaml", "--address", f"owner:{PORT}", "--out", other)
    request = own.site(SITES[0]) / f"{SITES[0]}.request.json"
    said = deploy(network.owner, "approve", other, request, "--fingerprint", "0000-0000", code=2)
    assert "matches none of the fingerprints given" in one_line(said)
    foreign = prepare_one(network, other, own)
    said = deploy(network.sites[0], "accept", own.site(SITES[0]), foreign, code=2)
    assert re.search(r"is signed by \w{16}\.\.\.: must be signed by \w{16}\.\.\.", one_line(said))


def prepare_one(network: Network, owner: Path, deployed: Deployed) -> Path:
    """Approve the sites of one federation in another; return the first one's kit from there."""
    requests = [deployed.site(name) / f"{name}.request.json" for name in SITES]
    prints = [fingerprint for file in requests for fingerprint in ("--fingerprint", fingerprint_of(file))]
    deploy(network.owner, "approve", owner, *requests, *prints)
    deploy(network.owner, "kit", owner)
    return owner / "kits" / f"{SITES[0]}.kit.json"


def fingerprint_of(request: Path) -> str:
    return read_document(request, REQUEST).fingerprint


def one_line(said: str) -> str:
    """The error, which is one line and not a traceback."""
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    return line


def waits(network: Network, deployed: Deployed, *, for_what: str) -> str:
    """What a site says that starts, and tells what it waits for; no program of Flower runs then."""
    log = deployed.folder / "waits.out"
    started = deployed.start_site(network.sites[0], SITES[0], log=log)
    wait_for(lambda: for_what in log.read_text(), seconds=60, what=for_what)
    assert not (deployed.site(SITES[0]) / "logs" / "supernode.log").exists()
    started.terminate()
    started.wait(60)
    return log.read_text()


@pytest.mark.change
@pytest.mark.parametrize(
    ("days", "reason"), [(20 * 365, "certificate has expired"), (-365, "certificate is not yet valid")]
)
def test_a_site_with_a_wrong_clock_is_told_before_anything_is_sent(network, own, days, reason):
    """So far off that the owner's certificate is not valid."""
    tls = open_federation(own.owner).tls
    with listening(network.owner, "sink", PORT, tls.certificate, tls.key):
        network.sites[0].wrong_clock(days * 86_400)
        said = waits(network, own, for_what="certificate: ")
    assert reason in said


@pytest.mark.change
def test_a_site_does_not_talk_to_an_owner_with_a_foreign_certificate(network, own, tmp_path):
    other = tmp_path / "other"
    deploy(network.owner, "init", own.folder / "job.yaml", "--address", f"owner:{PORT}", "--out", other)
    tls = open_federation(other).tls
    with listening(network.owner, "sink", PORT, tls.certificate, tls.key):
        said = waits(network, own, for_what="certificate: ")
    assert "its certificate is not the kit's" in said


@pytest.mark.change
def test_an_owner_whose_port_is_taken_is_told(network, own):
    tls = open_federation(own.owner).tls
    with listening(network.owner, "sink", PORT, tls.certificate, tls.key):
        said = deploy(network.owner, "run", own.owner, code=2)
    assert str(PORT) in one_line(said)
