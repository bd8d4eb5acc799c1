"""What each window of public text serves: alignment takes none from healing and moves none."""

import pytest
import torch

from fedproxy_secure.config import parse_config
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


def test_without_healing_there_is_text_to_align_on_and_none_to_heal_with(tmp_path):
    found = prepared(tmp_path, plug_back={"align_windows": 6})
    assert len(found.healing_windows) == 0
    assert len(found.aligning_windows) >= 6
