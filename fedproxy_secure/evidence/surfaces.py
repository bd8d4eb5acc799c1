"""The surfaces that attacks read, in words, and the surface of privacy that a finding is about.

Only this module names surfaces. A finding has those that its attack used (`read`), and the measures that it
feeds show what the attack looks for, so that this module depends on no attack.
"""

from __future__ import annotations

from collections.abc import Iterable

from fedproxy_secure.evidence.finding import Finding
from fedproxy_secure.evidence.measure import MEASURES, measure_kind
from fedproxy_secure.evidence.measures.privacy import (
    AUDITED_OVER_CLAIMED,
    CANARY_EXPOSURE_BITS,
    EPSILON_AUDITED,
)

READ = {
    "IND": "single updates",
    "AGG": "sums",
    "MR": "many rounds",
    "MOD": "models of the rounds",
    "API": "queries to the fused LLM",
    "ACT": "power to deviate",
}
SINGLE, SUM, MODEL, PLANTED = "single update", "sum of updates", "final model", "planted secrets"
PRIVACY_SURFACES = {
    SINGLE: "what one client sends in a round",
    SUM: "what the clients of a round send together, and the step that follows from it",
    MODEL: "the tuned proxy, and answers of the fused LLM",
    PLANTED: "secrets that were put into clients' records, in the final model",
}
# the first surface that was read decides, because an attack on updates also reads the models
_BY_READING = (("IND", SINGLE), ("AGG", SUM), ("MR", SUM), ("MOD", MODEL), ("API", MODEL))
_AUDITS = {EPSILON_AUDITED.key, AUDITED_OVER_CLAIMED.key}
# items that findings map to: membership, inversion and leakage of training data ...
_LEAKS = {"AML.T0024.000", "AML.T0024.001", "AML.T0057"}
_PROTOCOL = "MEASURE 2.7"  # ... unless the attack tests the protocol's security


def in_words(surfaces: Iterable[str]) -> str:
    """Return surfaces in words, such as `single updates, models of the rounds`."""
    return ", ".join(READ.get(s, s) for s in surfaces)


def surface_of(finding: Finding) -> str:
    """Return the surface of privacy that a finding is about; empty if there is none.

    There is one if the attack looks for content of records: if it feeds a measure of privacy, or maps to a
    leak of training data. There is none if the attack deviates from the protocol, audits a claim of
    differential privacy, or used no surface.
    """
    keys = set(privacy_measures(finding))
    mapped = {item for *_, item in finding.mapping}
    leaks = bool(keys) or (bool(mapped & _LEAKS) and _PROTOCOL not in mapped)
    if not leaks or keys & _AUDITS or "ACT" in finding.read or not finding.read:
        return ""
    if CANARY_EXPOSURE_BITS.key in keys:
        return PLANTED
    return next((surface for code, surface in _BY_READING if code in finding.read), "")


def privacy_measures(finding: Finding) -> list[str]:
    """Return the keys of the registered measures of privacy that a finding feeds, in its order."""
    registered = MEASURES.names()
    return [key for key in finding.measures if key in registered and measure_kind(key).axis == "privacy"]
