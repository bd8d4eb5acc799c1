"""Logs below a log: what is wrong in a cell is found from above, and never vouched for."""

import shutil
from dataclasses import replace

import pytest

from fedproxy_secure.audit.chain import START, parse_line
from fedproxy_secure.audit.keys import own_key_file
from fedproxy_secure.audit.verify import verify_run
from fedproxy_secure.audit.witness import Witness
from fedproxy_secure.errors import AuditError
from fedproxy_secure.report.publish import write_texts
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.names import ATTACK_FILES, SIGNATURE
from tests.support.audited_run import CONFIG, copied, forged, inner, lines_of, problems, put
from tests.support.sample_report import sample_report


@pytest.fixture(scope="module")
def finished_matrix(finished, tmp_path_factory):
    """A matrix whose one cell is `finished`."""
    out = RunFolder.create(tmp_path_factory.mktemp("finished") / "matrix", CONFIG)
    shutil.copy(own_key_file(finished), own_key_file(out.path))
    witness = Witness.open(out, CONFIG, command="fedproxy-secure matrix x")
    shutil.copytree(finished, out.path / "cells" / "a")
    witness.inner("cells/a")
    witness.inner("cells/a")  # told once
    write_texts(replace(sample_report(), audit_head=witness.settle()), out.path)
    witness.sign()
    assert verify_run(out.path).whole
    assert [parse_line(x).event for x in lines_of(out.path)] == ["opened", "inner", "files"]
    return out.path


@pytest.fixture
def matrix(finished_matrix, tmp_path):
    return copied(finished_matrix, tmp_path / "matrix")


def test_what_is_wrong_in_a_cell_is_found_from_above(matrix):
    (matrix / "cells/a/seed-0/fused/model.safetensors").write_bytes(b"x")
    assert [
        p for p in problems(matrix) if p.startswith("cells/a/seed-0/fused/model.safetensors: was altered")
    ]


def test_a_cell_that_was_put_back_as_a_whole_is_found_from_above(matrix):
    cell = matrix / "cells/a"
    put(cell, lines_of(cell)[:3])
    (cell / SIGNATURE).unlink()
    assert "cells/a: its log does not end where the log above says" in problems(matrix)


def test_a_cell_that_is_gone_or_of_another_signer_is_found_from_above(matrix, tmp_path):
    cell = matrix / "cells/a"
    shutil.rmtree(cell)
    assert any("cannot be read" in p for p in problems(matrix))
    other = RunFolder.create(cell, CONFIG)
    Witness.open(other, CONFIG, command="c")
    assert "cells/a: has another signer than the log above it" in problems(matrix)


def test_a_damaged_cell_is_not_vouched_for(matrix):
    cell = matrix / "cells/a"
    put(cell, lines_of(cell)[1:])
    witness = Witness.open(RunFolder(path=matrix), CONFIG, command="c")
    with pytest.raises(AuditError, match="line 1"):
        witness.inner("cells/a")
    with pytest.raises(AuditError, match="cannot be read"):
        witness.inner("cells/b")


def test_a_cell_that_another_key_signed_is_not_vouched_for(matrix):
    cell = matrix / "cells/a"
    shutil.rmtree(cell)
    own_key_file(cell).unlink(missing_ok=True)
    Witness.open(RunFolder.create(cell, CONFIG), CONFIG, command="c")
    with pytest.raises(AuditError, match="has another signer than this run; delete cells/a and resume"):
        Witness.open(RunFolder(path=matrix), CONFIG, command="c").inner("cells/a")


@pytest.mark.parametrize("name", ATTACK_FILES)
def test_findings_of_a_cell_are_as_the_log_above_has_them(matrix, name):
    """The notes of its suite, too: a suite that goes on makes findings of them."""
    name = f"cells/a/{name}"
    (matrix / name).parent.mkdir(exist_ok=True)
    (matrix / name).write_text("SUCCEEDED")
    Witness.open(RunFolder(path=matrix), CONFIG, command="c").settle(name)
    (matrix / name).write_text("RESISTED")
    assert any(p.startswith(f"{name}: was altered") for p in problems(matrix))
    with pytest.raises(
        AuditError, match=rf"{name}: is not as audit\.jsonl has it; put it back, or delete cells/a and"
    ):
        Witness.open(RunFolder(path=matrix), CONFIG, command="c")


def test_a_baseline_that_was_altered_is_refused_by_its_name(matrix):
    (matrix / "baselines").mkdir()
    for text in ("whole", "altered"):
        (matrix / "baselines/ceiling.json").write_text(text)
        if text == "whole":
            Witness.open(RunFolder(path=matrix), CONFIG, command="c").settle()
    with pytest.raises(AuditError, match=r"put it back, or delete baselines/ceiling\.json and resume"):
        Witness.open(RunFolder(path=matrix), CONFIG, command="c")


def test_a_cell_whose_result_was_altered_is_not_vouched_for(matrix):
    (matrix / "cells/a/seed-0/result.json").write_text('{"seed": 0, "better": true}')
    with pytest.raises(AuditError, match=r"result\.json: is not as audit\.jsonl has it"):
        Witness.open(RunFolder(path=matrix), CONFIG, command="c").inner("cells/a")


def test_logs_below_that_are_links_are_not_followed_round_and_round(tmp_path):
    forged(tmp_path / "run", ("opened", {}), *inner("a", "b"))
    for name in ("a", "b"):
        (tmp_path / "run" / name).symlink_to(".")
    assert problems(tmp_path / "run") == tuple(
        f"{name}: is a link; a log below must lie in a folder" for name in ("a", "b")
    )


def test_a_log_below_is_not_read_once_for_every_spelling_of_its_folder(tmp_path):
    forged(tmp_path / "run", ("opened", {}), *inner("./a", "a/", "a//b", "a/./b"))
    forged(tmp_path / "run/a", ("opened", {}))
    forged(tmp_path / "run/a/b", ("opened", {}))
    assert [p for p in problems(tmp_path / "run") if "spelling" in p] == [
        f"{name}: is another spelling of a folder's name" for name in ("./a", "a/", "a//b", "a/./b")
    ]
    assert len(problems(tmp_path / "run")) == 4


def test_a_log_below_hundreds_of_logs_is_not_read(tmp_path):
    place = tmp_path / "run"
    for _ in range(400):
        forged(place, ("opened", {}), *inner("a"))
        place /= "a"
    forged(place, ("opened", {}))
    assert "a/a/a/a/a: lies below 5 logs; must be <= 4" in problems(tmp_path / "run")


@pytest.mark.parametrize("name", ["\ud800", "a\0b"])
def test_a_log_below_in_a_folder_that_no_file_system_has_is_one_problem(tmp_path, name):
    forged(tmp_path / "run", ("opened", {}), *inner(name))
    assert len(problems(tmp_path / "run")) == 1


# --- what is judged is what is signed


@pytest.mark.parametrize(
    "event",
    [
        ("inner", {"folder": "a" * 300, "head": START}),
        ("files", {"files": {"a" * 300: START}}),
        ("files", {"files": {"a\0b": START}}),
        ("finished", {"seed": 10**300, "files": {}, "keys": []}),
        ("finished", {"seed": 0, "files": {"seed-0/" + "a" * 300: START}, "keys": []}),
    ],
)
def test_names_that_no_file_system_has_are_problems_and_no_crash(tmp_path, event):
    forged(tmp_path / "run", ("opened", {}), event)
    found = verify_run(tmp_path / "run")
    assert not found.whole
    assert all(len(line) < 600 for line in found.problems)
