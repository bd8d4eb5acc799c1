"""Send the proxy in parts to the clients that lack it.

A client says how many bytes it has, and is sent the next ones. It keeps them on its disk, so that a lost
connection, a restarted node or a restarted server costs one part each (two of a traced proxy, whose client
cannot say how many it has before its first part). The server waits for a site that it cannot reach, while
the others get their parts.

Guarantees: the server holds in memory one part for each client, and the marked rows of a traced proxy. A
client is left out if it takes nothing for `federate.timeout_s`, makes no progress in `MOST_IDLE` requests
in a row, has less than before more than `MOST_ANEW` times, gives another name, or reports an error.
Whatever clients answer, set-up and sending end after `federate.timeout_s` and the time that the proxy takes
at `LEAST_RATE`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedproxy_secure import wire
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.flower.asking import POLL_S, SOON_S, Answer, Asker
from fedproxy_secure.flower.patience import Patience
from fedproxy_secure.proxy_intake.parts import Offer, Part
from fedproxy_secure.runtime.quoting import quoted
from fedproxy_secure.tracing.copies import own_bytes
from fedproxy_secure.tracing.key import trace_key

log = logging.getLogger(__name__)
GROUP = "setup"
# measured with five sites on two cores: half of this took twice as long, twice of it took just as long
PART_BYTES = 2**21
LEAST_RATE = 2**16  # bytes a second; the 0.5 Mbit/s of a bad line
SILENT_S = 120.0  # a request counts as lost after this time, or after half of `federate.timeout_s`
EACH_SILENT_S = 10.0  # added to it for each site: one machine may play them all, one after another
AFTER_LOSS_S = 1.0  # the shortest pause after a lost request
MOST_IDLE = 50  # requests in a row without progress
MOST_ANEW = 3  # times that a client may have less than before, because its disk was emptied


@dataclass(frozen=True, kw_only=True)
class Away:
    """How long to wait for sites that disconnected before their first answer.

    The wait is `wait_s`, in seconds, once `least` clients, as many as a round needs, have the proxy.
    """

    wait_s: float
    least: int


@dataclass(kw_only=True)
class _Site:
    """A node that is being sent the proxy.

    Args:
        has: how many bytes it has.
        tells: whether its answer to a set-up says how many bytes it has; false for a traced proxy.
        idle: requests since `has` grew.
        anew: how often it had less than before.
        last: the outcome of the latest request, as text.
        sent: the id of the request under way, sent at `sent_at`; None if there is none.
        goal: how many bytes it has once it has taken the part under way.
        limit: the most bytes that it may have from an earlier run, until it has said how many; then 0.
        set_up: whether the next request, not before `ask_at`, is a set-up, the first one or another.
        answered: whether it has answered a set-up.
        silences: how many requests counted as lost because no answer came.
        progress_at: when it last took a part; before the first, when it was set up.
        away_since: since when it is not connected; None while it is.

    Times are of the monotonic clock, in seconds.
    """

    node: int
    client: str
    offer: Offer
    has: int
    tells: bool
    idle: int = 0
    anew: int = 0
    last: str = ""
    sent: str | None = None
    sent_at: float = 0.0
    goal: int = 0
    limit: int = 0
    set_up: bool = False
    ask_at: float = 0.0
    answered: bool = True
    silences: int = 0
    progress_at: float = field(default_factory=time.monotonic)
    away_since: float | None = None

    def lost(self, why: str) -> None:
        """Note that no answer will come; after a pause, a set-up asks how many bytes the node has."""
        log.warning("%s: %s: %s; it is asked again", GROUP, self.client, why)
        self.sent, self.set_up, self.ask_at = None, True, time.monotonic() + AFTER_LOSS_S
        self.idle, self.last = self.idle + 1, why

    def seen(self, *, connected: bool) -> None:
        """Note whether the node is connected."""
        self.away_since = None if connected else self.away_since or time.monotonic()

    def says(self, has: int) -> None:
        """Note how many bytes the client says it has, unless that is more than it was sent."""
        was_set_up, self.set_up = self.set_up, False
        if was_set_up and not self.tells:
            return
        self.idle, self.last = self.idle + 1, f"it says that it has {has:,} bytes"
        most, self.limit = max(self.goal, self.has, self.limit), 0
        if has > most:
            self.last += ", more than it was sent"
            return
        if has == self.goal > self.has:
            self.idle, self.progress_at = 0, time.monotonic()
        self.anew += has < self.has
        self.has = has


def ship(
    asker: Asker,
    job: FederationJob,
    proxy: Path,
    to: Mapping[int, wire.Ready | str],
    shipped: dict[str, int],
    *,
    away: Away | None = None,
) -> list[int]:
    """Send the proxy's files to nodes until each has them all; return the nodes that have them.

    Args:
        proxy: the proxy's folder. If the proxy is traced, each client gets its own copy.
        to: each node's answer to its set-up, or its client's name if it is not set up yet.
        shipped: gets the bytes of the proxy that were sent, repeats included, by client's name; also for
            clients that are left out, and if this raises.
        away: how long sites that are not set up yet may be away; None for as long as all others.
    """
    sites = {node: _site(job, proxy, node, answer) for node, answer in to.items()}
    under_way, done = list(sites.values()), list[int]()
    began, size = time.monotonic(), sum(site.offer.size for site in under_way)
    most_s = asker.timeout_s + size / max(1, len(sites)) / LEAST_RATE
    silent_s = min(SILENT_S + EACH_SILENT_S * len(sites), asker.timeout_s / 2)
    patience = Patience(least_s=SOON_S, most_s=POLL_S)
    while under_way:
        timed_out = time.monotonic() > began + most_s
        any_lost = any(site.set_up and site.sent is None for site in under_way)
        connected = asker.connected() if any_lost else None
        for site in list(under_way):
            if site.sent is None:
                site.seen(connected=connected is None or site.node in connected)
                _ask_next(asker, job, site, shipped, away=site.away_since is not None)
            elif (answer := asker.fetch(site.sent, site.node, GROUP, wire.decode_ready)) is not None:
                patience.come()
                if _ends(asker, site, answer, done):
                    under_way.remove(site)
                    continue
                _ask_next(asker, job, site, shipped, away=site.set_up)  # after a loss, it may be away
            elif time.monotonic() - site.sent_at > silent_s * 2**site.silences:
                site.lost(f"no answer in {silent_s * 2**site.silences:.0f} s")
                site.silences += 1  # the next request gets twice the time
            enough = away is not None and len(done) >= away.least
            wait_s = away.wait_s if enough and away is not None else asker.timeout_s
            if (why := _gives_up(site, asker.timeout_s, wait_s=wait_s, timed_out=timed_out)) is not None:
                asker.leave_out(GROUP, site.node, why)
                under_way.remove(site)
        if under_way:
            arrived, what = sum(site.has for site in sites.values()), GROUP
            if any(site.answered for site in sites.values()):
                what = f"{GROUP}, {arrived / 1e6:.1f} of {size / 1e6:.1f} MB of the proxy have arrived"
            asker.notes.note(what, [s.client for s in under_way], began=began, timeout_s=most_s)
            time.sleep(patience.pause_s())
    asker.notes.over()
    return done


def _site(job: FederationJob, proxy: Path, node: int, answer: wire.Ready | str) -> _Site:
    """Return a node's state by its answer to a set-up, or by its client's name if it has none yet."""
    answered = not isinstance(answer, str)
    client = answer if isinstance(answer, str) else answer.client
    offer, tells = _offer(job, proxy, client), job.marks is None
    has = None if isinstance(answer, str) or not tells else answer.has
    return _Site(
        node=node,
        client=client,
        offer=offer,
        has=0 if has is None else min(has, offer.size),
        limit=offer.size if has is None else 0,
        tells=tells,
        set_up=not answered,
        answered=answered,
    )


def _ends(asker: Asker, site: _Site, answer: Answer[wire.Ready], done: list[int]) -> bool:
    """Take a node's answer; return whether nothing more is sent: it has the proxy, or is left out."""
    site.sent, ready = None, answer.value
    if answer.lost or answer.forgot:
        site.lost(answer.lost or "it was started again")
        return False
    if ready is None:
        return True
    if not site.answered:
        site.answered, site.progress_at = True, time.monotonic()
    if ready.client != site.client:
        asker.leave_out(GROUP, site.node, f"says that it is {quoted(ready.client)}")
        return True
    if ready.ready:
        site.has = site.offer.size
        done.append(site.node)
        return True
    site.says(ready.has)
    return False


def _gives_up(site: _Site, timeout_s: float, *, wait_s: float, timed_out: bool) -> str | None:
    """Return why a node that makes no progress is left out, or None if it is not.

    `wait_s`: how long it may be away before it has answered. `timed_out`: no time is left.
    """
    now = time.monotonic()
    if not site.answered:
        if site.away_since is not None and now - site.away_since > wait_s:
            return "is not connected"
        if timed_out or now - site.progress_at > timeout_s:
            return f"did not answer its set-up in {timeout_s:g} s (federate.timeout_s); {site.last}"
    progress = f"took {site.has:,} of {site.offer.size:,} bytes of the proxy"
    if site.idle > MOST_IDLE:
        return f"{progress} and no more in {MOST_IDLE} requests; {site.last}"
    if site.anew > MOST_ANEW:
        return f"{progress}, and lost what it had received {site.anew} times"
    if timed_out or now - site.progress_at > timeout_s:
        return f"{progress} before it timed out (federate.timeout_s={timeout_s:g})"
    return None


def _ask_next(
    asker: Asker, job: FederationJob, site: _Site, shipped: dict[str, int], *, away: bool
) -> None:
    """Send a node its next part, or set it up; not while it is away, busy, or in the pause after a loss."""
    if away or site.sent is not None or time.monotonic() < site.ask_at:
        return
    if site.set_up:
        kind, content = wire.SETUP, wire.encode_setup(job)
    else:
        # a client that was stopped while it put the proxy in place has all bytes; it gets the last again
        at, offer = min(site.has, site.offer.size - 1), site.offer
        data = offer.read(at, PART_BYTES)
        site.goal = at + len(data)
        shipped[site.client] = shipped.get(site.client, 0) + len(data)
        part = Part(sha256=job.proxy_sha256, sizes=offer.sizes, at=at, data=data, copy=offer.copy)
        kind, content = wire.PART, wire.encode_part(part)
    sent = asker.send(kind, {site.node: content}, GROUP)
    site.sent, site.sent_at = next(iter(sent), None), time.monotonic()
    if site.sent is None:
        site.lost("the request could not be sent")


def _offer(job: FederationJob, proxy: Path, client: str) -> Offer:
    """Return the proxy as it is sent to a client: with the client's own marks if it is traced."""
    if job.marks is None:
        return Offer.of(proxy)
    file, changed = own_bytes(proxy, job.marks, trace_key(proxy), client)
    return Offer.of(proxy, own_file=file, own_bytes=changed)
