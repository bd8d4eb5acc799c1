"""The example of a method from outside: one file, chosen in the settings, a row of the report."""

from collections.abc import Iterator

import pytest

from fedproxy_secure.config import parse_config
from fedproxy_secure.config.kinds import METHODS
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.experiments.compare import compare, plan_rows
from fedproxy_secure.runtime.files.names import REPORT_MARKDOWN
from tests.support.examples import lines_of, load_example
from tests.support.tiny import tiny_settings

COMPARED = {
    "methods": ["zero_shot", "centralised_llm", "one_shot"],
    "remove_ratios": [0.5],
    "jobs": 1,
}


@pytest.fixture
def one_shot() -> Iterator[object]:
    method = load_example("own_method").ONE_SHOT
    with METHODS.added("one_shot", method):
        yield method


def test_the_example_is_short():
    assert lines_of("own_method") <= 60


def test_a_comparison_has_its_row_its_cost_and_its_note(one_shot, tmp_path):
    config = parse_config(tiny_settings(tmp_path, compare=COMPARED))
    report = compare(config, tmp_path / "run")
    rows = {row.method: row for row in report.rows}
    assert set(rows) == {"zero_shot", "centralised_llm", "one_shot"}
    assert rows["one_shot"].remove_ratio == 0.5
    assert rows["one_shot"].average.n == 36
    (cost,) = [e for e in report.estimates if e.metric.endswith("one_shot at 0.5")]
    assert cost.value > 0
    assert one_shot.note in report.notes
    assert "one_shot" in (tmp_path / "run" / REPORT_MARKDOWN).read_text()
    assert ("method", "one_shot: each client alone, averaged once") in plan_rows(config)


def test_without_it_the_name_is_not_known(tmp_path):
    with pytest.raises(ConfigError, match=r"compare\.methods=one_shot: is not known"):
        parse_config(tiny_settings(tmp_path, compare=COMPARED))
