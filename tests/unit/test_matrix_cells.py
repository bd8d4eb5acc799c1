"""Cells of a matrix: their names differ."""

from fedproxy_secure.config import parse_config
from fedproxy_secure.experiments.run_report import proxy_note
from fedproxy_secure.experiments.sweeps.matrix_cells import cells_of, title_of


def test_two_cells_of_a_matrix_never_have_one_title():
    config = parse_config({"matrix": {"remove_ratios": [0.12, 0.125, 0.333, 0.334, 0.3333331]}})
    cells, _ = cells_of(config)
    assert len({cell.key for cell in cells}) == 15
    assert len({title_of(cell, config) for cell in cells}) == 15


def test_a_run_tells_its_remove_ratio_as_it_was_set():
    assert "12.5% of the LLM removed" in proxy_note(parse_config({"compress": {"remove_ratio": 0.125}}))


def test_protections_and_compressions_of_one_title_have_their_names_beside_it():
    """A report refuses two configurations of one name, so they must differ before hours of work."""
    alike = {"scheme": "masking", "settings": {"local": {"steps": 4}}}
    config = parse_config(
        {
            "matrix": {
                "protections": [{**alike, "recipe": name} for name in ("one", "two")],
                "remove_ratios": [0.5],
            }
        }
    )
    cells, _ = cells_of(config)
    assert sorted({title_of(cell, config) for cell in cells}) == [
        "masking (local.steps=4) [masking_one], 50% removed",
        "masking (local.steps=4) [masking_two], 50% removed",
    ]
