"""Cells of a matrix: their names differ, and costs of equal trainings are compared."""

from fedproxy_secure.config import parse_config
from fedproxy_secure.evidence.measures.cost import SECONDS_OVER_UNPROTECTED, UPLOAD_OVER_UNPROTECTED
from fedproxy_secure.experiments.run_report import proxy_note
from fedproxy_secure.experiments.sweeps.matrix_cells import cells_of, title_of
from fedproxy_secure.experiments.sweeps.matrix_report import (
    configurations_of,
    groups_of,
    without_costs_beside,
)
from fedproxy_secure.runtime.files.names import CELL_DONE
from tests.support.finished_run import write_run


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


def test_costs_are_compared_only_with_those_of_an_unprotected_cell_that_trains_in_the_same_way(tmp_path):
    own = {"recipe": "small", "settings": {"local": {"steps": 4, "batch_size": 8}}}
    masking, plain = {"scheme": "masking"}, {"scheme": "unsafe_plaintext"}
    beside = {UPLOAD_OVER_UNPROTECTED.key, SECONDS_OVER_UNPROTECTED.key}

    def costs_and_lines(*protections):
        config = parse_config(
            {"seeds": [0], "matrix": {"protections": protections, "remove_ratios": [0.5]}}
        )
        cells, _ = cells_of(config)
        for cell in cells:
            if not (tmp_path / cell.folder).exists():
                (write_run(tmp_path / cell.folder, seeds=(0,)) / CELL_DONE).write_text("{}")
        groups = groups_of(config, tmp_path, cells)
        compared = {
            c.settings["protection"]: {m.key for m in c.measures} & beside
            for c in configurations_of(config, groups)
        }
        return compared, without_costs_beside(config, groups)

    compared, lines = costs_and_lines(plain, masking, {**masking, **own})
    assert compared == {"unsafe_plaintext": set(), "masking": beside, "masking_small": set()}
    (line,) = lines
    assert line.startswith("upload_over_unprotected, seconds_over_unprotected of masking (local.steps=4")
    compared, lines = costs_and_lines(plain, masking, {**masking, **own}, {**plain, **own})
    assert compared["masking_small"] == beside
    assert compared["unsafe_plaintext_small"] == set()
    assert lines == []
