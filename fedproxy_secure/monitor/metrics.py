"""A standing as metrics in Prometheus' text format; what is shown is what `state` lists, and no more.

Names begin with `fedproxy_` and end with their unit. Counters end with `_total` and never fall while the
party's files are kept. A quantity that is unknown is left out. Needs the extra `deploy`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fedproxy_secure.errors import ConfigError
from fedproxy_secure.monitor.state import FederationStatus

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PHASES = ("waiting", "running", "finished", "stopped")

# name, help, attribute of `FederationStatus`; what is None is left out
_GAUGES = (
    ("fedproxy_round", "Round under way, or last asked for at a site; from 0", "round"),
    ("fedproxy_rounds", "Rounds of the job", "rounds"),
    ("fedproxy_cohort_clients", "Clients that a round is meant for", "cohort"),
    ("fedproxy_connected_clients", "Clients that were connected after set-up", "connected"),
    ("fedproxy_participating_clients", "Clients that took part in the last saved round", "clients"),
    ("fedproxy_round_seconds", "Duration of the last round", "round_seconds"),
    ("fedproxy_left_seconds", "Time left, by the pace of the last rounds", "left_seconds"),
)
_COUNTERS = (
    (
        "fedproxy_rounds_done",
        "Rounds saved by the owner, or completed by a site",
        "rounds_done",
    ),
    ("fedproxy_messages", "Messages that a site has answered or failed to answer", "messages"),
    ("fedproxy_sent_bytes", "Payload sent, without what Flower and TLS add", "bytes_sent"),
    ("fedproxy_received_bytes", "Payload received, without what Flower and TLS add", "bytes_received"),
    ("fedproxy_skipped_lines", "Lines of the log of events that are no event", "skipped"),
)


def metrics(standing: FederationStatus) -> bytes:
    """Return the metrics of a standing as text.

    Raises `ConfigError`, naming the extra, if prometheus-client is not installed.
    """
    try:
        from prometheus_client import CollectorRegistry, generate_latest
    except ImportError as error:
        raise ConfigError(
            "/metrics: needs prometheus-client; pip install 'fedproxy-secure[deploy]'"
        ) from error
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector(standing))
    text: bytes = generate_latest(registry)
    return text


class Collector:
    """A collector of prometheus-client over one standing."""

    def __init__(self, standing: FederationStatus) -> None:
        self._standing = standing

    def collect(self) -> Iterator[Metric]:
        """Yield every metric of the standing."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        at = self._standing
        party = GaugeMetricFamily("fedproxy_party_info", "Whose metrics these are", labels=["role", "name"])
        party.add_metric([at.role, at.name], 1)
        yield party
        yield GaugeMetricFamily("fedproxy_healthy", "1 if healthy, 0 if not", int(at.healthy))
        phase = GaugeMetricFamily("fedproxy_phase", "1 for the current phase, else 0", labels=["phase"])
        for name in PHASES:
            phase.add_metric([name], int(at.phase == name))
        yield phase
        for name, text, attribute in _GAUGES:
            if (value := getattr(at, attribute)) is not None:
                yield GaugeMetricFamily(name, text, value)
        for name, text, attribute in _COUNTERS:
            if (value := getattr(at, attribute)) is not None:
                yield CounterMetricFamily(name, text, value)
        aborts = CounterMetricFamily(
            "fedproxy_aborts",
            "Rounds, messages, set-ups and trainings that were aborted",
            labels=["reason"],
        )
        for reason, count in sorted(at.aborts.items()):
            aborts.add_metric([reason], count)
        yield aborts
        if at.last is not None:
            yield GaugeMetricFamily(
                "fedproxy_last_event_timestamp_seconds",
                "Time of the last event, in Unix time",
                at.last.time.timestamp(),
            )
        if at.certificate_ends is not None:
            yield GaugeMetricFamily(
                "fedproxy_certificate_expiry_timestamp_seconds",
                "When the certificate of the SuperLink ends, in Unix time",
                at.certificate_ends.timestamp(),
            )
        if at.role == "site" and at.spending is not None:
            spent = at.spending
            yield GaugeMetricFamily("fedproxy_epsilon_spent", "Epsilon spent by this site", spent.epsilon)
            yield GaugeMetricFamily("fedproxy_epsilon_limit", "Upper limit on this epsilon", spent.limit)
            yield GaugeMetricFamily("fedproxy_delta", "Delta of both epsilons", spent.delta)
