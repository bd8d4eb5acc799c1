"""Kinds of measures: what they refuse, their order, and a measure that no installed package has."""

from dataclasses import replace

import pytest

from attacks import registry as attacks
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.evidence.estimate import counted
from fedproxy_secure.evidence.measure import AXES, MEASURES, MeasureKind, in_order, measure_kind
from fedproxy_secure.gate.rules import OTHERS, limit_names, limit_of
from fedproxy_secure.report.sweep import headline
from fedproxy_secure.report.tables.measures import first_tables
from fedproxy_secure.report.text.trilemma_table import headings, lines
from fedproxy_secure.report.trilemma import Configuration, Measure
from tests.support.sample_report import sample_report

KIND = MeasureKind(key="guesses", title="guesses", axis="privacy", better="higher", unit="count")


def measure(key, value=3.0, *, axis="privacy", better="lower", metric="odd number", unit="count"):
    estimate = counted(value, metric=metric, unit=unit, seeds=[0])
    return Measure(axis=axis, key=key, better=better, estimate=estimate, source="result.json#x")


def configuration(*measures):
    return Configuration(name="c", scheme="masking", settings={}, seeds=(0,), measures=measures)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"key": "my measure"}, "measure 'my measure': key='my measure': must be letters, digits and _"),
        ({"key": ""}, "key='': must be"),
        ({"title": ""}, "title='': must be a short name"),
        ({"unit": ""}, "unit='': must be a unit"),
        ({"axis": "speed"}, "axis='speed': must be one of performance, privacy, ip, cost"),
        ({"better": "more"}, "better='more': must be one of higher, lower, neither"),
        ({"better": "neither"}, "better='neither': must be higher or lower"),
        ({"by": "me"}, "by='me': must be attacks or run"),
        ({"within": (1.0, 0.0)}, r"within=\(1.0, 0.0\): must be \(lowest, highest\)"),
        ({"phrase": "it guesses"}, "phrase='it guesses': must be a phrase with {}"),
    ],
)
def test_a_kind_that_nobody_could_show_or_judge_is_refused_in_one_line(change, line):
    with pytest.raises(ConfigError, match=line) as raised:
        replace(KIND, **change)
    assert "\n" not in str(raised.value)


def test_every_measure_of_this_project_is_registered_under_its_own_key_axis_by_axis():
    kinds = [measure_kind(key) for key in MEASURES.names()]
    assert [k.key for k in kinds] == list(MEASURES.names())
    axes = [AXES.index(k.axis) for k in kinds]
    assert axes == sorted(axes)
    assert all(k.meaning for k in kinds)


def test_a_kind_under_another_name_than_its_key_is_refused():
    line = "measure 'tries': key='guesses'; must be 'tries', as it is registered"
    with pytest.raises(ConfigError, match=line):
        MEASURES.add("tries", KIND)
    assert "tries" not in MEASURES.names()


def test_order_is_the_registrys_then_that_of_the_keys():
    assert in_order(["odd", "upload_bytes", "gap_closed", "odd", "even"]) == [
        "gap_closed",
        "upload_bytes",
        "odd",
        "even",
    ]


def test_a2_and_its_measure_claim_the_words_in_use_and_not_the_tokens_of_a_round():
    kind = measure_kind("token_auc")
    told = (kind.title, kind.metric, kind.meaning, kind.phrase, attacks.get("lora_span_tokens").info.title)
    assert not any("record" in text or "token" in text for text in told)
    assert "words that clients use" in kind.phrase
    assert "words that clients use" in told[-1]


def test_a_measure_that_no_installed_package_has_is_shown_by_what_it_says_itself():
    odd = measure("an odd <key>", better="higher")
    one = configuration(measure("token_auc", 0.5, unit="AUC"), odd)
    assert odd.kind.title == "odd number"
    assert headings([one]) == ("configuration", "vocabulary AUC", "odd number")
    assert lines([one]) == [("c", "0.5", "3")]
    report = replace(sample_report(), configurations=(one,))
    (table,) = first_tables(report)
    assert [(c.title, c.arrow) for c in table.columns] == [("vocabulary AUC", "↓"), ("odd number", "↑")]


def test_a_nameless_measure_of_a_damaged_report_is_still_a_kind():
    nameless = replace(measure("x"), estimate=replace(measure("x").estimate, metric="", unit=""))
    assert nameless.kind.title == "unnamed"


def test_a_higher_rank_stands_for_an_axis_only_where_as_many_have_it():
    both = [configuration(measure("token_auc"), measure("tpr_at_1pct_fpr")) for _ in range(2)]
    assert headline(both, "privacy") == "tpr_at_1pct_fpr"
    assert headline([both[0], configuration(measure("token_auc"))], "privacy") == "token_auc"
    assert headline([configuration(measure("x", better="neither"))], "privacy") is None


def test_proxies_are_compared_by_the_kl_that_is_left_and_one_proxy_s_protections_by_extraction_r():
    r = measure("extraction_R", 0.5, axis="ip", unit="share")
    kl = measure("kl_left_nats", 0.1, axis="ip", better="higher", unit="nats")
    one, other = (
        replace(configuration(r, kl), settings={"compression": kind}) for kind in ("drop_blocks", "width")
    )
    assert headline([one, one], "ip") == "extraction_R"
    assert headline([one, other], "ip") == "kl_left_nats"
    removed = replace(one, settings={"compression": "drop_blocks", "remove_ratio": "0.25"})
    assert headline([one, removed], "ip") == "kl_left_nats"
    assert headline([replace(c, measures=(r,)) for c in (one, other)], "ip") == "extraction_R"
    assert limit_of("min_kl_left_nats").by_attacks


def test_a_limit_bounds_on_the_side_that_is_worse_and_within_what_can_be():
    assert limit_of("max_token_auc").high == 1
    assert limit_of("min_token_auc") is None
    assert limit_of("min_owners_edge").low == -1
    assert limit_of("max_owners_edge") is None
    assert {"max_proxy_cka", "min_proxy_cka"} <= set(limit_names())
    with MEASURES.added("guesses", KIND):
        assert "min_guesses" in limit_names()
        assert limit_of("min_guesses").by_attacks
    assert limit_of("min_guesses") is None


def test_no_measure_of_another_package_changes_what_a_rule_means():
    seeds = replace(KIND, key="seeds")
    epsilon = replace(KIND, key="epsilon", better="lower")
    with MEASURES.added("seeds", seeds), MEASURES.added("epsilon", epsilon):
        assert "min_seeds" in OTHERS
        assert limit_of("min_seeds") is None
        assert "min_seeds" not in limit_names()
        assert limit_of("max_epsilon").keys == ("epsilon_claimed", "epsilon_spent")
