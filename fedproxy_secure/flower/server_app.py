"""The server's side of a federation: set clients up, then broadcast, gather, fuse, save, each round."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedproxy_secure import errors
from fedproxy_secure.artifacts import RunFolder, write_bytes
from fedproxy_secure.errors import DataError, FedProxyError, RoundAborted, TrainingError
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.server import ServerState, fuse_round
from fedproxy_secure.federate.update import ClientUpdate
from fedproxy_secure.flower import proxy_store, wire
from fedproxy_secure.flower.ledger import LEDGER, Ledger
from fedproxy_secure.flower.masked_server import masked_round
from fedproxy_secure.flower.recording import Tamper, WatchedGrid
from fedproxy_secure.randomness import stream
from fedproxy_secure.record.transcript import Recorder

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
POLL_S = 0.2

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
) -> ServerState:
    """Run the job's rounds over a grid and return the last state.

    With a `run_folder` the state is saved after every round and a later call goes on from it, with the
    same result: every random choice depends on (seed, round) alone. Not with H-TIES' weights `self`: they
    rest on what clients remember, and such a run is refused. Clients that fail or stay silent
    longer than `federate.timeout_s` are left out of the round. With `audit.record` the transcript goes to
    `audit.folder`; `tamper` is an active adversary, for evaluation.

    Raises `RoundAborted` if fewer than `federate.min_clients` answer, `TrainingError` if a client's loss
    stops being finite, `DataError` if a client cannot use its records; the last good round stays saved.
    """
    job = replace(job, proxy_sha256=proxy_store.folder_sha256(proxy_folder))
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
    nodes, shipped = _set_up(grid, job, proxy_folder)
    while state.round < job.federate.rounds:
        chosen = _participants(sorted(nodes), job, state.round)
        cohort = {name: nodes[name] for name in chosen}
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
            ask = _by_name(grid, job, cohort)
            state, metrics, clients, sums = masked_round(ask, job, state, chosen, ledger, on_client)
        else:
            updates = _gather(grid, job, state, cohort, ledger, on_client)
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


def _set_up(grid: Grid, job: FederationJob, proxy_folder: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Tell every node the job, ship the proxy where it is missing.

    Returns client name -> node id, and client name -> bytes of the proxy that were sent to it.
    """
    node_ids = _wait_for_nodes(grid, job)
    ask = RecordDict({"job": ConfigRecord({"json": job.to_json(), "sha256": job.proxy_sha256})})
    ready, lacking, shipped = {}, [], {}
    for node, reply in _ask(grid, job, wire.SETUP, dict.fromkeys(node_ids, ask), "setup"):
        if bool(reply.config_records["setup"]["ready"]):
            ready[str(reply.config_records["setup"]["client"])] = node
        else:
            lacking.append(node)
    if lacking:
        files = proxy_store.pack(proxy_folder)
        ship = RecordDict({**ask, "files": files})
        for node, reply in _ask(grid, job, wire.SETUP, dict.fromkeys(lacking, ship), "setup"):
            client = str(reply.config_records["setup"]["client"])
            ready[client] = node
            shipped[client] = sum(len(data) for data in files.values() if isinstance(data, bytes))
    _need_enough(len(ready), job, "set up")
    return ready, shipped


def _wait_for_nodes(grid: Grid, job: FederationJob) -> list[int]:
    """All clients of the job, or at least the minimum once `timeout_s` is over."""
    deadline = time.monotonic() + job.federate.timeout_s
    wanted = len(job.clients)
    while len(nodes := sorted(grid.get_node_ids())) < wanted:
        if time.monotonic() > deadline:
            _need_enough(len(nodes), job, "connected")
            break
        time.sleep(POLL_S)
    return nodes


def _participants(names: list[str], job: FederationJob, round_number: int) -> list[str]:
    """Which clients take part in a round; depends on (seed, round) alone."""
    count = max(1, round(job.federate.participation * len(names)))
    if count == len(names):
        return names
    rng = stream(job.seed, "participants", round_number)
    return sorted(rng.choice(names, size=count, replace=False).tolist())


def _gather(
    grid: Grid,
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
    group = f"round {state.round}"
    for _, reply in _ask(grid, job, wire.TRAIN, dict.fromkeys(nodes.values(), content), group):
        try:
            update = wire.decode_update(reply, d=len(state.adapter))
        except DataError as error:
            log.warning("round %d: an update is left out: %s", state.round, error)
            continue
        ledger.note(
            "Update", to="server", reveals="the client's whole update", payload_bytes=update.update.nbytes
        )
        updates[update.client] = update
        if on_client is not None:
            on_client(update.client)
    _need_enough(len(updates), job, f"answered in round {state.round}")
    return [updates[name] for name in sorted(updates)]


def _ask(
    grid: Grid, job: FederationJob, kind: str, contents: Mapping[int, RecordDict], group: str
) -> Iterator[tuple[int, RecordDict]]:
    """Send to nodes and yield (node, content) of those that answer in time and did not fail."""
    messages = [
        Message(content, node, kind, group_id=group, ttl=job.federate.timeout_s)
        for node, content in contents.items()
    ]
    waiting = dict.fromkeys(grid.push_messages(messages))  # ordered: the in-process engine's order
    deadline = time.monotonic() + job.federate.timeout_s
    while waiting:
        for reply in _pull(grid, waiting):
            waiting.pop(reply.metadata.reply_to_message_id, None)
            node = reply.metadata.src_node_id
            if reply.has_error():
                log.warning("%s: node %d failed: %s", group, node, reply.error.reason)
                continue
            if _aborted(reply.content, group, node):
                continue
            _raise_failure(reply.content)
            yield node, reply.content
        if waiting and time.monotonic() > deadline:
            log.warning(
                "%s: %d clients did not answer in %.0f s",
                group,
                len(waiting),
                job.federate.timeout_s,
            )
            return
        if waiting:
            time.sleep(POLL_S)


def _by_name(
    grid: Grid, job: FederationJob, nodes: Mapping[str, int]
) -> Callable[[str, Mapping[str, RecordDict], str], Iterator[tuple[str, RecordDict]]]:
    """`_ask` with clients' names in the place of node ids."""
    names = {node: name for name, node in nodes.items()}

    def ask(kind: str, contents: Mapping[str, RecordDict], group: str) -> Iterator[tuple[str, RecordDict]]:
        by_node = {nodes[name]: content for name, content in contents.items()}
        for node, reply in _ask(grid, job, kind, by_node, group):
            yield names[node], reply

    return ask


def _pull(grid: Grid, waiting: Iterable[str]) -> Iterable[Message]:
    return grid.pull_messages(list(waiting))


def _aborted(content: RecordDict, group: str, node: int) -> bool:
    """Whether a client left the masking protocol: it counts as dropped, and its reason is logged."""
    failure = wire.decode_failure(content)
    if failure is None or failure[0] != "ProtocolAborted":
        return False
    log.warning("%s: node %d left the protocol: %s", group, node, failure[1])
    return True


def _raise_failure(content: RecordDict) -> None:
    """A client's own one-line error ends the run: it says something a person must mend."""
    failure = wire.decode_failure(content)
    if failure is None:
        return
    kind, line = failure
    known: Any = getattr(errors, kind, None)
    if isinstance(known, type) and issubclass(known, FedProxyError):
        raise known(line)
    raise TrainingError(line)


def _need_enough(count: int, job: FederationJob, what: str) -> None:
    if count < job.federate.min_clients:
        raise RoundAborted(
            f"{count} clients {what}: must be >= {job.federate.min_clients} (federate.min_clients)"
        )


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
