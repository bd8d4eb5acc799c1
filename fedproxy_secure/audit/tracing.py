"""Tracing and the audit log: what a run says of its traced proxy, and a leaked model traced against it.

The commitment to the tracing's key and the clients' names are logged before any copy is sent, so that
whoever noted the log's head knows that the code was not chosen after the leak.

Guarantees: `find_leak` uses only a key that matches the commitment in the log, and only the clients that
the log names. Not guaranteed: that a third party should accept the result as proof, because the owner can
make every copy herself.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedproxy_secure.audit.chain import Entry
from fedproxy_secure.audit.examine import examine, log_if_there
from fedproxy_secure.audit.vouched import TRACED
from fedproxy_secure.audit.witness import Witness
from fedproxy_secure.errors import AuditError, ConfigError
from fedproxy_secure.proxy_intake.files import folder_sha256
from fedproxy_secure.runtime.artifacts import write_bytes
from fedproxy_secure.runtime.files.names import AUDIT_LOG, PROXY, seed_folder
from fedproxy_secure.runtime.files.whole import PARTIAL
from fedproxy_secure.tracing.copies import copy_of, make_marks
from fedproxy_secure.tracing.key import commitment, trace_key
from fedproxy_secure.tracing.marks import Marks
from fedproxy_secure.tracing.suspects import ERROR, Trace, rows_of, trace_rows


def traced(witness: Witness, seed: int, proxy: Path, clients: Sequence[str]) -> Marks:
    """Return the marks for a seed's proxy, once the commitment to their key is in the log.

    A resumed run gets the same marks and continues with the same key.

    Raises `ConfigError` if the LLM has no rows that no text reads, or if the log has a commitment but the
    key is gone; `AuditError` if the log has other facts.
    """
    marks = make_marks(proxy)
    begun = bool(witness.log.of(TRACED, seed=seed))
    key = trace_key(proxy, make=not begun)
    facts = {
        "commitment": commitment(key),
        "proxy_sha256": folder_sha256(proxy),
        "clients": sorted(clients),
    }
    witness.traced(seed, facts)
    return marks


def find_leak(run: Path, model: Path, *, seed: int, error: float = ERROR) -> Trace:
    """Trace a leaked model: judge every client of a run's seed by it.

    Args:
        run: the run's folder, with the seed's proxy and the key beside it.
        model: the folder of the leaked model, saved as safetensors.
        error: the largest probability, in (0, 1), of accusing any client that had no part in the leak.

    Raises `ConfigError` if the seed was not traced or its key is missing; `AuditError` if the log, the key
    or the proxy has changed; `DataError` for a model without the proxy's embedding.
    """
    facts, marks = traced_facts(run, seed), make_marks(run / seed_folder(seed) / PROXY)
    key = trace_key(run / seed_folder(seed) / PROXY)
    return trace_rows(rows_of(model, marks), marks, key, facts["clients"], error=error)


def write_copy(run: Path, client: str, out: Path, *, seed: int) -> None:
    """Write a client's copy of a seed's proxy, as the run sent it, into a new folder.

    Raises what `find_leak` raises, and `ConfigError` for a client that the log does not name, or for a
    folder that exists.
    """
    facts, proxy = traced_facts(run, seed), run / seed_folder(seed) / PROXY
    if client not in facts["clients"]:
        raise ConfigError(f"client {client}: must be one of {', '.join(facts['clients'])}")
    if out.exists():
        raise ConfigError(f"{out}: is there already; name another folder")
    name, content = copy_of(proxy, make_marks(proxy), trace_key(proxy), client)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=PARTIAL) as temporary:
            copy = Path(temporary) / out.name
            shutil.copytree(proxy, copy)
            write_bytes(copy / name, content)
            copy.rename(out)  # the unmarked proxy never lies under the client's name
    except OSError as error:
        reason = error.strerror or "a file could not be copied"
        raise ConfigError(f"{out}: cannot be written: {reason}") from error


def only_seed(run: Path) -> int:
    """Return the only traced seed of a run. Raises `ConfigError` if it has none, or several."""
    seeds = sorted({int(e.body["seed"]) for e in _entries(run) if e.event == TRACED})
    if not seeds:
        raise ConfigError(f"{run}: no seed was traced; run it with --set compress.trace=true")
    if len(seeds) > 1:
        raise ConfigError(f"{run}: {len(seeds)} seeds are traced; name one with --seed")
    return seeds[0]


def traced_facts(run: Path, seed: int) -> dict[str, Any]:
    """Return the log's record of a seed's tracing, once key and proxy are found to match it.

    Raises `ConfigError` and `AuditError` as `find_leak` does.
    """
    facts = [e.body for e in _entries(run) if e.event == TRACED and e.body.get("seed") == seed]
    if not facts:
        raise ConfigError(f"{run}: seed {seed} was not traced; must be run with compress.trace=true")
    proxy = run / seed_folder(seed) / PROXY
    if commitment(trace_key(proxy)) != facts[0]["commitment"]:
        raise AuditError(
            f"{proxy.with_name('trace.key')}: does not match the key commitment in {AUDIT_LOG}"
        )
    if folder_sha256(proxy) != facts[0]["proxy_sha256"]:
        raise AuditError(f"{proxy}: is not the proxy logged in {AUDIT_LOG}; restore the logged one")
    return facts[0]


def _entries(run: Path) -> Sequence[Entry]:
    """Read a run's log. Raises `ConfigError` if there is none, `AuditError` if it was altered."""
    raw = log_if_there(run)
    if raw is None:
        raise ConfigError(f"{run}: must be the folder of a run, with {AUDIT_LOG}; there is no such file")
    log = examine(raw)
    if log.problems:
        raise AuditError(f"{run / AUDIT_LOG}: {log.problems[0]}")
    return log.entries
