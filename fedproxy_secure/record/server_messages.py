"""Note in the leakage ledger what the server's messages reveal to clients: the proxy, then adapters."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from fedproxy_secure.record.leakage import Ledger
from fedproxy_secure.runtime.artifacts import RunFolder

PROXY_REVEALS = "the proxy; the report says what share of the LLM's weights it holds word for word"
ADAPTER_REVEALS = "the adapter so far: what all clients' updates have made of it"


def note_proxy(ledger: Ledger, shipped: Mapping[str, int], had: Collection[str] = ()) -> None:
    """Note the proxy, once for each client that was sent some of it or already has it.

    Args:
        shipped: how many bytes of the proxy were sent, by client's name, also to clients left out later.
        had: clients that have it already.
    """
    for name in {*had, *shipped}:
        size = shipped.get(name, 0)
        ledger.note("Proxy", to="clients", reveals=PROXY_REVEALS, payload_bytes=size, vector=True)


def note_adapter(ledger: Ledger, clients: Collection[str], payload_bytes: int) -> None:
    """Note the broadcast adapter, of `payload_bytes` bytes, once for each client of a round."""
    for _ in clients:
        ledger.note(
            "Broadcast", to="clients", reveals=ADAPTER_REVEALS, payload_bytes=payload_bytes, vector=True
        )


@contextmanager
def proxy_noted_if_aborted(
    folder: RunFolder | None, round: int, shipped: Mapping[str, int]
) -> Iterator[None]:
    """If the set-up in the block raises, write into the folder's ledger what was sent of the proxy.

    Args:
        round: the round after set-up; the lines are marked `aborted`.
        shipped: as for `note_proxy`; read after the block has raised.
    """
    try:
        yield
    except BaseException:
        if folder is not None and shipped:
            ledger = Ledger(round=round)
            note_proxy(ledger, shipped)
            ledger.write(folder, aborted=True)
        raise
