"""What each window of public text serves: alignment takes none from healing and moves none."""

import pytest
import torch

from fedproxy_secure.config import parse_config
from fedproxy_secure.errors import DataError
from fedproxy_secure.experiments import stages
from fedproxy_secure.experiments.inputs import check_inputs
from fedproxy_secure.experiments.stages import prepare
from tests.support.tiny import tiny_settings


def prepared(folder, **changes):
    raw = tiny_settings(folder, public_text=None, **changes)
    del raw["public_text"]
    raw["data"]["public_text"] = "demo"
    return prepare(parse_config(raw))


@pytest.mark.parametrize("kind", ["drop_blocks", "low_rank"])
@pytest.mark.parametrize("heal", [{"steps": 2, "batch_size": 3}, {"fit_windows": 5}])
@pytest.mark.parametrize("align_windows", [3, 40])
def test_alignment_changes_neither_what_heals_the_proxy_nor_what_fidelity_is_measured_on(
    tmp_path, kind, heal, align_windows
):
    compress = {"kind": kind, "calibration_sequences": 2}
    plain = prepared(tmp_path, compress=compress, heal=heal)
    aligned = prepared(tmp_path, compress=compress, heal=heal, plug_back={"align_windows": align_windows})
    for name in ("windows", "fidelity_windows", "healing_windows"):
        assert torch.equal(getattr(plain, name), getattr(aligned, name)), name
    found = aligned.aligning_windows
    assert len(found) >= align_windows
    kept_back = torch.cat([aligned.windows, aligned.fidelity_windows])
    assert not any(torch.equal(a, b) for a in found for b in kept_back)


@pytest.mark.parametrize("importance", ["block_influence", "divergence", "uniform"])
def test_fidelity_is_measured_on_windows_that_chose_neither_the_blocks_nor_the_scale(tmp_path, importance):
    compress = {"calibration_sequences": 6, "importance": importance}
    found = prepared(tmp_path, compress=compress, plug_back={"scale": "public_text"})
    assert len(found.windows) == len(found.fidelity_windows) == 6
    assert not any(torch.equal(a, b) for a in found.windows for b in found.fidelity_windows)


def test_public_text_that_cannot_be_shared_out_is_refused_before_a_run_begins(tmp_path):
    raw = tiny_settings(tmp_path, compress={"calibration_sequences": 30})
    with pytest.raises(DataError, match=r"must have at least 60; add text, or lower compress"):
        check_inputs(parse_config(raw), tmp_path / "out")
    enough = tiny_settings(tmp_path, compress={"calibration_sequences": 2})
    check_inputs(parse_config(enough), tmp_path / "out")
    assert len(prepare(parse_config(enough)).fidelity_windows) == 2


def test_without_healing_there_is_text_to_align_on_and_none_to_heal_with(tmp_path):
    found = prepared(tmp_path, plug_back={"align_windows": 6})
    assert len(found.healing_windows) == 0
    assert len(found.aligning_windows) >= 6


@pytest.mark.parametrize("tokens", [20, 40])
def test_texts_too_short_for_calibration_and_fidelity_are_not_made_up_for_by_those_to_align_on(
    tmp_path, monkeypatch, tokens
):
    def short(_name, *, root, texts):
        return "\n".join(f"{i:0{tokens - 1}d}" for i in range(texts))

    monkeypatch.setattr(stages, "public_text", short)
    changes = {"compress": {"calibration_sequences": 8}, "plug_back": {"align_windows": 64}}
    if tokens == 20:
        with pytest.raises(DataError, match=r"has 9 windows of 128 tokens; must have at least 18;"):
            prepared(tmp_path, **changes)
        return
    found = prepared(tmp_path, **changes)
    assert not any(torch.equal(a, b) for a in found.windows for b in found.fidelity_windows)
