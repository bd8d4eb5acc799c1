"""A run does not go on over what was tampered with, and nothing altered is attacked or signed."""

import shutil
from dataclasses import replace

import pytest

from fedproxy_secure.audit.keys import own_key_file
from fedproxy_secure.audit.verify import verify_run
from fedproxy_secure.audit.vouched import check_finished_seeds, vouched_files
from fedproxy_secure.audit.witness import Witness, reopen_findings
from fedproxy_secure.errors import AuditError, ConfigError
from fedproxy_secure.report.publish import write_texts
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.names import ATTACK_FILES, AUDIT_LOG
from tests.support.audited_run import CONFIG, ROUNDS, lines_of, put
from tests.support.sample_report import sample_report


def test_a_run_does_not_go_on_over_a_broken_chain(run):
    folder = RunFolder(path=run)
    for damage in (lambda s: s[:3] + s[4:], lambda s: [s[0], s[2], s[1], *s[3:]]):
        whole = lines_of(run)
        put(run, damage(whole))
        before = (run / AUDIT_LOG).read_bytes()
        with pytest.raises(AuditError, match=r"audit\.jsonl: line"):
            Witness.open(folder, CONFIG, command="c")
        assert (run / AUDIT_LOG).read_bytes() == before
        put(run, whole)


def test_a_run_does_not_go_on_from_a_result_that_was_altered(run):
    (run / "seed-0/result.json").write_text('{"seed": 0, "better": true}')
    with pytest.raises(AuditError, match=r"result\.json: is not as audit\.jsonl has it"):
        Witness.open(RunFolder(path=run), CONFIG, command="c")


@pytest.fixture
def attacked(run):
    """The run, with findings of attacks that its log vouches for."""
    (run / "attacks").mkdir()
    for name in ATTACK_FILES:
        (run / name).write_text("SUCCEEDED")
    witness = Witness.open(RunFolder(path=run), CONFIG, command="c")
    signed_again(run, witness)
    assert verify_run(run).whole
    return run


def signed_again(run, witness):
    write_texts(replace(sample_report(), audit_head=witness.settle()), run)
    witness.sign()


@pytest.mark.parametrize("name", ["config.yaml", "environment.json", *ATTACK_FILES])
def test_a_run_does_not_go_on_from_settings_or_findings_that_were_altered(attacked, name):
    """Otherwise, the owner's key would vouch for what somebody without it wrote."""
    (attacked / name).write_text("RESISTED")
    with pytest.raises(AuditError, match=rf"{name}: is not as audit\.jsonl has it; put it back, or"):
        Witness.open(RunFolder(path=attacked), CONFIG, command="c")


def test_a_run_goes_on_without_findings_that_were_deleted_and_not_without_its_settings(attacked):
    shutil.rmtree(attacked / "attacks")
    signed_again(attacked, Witness.open(RunFolder(path=attacked), CONFIG, command="c"))
    assert verify_run(attacked).whole
    (attacked / "config.yaml").unlink()
    with pytest.raises(AuditError, match=r"config\.yaml: is not as .* choose another --out"):
        Witness.open(RunFolder(path=attacked), CONFIG, command="c")


def test_findings_that_an_attack_by_hand_changed_are_taken_where_the_runs_key_lay_beside_it(attacked):
    reopen_findings(attacked)
    (attacked / ATTACK_FILES[0]).write_text("found by hand")
    assert not verify_run(attacked).problems
    assert not verify_run(attacked).whole
    signed_again(attacked, Witness.open(RunFolder(path=attacked), CONFIG, command="c"))
    assert verify_run(attacked).whole
    own_key_file(attacked).rename(attacked.with_name("elsewhere"))
    before = (attacked / AUDIT_LOG).read_bytes()
    reopen_findings(attacked)  # nobody can sign that they may change
    assert (attacked / AUDIT_LOG).read_bytes() == before


@pytest.mark.parametrize(
    "name", ["seed-0/federation/rounds.jsonl", "seed-0/fused/model.safetensors", ATTACK_FILES[1]]
)
def test_nothing_is_attacked_that_was_altered_since_the_run_finished(attacked, name):
    """Findings of what somebody else put there would be signed, and the original put back."""
    (attacked / name).write_bytes(b"altered")
    with pytest.raises(AuditError, match=f"{name}: was altered"):
        reopen_findings(attacked)
    if name.startswith("seed-"):
        with pytest.raises(AuditError, match=f"{name}: was altered"):
            check_finished_seeds(attacked)


def test_findings_in_a_cell_are_left_to_the_log_above(run):
    (run / "attacks").mkdir()
    for name in ATTACK_FILES:
        (run / name).write_text("of the cell's own suite")
    witness = Witness.open(RunFolder(path=run), CONFIG, command="c")
    witness.settle(findings=False)
    assert not {*ATTACK_FILES} & vouched_files(witness.log.entries).keys()
    assert not verify_run(run).problems


def test_a_run_does_not_sign_a_result_whose_line_was_cut_off(run):
    put(run, lines_of(run)[: 2 + ROUNDS])  # without `finished`
    (run / "seed-0/result.json").write_text('{"seed": 0, "better": true}')
    with pytest.raises(AuditError, match=r"result\.json: is not as audit\.jsonl has it"):
        Witness.open(RunFolder(path=run), CONFIG, command="c")


def test_a_finished_run_without_its_log_gets_no_new_one(run):
    (run / AUDIT_LOG).unlink()
    with pytest.raises(AuditError, match=r"audit\.jsonl: is missing, but seed-0 is there"):
        Witness.open(RunFolder(path=run), CONFIG, command="c")


def altered(file):
    file.write_bytes(b"altered")


def deleted(file):
    file.unlink()


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("federation/rounds.jsonl", altered),
        ("federation/rounds.jsonl", deleted),
        ("fused/model.safetensors", altered),
        ("federation/state.safetensors", altered),  # the log does not have it
    ],
)
def test_a_seed_whose_result_was_deleted_does_not_go_on_from_files_that_were_altered(run, name, damage):
    """Otherwise, whoever deletes the result has the owner's key sign what he put beside it."""
    (run / "seed-0/result.json").unlink()
    damage(run / "seed-0" / name)
    witness = Witness.open(RunFolder(path=run), CONFIG, command="c")
    before = (run / AUDIT_LOG).read_bytes()
    with pytest.raises(AuditError, match=f"{name}: .* or delete the whole folder seed-0 and resume"):
        witness.started(0)
    assert (run / AUDIT_LOG).read_bytes() == before


def test_a_seed_that_was_killed_before_its_result_was_written_goes_on(run):
    (run / "seed-0/result.json").unlink()
    (run / "seed-0/healing.safetensors").write_bytes(b"not removed yet, or planted")
    Witness.open(RunFolder(path=run), CONFIG, command="c").started(0)
    assert not (run / "seed-0/healing.safetensors").exists()


@pytest.mark.parametrize("name", ["seed-0/federation/state.safetensors", "cells/a/seed-0/result.json"])
def test_a_folder_without_its_log_does_not_go_on_from_what_nobody_vouches_for(tmp_path, name):
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    folder.write_bytes(name, b"anybody's")
    with pytest.raises(AuditError, match=r"audit\.jsonl: is missing, but .* is there; put the log back"):
        Witness.open(folder, CONFIG, command="c")
    assert not (folder.path / AUDIT_LOG).exists()


def test_a_run_without_its_key_does_not_go_on(run):
    own_key_file(run).unlink()
    with pytest.raises(ConfigError, match="is missing"):
        Witness.open(RunFolder(path=run), CONFIG, command="c")
