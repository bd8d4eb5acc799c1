"""What attacks read, in words, and which surface of privacy a finding speaks of.

This is the one place where surfaces are named. A finding says which ones its attack used (`read`), and the
measures that it feeds say what it looks for; nothing here knows an attack.
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
# the first surface that was read decides; an attack on updates reads the models as well
_BY_READING = (("IND", SINGLE), ("AGG", SUM), ("MR", SUM), ("MOD", MODEL), ("API", MODEL))
_AUDITS = {EPSILON_AUDITED.key, AUDITED_OVER_CLAIMED.key}
# what findings map to: membership, inversion and leakage of what a model was trained on ...
_LEAKS = {"AML.T0024.000", "AML.T0024.001", "AML.T0057"}
_PROTOCOL = "MEASURE 2.7"  # ... unless it is the protocol's security that is tried


def in_words(surfaces: Iterable[str]) -> str:
    """Return surfaces as people read them, such as `single updates, models of the rounds`."""
    return ", ".join(READ.get(s, s) for s in surfaces)


def surface_of(finding: Finding) -> str:
    """Return the surface of privacy that a finding speaks of; empty if it speaks of none.

    It speaks of one if its attack looks for what is in records: if it feeds a measure of privacy, or maps
    to a leak of training data. It speaks of none where it deviates from the protocol, audits a claim of
    differential privacy, or used nothing.
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
    """Return the registered measures of privacy that a finding feeds, by key, in its order."""
    known = MEASURES.names()
    return [key for key in finding.measures if key in known and measure_kind(key).axis == "privacy"]
