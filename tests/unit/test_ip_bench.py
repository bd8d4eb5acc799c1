"""What `make bench-ip` compares kinds of proxies by, and which kept tables it takes up again."""

import pytest

from fedproxy_secure.evidence.estimate import counted
from fedproxy_secure.evidence.measure import measure_kind
from fedproxy_secure.report.trilemma import Configuration, Measure
from tests.bench.ip import _digest, _targets
from tests.support.tiny import save_tiny


def table(r, kl):
    return [
        {"attack": "the best", "queries": 64, "answers": "logits", "r": {"value": r}, "kl": {"value": kl}}
    ]


def configuration(name):
    values = {"gap_closed": 0.9, "verbatim_share": 0.0}
    made = [
        Measure.of_kind(measure_kind(key), counted(value, metric=key, unit="share", seeds=[0]), "x#y")
        for key, value in values.items()
    ]
    return Configuration(name=name, scheme="masking", settings={}, seeds=(0,), measures=tuple(made))


def rows(exact, other):
    kinds = {"drop_blocks": exact, "width": other}
    return _targets("demo", {k: (configuration(k), table(*values)) for k, values in kinds.items()}, 64)


def test_a_defence_that_leaves_no_more_kl_is_none_however_low_its_r():
    """R is low where the proxy predicts badly by itself, or well: it compares no two proxies."""
    left, share = rows((0.8, 0.03), (0.2, 0.03))
    assert (left.value, left.ok) == (pytest.approx(1), False)
    assert (share.value, share.ok) == (pytest.approx(0.25), True)
    assert rows((0.8, 0.03), (0.9, 0.09))[0].ok


@pytest.mark.parametrize("r", [0.0, -3.0])
def test_no_ratio_to_an_r_that_is_not_above_zero_is_a_defence(r):
    assert [row.metric.partition(": ")[2][:7] for row in rows((r, 0.03), (0.9, 0.03))] == ["KL left"]


def test_a_digest_of_weights_tells_a_model_that_was_trained_again(tmp_path):
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        save_tiny(tmp_path / name, seed=seed)
    assert _digest(tmp_path / "one") == _digest(tmp_path / "same") != _digest(tmp_path / "other")
