"""The demo shows what leaks without protection, and what masking and differential privacy take away."""

import pytest

from fedproxy_secure.config import load_config
from fedproxy_secure.evidence.finding import Outcome
from fedproxy_secure.experiments.matrix import matrix

pytestmark = [pytest.mark.slow, pytest.mark.torch, pytest.mark.timeout(1800)]
CHANCE = 0.5  # of an AUC
# surface -> attack, view; the attacks that its row on the report leads with
HEADLINES = {
    "single update": ("A15", "server"),
    "final model": ("A6", "client"),
    "planted secrets": ("A7", "client"),
}


@pytest.fixture(scope="module")
def protections(tmp_path_factory):
    """Return the findings of the demo's three cells: unprotected, masked, masked and private."""
    report = matrix(load_config("configs/demo_trilemma.yaml"), tmp_path_factory.mktemp("demo"))
    assert not any(cell.failed for cell in report.configurations)
    plain, masked, private = (cell.findings for cell in report.configurations)
    return {"plain": plain, "masked": masked, "private": private}


def headline(protections, protection, surface):
    attack, view = HEADLINES[surface]
    (finding,) = (f for f in protections[protection] if (f.id, f.view) == (attack, view))
    return finding


@pytest.mark.parametrize("surface", HEADLINES)
def test_without_protection_an_attack_succeeds_on_each_surface(protections, surface):
    assert headline(protections, "plain", surface).outcome == Outcome.SUCCEEDED


def test_masking_takes_membership_from_a_single_update(protections):
    plain, masked = (
        headline(protections, name, "single update").estimates[0] for name in ("plain", "masked")
    )
    assert masked.high < plain.low


@pytest.mark.parametrize("surface", HEADLINES)
def test_differential_privacy_takes_every_headline_to_chance(protections, surface):
    found = headline(protections, "private", surface)
    assert found.estimates[0].low <= CHANCE
    assert found.outcome != Outcome.SUCCEEDED


@pytest.mark.parametrize("surface", HEADLINES)
@pytest.mark.parametrize("protection", ["plain", "masked", "private"])
def test_no_headline_is_without_an_answer(protections, protection, surface):
    assert headline(protections, protection, surface).outcome in (Outcome.SUCCEEDED, Outcome.RESISTED)
