"""An attack by a server that asks for private rounds in parallel, to have all judged before any is paid."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from fedproxy_secure.dp import ledger as privacy
from fedproxy_secure.dp.events import DiscreteSum
from fedproxy_secure.dp.guarantees import rounded_up
from fedproxy_secure.dp.ledger import PrivacyLedger
from fedproxy_secure.errors import FedProxyError, PrivacyError
from fedproxy_secure.flower.selftest.attempts import Attempt, Limit
from fedproxy_secure.flower.selftest.known_bad import taken_out
from fedproxy_secure.flower.selftest.stage import World
from fedproxy_secure.runtime.files.whole import remove_private

ADVERSARY = "parallel_server"
CALLS, LIMIT = 4, 5.0
# the integer noise of the privacy unit `client`, whose accountant needs no extra package
EVENT = DiscreteSum(
    mechanism="skellam",
    variance=2 * 4096.0**2,
    l2=4096.0,
    l1=4096.0**2,
    dimension=64,
    summands=3,
    rounds=1,
)


def passes_the_limit(world: World) -> str:
    """Ask for four rounds at once, from four adapters, under a limit that allows fewer."""
    folder = Path(tempfile.mkdtemp(dir=world.folder))
    ledger = PrivacyLedger(
        folder=folder, client="c0", run="run", unit="client", delta=1e-5, max_epsilon=LIMIT
    )
    ledger.open()
    refused: list[FedProxyError] = []

    def ask(number: int) -> None:
        try:
            ledger.once(round=0, inputs_sha256=bytes([number]) * 32, event=EVENT, compute=bytes)
        except FedProxyError as error:
            refused.append(error)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(CALLS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent, events = ledger.spent().epsilon, len(ledger.events())
    if spent <= LIMIT:
        raise PrivacyError(
            f"{events} of {CALLS} rounds granted, epsilon {rounded_up(spent)}; the rest: {refused[0]}"
            if refused
            else f"{events} rounds granted, epsilon {rounded_up(spent)}"
        )
    return (
        f"{events} of {CALLS} rounds granted under a limit of {LIMIT:g}, epsilon {rounded_up(spent)} spent"
    )


def attempts() -> Iterator[Attempt | Limit]:
    """Yield the attempts in the order in which they are shown."""
    yield Attempt(
        adversary=ADVERSARY,
        name="asks for private rounds in parallel",
        attack=passes_the_limit,
        known_bad="client whose ledger is not locked",
        without=_unlocked,
    )


def _unlocked() -> AbstractContextManager[None]:
    """Return a context without the ledger's lock: all calls judge the same ledger before the first pays.

    After that they still write one by one, so that the files stay whole.
    """
    all_judged, writing = threading.Barrier(CALLS, timeout=60), threading.RLock()
    pay, keep = PrivacyLedger._pay, PrivacyLedger._keep_result

    def pays(self: PrivacyLedger, place: Any, events: Any, event: Any) -> tuple[int, bytes]:
        all_judged.wait()
        with writing:
            return pay(self, place, events, event)

    def keeps(self: PrivacyLedger, place: Any, number: int, result: bytes) -> None:
        with writing:
            keep(self, place, number, result)

    def removes(path: Path) -> None:
        with writing:
            remove_private(path)

    return taken_out(
        (privacy, "_locked", lambda *_: nullcontext()),
        (privacy, "remove_private", removes),
        (PrivacyLedger, "_pay", pays),
        (PrivacyLedger, "_keep_result", keeps),
    )
