"""The server's Flower app: set clients up; then, each round, broadcast, gather, fuse and save."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from flwr.app import Context, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedproxy_secure.errors import ConfigError, FedProxyError, RoundAborted, RunFolderError
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.server import ServerState
from fedproxy_secure.flower.asking import Asker
from fedproxy_secure.flower.nodes import AWAY, Registered, set_up
from fedproxy_secure.flower.recording import WatchedGrid, recorder_of
from fedproxy_secure.flower.waiting import WaitNotes
from fedproxy_secure.monitor.noting import note_round, set_up_noted
from fedproxy_secure.protect.base import RoundResult, ServerRound, protection_of
from fedproxy_secure.protect.rounds import run_round
from fedproxy_secure.record.leakage import Ledger
from fedproxy_secure.record.saved_rounds import STATE, note_unmasked, resumed, unmasked_for, with_remedy
from fedproxy_secure.record.server_messages import note_adapter, note_proxy, proxy_noted_if_aborted
from fedproxy_secure.record.transcript import Recorder
from fedproxy_secure.runtime.artifacts import RunFolder, write_bytes
from fedproxy_secure.runtime.files.names import JOB, ROSTER, ROUNDS, TROUBLE
from fedproxy_secure.secagg.provision import load_roster

log = logging.getLogger(__name__)
app = ServerApp()

# more files of a control folder, through which the simulation and deployment engines talk to a server app
PROXY = "proxy.path"
INITIAL = "initial.safetensors"
FINAL = "final.safetensors"
ALIVE = "alive"  # touched while the server app lives
ALIVE_S = 5.0
NODES = "nodes.json"  # `Registered`, where nodes prove who they are

CONTROL_VARIABLE = "FEDPROXY_CONTROL"
UNMASKED_WITHOUT = "an earlier attempt at this round was unmasked without it"

OnRound = Callable[[Mapping[str, float]], None]  # the round's metrics
OnClient = Callable[[str], None]  # the name of a client that has trained


def control_folder() -> Path:
    """Return the folder through which the server app talks with the process that submitted the run.

    The environment variable names a file that holds the path, because one SuperLink may serve several runs.
    The path is not a setting of the run, because Flower sends a run's settings to every node.
    """
    return Path(Path(os.environ[CONTROL_VARIABLE]).read_text(encoding="utf-8"))


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Serve the job in the control folder and write the last state there; a SuperLink starts this."""
    control = control_folder()
    registered = Registered.load(control / NODES)
    threading.Thread(target=_touch, args=(control / ALIVE,), name="alive", daemon=True).start()
    try:
        final = serve(
            grid,
            FederationJob.from_json((control / JOB).read_text(encoding="utf-8")),
            Path((control / PROXY).read_text(encoding="utf-8")),
            ServerState.load(control / INITIAL),
            run_folder=control,
            registered=registered,
        )
        final.save(control / FINAL)
    except FedProxyError as error:
        write_bytes(control / TROUBLE, json.dumps([type(error).__name__, str(error)]).encode())
    except Exception as error:
        line = f"the server app failed ({type(error).__name__}); its log has the reason"
        write_bytes(control / TROUBLE, json.dumps(["RoundAborted", line]).encode())
        raise


def _touch(file: Path) -> None:
    """Touch a file every few seconds for as long as this process lives."""
    while True:
        file.touch()
        time.sleep(ALIVE_S)


def serve(
    grid: Grid,
    job: FederationJob,
    proxy_folder: Path,
    initial: ServerState,
    *,
    run_folder: Path | None = None,
    on_round: OnRound | None = None,
    on_client: OnClient | None = None,
    one_machine: bool = False,
    registered: Registered | None = None,
) -> ServerState:
    """Run the job's rounds over a grid and return the last state.

    With a `run_folder`, the state is saved after every round. A later call resumes from it with the same
    result, because every random choice depends on (seed, round) alone.
    Clients that fail, give an unusable answer, or stay silent longer than `federate.timeout_s` are left out
    of the round. With `audit.record`, the transcript goes to `audit.folder`.

    Each node states at set-up which of the job's clients it is. If two nodes claim one name, neither gets
    it, and after set-up a node's answers count for its own client only. With `registered`, a node that is
    not in that list, or claims another name than its own, is left out. The cohort of a round follows from
    the job's names, the seed and the round, not from which nodes are connected.

    Raises `RoundAborted` if fewer clients answer than `federate.min_clients`, or than a secure sum needs.
    If clients reported errors (a loss that is not finite, records that cannot be used), the first of these
    is raised instead, because it says what a person has to repair. With `one_machine`, where all clients
    belong to the operator, such an error ends the run at once. The last good round stays saved.
    """
    folder = None if run_folder is None else RunFolder(path=run_folder)
    state = initial if folder is None else resumed(folder, initial)
    if state.round >= job.federate.rounds:
        return state
    recorder = recorder_of(job, state.round, run_folder)
    if recorder is not None:
        grid = WatchedGrid(grid, recorder)
    job = _checked(job, proxy_folder)
    notes = WaitNotes(run_folder)
    asker = Asker(grid, timeout_s=job.federate.timeout_s, one_machine=one_machine, notes=notes)
    with set_up_noted() as setup, proxy_noted_if_aborted(folder, state.round, setup.shipped):
        nodes = set_up(asker, grid, job, proxy_folder, registered, notes, shipped=setup.shipped)
        setup.clients = len(nodes)
    federation = _Federation(
        job=job,
        folder=folder,
        asker=asker,
        nodes=nodes,
        unready=dict(asker.left_out),
        recorder=recorder,
        on_client=on_client,
    )
    shipped = setup.shipped
    while state.round < job.federate.rounds:
        state, metrics = _one_round(federation, state, shipped)
        shipped = {}
        if on_round is not None:
            on_round(metrics)
    return state


@dataclass(frozen=True, kw_only=True)
class _Federation:
    """What is the same in all rounds of one call of `serve`.

    Args:
        folder: where rounds are saved; None if they are not.
        nodes: the node ids of the clients that are set up, by the clients' names.
        unready: why clients could not be set up, by their names.
        recorder: writes the transcript; None if there is no transcript.
    """

    job: FederationJob
    folder: RunFolder | None
    asker: Asker
    nodes: Mapping[str, int]
    unready: Mapping[str, str]
    recorder: Recorder | None
    on_client: OnClient | None


def _checked(job: FederationJob, proxy_folder: Path) -> FederationJob:
    """Return the job with its proxy. Raises `ConfigError` if clients of a secure sum have no keys."""
    from fedproxy_secure.federate.shared_proxy import with_proxy  # loads models

    job = with_proxy(job, proxy_folder)
    if protection_of(job.protect).needs_keys:
        _check_roster(job)
    return job


def _one_round(
    federation: _Federation, state: ServerState, shipped: Mapping[str, int]
) -> tuple[ServerState, Mapping[str, float]]:
    """Run the round after `state` and save it; return the next state and the round's metrics.

    `shipped`: bytes of the proxy sent to each client since the previous round, for this round's ledger.
    """
    job, asker, nodes, began = federation.job, federation.asker, federation.nodes, time.perf_counter()
    asker.begin()
    chosen = job.cohort_of(state.round)
    unmasked = unmasked_for(federation.folder, state.round)
    cohort = _cohort(asker, chosen, nodes, federation.unready, unmasked)
    ledger = Ledger(round=state.round)
    note_proxy(ledger, shipped, had=nodes if state.round == 0 else ())
    note_adapter(ledger, cohort, sum(v.nbytes for v in (state.adapter, state.conflict) if v is not None))
    server_round = ServerRound(
        ask=_by_name(asker, cohort),
        job=job,
        state=state,
        cohort=chosen,
        ledger=ledger,
        on_client=federation.on_client,
        enough=_enough(asker, job, state.round),
        note_left_out=asker.left_out.setdefault,
        note_unmasked=partial(note_unmasked, federation.folder, state.round),
    )
    try:
        result = run_round(protection_of(job.protect), server_round)
    except FedProxyError as error:
        _note_abort(error, federation.folder, ledger, began=began)
        if isinstance(error, RoundAborted):
            asker.explain()
            explained = asker.explained(error)
            raise type(explained)(with_remedy(str(explained), unmasked, list(nodes))) from error
        raise
    _save(federation, result, ledger, began=began)
    note_round(ledger, began=began, clients=len(result.clients))
    return result.state, result.metrics


def _save(federation: _Federation, result: RoundResult, ledger: Ledger, *, began: float) -> None:
    """Write a finished round into the transcript and the run's folder."""
    state, clients, folder = result.state, list(result.clients), federation.folder
    if federation.recorder is not None:
        federation.recorder.note_state(
            adapter=state.adapter, sums=result.sums, clients=clients, updates=result.updates
        )
        federation.recorder.round = state.round
    if folder is not None:
        # the lines first: `resumed` puts lines without a state in order, but a state needs its line
        ledger.write(folder)
        line = {"round": ledger.round, "participants": clients, **result.metrics}
        folder.append_jsonl(ROUNDS, {**line, "seconds": time.perf_counter() - began})
        state.save(folder.path / STATE)


def _cohort(
    asker: Asker,
    chosen: Sequence[str],
    nodes: Mapping[str, int],
    unready: Mapping[str, str],
    unmasked: Collection[str] | None,
) -> dict[str, int]:
    """Return the node ids of a round's clients that are set up; note why its other clients are left out.

    Args:
        chosen: the clients that the round is meant for.
        unready: why clients could not be set up.
        unmasked: the clients in an earlier attempt's unmasked sum; None if no attempt was unmasked.
    """
    present = [name for name in chosen if name in nodes]
    cohort = {name: nodes[name] for name in present if unmasked is None or name in unmasked}
    asker.left_out |= {name: unready.get(name, AWAY) for name in chosen if name not in present}
    asker.left_out |= dict.fromkeys(set(present) - set(cohort), UNMASKED_WITHOUT)
    return cohort


def _note_abort(error: FedProxyError, folder: RunFolder | None, ledger: Ledger, *, began: float) -> None:
    if folder is not None:
        with suppress(RunFolderError):  # a full disk must not hide why the round was aborted
            ledger.write(folder, aborted=True)
    note_round(ledger, began=began, error=error)


def _check_roster(job: FederationJob) -> None:
    """Raise `ConfigError` unless `protect.keys` has a roster with every client of the job."""
    if job.protect.keys is None:
        raise ConfigError(f"protect.keys: must name the folder with {ROSTER}")
    roster = load_roster(Path(job.protect.keys))
    if strangers := [c.name for c in job.clients if c.name not in roster.members]:
        raise ConfigError(
            f"client {strangers[0]}: is not in the roster; all clients of a secure sum must be"
        )


def _enough(asker: Asker, job: FederationJob, round_number: int) -> Callable[[int], None]:
    """Return a check of a round's number of answers, which raises an error if it is too small."""
    least, what = job.federate.min_clients, f"answered in round {round_number}"
    return lambda count: asker.enough(count, least, what, "federate.min_clients")


def _by_name(
    asker: Asker, nodes: Mapping[str, int]
) -> Callable[[str, Mapping[str, RecordDict], str], Iterator[tuple[str, RecordDict]]]:
    """Return `Asker.ask` by clients' names in place of node ids; clients without a node are not asked."""
    names = {node: name for name, node in nodes.items()}

    def ask(kind: str, contents: Mapping[str, RecordDict], group: str) -> Iterator[tuple[str, RecordDict]]:
        if absent := sorted(set(contents) - set(nodes)):
            log.warning("%s: not connected: %s", group, ", ".join(absent))
        by_node = {nodes[name]: content for name, content in contents.items() if name in nodes}
        for node, reply in asker.ask(kind, by_node, group, lambda content: content):
            yield names[node], reply

    return ask
