"""Attacks by a server whose proxy is made to leak: by swapped weights, by revealing failures, by traps.

Before it reads a record, a client checks a proxy's files, what they load as, and its weights, on its own
tokens and on public text. A proxy made to pass may still leak (attack A10); differential privacy bounds it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid
from torch import nn

from fedproxy_secure import wire
from fedproxy_secure.config import PrivacyConfig
from fedproxy_secure.data.encode import Encoded
from fedproxy_secure.errors import FedProxyError, ProtocolAborted
from fedproxy_secure.federate import build as own_client
from fedproxy_secure.federate.build import build_client
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.shared_proxy import SharedProxy, shared_proxy, with_proxy
from fedproxy_secure.flower.asking import Asker
from fedproxy_secure.flower.grid_around import GridAround
from fedproxy_secure.flower.selftest.attempts import Attempt
from fedproxy_secure.flower.selftest.crafted import (
    VOCABULARY,
    adapter_of,
    nudge,
    overflow,
    set_traps,
    sha256_of,
    spoil,
    trap_columns,
)
from fedproxy_secure.flower.selftest.known_bad import taken_out
from fedproxy_secure.flower.selftest.stage import Stage, World, small_job, staged
from fedproxy_secure.models.llm import load_llm
from fedproxy_secure.proxy_intake import arriving
from fedproxy_secure.proxy_intake import files as proxy_files
from fedproxy_secure.proxy_intake import model as proxy_model
from fedproxy_secure.proxy_intake import store as proxy_store
from fedproxy_secure.proxy_intake.digest import loaded_sha256
from fedproxy_secure.proxy_intake.model import ProxyModel

ADVERSARY = "malicious_proxy"
WEIGHTS = "model.safetensors"


def other_weights_one_hash(world: World) -> str:
    """Send an adapter in place of a model: its weights are those of whatever model it points to."""
    base = Path(tempfile.mkdtemp(dir=world.folder)) / "base"
    shutil.copytree(world.proxy, base)
    files = adapter_of(world.proxy, base)
    sha256 = sha256_of(files)
    with staged(world) as stage:
        job = stage.named(stage.job).changed(proxy_sha256=sha256)
        asker = Asker(stage.grid(), timeout_s=60)
        part = wire.encode_part(wire.Part.whole(files, sha256))
        for kind, content in ((wire.SETUP, wire.encode_setup(job)), (wire.PART, part)):
            answers = dict(asker.ask(kind, {stage.node(0): content}, "", wire.decode_ready))
        if not any(ready.ready for ready in answers.values()):
            raise FedProxyError("setup: the client does not take the proxy")
        before = _first_weight(proxy_store.cache_folder() / sha256)
        shutil.copytree(world.another_proxy(nudge), base, dirs_exist_ok=True)
        after = _first_weight(proxy_store.cache_folder() / sha256)
        if before == after:
            raise ProtocolAborted("proxy: loads the same weights")
        return f"one hash, {sha256[:12]}, loads as {before:.4f} and as {after:.4f}, whatever lies elsewhere"


def changed_on_disk(world: World) -> str:
    """Exchange the weights on disk after the client has said that it has the proxy."""
    folder = Path(tempfile.mkdtemp(dir=world.folder)) / "proxy"
    shutil.copytree(world.proxy, folder)
    other = world.another_proxy(nudge) / WEIGHTS
    with staged(world) as stage, proxy_store.offered_on_this_host(folder):
        truth = stage.update()
        grid = _Exchanges(stage.grid(), folder / WEIGHTS, other.read_bytes())
        state = stage.serve(grid, proxy=folder)
        distance = np.abs(stage.sum_of(state, 4) / 4 - truth).max()
        return f"gets a sum from weights that no hash names, up to {distance:.0e} from the victim's update"


def fails_on_a_token(world: World) -> str:
    """Send a proxy with fewer embeddings than tokens: training fails where an embedding is missing."""
    with staged(world, small_job(scheme="unsafe_plaintext")) as stage:
        largest = {
            c.name: max(max(i.ids) for i in _records(world, n)) for n, c in enumerate(stage.job.clients)
        }
        holder, rows = max(largest.items(), key=lambda item: item[1])
        return _fails_at(
            stage, [holder], rows, lambda model, _: cast(Any, model).resize_token_embeddings(rows)
        )


def not_finite_for_a_token(world: World) -> str:
    """Send a proxy with a NaN embedding: the loss is not finite where a record has its token."""
    with staged(world, small_job(scheme="unsafe_plaintext")) as stage:
        ids = [{t for item in _records(world, n) for t in item.ids} for n in range(4)]
        token = max(ids[-1] - set[int]().union(*ids[:-1]))
        return _fails_at(stage, [stage.victim], token, lambda model, _: spoil(model, token))


def overflows_for_a_token(world: World, *, privacy: PrivacyConfig | None = None) -> str:
    """Send a proxy whose attention overflows at one token; all weights are finite and show nothing.

    `privacy`: the clients' privacy settings; None for no differential privacy.
    """
    job = small_job(scheme="unsafe_plaintext")
    with staged(world, job.changed(privacy=privacy or job.privacy)) as stage:
        ids = [{t for item in _records(world, n) for t in item.ids[:-1]} for n in range(4)]
        checked = set(np.linspace(0, VOCABULARY - 1, stage.job.max_tokens).round().astype(int).tolist())
        token = max(ids[-1] - set[int]().union(*ids[:-1]) - checked)
        return _fails_at(stage, [stage.victim], token, lambda model, _: overflow(model, token))


def traps_in_a_sum(world: World) -> str:
    """Send a proxy with two nonzero embeddings: a column moves if its token is in somebody's records."""
    with staged(world) as stage:
        tokenizer, job = load_llm(world.proxy, device="cpu", dtype="float32")[1], stage.job
        ids = [{t for item in _records(world, n) for t in item.ids[:-1]} for n in range(4)]
        words = [tokenizer.decode([t]).strip() for t in range(len(tokenizer))]
        present = max(ids[-1] - set[int]().union(*ids[:-1]), key=lambda t: len(words[t]))
        absent = max(set(range(len(words))) - set[int]().union(*ids), key=lambda t: len(words[t]))
        trap = world.another_proxy(lambda model, _: set_traps(model, (present, absent)))
        start = np.random.default_rng(0).normal(0, 0.1, len(stage.initial.adapter)).astype(np.float32)
        state = replace(stage.initial, adapter=start)
        with proxy_store.offered_on_this_host(trap):
            after = stage.serve(stage.grid(), job, state, proxy=trap)
            moved = trap_columns(job, trap, stage.sum_of(after, 4, state))
        if not moved[0] > 0 or moved[1] != 0:
            raise ProtocolAborted(f"columns of both tokens moved by {moved[0]:.1e} and {moved[1]:.1e}")
        return (
            f"a masked sum of 4 tells that {words[present]!r} is in somebody's records and "
            f"{words[absent]!r} in nobody's (their columns move by {moved[0]:.1e} and 0)"
        )


def attempts() -> Iterator[Attempt]:
    """Yield the attempts in the order in which they are shown."""
    yield Attempt(
        adversary=ADVERSARY,
        name="proxy files that load other weights (adapter_config.json)",
        attack=other_weights_one_hash,
        known_bad="client that takes any file of a proxy",
        without=lambda: taken_out(
            (arriving, "check_name", _anything),
            (proxy_files, "check_name", _anything),
            (proxy_store, "check_folder", _anything),
            (proxy_files, "check_folder", _anything),
            (proxy_model, "load_proxy", _loaded_as_transformers_likes),
        ),
    )
    yield Attempt(
        adversary=ADVERSARY,
        name="weights exchanged on the disk after setup",
        attack=changed_on_disk,
        known_bad="client that trains what lies there",
        without=lambda: taken_out(
            (proxy_store, "verified_sha256", _first_seen()),
            (own_client, "shared_proxy", _loads_as_the_job_says),
        ),
    )
    yield Attempt(
        adversary=ADVERSARY,
        name="a proxy with fewer embeddings than tokens",
        attack=fails_on_a_token,
        known_bad="client that does not try the proxy first",
        without=lambda: _unchecked("check_shapes", "check_weights", "check_runs", "check_public_text"),
    )
    yield Attempt(
        adversary=ADVERSARY,
        name="a proxy that is not finite for a token",
        attack=not_finite_for_a_token,
        known_bad="client that does not look at the weights",
        without=lambda: _unchecked("check_finite", "check_runs"),
    )
    yield Attempt(
        adversary=ADVERSARY,
        name="a proxy that overflows for a token",
        attack=overflows_for_a_token,
        known_bad="client that takes any weights",
        without=takes_any_weights,
    )
    yield Attempt(
        adversary=ADVERSARY,
        name="a proxy in which chosen tokens alone have gradients",
        attack=traps_in_a_sum,
        known_bad="client that takes any weights",
        without=takes_any_weights,
    )


class _Exchanges(GridAround):
    """A grid that exchanges a file on a client's disk before it asks for training."""

    def __init__(self, grid: Grid, file: Path, content: bytes) -> None:
        super().__init__(grid)
        self._file, self._content = file, content

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Exchange the file if training is asked for, then push the messages and return their ids."""
        outgoing = list(messages)
        if any(m.metadata.message_type == wire.TRAIN for m in outgoing):
            self._file.write_bytes(self._content)
        return self._grid.push_messages(outgoing)


def _fails_at(
    stage: Stage, holders: list[str], token: int, change: Callable[[nn.Module, Any], object]
) -> str:
    """Have all clients train a changed proxy, which its maker does not check; return who fails, as text.

    Raises `ProtocolAborted` unless exactly the clients `holders` fail, whose records hold the token.
    """
    proxy = stage.world.another_proxy(change)
    model, tokenizer = load_llm(proxy, device="cpu", dtype="float32")
    sha256 = proxy_files.folder_sha256(proxy)
    job = stage.job.changed(proxy_sha256=sha256, proxy_loaded_sha256=loaded_sha256(model, tokenizer))
    with proxy_store.offered_on_this_host(proxy):
        trained = _who_trains(stage, job)
    failed = [c.name for c in stage.job.clients if c.name not in trained]
    if failed != holders:
        outcome = "refuse the proxy, before a record is read" if failed else "fail"
        raise ProtocolAborted(f"{len(failed)} of 4 clients {outcome}")
    return f"training fails at {failed[0]} alone, whose records hold {tokenizer.decode([token]).strip()!r}"


def _who_trains(stage: Stage, job: FederationJob) -> set[str]:
    """Return the names of the clients that answer a plain request for training."""
    asker = Asker(stage.grid(), timeout_s=60)
    nodes = dict.fromkeys((stage.node(i) for i in range(4)), wire.encode_setup(job))
    names = {n: ready.client for n, ready in asker.ask(wire.SETUP, nodes, "", wire.decode_ready)}
    adapter = stage.initial.adapter
    content = wire.encode_broadcast(
        wire.Broadcast(round=0, adapter=adapter, conflict=None, pcr_lambda=0.0, prox_mu=0.0)
    )
    updates = asker.ask(
        wire.TRAIN, dict.fromkeys(names, content), "", lambda c: wire.decode_update(c, d=len(adapter))
    )
    return {names[node] for node, _ in updates}


def _records(world: World, index: int) -> Sequence[Encoded]:
    """Return client `index`'s records as its model reads them."""
    with proxy_store.offered_on_this_host(world.proxy):
        return build_client(with_proxy(small_job(), world.proxy), index, world.proxy).items


def _first_weight(folder: Path) -> float:
    """Return one weight of a proxy as it is loaded for training."""
    model = proxy_model.load_proxy(folder, max_tokens=64, device="cpu", dtype="float32").model
    return float(next(model.parameters()).detach().view(-1)[0])


# contexts and replacements that take a client's checks out


def takes_any_weights() -> AbstractContextManager[object]:
    """Take out the checks for marks of a proxy that was made to leak."""
    return _unchecked("check_weights", "check_public_text")


def _unchecked(*names: str) -> AbstractContextManager[object]:
    """Load proxies without these checks."""
    return taken_out(*((proxy_model, name, _anything) for name in names))


def _anything(*_: object, **__: object) -> None:
    """Check nothing."""


def _loaded_as_transformers_likes(folder: Path, **_: object) -> ProxyModel:
    model, tokenizer = load_llm(folder, device="cpu", dtype="float32")
    return ProxyModel(model=model, tokenizer=tokenizer, loaded_sha256="")


def _first_seen() -> Any:
    """Return a hash function that reads each folder once and remembers its hash."""
    hashes: dict[Path, str] = {}

    def sha256_of(folder: Path) -> str:
        if folder not in hashes:
            hashes[folder] = proxy_files.verified_sha256(folder)
        return hashes[folder]

    return sha256_of


def _loads_as_the_job_says(job: FederationJob, folder: Path) -> SharedProxy:
    """Return the proxy under the hash that the job names, whatever was loaded."""
    return replace(shared_proxy(job, folder), loaded_sha256=job.proxy_loaded_sha256)
