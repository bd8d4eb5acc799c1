"""Certificates of a deployment, tried by real TLS connections."""

import datetime
import http.server
import os
import pathlib
import re
import shutil
import socket
import socketserver
import ssl
import threading
from contextlib import contextmanager, suppress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from fedproxy_secure.deploy import authority
from fedproxy_secure.deploy.authority import (
    TlsFiles,
    bring,
    check_dates,
    check_server,
    finish_renewal,
    make_authority,
    make_server,
)
from fedproxy_secure.deploy.kit_content import Kit
from fedproxy_secure.deploy.node import wait_for_owner
from fedproxy_secure.deploy.preflight import network_checks
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.flower.launch.processes import free_port
from fedproxy_secure.monitor.event_log import EventLog
from fedproxy_secure.secagg.terms import Roster


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("authority")
    make_authority(folder, "test")
    make_server(folder, ["owner.example"])
    return folder


class Healthy(http.server.BaseHTTPRequestHandler):
    date = None

    def do_GET(self):
        self.send_response_only(200)
        self.send_header("Date", self.date or self.date_time_string())
        self.end_headers()

    def log_message(self, *_):
        pass


@contextmanager
def served(files, handler=Healthy, host="127.0.0.1", port=0):
    with http.server.HTTPServer((host, port), handler) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.certificate, files.key)
        server.socket = context.wrap_socket(
            server.socket,
            server_side=True,
            do_handshake_on_connect=False,  # one that fails ends a request alone
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def kit(port, root, host="127.0.0.1"):
    return Kit(
        federation="f",
        site="s",
        epoch=1,
        address=f"{host}:{port}",
        authority_pem=root.read_text(),
        roster=Roster(members={}),
        app_sha256="",
        sources_sha256="",
        version="",
        proposal={},
    )


def test_a_site_trusts_the_owners_server(folder):
    files = TlsFiles.below(folder)
    with served(files) as port:
        checks = list(network_checks(kit(port, files.authority)))
    assert [(check.name, check.ok) for check in checks] == [("owner", True), ("clock", True)]


def test_a_foreign_certificate_is_said_to_be_one(folder, tmp_path):
    make_authority(tmp_path, "other")
    make_server(tmp_path, ["127.0.0.1"])
    with served(TlsFiles.below(tmp_path)) as port:
        (check,) = network_checks(kit(port, TlsFiles.below(folder).authority))
    assert (check.name, check.ok, check.waits) == ("certificate", False, False)


def test_a_certificate_of_another_host_is_refused(folder):
    files = TlsFiles.below(folder)
    with served(files, host="127.0.0.2") as port:
        (check,) = network_checks(kit(port, files.authority, host="127.0.0.2"))
    assert (check.name, check.ok) == ("certificate", False)


def test_an_owner_who_is_away_is_waited_for(folder):
    (check,) = network_checks(kit(1, TlsFiles.below(folder).authority))
    assert (check.ok, check.waits) == (False, True)


@pytest.mark.parametrize(("status", "waits"), [(404, False), (502, True)])
def test_a_server_that_is_no_superlink_is_said_to_be_none(folder, status, waits):
    class Other(Healthy):
        def do_GET(self):
            self.send_error(status)

    files = TlsFiles.below(folder)
    with served(files, Other) as port:
        (check,) = network_checks(kit(port, files.authority))
    assert (check.name, check.ok, check.waits) == ("owner", False, waits)
    assert f"answers with HTTP {status}; a SuperLink answers 200" in check.line


def test_what_a_server_sends_in_the_place_of_an_answer_cannot_write_over_the_checks(folder):
    class Hostile(Healthy):
        def do_GET(self):
            self.wfile.write(b"\x1b[2J\x1b[Hok   owner: all is well\rok \x9b" + b"x" * 5000 + b"\n")

    files = TlsFiles.below(folder)
    with served(files, Hostile) as port:
        (check,) = network_checks(kit(port, files.authority))
    assert (check.name, check.ok) == ("owner", False)
    assert "all is well" not in check.line
    assert check.line.isprintable()
    assert len(check.line) < 400


def test_a_clock_that_is_off_is_found(folder):
    class Late(Healthy):
        date = "Mon, 01 Jan 2024 00:00:00 GMT"

    files = TlsFiles.below(folder)
    with served(files, Late) as port:
        checks = list(network_checks(kit(port, files.authority)))
    assert checks[-1].name == "clock"
    assert not checks[-1].ok
    assert "from the owner's clock; must be <= 60 s; use NTP" in checks[-1].line


@pytest.mark.parametrize(
    "date",
    [
        "Mon, 01 Jan 2024 00:00:00",
        "Mon, 01 Jan 2024 00:00:00 -0000",
        "Mon, 01 Jan 99999999999 00:00:00 GMT",
        "x",
    ],
)
def test_a_date_that_cannot_be_compared_is_one_line(folder, date):
    class Odd(Healthy):
        pass

    Odd.date = date
    files = TlsFiles.below(folder)
    with served(files, Odd) as port:
        checks = list(network_checks(kit(port, files.authority)))
    assert (checks[-1].name, checks[-1].ok) == ("clock", False)
    assert checks[-1].line.startswith("Date='")
    assert "must be a date with its zone" in checks[-1].line


def test_no_more_of_an_answer_is_read_than_a_superlink_sends(folder):
    class Endless(Healthy):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b"x" * 2**16)
            except OSError:  # nobody reads on
                pass

    files = TlsFiles.below(folder)
    with served(files, Endless) as port:
        checks = list(network_checks(kit(port, files.authority)))
    assert checks[0].ok


class Proxy(socketserver.BaseRequestHandler):
    """An HTTP proxy that connects every name to the one port."""

    to_port, asked = 0, []

    def handle(self):
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            request += self.request.recv(4096)
        self.asked.append(request.split(b"\r\n")[0].decode())
        with socket.create_connection(("127.0.0.1", self.to_port)) as owner:
            self.request.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            back = threading.Thread(target=self.carry, args=(owner, self.request), daemon=True)
            back.start()
            self.carry(self.request, owner)
            back.join(5)

    @staticmethod
    def carry(source, target):
        with suppress(OSError):
            while piece := source.recv(4096):
                target.sendall(piece)
            target.shutdown(socket.SHUT_WR)


def test_the_owner_is_asked_by_way_of_the_proxy_that_the_node_will_use(folder, monkeypatch):
    files = TlsFiles.below(folder)
    with served(files) as port, socketserver.ThreadingTCPServer(("127.0.0.1", 0), Proxy) as proxy:
        Proxy.to_port, Proxy.asked = port, []
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.server_address[1]}")
        away = kit(9092, files.authority, host="owner.example")  # a name that the proxy alone knows
        checks = list(network_checks(away))
        near = list(network_checks(kit(port, files.authority)))
        proxy.shutdown()
    assert [(check.name, check.ok) for check in checks] == [("owner", True), ("clock", True)]
    assert Proxy.asked == ["CONNECT owner.example:9092 HTTP/1.1"], "this machine is asked without it"
    assert near[0].ok


def test_where_a_proxys_own_certificate_fails_the_line_names_the_proxy(folder, monkeypatch):
    files = TlsFiles.below(folder)
    with served(files) as port:  # by an authority that no system knows
        monkeypatch.setenv("HTTPS_PROXY", f"https://127.0.0.1:{port}")
        (check,) = network_checks(kit(9092, files.authority, host="owner.example"))
    assert (check.name, check.ok, check.waits) == ("certificate", False, False)
    assert "its certificate, or that of the proxy in HTTPS_PROXY, is not the kit's" in check.line


def test_checks_of_the_way_to_the_owner_leave_the_environment_as_it_is(folder):
    before = dict(os.environ)
    list(network_checks(kit(1, TlsFiles.below(folder).authority)))
    assert dict(os.environ) == before


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "::nonsense", "http://127.0.0.1:1"])
def test_a_proxy_that_cannot_be_used_is_one_line_that_names_the_variable(folder, monkeypatch, proxy):
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    (check,) = network_checks(kit(9092, TlsFiles.below(folder).authority, host="owner.example"))
    assert (check.ok, check.waits) == (False, True)
    assert "its port open, and HTTPS_PROXY is right" in check.line


def test_a_certificate_that_ends_soon_is_told_while_there_is_time(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(authority, "SERVER_DAYS", 12)
    make_server(tmp_path, ["127.0.0.1"])
    files = TlsFiles.below(tmp_path)
    with served(files) as port:
        checks = list(network_checks(kit(port, files.authority)))
    assert all(check.ok for check in checks)
    assert re.search(
        r"its certificate ends on 20\d\d-\d\d-\d\d, in 11 days; tell the owner$", checks[0].line
    )


def test_a_site_that_starts_before_its_clock_is_right_waits_until_it_is(folder, tmp_path):
    class Mended(Healthy):
        asked = 0

        def do_GET(self):
            Mended.asked += 1
            self.date = "Mon, 01 Jan 2024 00:00:00 GMT" if Mended.asked < 4 else None
            super().do_GET()

    files, told, events = TlsFiles.below(folder), [], EventLog(file=tmp_path / "events.jsonl")
    with served(files, Mended) as port:
        wait_for_owner(kit(port, files.authority), told.append, events=events, pause_s=0.01)
    assert Mended.asked == 4
    assert [(e.kind, e.outcome, e.reason) for e in events.read().events] == [
        ("setup", "aborted", "clock"),
        ("setup", "done", None),
    ], "so that the site's page says it"
    assert [line.partition(": ")[0] for line in told if line.startswith("clock")] == ["clock", "clock"]
    assert "from the owner's clock; must be <= 60 s; use NTP" in told[1]
    assert re.search("clock: differs by [0-5] s from the owner's clock$", told[-1])


def test_a_site_waits_for_a_certificate_that_is_not_the_kits_to_be_put_right(folder, tmp_path):
    make_authority(tmp_path, "other")
    make_server(tmp_path, ["127.0.0.1"])
    ours, port, told = TlsFiles.below(folder), free_port(), []
    ended = threading.Event()

    def waits():
        wait_for_owner(kit(port, ours.authority), told.append, pause_s=0.01, again_s=0.1)
        ended.set()

    with served(TlsFiles.below(tmp_path), port=port):
        threading.Thread(target=waits, daemon=True).start()
        assert not ended.wait(0.5)
    with served(ours, port=port):
        assert ended.wait(30)
    assert "its certificate is not the kit's" in told[0]
    assert told[1] == told[0], "what lasts is told again"


@pytest.mark.parametrize("step", range(6))
def test_a_kill_at_any_step_of_a_renewal_leaves_a_pair_that_fits(folder, tmp_path, monkeypatch, step):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    before, calls = (tmp_path / "server.pem").read_bytes(), [step]
    replace, unlink = pathlib.Path.replace, pathlib.Path.unlink

    def killing(real):
        def call(*args, **options):
            calls[0] -= 1
            if calls[0] < 0:
                raise KeyboardInterrupt
            return real(*args, **options)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(pathlib.Path, "replace", killing(replace))
        patched.setattr(pathlib.Path, "unlink", killing(unlink))
        with suppress(KeyboardInterrupt):
            make_server(tmp_path, ["owner.example"])
    finish_renewal(tmp_path)
    check_server(TlsFiles.below(tmp_path), ["owner.example"])
    assert ((tmp_path / "server.pem").read_bytes() != before) == (step > 1)
    assert (tmp_path / "server.key").stat().st_mode & 0o777 == 0o600
    make_server(tmp_path, ["owner.example"])
    left = {name for name in os.listdir(tmp_path) if b"PRIVATE" in (tmp_path / name).read_bytes()}
    assert left == {"authority.key", "server.key"}


def test_the_authority_certifies_servers_alone(folder):
    authority = x509.load_pem_x509_certificate((folder / "authority.pem").read_bytes())
    server = x509.load_pem_x509_certificate((folder / "server.pem").read_bytes())
    limits = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (limits.ca, limits.path_length) == (True, 0)
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    life = server.not_valid_after_utc - server.not_valid_before_utc
    assert life < datetime.timedelta(days=399)


def test_an_owners_own_certificate_is_taken_if_it_fits(folder, tmp_path):
    bring(tmp_path, TlsFiles.below(folder), ["owner.example"])
    check_server(TlsFiles.below(tmp_path), ["owner.example"])
    with pytest.raises(ConfigError, match=r"is not for other\.example"):
        bring(tmp_path / "b", TlsFiles.below(folder), ["other.example"])
    assert not (tmp_path / "b").exists()


def test_files_that_do_not_belong_together_are_refused(folder, tmp_path):
    make_authority(tmp_path, "other")
    make_server(tmp_path, ["owner.example"])
    ours, theirs = TlsFiles.below(folder), TlsFiles.below(tmp_path)
    wrong_key = TlsFiles(certificate=ours.certificate, key=theirs.key, authority=ours.authority)
    with pytest.raises(ConfigError, match="is not the key of"):
        check_server(wrong_key, ["owner.example"])
    wrong_authority = TlsFiles(certificate=ours.certificate, key=ours.key, authority=theirs.authority)
    with pytest.raises(ConfigError, match="must be signed by"):
        check_server(wrong_authority, ["owner.example"])


def signed_by_an_intermediate(folder):
    """PEM of a root, of an authority below it, of a server that this one signed; and the key of that."""
    (folder / "below").mkdir()
    make_authority(folder, "root")
    make_authority(folder / "below", "intermediate")
    root, own = (authority.read_certificate(f / "authority.pem") for f in (folder, folder / "below"))
    root_key = authority._read_key(folder / "authority.key")
    for issued, file, length in ((root, folder, 1), (own, folder / "below", 0)):
        by = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        certificate = (
            authority._builder(issued.subject, root.subject, issued.public_key(), days=9)
            .add_extension(x509.BasicConstraints(ca=True, path_length=length), critical=True)
            .add_extension(authority._usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(issued.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(by), False)
            .sign(root_key, hashes.SHA256())
        )
        (file / "authority.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    make_server(folder / "below", ["owner.example"])
    return (
        (folder / "authority.pem").read_text(),
        (folder / "below" / "authority.pem").read_text(),
        (folder / "below" / "server.pem").read_text(),
        folder / "below" / "server.key",
    )


def test_a_certificate_of_an_intermediate_authority_is_taken_as_sites_take_it(tmp_path):
    root, intermediate, server, key = signed_by_an_intermediate(tmp_path)
    cases = (
        ("whole", server + intermediate, root, True),
        ("without the intermediate", server, root, False),
        ("without the root", server, intermediate, False),
        ("all at the site", server, root + intermediate, True),
    )
    for what, shown, trusted, taken in cases:
        files = TlsFiles(certificate=tmp_path / "shown.pem", key=key, authority=tmp_path / "trusted.pem")
        files.certificate.write_text(shown)
        files.authority.write_text(trusted)
        with served(files) as port:
            assert next(network_checks(kit(port, files.authority))).ok is taken, what
        if taken:
            check_server(files, ["owner.example"])
        else:
            with pytest.raises(
                ConfigError, match=r"must be signed by .*; append the certificates of intermediate"
            ):
                check_server(files, ["owner.example"])


def test_an_expired_certificate_is_named_with_its_dates(folder):
    certificate = x509.load_pem_x509_certificate((folder / "server.pem").read_bytes())

    class Expired:
        not_valid_before_utc = certificate.not_valid_before_utc - datetime.timedelta(days=900)
        not_valid_after_utc = certificate.not_valid_before_utc - datetime.timedelta(days=500)

    with pytest.raises(ConfigError, match="renew it, or set the clock"):
        check_dates(Expired, "server.pem")
    assert certificate.public_bytes(Encoding.PEM) == (folder / "server.pem").read_bytes()
