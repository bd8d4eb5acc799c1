"""Run the self test's attempts of an adversary, and tell which of them succeeded.

The attempts themselves are the installation's own (`fedproxy_secure.secagg.selftest` without a transport,
`fedproxy_secure.flower.selftest` over Flower messages); A10 counts those that succeed. Attempts that the
self test calls a known limit lie outside what a threat model assumes, and are not counted.
"""

from __future__ import annotations

from collections.abc import Iterator

from attacks.base import KNOWN_BAD, NOBODY, Budget
from fedproxy_secure.secagg.selftest.attempts import WITH_CLIENT, Finding

INSTALLED = "installed"
DEFAULT = "active_server"
# threat model -> adversaries in the protocol's own attempts, and in those over Flower messages
PROTOCOL = {
    "active_server": ("server", "network", "client"),
    "active_server_with_clients": ("server", "network", "client", WITH_CLIENT),
    "active_network": ("network",),
}
OVER_FLOWER = {
    "active_server": ("active_server",),
    "active_server_with_clients": ("active_server",),
    "parallel_server": ("parallel_server",),
    "malicious_proxy": ("malicious_proxy",),
    "sybils": ("sybils",),
}


def asked(threat_model: str) -> tuple[str, str]:
    """Return who is attacked and by which adversary, from a view's name with a control's prefix.

    The adversary is `DEFAULT` for a name without attempts of its own.

    >>> asked("known-bad sybils")
    ('known-bad', 'sybils')
    """
    who = next((w for w in (KNOWN_BAD, NOBODY) if threat_model.startswith(w)), INSTALLED)
    name = threat_model.removeprefix(who).strip()
    return who, name if name in PROTOCOL or name in OVER_FLOWER else DEFAULT


def tried(threat_model: str, budget: Budget) -> dict[str, bool]:
    """Return each attempt of a view's adversary by name, and whether it succeeded."""
    who, adversary = asked(threat_model)
    outcomes: dict[str, bool] = {}
    for finding in _findings(who, adversary, budget):
        budget.check()
        known_bad = KNOWN_BAD in finding.attempt
        target = NOBODY if finding.adversary == NOBODY else KNOWN_BAD if known_bad else INSTALLED
        if target == who and not finding.limit:
            outcomes[f"{finding.adversary}: {finding.attempt}"] = (
                finding.ok if known_bad else not finding.ok
            )
    return outcomes


def _findings(who: str, adversary: str, budget: Budget) -> Iterator[Finding]:
    """Yield the findings of the protocol's own attempts, then those over Flower messages.

    The smallest profile leaves the latter out for an adversary that has attempts of both kinds.
    """
    from fedproxy_secure.secagg.selftest.attempts import findings

    parties = PROTOCOL.get(adversary, ())
    for finding in findings():
        if finding.adversary in (NOBODY, *parties):
            yield finding
    over_flower = OVER_FLOWER.get(adversary, ())
    if who == NOBODY or not over_flower or (parties and budget.profile == "smoke"):
        return
    from fedproxy_secure.flower.selftest import findings as flower_findings

    yield from flower_findings(*over_flower)
