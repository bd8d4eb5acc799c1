"""The network that other tests stand on: every disturbance disturbs, and all of it is gone at the end."""

import datetime
import ipaddress
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.network.deployed import wait_for
from tests.support.network.capture import longest_frame, search, streams
from tests.support.network.commands import is_stale, missing, system
from tests.support.network.disks import small_disk
from tests.support.network.hosts import Host
from tests.support.network.links import Link, Passed
from tests.support.network.talking import listening, talk
from tests.support.network.whole import Network
from tests.support.processes import ends_within

MISSING = missing()
pytestmark = pytest.mark.skipif(bool(MISSING) and "CI" not in os.environ, reason=str(MISSING))

PORT = "7000"


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network(sites=2) as made:
        yield made


@pytest.fixture
def site(network) -> Iterator[Host]:
    """The first site, whose cable is made good again afterwards."""
    yield network.sites[0]
    network.sites[0].link.clear()
    network.sites[0].wrong_clock(0)
    for host in network.hosts:
        host.end()


def seconds_to_send(site: Host, count: int) -> float:
    arrived, seconds = site.run(talk("send", "owner", PORT, str(count))).stdout.split()
    assert int(arrived) == count
    return float(seconds)


@pytest.fixture
def sink(network, site):
    with listening(network.owner, "sink", PORT) as process:
        yield process


def certificate(folder: Path, *, days: int = 1) -> tuple[Path, Path]:
    """A certificate for the host `owner` that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "owner")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName(
        [x509.DNSName("owner"), x509.IPAddress(ipaddress.ip_address("10.77.0.1"))]
    )
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(text)
    return folder / "certificate.pem", folder / "key.pem"


def test_hosts_know_each_other_by_name_and_there_is_no_way_out(network):
    found = network.sites[1].run(["getent", "hosts", "owner", "site1"]).stdout.split()
    assert found == ["10.77.0.1", "owner", "10.77.0.2", "site1"]
    assert network.sites[1].run(["ip", "route", "show", "default"]).stdout == ""
    assert network.owner.run(["ip", "-6", "address", "show", "dev", "eth0"]).stdout == ""


def passes(link: Link, *, at_least: int) -> Passed:
    """Wait until the host has sent so many bytes more."""
    start, deadline = link.passed().from_host, time.monotonic() + 60
    while (now := link.passed()).from_host < start + at_least:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return now


def passes_nothing(link: Link) -> bool:
    before = link.passed()
    time.sleep(0.8)
    return link.passed() == before


@pytest.mark.parametrize("held_back_ms", [0, 5])
def test_a_cut_cable_passes_nothing_and_the_connection_goes_on_when_it_is_restored(
    network, site, sink, held_back_ms
):
    site.link.rate(8)
    site.link.delay(held_back_ms)
    with site.popen(talk("send", "owner", PORT, "2000000"), stdout=subprocess.PIPE, text=True) as sender:
        passes(site.link, at_least=100_000)
        site.link.cut()
        assert passes_nothing(site.link)
        assert network.sites[1].run(talk("connect", "owner", PORT)).returncode == 0, "others go on"
        assert sender.poll() is None
        site.link.restore()
        assert int(sender.communicate(timeout=60)[0].split()[0]) == 2_000_000


def is_slow(bytes_sent: int, seconds: float, *, mbit: float) -> bool:
    """Whether so many bytes took as long as the rate says; a busy machine takes longer, by any factor."""
    return bytes_sent * 8 / 1e6 / seconds < 1.1 * mbit


@pytest.mark.parametrize("held_back_ms", [0, 5])
def test_a_slow_cable_is_at_least_as_slow_as_it_says(site, sink, held_back_ms):
    site.link.rate(8)
    site.link.delay(held_back_ms)
    assert is_slow(1_500_000, seconds_to_send(site, 1_500_000), mbit=8)


def test_a_slow_cable_is_slow_in_the_other_direction_too(network, site):
    site.link.rate(8)
    with listening(site, "sink", PORT):
        _, seconds = network.owner.run(talk("send", "site1", PORT, "1500000")).stdout.split()
    assert is_slow(1_500_000, float(seconds), mbit=8)


@pytest.mark.parametrize("held_back_ms", [0, 5])
@pytest.mark.parametrize("towards_the_owner", [True, False])
def test_a_lossy_cable_loses_the_share_that_it_says(network, site, towards_the_owner, held_back_ms):
    """Of 4000 frames at 0.2: 800 lost, and 152 either way is six standard deviations."""
    site.link.delay(held_back_ms)
    to, sender = (network.owner, site) if towards_the_owner else (site, network.owner)
    sender.run(talk("datagrams", to.name, PORT, "1"))  # they know each other's hardware addresses
    site.link.loss(0.2)
    with listening(to, "count", PORT) as process:
        sender.run(talk("datagrams", to.name, PORT, "4000"))
        came = int(process.communicate(timeout=30)[0])
    assert 3048 <= came <= 3352
    site.link.loss(0)
    with listening(to, "count", PORT) as process:
        sender.run(talk("datagrams", to.name, PORT, "1000"))
        assert int(process.communicate(timeout=30)[0]) == 1000


def test_tcp_arrives_whole_over_a_slow_lossy_delayed_cable(site, sink):
    site.link.rate(20)
    site.link.loss(0.01)
    site.link.delay(10)
    seconds_to_send(site, 2_000_000)


def test_a_delayed_cable_delays_in_both_directions(site, sink):
    def fastest() -> float:
        """The fastest of five connections: a round trip; the first asks for hardware addresses too."""
        return min(float(site.run(talk("connect", "owner", PORT)).stdout) for _ in range(5))

    near = fastest()
    site.link.delay(100)
    far = fastest()
    site.link.delay(0)
    assert near < 0.2 <= far
    assert fastest() < 0.2


def test_a_capture_shows_what_is_sent_in_plaintext(network, site, sink, tmp_path):
    needle = "a secret that is longer than nothing " + 4000 * "." + " and ends here"
    with network.capture(tmp_path / "wire.pcap") as pcap:
        site.run(talk("text", "owner", PORT, needle))
    found = search(pcap, {"whole": needle.encode(), "part": b"longer than", "absent": b"not sent"})
    assert [(f.needle, f.target) for f in found] == [
        ("whole", "10.77.0.1:7000"),
        ("part", "10.77.0.1:7000"),
    ]
    assert 1000 < longest_frame(pcap) <= 1514, "frames as on a real cable"


def test_a_capture_shows_what_is_sent_in_plaintext_over_a_lossy_cable(network, site, sink, tmp_path):
    words = " ".join(str(number) for number in range(20_000))
    site.link.loss(0.1)
    with network.capture(tmp_path / "wire.pcap") as pcap:
        site.run(talk("text", "owner", PORT, words))
    assert [f.needle for f in search(pcap, {"all": words.encode()})] == ["all"]


def test_a_capture_shows_nothing_of_what_is_sent_under_tls(network, site, tmp_path):
    signed, key = certificate(tmp_path)
    needle = b"a secret that is longer than nothing"
    with (
        network.capture(tmp_path / "wire.pcap") as pcap,
        listening(network.owner, "sink", PORT, str(signed), str(key)) as process,
    ):
        sent = site.run(talk("text", "owner", PORT, needle.decode(), str(signed)))
        assert sent.stderr == ""
        assert int(process.stdout.readline()) == len(needle), "it did arrive"
    assert len(streams(pcap)) == 2
    assert search(pcap, {"secret": needle, "key": key.read_bytes()[30:60]}) == []


def test_a_wrong_clock_is_wrong_for_programs_and_for_tls(network, site, tmp_path):
    signed, key = certificate(tmp_path, days=1)
    site.wrong_clock(2 * 86_400)
    wall, waited = map(float, site.run(talk("clock")).stdout.split())
    assert abs(wall - time.time() - 2 * 86_400) < 60
    assert waited > 0.19, "measured time is as it was"
    with listening(network.owner, "sink", PORT, str(signed), str(key)):
        late = site.run(talk("text", "owner", PORT, "hello", str(signed)))
        site.wrong_clock(-86_400)
        early = site.run(talk("text", "owner", PORT, "hello", str(signed)))
        site.wrong_clock(0)
        right = site.run(talk("text", "owner", PORT, "hello", str(signed)))
    assert "certificate has expired" in late.stderr
    assert "certificate is not yet valid" in early.stderr
    assert right.stderr == ""


def test_a_full_disk_is_full_until_it_is_freed(tmp_path, site):
    with small_disk(tmp_path / "disk", megabytes=2) as disk:
        write = [sys.executable, "-c", f"open('{disk.folder}/file', 'wb').write(bytes(65536))"]
        disk.fill(leave=16_384)
        assert "No space left on device" in site.run(write).stderr
        disk.free()
        assert site.run(write).returncode == 0
        (disk.folder / "file").write_bytes(bytes(1_000_000))
    assert list((tmp_path / "disk").iterdir()) == []


def test_processes_of_one_host_can_be_killed_by_what_they_run(network, site):
    with site.popen(["sleep", "61.5"]) as one, site.popen(["sleep", "62.5"]) as other:
        both = ["sleep 61.5", "sleep 62.5"]  # `ip netns exec ...` until they are in the host
        wait_for(lambda: sorted(site.processes().values()) == both, seconds=30, what="two processes")
        assert network.sites[1].kill("sleep") == []
        assert site.kill("61.5") == [one.pid]
        assert one.wait(5) == -signal.SIGKILL
        assert other.poll() is None
        site.end()


def test_all_is_gone_after_an_exception(tmp_path):
    def names() -> set[str]:
        return {line.split()[0] for line in system("ip", "netns", "list").splitlines()}

    before = names()
    with suppress(ZeroDivisionError), Network(sites=1) as network:
        made = names() - before
        child = network.owner.popen(["sh", "-c", "sleep 60 & sleep 60 & wait"])
        network.sites[0].link.delay(5)
        1 / 0  # noqa: B018
    assert len(made) == 3
    assert names() & made == set()
    assert child.poll() == -signal.SIGKILL
    assert not any(Path("/etc/netns", name).exists() for name in made)


KILLED = """
import os, signal
from pathlib import Path
from tests.support.network.disks import small_disk
from tests.support.network.talking import listening, talk
from tests.support.network.whole import Network
from tests.support.processes import ends_within

with Network(sites=1) as network, small_disk(Path("{folder}"), megabytes=1):
    sleeping = network.owner.popen(["sleep", "60"])
    network.sites[0].link.delay(5)
    Path("{told}").write_text(network.owner.namespace + " " + str(sleeping.pid))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_test_left_is_removed_by_the_next_and_what_is_in_use_stays(network, tmp_path):
    folder, told = tmp_path / "a disk", tmp_path / "told"
    program = [sys.executable, "-c", KILLED.format(folder=folder, told=told)]
    killed = subprocess.run(program, cwd=Path(__file__).parents[2], check=False)
    name, pid = told.read_text().split()
    assert killed.returncode == -signal.SIGKILL
    assert is_stale(name)
    assert name in system("ip", "netns", "list")
    assert os.path.ismount(folder)
    with Network(sites=0):
        assert name not in system("ip", "netns", "list")
        assert not os.path.ismount(folder)
        assert ends_within(int(pid), 10)
        assert not is_stale(network.owner.namespace)
        assert network.owner.run(["true"]).returncode == 0
