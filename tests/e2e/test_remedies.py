"""What an error about an altered file says to do works: the run or the matrix goes on and is whole."""

import shutil

import pytest

from fedproxy_secure.audit.verify import verify_run
from fedproxy_secure.config import parse_config
from fedproxy_secure.errors import AuditError
from fedproxy_secure.experiments.matrix import matrix
from fedproxy_secure.experiments.run import run
from tests.support.tiny import tiny_settings


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    settings = tiny_settings(
        tmp_path_factory.mktemp("tiny"),
        federate={"rounds": 1},
        matrix={"protections": [{"scheme": "masking"}], "remove_ratios": [0.5], "jobs": 1},
        attacks={"suite": "none"},
    )
    return parse_config(settings)


def test_a_run_goes_on_once_a_file_that_was_altered_is_put_back_or_its_seed_is_deleted(config, tmp_path):
    before = run(config, tmp_path / "run", command="c")
    for name in ("result.json", "federation/rounds.jsonl", "federation/ledger.jsonl"):
        file = tmp_path / "run/seed-0" / name
        good = file.read_bytes()
        file.write_text("{}\n")
        with pytest.raises(AuditError, match=f"{name}.*or delete the whole folder seed-0 and resume"):
            run(config, tmp_path / "run", resume=True, command="c")
        file.write_bytes(good)
    assert run(config, tmp_path / "run", resume=True, command="c").rows == before.rows
    (tmp_path / "run/seed-0/result.json").write_text("{}\n")
    shutil.rmtree(tmp_path / "run/seed-0")
    again = run(config, tmp_path / "run", resume=True, command="c")
    assert again.rows == before.rows
    assert verify_run(tmp_path / "run").whole


def test_a_matrix_goes_on_once_a_cell_that_was_altered_is_deleted(config, tmp_path):
    matrix(config, tmp_path)
    (cell,) = (tmp_path / "cells").iterdir()
    (cell / "seed-0/federation/rounds.jsonl").unlink()
    with pytest.raises(AuditError, match=rf"put it back, or delete cells/{cell.name} and resume"):
        matrix(config, tmp_path, resume=True)
    shutil.rmtree(cell)
    matrix(config, tmp_path, resume=True)
    assert verify_run(tmp_path).whole
