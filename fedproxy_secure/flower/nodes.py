"""Set-up before the first round: wait for nodes, send job and proxy, learn which client each node is."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path

from flwr.serverapp import Grid

from fedproxy_secure import wire
from fedproxy_secure.errors import RoundAborted
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.flower.asking import POLL_S, Asker
from fedproxy_secure.protect.base import protection_of
from fedproxy_secure.proxy_intake import store as proxy_store
from fedproxy_secure.runtime.quoting import quoted

log = logging.getLogger(__name__)


def set_up(
    asker: Asker, grid: Grid, job: FederationJob, proxy_folder: Path
) -> tuple[dict[str, int], dict[str, int]]:
    """Send every node the job, and the proxy where it is missing; learn which client each node is.

    Returns client name -> node id, and client name -> bytes of the proxy that were sent to it.
    """
    node_ids = _wait_for_nodes(grid, job)
    claims: dict[int, str] = {}
    ready: list[int] = []
    lacking: list[int] = []
    plain = dict.fromkeys(node_ids, wire.encode_setup(job))
    for node, answer in asker.ask(wire.SETUP, plain, "setup", wire.decode_ready):
        claims[node] = answer.client
        (ready if answer.ready else lacking).append(node)
    sent: dict[int, int] = {}
    if lacking:
        files = proxy_store.pack(proxy_folder)
        size = sum(len(data) for data in files.values() if isinstance(data, bytes))
        ship = dict.fromkeys(lacking, wire.encode_setup(job, files))
        for node, answer in asker.ask(wire.SETUP, ship, "setup", wire.decode_ready):
            if not answer.ready or answer.client != claims[node]:
                log.warning(
                    "setup: node %d is left out: it has no proxy, or another name than before", node
                )
                continue
            ready.append(node)
            sent[node] = size
    nodes = _bound(claims, ready, {c.name for c in job.clients})
    asker.names.update({node: name for name, node in nodes.items()})
    least, setting = job.federate.min_clients, "federate.min_clients"
    needed = protection_of(job.protect).least_clients(job)
    least, setting = max((least, setting), (needed, "the threshold of a secure sum"))
    asker.enough(len(nodes), least, "set up", setting)
    return nodes, {name: sent[node] for name, node in nodes.items() if node in sent}


def _bound(claims: Mapping[int, str], ready: list[int], known: set[str]) -> dict[str, int]:
    """Return client name -> node, for each node that is ready and alone in claiming a client's name.

    If two nodes claim one name, neither gets it: nothing here tells which of them is the client.
    """
    by_name: dict[str, list[int]] = {}
    for node, name in claims.items():
        by_name.setdefault(name, []).append(node)
    nodes = {}
    for name, claimants in sorted(by_name.items()):
        if name not in known:
            log.warning("setup: node %d is left out: no client is called %s", claimants[0], quoted(name))
        elif len(claimants) > 1:
            log.warning("setup: nodes %s are left out: all say that they are %s", claimants, name)
        elif claimants[0] in ready:
            nodes[name] = claimants[0]
    return nodes


def _wait_for_nodes(grid: Grid, job: FederationJob) -> list[int]:
    """Return the nodes of all the job's clients, or of at least the minimum once `timeout_s` is over."""
    deadline = time.monotonic() + job.federate.timeout_s
    wanted = len(job.clients)
    while len(nodes := sorted(grid.get_node_ids())) < wanted:
        if time.monotonic() > deadline:
            if len(nodes) < job.federate.min_clients:
                raise RoundAborted(
                    f"{len(nodes)} clients connected: must be >= {job.federate.min_clients} "
                    "(federate.min_clients)"
                )
            break
        time.sleep(POLL_S)
    return nodes
