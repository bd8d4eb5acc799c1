"""A10 by model inconsistency: one client gets the adapter, all others get one that stops their training.

- `suppression`: with A = B = 0 no gradient reaches an adapter's tensors, so the others send zeros, and the
  sum is the victim's update.
- `canary bit`: the others lack a single component (a row of one A and the matching column of B). Their
  round is like any other, but in that component the sum is the victim's, and one bit about it can be read.

Where A is frozen (adapter kinds `ffa` and `core`) nothing can be silenced this way, because the gradient of
B does not depend on B. Masking alone is no defence: the sum *is* exact. The defence is that every client
checks the broadcast's hash against the round's terms, which all clients sign.

Pasquini, Francati & Ateniese 2022, Eluding Secure Aggregation (arXiv 2111.07380), here for adapters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from attacks.base import Budget
from attacks.integrity.rehearsal import client_of, with_steps
from attacks.white_box import WhiteBox
from fedproxy_secure.data.encode import Encoded
from fedproxy_secure.errors import ProtocolAborted, RoundAborted
from fedproxy_secure.record.view import PublicSettings
from fedproxy_secure.secagg.selftest.rehearsal import Cohort, identities, names, ring, terms_for
from fedproxy_secure.secagg.terms import TermsPolicy

STEPS = 1  # local steps of the round that is played
SUPPRESSION, CANARY_BIT = "suppression", "canary bit"


def silenced(box: WhiteBox, attempt: str) -> np.ndarray:
    """Return which numbers of the adapter the other clients do not get, bool [d]."""
    sizes = [int(np.prod(s)) for s in box.shapes]
    mask = np.full(sum(sizes), attempt == SUPPRESSION)
    if attempt == SUPPRESSION:
        return mask
    group = f".{box.adapted[0]}.{box.shared_input(box.adapted[0]).names[0]}."
    at = 0
    for name, shape, size in zip(box.names, box.shapes, sizes, strict=True):
        part = mask[at : at + size].reshape(shape)
        if group in name and ".lora_A." in name:
            part[0, :] = True
        elif group in name and ".lora_B." in name:
            part[:, 0] = True
        at += size
    return mask


def sha256_of(adapter: np.ndarray) -> bytes:
    """Return the SHA-256 that clients compare with the one in the terms."""
    return hashlib.sha256(adapter.astype("<f4").tobytes()).digest()


def played_round(
    box: WhiteBox,
    settings: PublicSettings,
    records: Mapping[str, Sequence[Encoded]],
    adapter: np.ndarray,
    mask: np.ndarray,
    *,
    checked: bool,
    budget: Budget,
    round: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Play a round in which all clients but the first get `adapter` with zeros where `mask` is true.

    Returns (the sum that the server reads, the first client's update), float32 [d].

    Args:
        box: the proxy.
        settings: the run's public settings.
        records: records of each client, by name; at least 3 clients.
        adapter: the adapter that the first client gets, float32 [d].
        mask: where the others get zeros, bool [d].
        checked: whether clients compare the adapter with the terms, as installed clients do.
        budget: limits of the attack.
        round: the run's round whose first learning rate clients use.

    Raises `ProtocolAborted` if clients notice.
    """
    settings = with_steps(settings, STEPS, round=round)
    victim, *other_names = names(len(records))
    keys, roster = identities(len(records))
    # ten times what a step can move, so that nothing is clipped
    plan = ring(len(records), len(adapter), clip=10 * max(settings.local.learning_rate, 1e-3))
    terms = terms_for(plan, roster, broadcast_sha256=sha256_of(adapter))
    policy = TermsPolicy(roster=roster, settings_sha256=terms.settings_sha256, colluders=0, rounds=1)
    silenced_adapter = np.where(mask, np.float32(0), adapter)
    updates: dict[str, np.ndarray] = {}
    refused = ""
    for name, (client, items) in zip((victim, *other_names), sorted(records.items()), strict=True):
        budget.check()
        received = adapter if name == victim else silenced_adapter
        try:
            if checked:
                policy.check(terms, name=name, broadcast_sha256=sha256_of(received), plan=plan)
        except ProtocolAborted as error:
            refused = refused or str(error)
            continue
        updates[name] = client_of(box, settings, client, items).train(round=0, start=received).update
    cohort = Cohort(
        terms=terms, keys=keys, roster=roster, drops={"advertise": set(other_names) - set(updates)}
    )
    try:
        result = cohort.run(updates)
    except RoundAborted as error:
        raise ProtocolAborted(refused or str(error)) from error
    return result.sums["update"], updates[victim]
