"""The report's sentences on what clients get of the LLM."""

from dataclasses import replace

import pytest

from fedproxy_secure.evidence.estimate import Estimate, counted
from fedproxy_secure.evidence.finding import Finding, Outcome
from fedproxy_secure.evidence.measure import measure_kind
from fedproxy_secure.report.html.page import page
from fedproxy_secure.report.owner import NOT_ATTACKED, TITLE, owners_rows
from fedproxy_secure.report.protections.verdicts import in_words
from fedproxy_secure.report.report import Report
from fedproxy_secure.report.text.markdown import markdown_report
from fedproxy_secure.report.trilemma import Configuration, Measure
from tests.support.page_walk import faults, parse


def estimate(metric, value, low, high, unit="share"):
    return Estimate(
        metric=metric,
        value=value,
        low=low,
        high=high,
        n=800,
        unit=unit,
        how="h",
        seeds=(0,),
        nature="sampled",
    )


def measure(key, value, low, high):
    return Measure.of_kind(measure_kind(key), estimate(key, value, low, high), "result.json#x")


def extraction(r, *, view="client", healed=0.2, outcome=Outcome.SUCCEEDED):
    return Finding(
        attack="proxy_extraction",
        id="A12",
        title="t",
        view=view,
        surfaces=("MOD", "API"),
        seed_folder="seed-0",
        profile="standard",
        outcome=outcome,
        reason="because",
        estimates=(
            estimate("extraction R", r, r - 0.02, r + 0.02),
            estimate("healing R", healed, healed - 0.02, healed + 0.02),
            estimate("KL that is left", 1 - r, 0.98 - r, 1.02 - r, unit="nats"),
        ),
        measures={"extraction_R": (0,), "healing_R": (1,), "kl_left_nats": (2,)},
        positive=None,
        negative=None,
        seconds=1.0,
        seed=0,
        mapping=(),
        read=("API", "MOD"),
        chance=0.0,
        margin=0.05,
    )


def configuration(name, *findings, edge=(0.01, 0.002, 0.018), held=0.1, **settings):
    exact = counted(held, metric="verbatim_share", unit="share", seeds=(0,))
    return Configuration(
        name=name,
        scheme="masking",
        settings={"protection": "masking", "compression": "width", "remove_ratio": "0.5", **settings},
        seeds=(0,),
        measures=(
            measure("owners_edge", *edge),
            Measure.of_kind(measure_kind("verbatim_share"), exact, "result.json#x"),
        ),
        findings=findings,
        api_answers="logits",
    )


def report_of(*configurations):
    return Report(
        name="made",
        command="c",
        config_sha256="5a" * 32,
        environment={},
        seeds=(0,),
        configurations=configurations,
    )


def words(row):
    return " ".join(map(in_words, row.sentences))


def test_an_owner_reads_what_is_held_what_is_hers_and_how_far_the_strongest_attack_gets():
    (row,) = owners_rows(report_of(configuration("one", extraction(0.7))))
    assert row.proxy == ""
    assert words(row) == (
        "A client holds 10 % of the LLM's weights number for number. "
        "The owner's model is better than the clients' model: the fused LLM's accuracy minus the tuned "
        "proxy's is +1.0 ± 0.8 points. "
        "The strongest attack gets 70.0 ± 2.0 % of the way from the tuned proxy to the fused LLM "
        "(A12 from client, standard, through an API that returns all logits). "
        "The best copy of the fused LLM remains at a KL divergence of 0.300 ± 0.020 nats from it; a "
        "perfect copy would have none. "
        "Without a single query, with public text and computing time alone, an attacker gets 20.0 ± 2.0 % "
        "of the way."
    )


@pytest.mark.parametrize(
    ("edge", "begin"),
    [
        ((0.01, 0.002, 0.018), "The owner's model is better than the clients' model"),
        ((0.01, -0.002, 0.022), "These records do not show which model is better"),
        ((-0.01, -0.018, -0.002), "The clients' model is better than the owner's model"),
        ((0.01, None, None), "The owner's edge was measured without an interval"),
    ],
)
def test_who_has_the_better_model_follows_from_the_edge_s_interval(edge, begin):
    (row,) = owners_rows(report_of(configuration("one", edge=edge)))
    assert begin in words(row)


def test_of_configurations_with_the_same_proxy_the_worst_for_the_owner_is_told():
    (row,) = owners_rows(
        report_of(
            configuration("open", extraction(0.5), protection="unsafe_plaintext"),
            configuration(
                "masked", extraction(0.4), extraction(0.6, view="outsider"), edge=(-0.02, -0.03, -0.01)
            ),
        )
    )
    assert "is −2.0 ± 1.0 points" in words(row)
    assert "60.0 ± 2.0 % of the way" in words(row)
    assert "A12 from outsider" in words(row)
    assert "at a KL divergence of 0.400 ± 0.020 nats" in words(row)  # the least of all that is left


def test_each_proxy_has_a_row_of_its_own_named_by_what_makes_it():
    made = report_of(configuration("a"), configuration("b", compression="low_rank"))
    assert [row.proxy for row in owners_rows(made)] == ["width, 50 % removed", "low rank, 50 % removed"]


def test_a_proxy_that_nobody_attacked_is_said_to_be_unknown():
    (row,) = owners_rows(report_of(configuration("one")))
    assert words(row).endswith(NOT_ATTACKED)


def test_an_inconclusive_attack_is_called_so():
    (row,) = owners_rows(report_of(configuration("one", extraction(0.1, outcome=Outcome.INCONCLUSIVE))))
    assert "(A12 from client, standard, inconclusive, through" in words(row)


def test_a_report_without_measures_of_ip_has_no_such_rows():
    bare = replace(configuration("one"), measures=())
    assert owners_rows(report_of(bare)) == ()
    assert TITLE not in markdown_report(report_of(bare))


def test_the_words_stand_in_markdown_and_on_the_page_whose_numbers_say_what_they_rest_on():
    made = report_of(
        configuration("a", extraction(0.7)), configuration("b", extraction(0.3), compression="<low>_rank")
    )
    text = markdown_report(made)
    assert f"## {TITLE}" in text
    assert "<low>" not in text
    html = page(made)
    assert TITLE in html
    assert "<low>" not in html
    assert faults(parse(html)) == []


def test_who_has_the_better_model_on_free_text_is_told_by_loss():
    edges = {
        "The owner's model is better than the clients' model": (0.02, 0.2),
        "The clients' model is better than the owner's model": (-0.2, -0.02),
    }
    for begin, (low, high) in edges.items():
        c = configuration("c", extraction(0.5))
        c = replace(c, measures=(measure("owners_edge_nats", (low + high) / 2, low, high),))
        (row,) = owners_rows(report_of(c))
        assert begin in words(row)
        assert f"{begin} on free text: the tuned proxy's loss minus the fused LLM's is " in words(row)
