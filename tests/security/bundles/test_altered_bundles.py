"""Must fail: bundles that somebody altered, each told in one line."""

import json

import pytest

from fedproxy_secure.audit.keys import make_key
from fedproxy_secure.bundle import archive
from fedproxy_secure.bundle.build import bundle_files
from fedproxy_secure.bundle.source import read_source
from fedproxy_secure.crypto.primitives import fresh_secret
from fedproxy_secure.runtime.artifacts import json_bytes
from tests.support.bundles import RESEARCH, altered, problems
from tests.support.signed_run import resealed, signed_run


def test_the_bundle_that_all_of_these_alter_verifies(files, check):
    assert check(files)[0] == 0


def test_an_edited_number_is_found_at_its_file(files, check):
    def better(report):
        report["configurations"][0]["measures"][0]["estimate"]["value"] = 0.99

    (line,) = problems(check(altered(files, archive.REPORT, better)))
    assert line == f"{archive.REPORT}: was altered: its SHA-256 is not that of the signed list"


@pytest.mark.parametrize(
    "name",
    [
        archive.PAGE,
        archive.SBOM,
        archive.FINDINGS,
        archive.GATE,
        archive.SIGNER,
        "threat-models/server.yaml",
    ],
)
def test_one_flipped_bit_in_any_file_is_found_at_that_file(files, check, name):
    content = bytearray(files[name])
    content[len(content) // 2] ^= 1
    (line,) = problems(check({**files, name: bytes(content)}))
    assert line.startswith(f"{name}: was altered")


def test_a_file_that_is_missing_and_one_too_many_are_named(files, check):
    without = {n: c for n, c in files.items() if n != archive.NOT_MEASURED}
    assert problems(check(without)) == [f"{archive.NOT_MEASURED}: is missing"]
    (line,) = problems(check({**files, "threat-models/mine.yaml": b"name: mine\n"}))
    assert line == "threat-models/mine.yaml: was added: the signed list does not have it"


@pytest.mark.parametrize("name", [archive.CONTENTS, archive.FINDINGS, archive.GATE])
def test_a_bundle_without_one_of_its_statements_does_not_verify(files, check, name):
    assert problems(check({n: c for n, c in files.items() if n != name})) == [f"{name}: is missing"]


def test_a_verdict_without_its_statement_does_not_verify_even_from_the_signer(files, run, check):
    without = {n: c for n, c in files.items() if n != archive.GATE}
    (line,) = problems(check(resealed(without, run.key)))
    assert line == f"{archive.POLICY}: policy, verdict and the gate's statement must be there together"


def test_a_model_without_its_card_does_not_verify_even_from_the_signer(files, run, check):
    without = {n: c for n, c in files.items() if n != "model-cards/seed-0/fused.md"}
    (line,) = problems(check(resealed(without, run.key)))
    assert line == "model-cards/seed-0/fused.md: is missing"


def test_another_key_than_the_signers_is_one_line(files, check):
    (line,) = problems(check(files, key=b"\x07" * 32))
    assert line.startswith(f"{archive.CONTENTS}: names the key ")


def test_who_edits_a_number_and_signs_anew_has_another_key(files, check):
    def better(report):
        report["configurations"][0]["measures"][0]["estimate"]["value"] = 0.99

    forged = resealed(altered(files, archive.REPORT, better), fresh_secret())
    (line,) = problems(check(forged))
    assert "names the key" in line


def test_an_envelope_with_a_foreign_signature_under_the_right_name_is_found(files, check):
    envelope = json.loads(files[archive.CONTENTS])
    envelope["signatures"][0]["sig"] = json.loads(files[archive.GATE])["signatures"][0]["sig"]
    (line,) = problems(check({**files, archive.CONTENTS: json_bytes(envelope)}))
    assert line == f"{archive.CONTENTS}: was altered: the signature is not that of --key"


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.replace(b'"payload"', b'"approved": "by nobody",\n  "payload"', 1),
        lambda raw: raw.replace(b'"sig"', b'"note": "x",\n      "sig"', 1),
        lambda raw: raw.replace(b'"payload"', b'"payload": "e30=",\n  "payload"', 1),
        lambda raw: raw + b" ",
    ],
    ids=["a member", "a signature's member", "a second payload", "a blank"],
)
def test_nothing_can_stand_beside_the_signed_payload(files, check, change):
    """No hash covers the list's own file, so it must be byte for byte as it was written."""
    raw = change(files[archive.CONTENTS])
    assert raw != files[archive.CONTENTS]
    (line,) = problems(check({**files, archive.CONTENTS: raw}))
    assert line.startswith(f"{archive.CONTENTS}: is no DSSE envelope")


@pytest.fixture(scope="module")
def of_another_run(tmp_path_factory):
    """Two runs by one key: files of both bundles, and the key."""
    place = tmp_path_factory.mktemp("two")
    make_key(place / "me.key")
    runs = [signed_run(place, name=n, key=place / "me.key", command=f"run {n}") for n in ("a", "b")]
    return [bundle_files(read_source(r.folder, r.key), RESEARCH) for r in runs], runs[0]


def test_an_envelope_swapped_with_another_run_by_the_same_key_is_found(of_another_run, check):
    (first, second), run = of_another_run
    for name in (archive.FINDINGS, archive.GATE):
        (line,) = problems(check({**first, name: second[name]}, key=run.public))
        assert line.startswith(f"{name}: was altered")


def test_a_list_swapped_with_another_run_by_the_same_key_is_found(of_another_run, check):
    (first, second), run = of_another_run
    lines = problems(check({**first, archive.CONTENTS: second[archive.CONTENTS]}, key=run.public))
    assert f"{archive.REPORT}: was altered: its SHA-256 is not that of the signed list" in lines


def test_a_foreign_bundle_is_not_verified_with_our_key(of_another_run, run, check):
    (first, _), _ = of_another_run
    (line,) = problems(check(first, key=run.public))
    assert "names the key" in line
