"""Rows of a comparison, and differences between methods."""

from dataclasses import replace

import pytest

from fedproxy_secure.config import parse_config
from fedproxy_secure.errors import ConfigError, FedProxyError
from fedproxy_secure.evidence.measures.cost import UPLOAD_BYTES
from fedproxy_secure.experiments.sweeps.method_differences import differences_of
from fedproxy_secure.experiments.sweeps.method_notes import unresolved_gaps
from fedproxy_secure.experiments.sweeps.method_rows import costs_of, rows_of
from fedproxy_secure.report.report import Report
from fedproxy_secure.report.tables.comparison import effect_table
from tests.support.finished_cells import RECORDS, finished

TWO = ("fedot_equal_bytes", "fedproxy_h_ties")


def test_a_row_has_both_measures_and_its_gap_is_by_acc():
    results = [
        finished(method, None, seed, share)
        for seed in (0, 1)
        for method, share in (("zero_shot", 0.2), ("fedavg_llm", 0.5), ("centralised_llm", 0.8))
    ]
    row = next(r for r in rows_of(results) if r.method == "fedavg_llm")
    assert row.average.value == row.tasks["bank"].value == pytest.approx(0.5)
    assert row.average_norm.value == row.tasks_norm["bank"].value == pytest.approx(0.6)
    assert row.gap_closed.value == pytest.approx(0.5)
    assert row.average_norm.metric == "acc_norm, fedavg_llm"


def test_upload_is_counted_and_called_as_in_a_matrix():
    (cost,) = costs_of([finished("fedproxy_h_ties", 0.5, seed, 0.5) for seed in (0, 1)])
    assert cost.metric == f"{UPLOAD_BYTES.estimate_name}, fedproxy_h_ties at 0.5"
    assert (cost.value, cost.exact, cost.n, cost.seeds) == (7, True, 2, (0, 1))


def test_gap_edge_and_differences_by_acc_norm_are_computed_as_by_acc():
    def with_tuned(method, share, tuned):
        made, other = finished(method, 0.25, 0, share), finished(method, 0.25, 0, tuned)
        return replace(made, outcome=replace(made.outcome, tuned=other.outcome.fused))

    results = [
        finished("zero_shot", None, 0, 0.25),
        capped("centralised_llm", 0.85, norm=0.75),
        with_tuned("fedproxy_h_ties", 0.5, 0.4),
        with_tuned("fedot", 0.4, 0.4),
    ]
    row = next(r for r in rows_of(results) if r.method == "fedproxy_h_ties")
    assert row.gap_closed.value == pytest.approx((0.5 - 0.25) / (0.85 - 0.25))
    assert row.gap_closed_norm.value == pytest.approx((0.6 - 0.35) / (0.75 - 0.35))
    assert row.tuned_proxy_norm.value == pytest.approx(0.5)
    assert row.owners_edge_norm.value == row.owners_edge.value == pytest.approx(0.1)
    (pair,) = (d for d in differences_of(results, ["fedot"]) if d.method == "fedproxy_h_ties")
    assert pair.average_norm.value == pytest.approx(0.1)
    assert pair.average_norm.metric == "acc_norm, fedproxy_h_ties at 0.25 minus fedot at 0.25"
    (pair,) = (d for d in differences_of(results, ["centralised_llm"]) if d.method == "fedot")
    assert pair.average.value == pytest.approx(-0.45)
    assert pair.average_norm.value == pytest.approx(-0.25)


def capped(method, share, *, norm):
    """A finished cell without a ratio whose acc_norm is another."""
    made, other = finished(method, None, 0, share), finished(method, None, 0, norm)
    bits = other.outcome.fused["bank"].correct
    answers = {"bank": replace(made.outcome.fused["bank"], correct_norm=bits)}
    return replace(made, outcome=replace(made.outcome, fused=answers))


def test_size_federation_and_the_owners_edge_add_up_to_the_distance_from_the_ceiling():
    def with_tuned(method, ratio, fused, tuned):
        made, other = finished(method, ratio, 0, fused), finished(method, ratio, 0, tuned)
        return replace(made, outcome=replace(made.outcome, tuned=other.outcome.fused))

    results = [
        finished("zero_shot", None, 0, 0.2),
        finished("centralised_llm", None, 0, 0.9),
        with_tuned("centralised_proxy", 0.25, 0.6, 0.8),
        with_tuned("fedproxy_h_ties", 0.25, 0.55, 0.7),
        with_tuned("fedproxy_h_ties", 0.5, 0.5, 0.6),
        with_tuned("exact_h_ties", 0.25, 0.5, 0.6),
        with_tuned("fedot", 0.25, 0.5, 0.6),
    ]
    rows = {(r.method, r.remove_ratio): r for r in rows_of(results)}
    row = rows["fedproxy_h_ties", 0.25]
    assert row.size_effect.value == pytest.approx(-0.1)
    assert row.federation_effect.value == pytest.approx(-0.1)
    assert row.owners_edge.value == row.owners_edge_effect.value == pytest.approx(-0.15)
    assert rows["centralised_proxy", 0.25].federation_effect.value == 0
    assert rows["fedproxy_h_ties", 0.5].size_effect is None, "no pooled proxy at this ratio"
    assert rows["exact_h_ties", 0.25].size_effect is None, "its proxy is not the control's"
    assert rows["fedot", 0.25].size_effect is None, "its emulator is not the control's proxy"
    assert rows["zero_shot", None].size_effect is None


def test_the_three_parts_of_a_distance_rest_on_the_same_seeds_where_the_control_has_fewer():
    def with_tuned(method, seed, fused, tuned):
        made, other = finished(method, 0.25, seed, fused), finished(method, 0.25, seed, tuned)
        return replace(made, outcome=replace(made.outcome, tuned=other.outcome.fused))

    results = [finished("centralised_llm", None, seed, 0.9) for seed in range(3)]
    results += [with_tuned("centralised_proxy", seed, 0.6, 0.8) for seed in (0, 1)]
    results += [with_tuned("fedproxy_h_ties", s, f, 0.7) for s, f in enumerate((0.5, 0.6, 0.2))]
    row = next(r for r in rows_of(results) if r.method == "fedproxy_h_ties")
    parts = (row.size_effect, row.federation_effect, row.owners_edge_effect)
    assert [p.seeds for p in parts] == [(0, 1)] * 3
    assert sum(p.value for p in parts) == pytest.approx((0.5 + 0.6) / 2 - 0.9)
    assert row.owners_edge.seeds == (0, 1, 2)
    (line,) = effect_table(shown(row)).lines
    assert (line.name, line.few) == ("fedproxy_h_ties", "2 of 3 seeds")
    assert line.numbers["owners_edge_effect"].estimate == row.owners_edge_effect


def shown(row):
    """Return a report of three seeds that has this row alone."""
    return Report(
        name="n", command="c", config_sha256="0" * 64, environment={}, seeds=(0, 1, 2), rows=(row,)
    )


def test_the_ends_of_the_scale_close_none_and_all_of_the_gap_exactly():
    results = [finished("zero_shot", None, 0, 0.2), finished("centralised_llm", None, 0, 0.9)]
    gaps = [row.gap_closed for row in rows_of(results)]
    assert [(g.low, g.value, g.high) for g in gaps] == [(0, 0, 0), (1, 1, 1)]


def test_there_is_no_gap_to_close_where_centralised_tuning_is_worse_than_none():
    results = [
        finished("zero_shot", None, 0, 0.5),
        finished("centralised_llm", None, 0, 0.4),
        finished("fedproxy_h_ties", 0.5, 0, 0.3),
    ]
    assert [row.gap_closed for row in rows_of(results)] == [None, None, None]


def test_a_comparison_names_the_rows_whose_gap_is_not_resolved():
    ends = [finished("zero_shot", None, 0, 0.5), finished("centralised_llm", None, 0, 0.525)]
    results = [*ends, finished("fedproxy_h_ties", 0.5, 0, 0.6), finished("fedproxy_h_ties", 0.5, 1, 0.6)]
    assert [row.gap_closed for row in rows_of(results)] == [None, None, None]
    acc, norm = unresolved_gaps(results)
    assert acc.startswith("gap_closed of zero_shot, centralised_llm: the LLM tuned on all records")
    assert norm.startswith("gap_closed_norm of zero_shot, centralised_llm: ")
    resolved = [ends[0], finished("centralised_llm", None, 0, 0.9), *results[2:]]
    assert unresolved_gaps(resolved) == [], "the last row has no ceiling of seed 1"


def test_methods_are_paired_at_each_ratio_and_one_without_a_ratio_at_every_one():
    results = [
        finished(method, ratio, seed, share + 0.05 * seed)
        for seed in (0, 1)
        for method, ratio, share in (
            ("zero_shot", None, 0.2),
            ("fedot_equal_bytes", 0.25, 0.5),
            ("fedot_equal_bytes", 0.5, 0.4),
            ("fedproxy_h_ties", 0.25, 0.7),
            ("fedproxy_h_ties", 0.5, 0.6),
        )
    ]
    found = {(d.method, d.against, d.remove_ratio): d.average for d in differences_of(results, TWO)}
    assert {key: pytest.approx(e.value) for key, e in found.items()} == {
        ("zero_shot", TWO[0], 0.25): -0.3,
        ("zero_shot", TWO[0], 0.5): -0.2,
        (TWO[1], TWO[0], 0.25): 0.2,
        (TWO[1], TWO[0], 0.5): 0.2,
        ("zero_shot", TWO[1], 0.25): -0.5,
        ("zero_shot", TWO[1], 0.5): -0.4,
        (TWO[0], TWO[1], 0.25): -0.2,
        (TWO[0], TWO[1], 0.5): -0.2,
    }
    paired = found[TWO[1], TWO[0], 0.25]
    assert (paired.n, paired.seeds, paired.unit) == (2, (0, 1), "share")
    assert paired.metric == "accuracy, fedproxy_h_ties at 0.25 minus fedot_equal_bytes at 0.25"
    alone = next(r.average for r in rows_of(results) if r.method == TWO[1])
    # what seeds share cancels out; the records of one seed still leave the difference open
    assert 0.1 < paired.high - paired.low < 0.5 * (alone.high - alone.low)


def test_pairs_have_the_seeds_that_both_methods_have_and_none_without_a_common_one():
    results = [
        *(finished("fedot", 0.5, s, 0.4) for s in (0, 1, 2)),
        *(finished("fedproxy_h_ties", 0.5, s, 0.6) for s in (1, 2)),
        finished("fedproxy_ties", 0.5, 3, 0.6),
    ]
    (only,) = differences_of(results, TWO)
    assert (only.method, only.average.seeds) == ("fedot", (1, 2))


def test_with_one_seed_pairs_are_of_records_and_narrower_than_without_pairing():
    results = [finished("fedot", 0.5, 0, 0.4), finished("fedproxy_h_ties", 0.5, 0, 0.6)]
    (only,) = differences_of(results, TWO)
    assert only.average.n == RECORDS
    assert only.average.value == pytest.approx(-0.2)
    assert only.average.low < only.average.value < only.average.high < 0
    rows = rows_of(results)
    assert rows[0].average.high > rows[1].average.low  # unpaired they overlap


def test_references_that_a_comparison_lacks_are_left_out_and_unknown_ones_refused():
    assert differences_of([finished("fedot", 0.5, 0, 0.4)], TWO) == []
    with pytest.raises(ConfigError, match=r"compare\.against=fedott: is not known"):
        parse_config({"compare": {"against": ["fedott"]}})
    with pytest.raises(FedProxyError, match=r"against=\[fedot, fedot\]: must all differ"):
        parse_config({"compare": {"against": ["fedot", "fedot"]}})
