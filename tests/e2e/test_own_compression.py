"""The example of a compression from outside: chosen in the settings, swept by a matrix, on the report."""

import json
from collections.abc import Iterator

import pytest

from fedproxy_secure.config import parse_config
from fedproxy_secure.config.kinds import COMPRESSIONS
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.experiments.matrix import matrix
from fedproxy_secure.experiments.run import run
from fedproxy_secure.runtime.files.names import REPORT_PAGE
from tests.support.examples import lines_of, load_example
from tests.support.tiny import tiny_settings

ROUNDED = {"kind": "rounded_blocks", "options": {"bits": 3}}
SWEPT = {
    "attacks": {"suite": "none"},
    "matrix": {
        "protections": [{"scheme": "unsafe_plaintext"}],
        "compressions": [{"kind": "drop_blocks"}, ROUNDED],
        "remove_ratios": [0.5],
        "jobs": 1,
    },
}


@pytest.fixture
def rounded() -> Iterator[object]:
    compression = load_example("own_compression").ROUNDED_BLOCKS
    with COMPRESSIONS.added("rounded_blocks", compression):
        yield compression


def test_the_example_is_short():
    assert lines_of("own_compression") <= 60


def test_a_run_with_it_is_named_on_the_report_and_records_its_options(rounded, tmp_path):
    config = parse_config(tiny_settings(tmp_path, compress=ROUNDED))
    report = run(config, tmp_path / "run")
    (configuration,) = report.configurations
    assert configuration.settings["compression"] == "rounded_blocks"
    page = (tmp_path / "run" / REPORT_PAGE).read_text()
    assert "blocks dropped, the others rounded (rounded_blocks, bits=3)" in page
    record = json.loads((tmp_path / "run/seed-0/plan.json").read_text())
    assert (record["compression"], record["bits"]) == ("rounded_blocks", 3)
    assert configuration.measure("accuracy_fused") is not None


def test_a_matrix_sweeps_it_beside_the_papers_and_less_is_held_verbatim(rounded, tmp_path):
    report = matrix(parse_config(tiny_settings(tmp_path, **SWEPT)), tmp_path / "m")
    plain, own = report.configurations
    assert plain.name == "no protection, 50% removed, blocks dropped"
    assert own.name == "no protection, 50% removed, blocks dropped, the others rounded bits=3"
    assert own.settings["compression"] == "rounded_blocks_bits3"
    assert (tmp_path / "m/cells/unsafe_plaintext-rounded_blocks_bits3-0.5-fedavg-lora-seed0").is_dir()
    assert own.measure("verbatim_share").estimate.value < plain.measure("verbatim_share").estimate.value
    assert not own.failed


def test_options_are_checked_before_anything_is_loaded(rounded, tmp_path):
    for options, line in (
        ({"bits": 9}, "compress.options.bits=9: must be from 2 to 8"),
        ({"bit": 4}, "compress.options.bit: is no option of compress.kind=rounded_blocks; it has: bits"),
    ):
        raw = tiny_settings(tmp_path, model={"path": "/no/such/model"})
        with pytest.raises(ConfigError) as raised:
            run(parse_config({**raw, "compress": {**ROUNDED, "options": options}}), tmp_path / "run")
        assert str(raised.value) == line


def test_without_it_the_name_is_not_known(tmp_path):
    with pytest.raises(ConfigError, match=r"compress\.kind=rounded_blocks: is not known"):
        parse_config(tiny_settings(tmp_path, compress=ROUNDED))
