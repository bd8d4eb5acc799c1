"""The server's side of a federation: set clients up, then broadcast, gather, fuse, save, each round."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from flwr.app import Context, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedproxy_secure import errors
from fedproxy_secure.artifacts import RunFolder, write_bytes
from fedproxy_secure.errors import ConfigError, FedProxyError, RoundAborted
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.server import ServerState, fuse_round
from fedproxy_secure.federate.update import ClientUpdate
from fedproxy_secure.flower import client_privacy, proxy_store, wire
from fedproxy_secure.flower.asking import POLL_S, Asker
from fedproxy_secure.flower.ledger import LEDGER, Ledger
from fedproxy_secure.flower.masked_server import masked_round
from fedproxy_secure.flower.recording import Tamper, WatchedGrid
from fedproxy_secure.quoting import quoted
from fedproxy_secure.randomness import stream
from fedproxy_secure.record.transcript import Recorder
from fedproxy_secure.secagg.provision import load_roster

log = logging.getLogger(__name__)
app = ServerApp()

# what the server's own messages reveal to clients, for the ledger
PROXY_REVEALS = "the proxy: the LLM's embeddings, head and kept blocks, verbatim"
ADAPTER_REVEALS = "the adapter so far: what all clients' updates have made of it"

# files of a control folder, by which the simulation and deployment engines talk to the server app
JOB = "job.json"
PROXY = "proxy.path"
INITIAL = "initial.safetensors"
FINAL = "final.safetensors"
TROUBLE = "trouble.json"

STATE = "state.safetensors"
ROUNDS = "rounds.jsonl"

OnRound = Callable[[Mapping[str, float]], None]  # the round's metrics
OnClient = Callable[[str], None]  # the name of a client that has trained


@app.main()
def main(grid: Grid, context: Context) -> None:
    """What a SuperLink starts: serve the job in the control folder and leave the last state there."""
    control = Path(str(context.run_config["control"]))
    try:
        final = serve(
            grid,
            FederationJob.from_json((control / JOB).read_text(encoding="utf-8")),
            Path((control / PROXY).read_text(encoding="utf-8")),
            ServerState.load(control / INITIAL),
            run_folder=control,
        )
        final.save(control / FINAL)
    except FedProxyError as error:
        write_bytes(control / TROUBLE, json.dumps([type(error).__name__, str(error)]).encode())


def serve(
    grid: Grid,
    job: FederationJob,
    proxy_folder: Path,
    initial: ServerState,
    *,
    run_folder: Path | None = None,
    on_round: OnRound | None = None,
    on_client: OnClient | None = None,
    tamper: Tamper | None = None,
    one_machine: bool = False,
) -> ServerState:
    """Run the job's rounds over a grid and return the last state.

    With a `run_folder` the state is saved after every round and a later call goes on from it, with the
    same result: every random choice depends on (seed, round) alone. Not with H-TIES' weights `self`: they
    rest on what clients remember, and such a run is refused. Clients that fail, answer what cannot be
    used, or stay silent longer than `federate.timeout_s` are left out of the round. With `audit.record`
    the transcript goes to `audit.folder`; `tamper` is an active adversary, for evaluation.

    A node says once which of the job's clients it is; a name that two nodes claim belongs to neither, and
    afterwards a node speaks in its own name alone. Who takes part in a round follows from the job's names,
    the seed and the round, not from who is there.

    Raises `RoundAborted` if fewer than `federate.min_clients` answer, or than a secure sum needs. If
    clients said what went wrong (a loss that is not finite, records that cannot be used), the first of
    their errors is raised instead: it says what a person must mend. With `one_machine`, where no client is
    anybody else's, such an error ends the run at once. The last good round stays saved.
    """
    state, folder = initial, None
    if run_folder is not None:
        folder = RunFolder(path=run_folder)
        if (run_folder / STATE).exists():
            state = ServerState.load(run_folder / STATE)
            _check_same_adapter(state, initial)
        for name in (ROUNDS, LEDGER):
            _drop_lines_from(folder, name, state.round)
    if state.round >= job.federate.rounds:
        return state
    _check_resumable(job, state, initial)
    recorder = None
    if job.audit.record and job.audit.folder is not None:
        recorder = Recorder(Path(job.audit.folder))
        recorder.forget_from(state.round)
        recorder.round = state.round
    if recorder is not None or tamper is not None:
        grid = WatchedGrid(grid, recorder=recorder, tamper=tamper)
    from fedproxy_secure.federate.client import with_proxy  # loads models

    job = with_proxy(job, proxy_folder)
    _check_roster(job)
    asker = Asker(grid, timeout_s=job.federate.timeout_s, one_machine=one_machine)
    nodes, shipped = _set_up(asker, grid, job, proxy_folder)
    while state.round < job.federate.rounds:
        asker.begin()
        chosen = _participants(job, state.round)
        cohort = {name: nodes[name] for name in chosen if name in nodes}
        ledger, round_number, began = Ledger(round=state.round), state.round, time.perf_counter()
        if round_number == 0:
            for name in nodes:
                ledger.note(
                    "Proxy", to="clients", reveals=PROXY_REVEALS, payload_bytes=shipped.get(name, 0)
                )
        size = sum(v.nbytes for v in (state.adapter, state.conflict) if v is not None)
        for _ in cohort:
            ledger.note("Broadcast", to="clients", reveals=ADAPTER_REVEALS, payload_bytes=size)
        if job.protect.scheme != "unsafe_plaintext":
            try:
                ask = _by_name(asker, cohort)
                state, metrics, clients, sums = masked_round(ask, job, state, chosen, ledger, on_client)
            except RoundAborted:
                asker.explain()
                raise
        else:
            updates = _gather(asker, job, state, cohort, ledger, on_client)
            state, metrics = fuse_round(state, updates, job.fusion)
            clients, sums = [u.client for u in updates], {}
        if job.privacy.unit != "none":
            metrics.pop("loss")  # clients keep theirs
        if recorder is not None:
            recorder.note_state(adapter=state.adapter, sums=sums, clients=clients)
            recorder.round = state.round
        if folder is not None:
            # the lines first: lines without their state are dropped on resume, a state needs its line
            ledger.write(folder)
            took = {"seconds": time.perf_counter() - began}
            folder.append_jsonl(ROUNDS, {"round": round_number, "participants": clients, **metrics, **took})
            state.save(folder.path / STATE)
        if on_round is not None:
            on_round(metrics)
    return state


def _check_roster(job: FederationJob) -> None:
    """Raise `ConfigError` for a client that no secure sum can have."""
    if job.protect.scheme == "unsafe_plaintext":
        return
    if job.protect.keys is None:
        raise ConfigError("protect.keys: must name the folder with roster.json")
    roster = load_roster(Path(job.protect.keys))
    if strangers := [c.name for c in job.clients if c.name not in roster.members]:
        raise ConfigError(
            f"client {strangers[0]}: is not in the roster; all clients of a secure sum must be"
        )


def _set_up(
    asker: Asker, grid: Grid, job: FederationJob, proxy_folder: Path
) -> tuple[dict[str, int], dict[str, int]]:
    """Tell every node the job, ship the proxy where it is missing, learn which client each node is.

    Returns client name -> node id, and client name -> bytes of the proxy that were sent to it.
    """
    node_ids = _wait_for_nodes(grid, job)
    said: dict[int, str] = {}
    ready: list[int] = []
    lacking: list[int] = []
    plain = dict.fromkeys(node_ids, wire.encode_setup(job))
    for node, answer in asker.ask(wire.SETUP, plain, "setup", wire.decode_ready):
        said[node] = answer.client
        (ready if answer.ready else lacking).append(node)
    sent: dict[int, int] = {}
    if lacking:
        files = proxy_store.pack(proxy_folder)
        size = sum(len(data) for data in files.values() if isinstance(data, bytes))
        ship = dict.fromkeys(lacking, wire.encode_setup(job, files))
        for node, answer in asker.ask(wire.SETUP, ship, "setup", wire.decode_ready):
            if not answer.ready or answer.client != said[node]:
                log.warning(
                    "setup: node %d is left out: it has no proxy, or another name than before", node
                )
                continue
            ready.append(node)
            sent[node] = size
    nodes = _bound(said, ready, {c.name for c in job.clients})
    asker.names.update({node: name for name, node in nodes.items()})
    least, setting = job.federate.min_clients, "federate.min_clients"
    if job.protect.scheme != "unsafe_plaintext":
        threshold = client_privacy.planned_threshold(job)
        least, setting = max((least, setting), (threshold, "the threshold of a secure sum"))
    asker.enough(len(nodes), least, "set up", setting)
    return nodes, {name: sent[node] for name, node in nodes.items() if node in sent}


def _bound(said: Mapping[int, str], ready: list[int], known: set[str]) -> dict[str, int]:
    """Client name -> node, for nodes that are ready and alone in claiming the name of one of the clients.

    If two claim one, neither has it: nothing here tells which is the client.
    """
    claims: dict[str, list[int]] = {}
    for node, name in said.items():
        claims.setdefault(name, []).append(node)
    nodes = {}
    for name, claimants in sorted(claims.items()):
        if name not in known:
            log.warning("setup: node %d is left out: no client is called %s", claimants[0], quoted(name))
        elif len(claimants) > 1:
            log.warning("setup: nodes %s are left out: all say that they are %s", claimants, name)
        elif claimants[0] in ready:
            nodes[name] = claimants[0]
    return nodes


def _wait_for_nodes(grid: Grid, job: FederationJob) -> list[int]:
    """All clients of the job, or at least the minimum once `timeout_s` is over."""
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


def _participants(job: FederationJob, round_number: int) -> list[str]:
    """Which of the job's clients a round is meant for, sorted.

    Depends on the names, the seed and the round alone, so that every attempt at a round has one cohort.
    """
    names, count = sorted(c.name for c in job.clients), job.clients_a_round
    if count == len(names):
        return names
    rng = stream(job.seed, "participants", round_number)
    return sorted(rng.choice(names, size=count, replace=False).tolist())


def _gather(
    asker: Asker,
    job: FederationJob,
    state: ServerState,
    nodes: Mapping[str, int],
    ledger: Ledger,
    on_client: OnClient | None,
) -> list[ClientUpdate]:
    """One round's updates, ordered by client name so that sums do not depend on who was fastest."""
    content = wire.encode_broadcast(
        wire.Broadcast(
            round=state.round,
            adapter=state.adapter,
            conflict=state.conflict,
            pcr_lambda=job.fusion.pcr_lambda,
            prox_mu=job.fusion.prox_mu,
        )
    )
    updates: dict[str, ClientUpdate] = {}
    names = {node: name for name, node in nodes.items()}
    group = f"round {state.round}"

    def decode(content: RecordDict) -> ClientUpdate:
        return wire.decode_update(content, d=len(state.adapter))

    for node, update in asker.ask(wire.TRAIN, dict.fromkeys(names, content), group, decode):
        if update.client != names[node]:
            log.warning("%s: %s is left out: it sent another client's update", group, asker.who(node))
            continue
        ledger.note(
            "Update", to="server", reveals="the client's whole update", payload_bytes=update.update.nbytes
        )
        updates[update.client] = update
        if on_client is not None:
            on_client(update.client)
    least = job.federate.min_clients
    asker.enough(len(updates), least, f"answered in round {state.round}", "federate.min_clients")
    return [updates[name] for name in sorted(updates)]


def _by_name(
    asker: Asker, nodes: Mapping[str, int]
) -> Callable[[str, Mapping[str, RecordDict], str], Iterator[tuple[str, RecordDict]]]:
    """`Asker.ask` with clients' names in the place of node ids; who is not connected is not asked."""
    names = {node: name for name, node in nodes.items()}

    def ask(kind: str, contents: Mapping[str, RecordDict], group: str) -> Iterator[tuple[str, RecordDict]]:
        if absent := sorted(set(contents) - set(nodes)):
            log.warning("%s: not connected: %s", group, ", ".join(absent))
        by_node = {nodes[name]: content for name, content in contents.items() if name in nodes}
        for node, reply in asker.ask(kind, by_node, group, lambda content: content):
            yield names[node], reply

    return ask


def _check_resumable(job: FederationJob, state: ServerState, initial: ServerState) -> None:
    """Raise `RunFolderError` for a run whose clients have forgotten what its next round needs."""
    if state.round > initial.round and job.fusion.rule == "h_ties" and job.protect.weights == "self":
        raise errors.RunFolderError(
            f"protect.weights=self: cannot go on from round {state.round}, clients' memory of the last "
            "step ended with their processes; start again in another folder"
        )


def _check_same_adapter(state: ServerState, initial: ServerState) -> None:
    if state.adapter.shape != initial.adapter.shape:
        raise errors.RunFolderError(
            f"saved adapter of {state.adapter.size} numbers: this run's has {initial.adapter.size}"
        )


def _drop_lines_from(folder: RunFolder, name: str, round_number: int) -> None:
    """Forget lines of rounds whose state was not saved."""
    lines = folder.read_jsonl(name)
    kept = [line for line in lines if line["round"] < round_number]
    if len(kept) < len(lines):
        (folder.path / name).unlink()
        for line in kept:
            folder.append_jsonl(name, line)
