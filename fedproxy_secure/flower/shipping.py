"""Bring the proxy to clients that lack it, in parts.

A client says how many bytes have come, and is sent the next ones. What it has lies on its disk, so that a
cut line, a node that was started again and a server that was started again cost one part each. A site that
cannot be reached is waited for, as long as `federate.timeout_s` allows without progress, while the others
get theirs.

Guarantees: memory of the server holds one part a client at a time. A client that takes nothing, says that
it is another one, or reports an error is left out, and holds up nobody.
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
from fedproxy_secure.tracing.copies import own_bytes
from fedproxy_secure.tracing.key import trace_key

log = logging.getLogger(__name__)
GROUP = "setup"
PART_BYTES = 2**21
SILENT_S = 120.0  # after which a request is taken for lost
AFTER_LOSS_S = 1.0  # how long a node that was lost is left alone at least
MOST_IDLE = 50  # requests in a row that bring nothing forward


@dataclass(kw_only=True)
class _Site:
    """A node on its way to the proxy.

    Args:
        has: bytes that it said have come; `most` is the most that it ever said.
        idle: requests since `most` grew, at `progress_at`.
        last: what became of the latest request.
        shipped: bytes of the proxy that were sent to it, repeats included.
        sent: the id of the request under way, if there is one, sent at `sent_at`.
        set_up: whether the next request, not before `ask_at`, is to set it up again.

    Times are of the monotonic clock, seconds.
    """

    node: int
    client: str
    offer: Offer
    has: int
    most: int = -1
    idle: int = 0
    last: str = ""
    shipped: int = 0
    sent: str | None = None
    set_up: bool = False
    ask_at: float = 0.0
    sent_at: float = 0.0
    progress_at: float = field(default_factory=time.monotonic)

    def lost(self, why: str) -> None:
        """Note that no answer will come: where it stands must be asked again."""
        log.warning("%s: %s: %s; it is asked again", GROUP, self.client, why)
        self.sent, self.set_up, self.ask_at = None, True, time.monotonic() + AFTER_LOSS_S
        self.idle, self.last = self.idle + 1, why

    def came(self, has: int) -> None:
        """Note how many bytes it says have come."""
        self.has, self.set_up = has, False
        self.idle, self.last = self.idle + 1, f"it says again and again that it has {has:,} bytes"
        if has > self.most:
            self.most, self.idle, self.progress_at = has, 0, time.monotonic()


def ship(asker: Asker, job: FederationJob, proxy: Path, to: Mapping[int, wire.Ready]) -> dict[int, int]:
    """Send the proxy's files to nodes until each has them all.

    Args:
        proxy: the proxy's folder. Each client gets a copy of its own if it is traced.
        to: what each node answered to its set-up.

    Returns bytes of the proxy that were sent, by node, for each that has it now; the others are left out.
    """
    sites = [
        _Site(node=node, client=answer.client, offer=_offer(job, proxy, answer.client), has=answer.has)
        for node, answer in to.items()
    ]
    done: dict[int, int] = {}
    patience = Patience(least_s=SOON_S, most_s=POLL_S)
    while sites:
        connected = asker.connected() if any(site.set_up for site in sites) else None
        for site in list(sites):
            if site.sent is None:
                _ask_next(asker, job, site, away=connected is not None and site.node not in connected)
            elif (answer := asker.fetch(site.sent, site.node, GROUP, wire.decode_ready)) is not None:
                patience.come()
                if _ends(asker, site, answer, done):
                    sites.remove(site)
                    continue
                _ask_next(asker, job, site, away=site.set_up)  # who was lost may be away
            elif time.monotonic() - site.sent_at > SILENT_S:
                site.lost(f"no answer in {SILENT_S:.0f} s")
            if (why := _gives_up(site, asker.timeout_s)) is not None:
                asker.leave_out(GROUP, site.node, why)
                sites.remove(site)
        if sites:
            came, all_bytes = (sum(n) for n in zip(*((s.has, s.offer.size) for s in sites), strict=True))
            what = f"{GROUP}, {came / 1e6:.1f} of {all_bytes / 1e6:.1f} MB of the proxy have arrived"
            since = min(s.progress_at for s in sites)
            asker.notes.note(what, [s.client for s in sites], began=since, timeout_s=asker.timeout_s)
            time.sleep(patience.pause_s())
    asker.notes.over()
    return done


def _ends(asker: Asker, site: _Site, answer: Answer[wire.Ready], done: dict[int, int]) -> bool:
    """Take a node's answer; return whether it needs nothing more, or is left out."""
    site.sent, ready = None, answer.value
    if answer.lost or answer.forgot:
        site.lost(answer.lost or "it was started again")
        return False
    if ready is None:
        return True
    if ready.client != site.client:
        asker.leave_out(GROUP, site.node, "has another name than before")
        return True
    if ready.ready:
        done[site.node] = site.shipped
        return True
    site.came(ready.has)
    return False


def _gives_up(site: _Site, timeout_s: float) -> str | None:
    """Return why a node is left out that got no further for long enough, None for others."""
    took = f"took {max(site.most, 0):,} of {site.offer.size:,} bytes of the proxy"
    if site.idle > MOST_IDLE:
        return f"{took} and no more in {MOST_IDLE} requests; {site.last}"
    if time.monotonic() - site.progress_at > timeout_s:
        return f"{took} and no more in {timeout_s:.0f} s"
    return None


def _ask_next(asker: Asker, job: FederationJob, site: _Site, *, away: bool) -> None:
    """Send a node its next part, or ask where it stands; not while it is away, or was lost just now."""
    if away or site.sent is not None or time.monotonic() < site.ask_at:
        return
    if site.set_up:
        kind, content = wire.SETUP, wire.encode_setup(job)
    else:
        # all bytes may be there without the proxy: its client was stopped while it put it in place
        at = min(site.has, site.offer.size - 1)
        data = site.offer.read(at, PART_BYTES)
        site.shipped += len(data)
        part = Part(sha256=job.proxy_sha256, sizes=site.offer.sizes, at=at, data=data)
        kind, content = wire.PART, wire.encode_part(part)
    sent = asker.send(kind, {site.node: content}, GROUP)
    site.sent, site.sent_at = next(iter(sent), None), time.monotonic()
    if site.sent is None:
        site.lost("the request could not be sent")


def _offer(job: FederationJob, proxy: Path, client: str) -> Offer:
    """Return what a client is sent: the proxy, or its own copy of a traced one."""
    if job.marks is None:
        return Offer.of(proxy)
    file, changed = own_bytes(proxy, job.marks, trace_key(proxy), client)
    return Offer.of(proxy, own_file=file, own_bytes=changed)
