"""Must fail: a signer who contradicts the report or the log, and signs everything anew."""

import json

from fedproxy_secure.bundle import archive
from fedproxy_secure.bundle.envelope import open_envelope, seal_statement
from tests.support.bundles import altered, problems
from tests.support.signed_run import resealed


def signed_again(files, run, name, change):
    """What the owner of the key can do: another statement under the right signature."""
    statement = open_envelope(files[name], run.public)
    change(statement)
    return resealed({**files, name: seal_statement(statement, run.key)}, run.key)


def test_a_statement_that_contradicts_the_report_does_not_verify_even_from_the_signer(files, run, check):
    def nothing_succeeded(statement):
        for attack in statement["predicate"]["attacks"]:
            attack["outcome"] = "RESISTED"

    (line,) = problems(check(signed_again(files, run, archive.FINDINGS, nothing_succeeded)))
    assert line == (
        f"{archive.FINDINGS}: does not agree with the report and the files that it is about: attacks"
    )


def test_a_gate_that_did_not_pass_cannot_be_stated_as_passed(files, run, check):
    def passed(statement):
        statement["predicate"]["result"] = "PASSED"

    (line,) = problems(check(signed_again(files, run, archive.GATE, passed)))
    assert line.endswith(": result")


def test_a_subject_that_names_another_file_is_found(files, run, check):
    def other(statement):
        statement["subject"][0]["digest"]["sha256"] = "00" * 32

    (line,) = problems(check(signed_again(files, run, archive.FINDINGS, other)))
    assert line.endswith(": subject")


def test_epsilon_that_the_log_does_not_have_is_found(files, run, check):
    def less(stated):
        stated["statements"][0]["epsilon"] = 1.0

    lines = problems(check(resealed(altered(files, archive.PRIVACY, less), run.key)))
    assert f"{archive.PRIVACY}: what clients spent is not what the audit log has" in lines


def test_a_report_that_the_runs_own_signature_does_not_have_is_found(files, run, check):
    changed = {**files, archive.PAGE: files[archive.PAGE] + b"<!-- more -->"}
    (line,) = problems(check(resealed(changed, run.key)))
    assert line == f"{archive.PAGE}: is not the report that audit/report.sig has"


def test_a_model_that_the_log_does_not_name_is_found(files, run, check):
    def other(models):
        models["models"][0]["files"]["config.json"] = "00" * 32

    (line,) = problems(check(resealed(altered(files, archive.MODELS, other), run.key)))
    assert line == f"{archive.MODELS}: is not what the audit log has"


def test_a_model_signature_of_another_model_is_found(files, run, check):
    one, other = "model-signatures/seed-0/proxy.sig", "model-signatures/seed-0/fused.sig"
    (line,) = problems(check(resealed({**files, one: files[other]}, run.key)))
    assert line == f"{one}: is the signature of another model"


def test_a_cut_log_is_found_even_if_all_else_is_signed_again(files, run, check):
    name = "audit/audit.jsonl"
    cut = b"".join(files[name].splitlines(keepends=True)[:-1])
    lines = problems(check(resealed({**files, name: cut}, run.key)))
    assert "audit/report.sig: is not by --key over the end of the log beside it" in lines


def test_a_log_line_that_claims_to_be_redacted_must_still_be_signed(files, run, check):
    name = "audit/audit.jsonl"
    first, second, *rest = files[name].splitlines(keepends=True)
    entry = json.loads(second)
    entry["body"] = {"rounds": 7, "seed": 0}
    entry["hash"] = "00" * 32
    changed = {
        **files,
        name: b"".join([first, json.dumps(entry, sort_keys=True).encode() + b"\n", *rest]),
        archive.REDACTIONS: json.dumps({name: {"lines": [2]}}).encode(),
    }
    lines = problems(check(resealed(changed, run.key)))
    assert any("line 2: was altered: the signature is not the signer's" in line for line in lines)


def test_what_is_signed_and_yet_of_no_form_that_we_write_is_one_line(files, run, check):
    for name in (archive.PRIVACY, archive.MODELS, archive.SBOM, archive.REDACTIONS, archive.REPORT):
        empty = b"[]" if name == archive.REDACTIONS else b"{}"  # no redactions are what they are here
        for content in (b"[]", empty, b"\xff", b"[" * 100_000):
            assert problems(check(resealed({**files, name: content}, run.key)))
