"""The status server: read-only, on loopback alone; one line for every mistake; metrics for Prometheus."""

import http.client
import socket
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fedproxy_secure.errors import ConfigError
from fedproxy_secure.monitor import serve
from fedproxy_secure.monitor.events import Event
from fedproxy_secure.monitor.metrics import metrics
from fedproxy_secure.monitor.page import page, tables
from fedproxy_secure.monitor.serve import MOST_AT_ONCE, served
from fedproxy_secure.monitor.state import FederationStatus, Spending

OWNER = FederationStatus(
    role="owner",
    name="ward",
    phase="running",
    healthy=True,
    why="round 3 is under way",
    round=3,
    rounds=10,
    rounds_done=3,
    cohort=5,
    connected=5,
    clients=4,
    absent=("c2",),
    bytes_sent=3_000_000,
    bytes_received=180,
    round_seconds=4.5,
    left_seconds=31.5,
    aborts={"RoundAborted": 2, "ProtocolAborted": 1},
    last=Event(time=datetime(2026, 1, 31, 12, tzinfo=UTC), party="owner", kind="round", round=2, clients=4),
)
SITE = replace(
    OWNER,
    role="site",
    name="clinic",
    connected=None,
    clients=None,
    absent=(),
    messages=40,
    spending=Spending(epsilon=1.25, limit=8.0, delta=1e-5),
)


def ask(url, path="/", *, method="GET", host=None):
    """The status, headers and text of the answer to one request."""
    address = urlsplit(url)
    with closing(http.client.HTTPConnection(address.hostname, address.port, timeout=5)) as connection:
        connection.request(method, path, headers={} if host is None else {"Host": host})
        answer = connection.getresponse()
        return answer.status, dict(answer.headers), answer.read().decode()


def ask_raw(url, request):
    """Everything that is answered to these bytes."""
    address = urlsplit(url)
    with closing(socket.create_connection((address.hostname, address.port), timeout=5)) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(4096), b"")).decode()


def samples(standing):
    """Each sample as (name, labels) -> value, and each family's type, as Prometheus parses them."""
    families = list(text_string_to_metric_families(metrics(standing).decode()))
    values = {
        (s.name, *(value for _, value in sorted(s.labels.items()))): s.value
        for family in families
        for s in family.samples
    }
    return values, {family.name: family.type for family in families}


def test_metrics_of_an_owner_are_what_prometheus_parses():
    values, types = samples(OWNER)
    assert values == {
        ("fedproxy_party_info", "ward", "owner"): 1,
        ("fedproxy_healthy",): 1,
        ("fedproxy_phase", "waiting"): 0,
        ("fedproxy_phase", "running"): 1,
        ("fedproxy_phase", "finished"): 0,
        ("fedproxy_phase", "stopped"): 0,
        ("fedproxy_round",): 3,
        ("fedproxy_rounds",): 10,
        ("fedproxy_rounds_done_total",): 3,
        ("fedproxy_cohort_clients",): 5,
        ("fedproxy_connected_clients",): 5,
        ("fedproxy_participating_clients",): 4,
        ("fedproxy_round_seconds",): 4.5,
        ("fedproxy_left_seconds",): 31.5,
        ("fedproxy_sent_bytes_total",): 3_000_000,
        ("fedproxy_received_bytes_total",): 180,
        ("fedproxy_skipped_lines_total",): 0,
        ("fedproxy_aborts_total", "ProtocolAborted"): 1,
        ("fedproxy_aborts_total", "RoundAborted"): 2,
        ("fedproxy_last_event_timestamp_seconds",): 1769860800,
    }
    counters = {name for name, kind in types.items() if kind == "counter"}
    assert counters == {
        "fedproxy_rounds_done",
        "fedproxy_sent_bytes",
        "fedproxy_received_bytes",
        "fedproxy_skipped_lines",
        "fedproxy_aborts",
    }
    assert set(types.values()) == {"counter", "gauge"}


def test_metrics_of_a_site_add_her_own_spending():
    owner, site = samples(OWNER)[0], samples(SITE)[0]
    more = {name for name, *_ in site} - {name for name, *_ in owner}
    assert more == {
        "fedproxy_messages_total",
        "fedproxy_epsilon_spent",
        "fedproxy_epsilon_limit",
        "fedproxy_delta",
    }
    assert site["fedproxy_epsilon_spent",] == 1.25


@pytest.mark.parametrize(
    ("days", "row"), [(200.5, ", in 200 days</td>"), (12.5, ", in 12 days; renew it</td>")]
)
def test_an_owner_sees_when_her_certificate_ends_and_that_it_is_to_be_renewed(days, row):
    ends = OWNER.read_at + timedelta(days=days)
    shown = replace(OWNER, certificate_ends=ends)
    assert row in page(shown)
    name = "fedproxy_certificate_expiry_timestamp_seconds"
    assert samples(shown)[0][name,] == pytest.approx(ends.timestamp())


def test_an_owner_that_was_given_a_spending_by_mistake_does_not_show_it():
    wrong = replace(OWNER, spending=SITE.spending)
    assert "epsilon" not in metrics(wrong).decode() + page(wrong).lower()


def test_a_name_with_quotes_and_line_breaks_cannot_add_a_metric():
    name = 'a"} 1\nfedproxy_healthy 0\n# \\'
    values, _ = samples(replace(OWNER, name=name))
    assert values["fedproxy_party_info", name, "owner"] == 1
    assert values["fedproxy_healthy",] == 1


def test_an_epsilon_of_nothing_is_shown_as_such():
    free = replace(SITE, spending=Spending(epsilon=0.0, limit=8.0, delta=1e-5))
    assert samples(free)[0]["fedproxy_epsilon_spent",] == 0.0
    assert ("Epsilon so far", "0") in tables(free)["Privacy spent by this site"]


def test_infinite_epsilon_is_shown_as_such():
    noiseless = replace(SITE, spending=Spending(epsilon=float("inf"), limit=8.0, delta=1e-5))
    assert samples(noiseless)[0]["fedproxy_epsilon_spent",] == float("inf")
    assert "infinite" in page(noiseless)


def test_three_paths_answer_and_every_other_is_not_found():
    with served(lambda: OWNER) as url:
        status, headers, text = ask(url)
        assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert text == page(OWNER)
        status, headers, text = ask(url, "/metrics")
        assert (status, text) == (200, metrics(OWNER).decode())
        assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert ask(url, "/healthz")[::2] == (200, "running: round 3 is under way\n")
        for path in ("/metrics/", "/../etc/passwd", "/%2e%2e/", "/favicon.ico", "/healthz/x", "*"):
            assert ask(url, path)[0] == 404, path


def test_an_unhealthy_standing_fails_the_health_check():
    with served(lambda: replace(OWNER, healthy=False, phase="stopped", why="ended")) as url:
        assert ask(url, "/healthz")[::2] == (503, "stopped: ended\n")
        assert ask(url, "/")[0] == 200


def test_the_page_asks_again_by_itself_until_a_reader_stops_that():
    with served(lambda: OWNER) as url:
        _, headers, text = ask(url)
        assert headers["Refresh"] == "15"
        assert 'href="/?still"' in text
        _, headers, text = ask(url, "/?still")
        assert "Refresh" not in headers
        assert 'href="/"' in text


def test_the_page_runs_no_script_loads_nothing_and_is_kept_by_nobody():
    with served(lambda: SITE) as url:
        _, headers, text = ask(url)
    assert "<script" not in text
    assert "src=" not in text
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Server"].strip() == "fedproxy-secure"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "<script>"])
def test_every_method_but_get_is_refused(method):
    with served(lambda: OWNER) as url:
        status, headers, text = ask(url, method=method)
        assert (status, headers["Allow"]) == (405, "GET")
        assert "<" not in text


@pytest.mark.parametrize(
    ("request_", "line"),
    [
        (b"nonsense\r\n\r\n", "Bad Request"),
        (b"GET / HTTP/9.9\r\n\r\n", "HTTP Version Not Supported"),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", "Request-URI Too Long"),
        (b"GET / HTTP/1.0\r\n" + b"a: b\r\n" * 200 + b"\r\n", "Request Header Fields Too Large"),
    ],
    ids=["nonsense", "version", "long", "headers"],
)
def test_what_is_no_http_gets_one_line_that_quotes_nothing(request_, line):
    with served(lambda: OWNER) as url:
        assert ask_raw(url, request_).splitlines()[-1] == line
        assert ask(url, "/healthz")[0] == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "x@127.0.0.1", "", "[", "192.168.0.7"],
)
def test_a_request_under_another_name_is_refused(host):
    with served(lambda: OWNER) as url:
        status, _, text = ask(url, "/metrics", host=host)
        assert status == 421
        assert "fedproxy_" not in text


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8080", "127.0.0.1:1", "127.1.2.3", "[::1]:80", "LOCALHOST"]
)
def test_a_request_that_names_this_machine_is_answered(host):
    with served(lambda: OWNER) as url:
        assert ask(url, "/metrics", host=host)[0] == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.7", "example.org", "", "::"])
def test_another_host_than_loopback_is_refused_unless_it_is_called_unsafe(host):
    with (
        pytest.raises(ConfigError, match="must be a loopback address"),
        served(lambda: OWNER, host=host),
    ):
        pass


def test_a_host_that_is_called_unsafe_answers_under_any_name():
    with served(lambda: OWNER, unsafe_host="0.0.0.0") as url:
        assert ask(url.replace("0.0.0.0", "127.0.0.1"), "/metrics", host="owner.example")[0] == 200


def test_a_port_in_use_is_one_clear_line():
    with served(lambda: OWNER) as url:
        port = urlsplit(url).port
        line = f"^port={port}: is in use on 127.0.0.1; choose another$"
        with pytest.raises(ConfigError, match=line), served(lambda: OWNER, port=port):
            pass
    with pytest.raises(ConfigError, match="port=70000: must be from 0"), served(lambda: OWNER, port=70_000):
        pass


def test_a_standing_that_cannot_be_read_says_so_without_its_path():
    def unreadable():
        raise ConfigError("/srv/secret: cannot be read")

    with served(unreadable) as url:
        for path in ("/", "/metrics", "/healthz"):
            status, _, text = ask(url, path)
            assert (status, text) == (503, "ConfigError; the log of this process says more\n")


def test_a_standing_is_read_once_for_many_that_ask_at_once():
    calls = []

    def read():
        calls.append(threading.get_ident())
        return OWNER

    with served(read) as url:
        threads = [threading.Thread(target=ask, args=(url, "/metrics")) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(calls) <= 2


def test_a_client_that_sends_half_a_request_keeps_nobody_waiting():
    with (
        served(lambda: OWNER) as url,
        closing(socket.create_connection(("127.0.0.1", urlsplit(url).port))) as half,
    ):
        half.sendall(b"GET / HT")
        assert ask(url, "/healthz")[0] == 200


def test_connections_that_say_nothing_use_up_no_more_than_their_share_of_the_process():
    """The process that serves the page also supervises a run, and may have so many files open alone."""
    with served(lambda: OWNER) as url, ExitStack() as stack:
        address = ("127.0.0.1", urlsplit(url).port)
        before, silent = open_files(), []
        for _ in range(3 * MOST_AT_ONCE):
            silent.append(stack.enter_context(closing(socket.create_connection(address, timeout=5))))
            time.sleep(0.005)  # the system lets few wait to be accepted, and others try again seconds later
        for one in silent[MOST_AT_ONCE:]:
            assert one.recv(1) == b"", "one more than are answered is closed"
        assert open_files() - before <= len(silent) + MOST_AT_ONCE
        for one in silent:
            one.close()
        until = time.monotonic() + 30
        while answered_with(url) != 200 and time.monotonic() < until:
            time.sleep(0.05)
        assert answered_with(url) == 200


def test_a_request_that_trickles_in_is_cut_off_at_its_deadline(monkeypatch):
    monkeypatch.setattr(serve, "REQUEST_S", 0.5)
    with (
        served(lambda: OWNER) as url,
        closing(socket.create_connection(("127.0.0.1", urlsplit(url).port), timeout=30)) as slow,
    ):
        sent = 0
        slow.settimeout(0.1)
        with suppress(ConnectionError):
            while sent < 200:
                slow.sendall(b"G")
                sent += 1
                with suppress(TimeoutError):
                    if slow.recv(1) == b"":
                        break
        assert sent < 200


def test_whoever_may_not_read_is_told_so_and_nothing_else():
    asked = []

    def may_read(client, server):
        asked.append((client, server))
        return len(asked) > 3

    with served(lambda: SITE, may_read=may_read) as url:
        for path in ("/", "/metrics", "/healthz"):
            status, _, text = ask(url, path)
            assert (status, text) == (403, "this page is for the user who runs the node\n")
        assert ask(url, "/metrics")[0] == 200
        assert {server[1] for _, server in asked} == {urlsplit(url).port}


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def answered_with(url):
    """The status of the answer to one request, None if there was none."""
    with suppress(OSError, http.client.HTTPException):
        return ask(url, "/healthz")[0]
    return None


def test_without_prometheus_client_metrics_name_the_extra_and_the_page_works():
    code = """
        import sys
        from pathlib import Path
        from urllib.error import HTTPError
        from urllib.request import urlopen

        sys.modules["prometheus_client"] = None  # as if it were not installed
        from fedproxy_secure.monitor.owner import owner_standing
        from fedproxy_secure.monitor.serve import served

        with served(lambda: owner_standing(Path("none"))) as url:
            print(urlopen(url).status)
            try:
                urlopen(f"{url}metrics")
            except HTTPError as error:
                print(error.code, error.read().decode(), end="")
        print("torch" in sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "200",
        "501 /metrics: needs prometheus-client; pip install 'fedproxy-secure[deploy]'",
        "False",
    ]


def test_nothing_listens_after_the_block():
    with served(lambda: OWNER) as url:
        port = urlsplit(url).port
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
