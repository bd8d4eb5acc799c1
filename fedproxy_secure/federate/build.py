"""Make a client ready for its first round: check the proxy, read its records, open its privacy ledger."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

from fedproxy_secure.data.encode import Encoded, encode_each, encode_records
from fedproxy_secure.data.tasks import load_task
from fedproxy_secure.dp.ledger import PrivacyLedger, own_salt
from fedproxy_secure.dp.record_noise import record_noise
from fedproxy_secure.errors import ConfigError, ProtocolAborted
from fedproxy_secure.federate.client import LEAST_RECORDS, LocalClient, Privacy
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.model_checks import check_fits, check_private
from fedproxy_secure.federate.shared_proxy import shared_proxy

log = logging.getLogger(__name__)


def build_client(job: FederationJob, index: int, model_folder: Path) -> LocalClient:
    """Return client `index` of a job, with its records read and encoded, on the proxy in `model_folder`.

    Clients of one process share one copy of the model (`LentModel`). The proxy, its tokenizer included, is
    loaded and checked before any record is read. With differential privacy no exception that encoding a
    record raises is passed on. Errors of reading the client's own files are passed on, and so is the number
    of records. Not proved: that no text makes native code of the tokenizer end the process.

    Raises `ProtocolAborted` if the proxy loads as another model than the job names, what `load_proxy`
    raises, and `DataError` for records that cannot be used.
    """
    proxy = shared_proxy(job, model_folder)
    if proxy.loaded_sha256 != job.proxy_loaded_sha256:
        raise ProtocolAborted(
            f"proxy loads as {proxy.loaded_sha256[:12]}: must be as the job says, "
            f"{job.proxy_loaded_sha256[:12] or 'nothing'}; server and clients need the same files and the "
            "same version of transformers"
        )
    tokenizer = proxy.tokenizer
    private = job.privacy.unit == "record"
    if private:
        with proxy.model.lent() as tuned:
            check_private(tuned)
            check_fits(
                tuned,
                tokens=max(tokenizer.get_vocab().values()) + 1,
                longest=job.max_tokens,
                pad_id=tokenizer.pad_token_id,
            )
    client = job.clients[index]
    encode = encode_records if job.privacy.unit == "none" else encode_each
    task = load_task(client, root=job.data_root, audit=job.audit, seed=job.seed)
    encoded = encode(task.train, tokenizer, max_tokens=job.max_tokens)
    items = encoded.items
    if job.privacy.unit == "client":
        # only the client's own log says how many are left out; with too few usable, training sends zeros
        usable = tuple(item for item in items if item.ids)
        if len(usable) < len(items):
            message = "%s: %d of %d records cannot be encoded and are left out"
            log.warning(message, client.name, len(items) - len(usable), len(items))
        items = usable if len(usable) >= LEAST_RECORDS else items
    return LocalClient(
        name=client.name,
        model=proxy.model,
        items=items,
        truncated=encoded.truncated,
        pad_id=tokenizer.pad_token_id,
        local=job.local,
        rounds=job.federate.rounds,
        seed=job.seed,
        privacy=_privacy(job, client.name, items) if private else None,
    )


def _privacy(job: FederationJob, name: str, items: Sequence[Encoded]) -> Privacy:
    settings = job.privacy
    if settings.ledger is None:
        raise ConfigError("privacy.ledger: must name the folder in which to write what was spent")
    noise = record_noise(settings, job.local, rounds=job.federate.rounds, records=len(items))
    # salted: otherwise whoever reads the ledger could test whether a guessed record is among them
    salt = own_salt(Path(settings.ledger), name)
    plain = repr([(i.ids, i.response_start) for i in items]).encode()
    records = hashlib.sha256(salt + plain).hexdigest()
    ledger = PrivacyLedger(
        folder=Path(settings.ledger),
        client=name,
        # the same noise must not be used again for another model or with other arithmetic
        run=f"{job.agreed_sha256().hex()}/{records}/{job.device}/{job.dtype}",
        unit="record",
        delta=settings.target_delta,
        max_epsilon=settings.limit,
    )
    ledger.open()
    return Privacy(noise=noise, ledger=ledger, simulated=settings.randomness == "unsafe_simulated")
