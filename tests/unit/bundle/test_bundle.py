"""A bundle of a run: what it holds, its claims, and what is refused."""

import json
import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from attacks.registry import every as every_attack
from fedproxy_secure.audit.keys import make_key, own_key_file
from fedproxy_secure.bundle import archive, claims
from fedproxy_secure.bundle.archive import read_archive
from fedproxy_secure.bundle.build import make_bundle
from fedproxy_secure.bundle.statements import gate_statement
from fedproxy_secure.cli.app import app
from fedproxy_secure.crypto.primitives import key_id
from fedproxy_secure.errors import AuditError, ConfigError
from fedproxy_secure.gate.policy import parse_policy
from fedproxy_secure.gate.verdict import Judged, Judgement, Verdict
from tests.support.bundles import RESEARCH, STATEMENTS
from tests.support.signed_run import signed_run
from threat_models import every as every_threat_model


def command(*arguments):
    return CliRunner().invoke(app, ["evidence", *map(str, arguments)])


# --- the whole


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    ("worse", "listed"), [(Verdict.FAILED, "failedTests"), (Verdict.MISSING, "warnedTests")]
)
def test_a_rule_of_several_rows_is_listed_once_with_the_worst_of_their_verdicts(order, worse, listed):
    """Else a signed statement would list a broken rule as passed, by the last attack that it names."""
    rule = "resist: [A2, A3]"
    policy = parse_policy(f"schema_version: 1\nrules:\n  - {rule}\n".encode(), Path("p.yaml"))
    rows = tuple(
        Judged(rule=rule, configuration="c", verdict=verdict, why="of one attack")
        for verdict in (worse, Verdict.PASSED)[::order]
    )
    files = dict.fromkeys((archive.POLICY, archive.REPORT, archive.VERDICT), b"")
    predicate = gate_statement(Judgement(policy=policy, rows=rows), files)["predicate"]
    lists = {name: predicate[name] for name in ("passedTests", "warnedTests", "failedTests")}
    assert lists == {key: [] for key in lists} | {listed: [f"c: {rule}"]}


def test_what_the_command_packs_the_other_command_verifies_with_the_public_key_alone(run, tmp_path):
    out = tmp_path / "mine.zip"
    packed = command("bundle", run.folder, "--out", out, "--policy", "research")
    assert packed.exit_code == 0, packed.output
    assert run.public.hex() in packed.output
    checked = command("verify", out, "--key", run.public.hex())
    assert checked.exit_code == 0, checked.output
    assert "3 statements verified" in checked.output


def test_the_same_run_gives_the_same_bytes(run, bundle, tmp_path):
    make_bundle(run.folder, tmp_path / "again.zip", policy=RESEARCH)
    assert (tmp_path / "again.zip").read_bytes() == bundle.read_bytes()


def test_every_file_has_its_place_and_every_place_that_a_run_fills_is_filled(files):
    assert all(archive.has_place(name) for name in files)
    models = {f"seed-0/{kind}" for kind in ("proxy", "adapter", "fused")}
    expected = {
        *STATEMENTS,
        *(archive.REPORT, archive.PAGE, archive.POLICY, archive.VERDICT, archive.SIGNER, archive.SBOM),
        *(archive.MODEL_SIGNER, archive.PRIVACY, archive.MODELS, archive.CLAIMS, archive.CLAIMS_TABLE),
        *(archive.NOT_MEASURED, archive.REDACTIONS, "audit/audit.jsonl", "audit/report.sig"),
        *(f"model-cards/{model}.md" for model in models),
        *(f"model-signatures/{model}.sig" for model in models),
        *(f"threat-models/{name}.yaml" for name in every_threat_model()),
    }
    assert set(files) == expected


def test_report_and_log_are_copied_byte_for_byte(run, files):
    for name in ("report/report.json", "report/report.html", "audit/audit.jsonl", "audit/report.sig"):
        assert files[name] == (run.folder / name.partition("/")[2]).read_bytes()
    assert json.loads(files[archive.REDACTIONS]) == {}


def test_without_a_policy_there_is_no_gate_and_the_bundle_says_so(run, tmp_path):
    make_bundle(run.folder, tmp_path / "b.zip")
    files = read_archive(tmp_path / "b.zip")
    assert not {archive.GATE, archive.POLICY, archive.VERDICT} & set(files)
    assert "no gate judged this run" in files[archive.NOT_MEASURED].decode()
    assert command("verify", tmp_path / "b.zip", "--key", run.public.hex()).exit_code == 0


def test_a_key_of_ones_own_signs_the_bundle_as_it_signed_the_run(tmp_path):
    public = make_key(tmp_path / "me.key")
    run = signed_run(tmp_path, key=tmp_path / "me.key")
    done = command("bundle", run.folder, "--out", tmp_path / "b.zip", "--signing-key", tmp_path / "me.key")
    assert done.exit_code == 0, done.output
    assert command("verify", tmp_path / "b.zip", "--key", tmp_path / "me.key.pub").exit_code == 0
    assert public.hex() in done.output


def test_a_private_key_given_for_the_signers_is_not_shown(run, bundle):
    digits = run.key.reveal().hex()
    bare_digits = command("verify", bundle, "--key", digits)
    assert bare_digits.exit_code == 1
    assert (
        f"expected signer: the key whose id begins with {key_id(run.key.reveal())[:16]}"
        in bare_digits.output
    )
    wrong_file = command("verify", bundle, "--key", own_key_file(run.folder))
    assert wrong_file.exit_code == 2
    assert digits not in bare_digits.output + wrong_file.output


def test_a_file_that_is_no_key_signs_no_bundle_and_is_named(run, bundle, tmp_path):
    done = command("bundle", run.folder, "--out", tmp_path / "b.zip", "--signing-key", bundle)
    assert done.exit_code == 2
    assert "is not a private key; must hold" in " ".join(done.output.split())


# --- claims


def test_the_claims_speak_of_all_four_frameworks_and_name_no_identifier_that_nobody_gave():
    rows = claims.claims(every_attack().values())
    assert {row.framework for row in rows} == set(claims.FRAMEWORKS)
    given = {(f"{n} {v}", item) for a in every_attack().values() for n, v, item in a.info.mapping}
    general = {(row.framework, row.item) for row in claims.GENERAL}
    assert {(row.framework, row.item) for row in rows} <= given | general
    assert {item for framework, item in general if framework == claims.AI_ACT} == {"Annex IV", "Art. 15"}
    assert {item for framework, item in general if framework == claims.DP_GUIDE} == {
        "unit",
        "parameters",
        "trust model",
        "side channels",
    }


def test_every_attack_with_an_identifier_of_these_frameworks_has_its_row():
    rows = {(r.framework, r.item, r.attack) for r in claims.claims(every_attack().values())}
    for attack in every_attack().values():
        for name, version, item in attack.info.mapping:
            if f"{name} {version}" in claims.FRAMEWORKS:
                assert (f"{name} {version}", item, attack.info.id) in rows
    assert {
        ("NIST AI RMF 1.0", "MEASURE 2.10", "A2"),
        ("EU AI Act 2024/1689", "Art. 15(5)", "A8"),
        ("EU AI Act 2024/1689", "Art. 15(5)", "A9"),
    } <= rows


def test_a_package_whose_attacks_or_threat_models_are_broken_is_named(tmp_path, monkeypatch):
    place = tmp_path / "somebody-1.0.dist-info"
    place.mkdir()
    (place / "METADATA").write_text("Metadata-Version: 2.1\nName: somebody\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    for group, read in (
        (claims.ATTACKS_GROUP, claims.described_attacks),
        (claims.THREAT_MODELS_GROUP, claims.threat_model_files),
    ):
        (place / "entry_points.txt").write_text(f"[{group}]\nmine = nothing_of_the_kind:every\n")
        with pytest.raises(ConfigError, match=f"^entry point 'mine' of {group}: .*cannot be loaded"):
            read()


def test_every_command_of_the_claims_is_one_of_ours():
    for row in claims.claims(every_attack().values()):
        words = row.command.split()
        assert words[0] == "fedproxy-secure"
        group = [w for w in words[1:3] if re.fullmatch("[a-z]+(-[a-z]+)?", w)]
        assert CliRunner().invoke(app, [*group, "--help"]).exit_code == 0, row.command


def test_the_claims_of_a_bundle_say_what_its_attacks_found(files):
    by_attack = {c["attack"]: c["outcome"] for c in json.loads(files[archive.CLAIMS])["claims"]}
    assert by_attack["A2"] == "1 RESISTED"
    assert by_attack["A1"] == ""
    assert "| not run |" in files[archive.CLAIMS_TABLE].decode()


# --- what is refused


def test_without_the_extra_the_bundle_names_it_in_one_line(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cyclonedx", None)
    done = command("bundle", run.folder, "--out", tmp_path / "b.zip")
    assert done.exit_code == 2
    assert done.output == "error: evidence bundle: needs the extra `evidence` (cyclonedx-python-lib)\n"


def test_checking_needs_no_extra(run, bundle, monkeypatch):
    for name in ("cyclonedx", "model_signing", "securesystemslib", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, name, None)
    assert command("verify", bundle, "--key", run.public.hex()).exit_code == 0


def test_a_run_that_was_altered_is_not_bundled(tmp_path):
    run = signed_run(tmp_path)
    (run.folder / "seed-0/fused/model.safetensors").write_bytes(b"other weights")
    done = command("bundle", run.folder, "--out", tmp_path / "b.zip")
    assert done.exit_code == 2
    assert "model.safetensors: was altered" in done.output
    assert not (tmp_path / "b.zip").exists()


def test_a_run_that_is_not_signed_to_its_end_is_not_bundled(tmp_path):
    run = signed_run(tmp_path)
    (run.folder / "report.sig").unlink()
    with pytest.raises(AuditError, match=r"report\.sig: is missing"):
        make_bundle(run.folder, tmp_path / "b.zip")


def test_another_key_than_the_runs_does_not_bundle_it(run, tmp_path):
    make_key(tmp_path / "other.key")
    with pytest.raises(AuditError, match="names another signer"):
        make_bundle(run.folder, tmp_path / "b.zip", key=tmp_path / "other.key")


def test_a_bundle_does_not_go_into_the_run_that_it_is_of(run):
    with pytest.raises(ConfigError, match="must not be in"):
        make_bundle(run.folder, run.folder / "b.zip")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("bundle", "nowhere", "--out", "b.zip"), "nowhere: there is no such folder; name that of a"),
        (("verify", "nowhere.zip", "--key", "ab" * 32), "cannot be read"),
        (("verify", __file__, "--key", "ab" * 32), "is no bundle"),
        (("verify", __file__, "--key", "ab"), "is no public key"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = command(*arguments)
    assert done.exit_code == 2
    assert says in done.output
    assert len(done.output.splitlines()) == 1


def test_a_policy_that_is_none_is_refused_before_the_run_is_read(tmp_path):
    (tmp_path / "p.yaml").write_text("rules: []\n")
    with pytest.raises(ConfigError, match=r"p\.yaml"):
        make_bundle(Path("nowhere"), tmp_path / "b.zip", policy=tmp_path / "p.yaml")


def test_a_file_without_a_place_in_a_bundle_is_not_written(tmp_path):
    for name in ("seed-0/federation/transcript/events.jsonl", "config.yaml", "keys/audit.key", "../x"):
        with pytest.raises(ConfigError, match="has no place in a bundle"):
            archive.write_archive(tmp_path / "b.zip", {name: b""})
    assert not list(tmp_path.iterdir())
