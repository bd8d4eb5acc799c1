"""The terms that a server proposes arrive as they were, all of them."""

from dataclasses import fields

from flwr.app import RecordDict

from fedproxy_secure.secagg.terms import Terms
from fedproxy_secure.wire.protocol import ProposedTerms, decode_terms, encode_terms
from tests.support.masked_cohort import PLAN, TERMS


def names(kind):
    return {field.name for field in fields(kind)}


def test_terms_arrive_as_they_were_proposed():
    content = RecordDict({"terms": encode_terms(TERMS, 0.5)})
    proposed = decode_terms(content)
    assert proposed.clip == 0.5
    assert proposed.with_plan(PLAN) == TERMS
    assert set(content["terms"]) == names(ProposedTerms)


def test_every_term_is_proposed_but_the_plan_and_the_cosines_which_come_later():
    """One with a default that is not proposed would have it on every client, and nothing would fail."""
    assert names(ProposedTerms) == names(Terms) - {"plan", "gram_sha256"} | {"plan_sha256", "clip"}
