"""Set-up before the first round: wait for nodes, send job and proxy, learn each node's client."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from flwr.serverapp import Grid

from fedproxy_secure import wire
from fedproxy_secure.errors import RoundAborted
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.flower.asking import POLL_S, Asker
from fedproxy_secure.flower.shipping import Away, ship
from fedproxy_secure.flower.waiting import WaitNotes, with_reasons
from fedproxy_secure.protect.base import protection_of
from fedproxy_secure.runtime.artifacts import write_bytes
from fedproxy_secure.runtime.quoting import quoted

log = logging.getLogger(__name__)
AWAY = "is not connected"


@dataclass(frozen=True, kw_only=True)
class Registered:
    """The nodes that have proved who they are.

    Attributes:
        names: client name by node id.
        wait_s: how long set-up waits for further nodes once enough for a round are connected or set up, so
            that sites that are switched off delay the others no longer than that.
        have_policies: whether each node has a policy of its own, with its own records, folders and device.
            If so, nodes are not sent those of this machine.
    """

    names: Mapping[int, str]
    wait_s: float
    have_policies: bool = True

    @classmethod
    def load(cls, file: Path) -> Registered | None:
        """Return what `save` wrote, or None if there is no file: then nodes have no keys."""
        try:
            raw = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return cls(
            names={int(node): str(name) for node, name in raw["names"].items()},
            wait_s=raw["wait_s"],
            have_policies=raw["have_policies"],
        )

    def save(self, file: Path) -> None:
        """Write the nodes to a file, whole or not at all."""
        write_bytes(file, json.dumps({**asdict(self), "names": dict(self.names)}).encode())


def set_up(
    asker: Asker,
    grid: Grid,
    job: FederationJob,
    proxy_folder: Path,
    registered: Registered | None = None,
    notes: WaitNotes | None = None,
    *,
    shipped: dict[str, int],
) -> dict[str, int]:
    """Send every node the job, and the proxy where it is missing; learn which client each node is.

    With `registered`, nodes that are not in that list get nothing. Waits are written to `notes`. `shipped`
    gets the bytes of the proxy that were sent, by client's name, also if this raises.

    Returns client name -> node id.
    """
    if registered is not None and registered.have_policies:
        job = job.without_places()
    client_names, (least, setting) = {client.name for client in job.clients}, _least(job)
    node_ids = _wait_for_nodes(grid, job, registered, notes)
    asker.set_up_again = wire.encode_setup(job)
    if registered is None:
        nodes = _claimed(asker, job, proxy_folder, node_ids, client_names, shipped)
    else:
        asker.names.update({node: registered.names[node] for node in node_ids})
        asker.left_out.update(dict.fromkeys(sorted(client_names - set(asker.names.values())), AWAY))
        recipients = {node: registered.names[node] for node in node_ids}
        # a site that disconnects before its first answer is waited for like one that is not connected yet
        away = Away(wait_s=registered.wait_s, least=least)
        ready = ship(asker, job, proxy_folder, recipients, shipped, away=away)
        nodes = {registered.names[node]: node for node in ready}
    asker.names.update({node: name for name, node in nodes.items()})
    asker.enough(len(nodes), least, "set up", setting)
    return nodes


def _least(job: FederationJob) -> tuple[int, str]:
    """Return how many clients a round needs, and the setting or rule that demands it."""
    needed = protection_of(job.protect).least_clients(job)
    return max(
        (job.federate.min_clients, "federate.min_clients"), (needed, "the threshold of a secure sum")
    )


def _claimed(
    asker: Asker,
    job: FederationJob,
    proxy_folder: Path,
    node_ids: list[int],
    client_names: set[str],
    shipped: dict[str, int],
) -> dict[str, int]:
    """Set up nodes that name their own clients; send the proxy to those that share no name with others."""
    claims: dict[int, str] = {}
    ready: list[int] = []
    lacking: dict[int, wire.Ready] = {}
    requests = dict.fromkeys(node_ids, wire.encode_setup(job))
    for node, answer in asker.ask(wire.SETUP, requests, "setup", wire.decode_ready):
        claims[node] = answer.client
        if answer.ready:
            ready.append(node)
        else:
            lacking[node] = answer
    unique_names = {name for name, count in Counter(claims.values()).items() if count == 1} & client_names
    recipients = {node: answer for node, answer in lacking.items() if answer.client in unique_names}
    ready += ship(asker, job, proxy_folder, recipients, shipped)
    return _bound(claims, ready, client_names)


def _bound(claims: Mapping[int, str], ready: list[int], client_names: set[str]) -> dict[str, int]:
    """Return client name -> node, for each node that is ready and is the only one to claim that name.

    If two nodes claim one name, neither gets it, because nothing here tells which of them is the client.
    """
    by_name: dict[str, list[int]] = {}
    for node, name in claims.items():
        by_name.setdefault(name, []).append(node)
    nodes = {}
    for name, claimants in sorted(by_name.items()):
        if name not in client_names:
            log.warning("setup: node %d is left out: no client is called %s", claimants[0], quoted(name))
        elif len(claimants) > 1:
            log.warning("setup: nodes %s are left out: all of them claim the name %s", claimants, name)
        elif claimants[0] in ready:
            nodes[name] = claimants[0]
    return nodes


def _wait_for_nodes(
    grid: Grid, job: FederationJob, registered: Registered | None, notes: WaitNotes | None
) -> list[int]:
    """Wait for the nodes of all the job's clients; return the nodes that are connected when waiting ends.

    It ends when all are connected. With `registered` it ends at the latest `registered.wait_s` after enough
    for a round are connected, and otherwise after `federate.timeout_s`. Raises `RoundAborted` if fewer than
    a round needs are connected after `federate.timeout_s`.
    """
    client_names, (least, setting) = {client.name for client in job.clients}, _least(job)
    began, enough_since = time.monotonic(), None
    while True:
        nodes = sorted(grid.get_node_ids())
        if registered is not None:
            nodes = [node for node in nodes if registered.names.get(node) in client_names]
        now = time.monotonic()
        if len(nodes) >= len(client_names):
            return nodes
        enough_since = (enough_since or now) if len(nodes) >= least else None
        if registered is not None and enough_since is not None:
            if now - enough_since > registered.wait_s:
                return nodes
        elif now - began > job.federate.timeout_s:
            if enough_since is None:
                line = f"{len(nodes)} clients connected: must be >= {least} ({setting})"
                away = dict.fromkeys(_absent(job, nodes, registered), AWAY)
                raise RoundAborted(with_reasons(line, away))
            return nodes
        if notes is not None:
            _note_wait(notes, job, registered, nodes, began=began, enough_since=enough_since)
        time.sleep(POLL_S)


def _note_wait(
    notes: WaitNotes,
    job: FederationJob,
    registered: Registered | None,
    nodes: list[int],
    *,
    began: float,
    enough_since: float | None,
) -> None:
    """Note which clients are not connected yet, and how long they are still waited for."""
    what = f"to connect; {len(nodes)} of {len(job.clients)} are here"
    names = _absent(job, nodes, registered) or ["clients"]
    if registered is not None and enough_since is not None:
        notes.note(what, names, began=enough_since, timeout_s=registered.wait_s)
    else:
        notes.note(what, names, began=began, timeout_s=job.federate.timeout_s)


def _absent(job: FederationJob, nodes: list[int], registered: Registered | None) -> list[str]:
    """Return the names of the job's clients without a node, sorted; empty while nodes have no names."""
    if registered is None:
        return []
    connected = {registered.names[node] for node in nodes}
    return sorted(client.name for client in job.clients if client.name not in connected)
