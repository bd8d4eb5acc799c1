"""A bundle of a run: what it holds, and that tools of other projects accept it."""

import base64
import json
import re
import shutil
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from huggingface_hub import ModelCard
from in_toto_attestation.v1 import statement as in_toto
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey  # type: ignore[attr-defined]
from typer.testing import CliRunner

from attacks.registry import every as every_attack
from fedproxy_secure.audit.keys import make_key
from fedproxy_secure.bundle import archive, claims
from fedproxy_secure.bundle.archive import read_archive
from fedproxy_secure.bundle.build import make_bundle
from fedproxy_secure.bundle.envelope import key_id, open_envelope, pae, seal_statement
from fedproxy_secure.bundle.findings import SCHEMA
from fedproxy_secure.bundle.model_signature import root_digest
from fedproxy_secure.bundle.source import read_source
from fedproxy_secure.cli.app import app
from fedproxy_secure.crypto.primitives import fresh_secret, signing_public
from fedproxy_secure.errors import AuditError, ConfigError
from fedproxy_secure.gate.policy import find_policy
from fedproxy_secure.runtime.artifacts import json_bytes
from tests.support.signed_run import CLIENTS, SPENT, signed_run
from threat_models import every as every_threat_model

RESEARCH = find_policy("research")
STATEMENTS = (archive.CONTENTS, archive.FINDINGS, archive.GATE)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return signed_run(tmp_path_factory.mktemp("bundled"))


@pytest.fixture(scope="module")
def bundle(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "mine.zip"
    make_bundle(run.folder, out, policy=RESEARCH)
    return out


@pytest.fixture(scope="module")
def files(bundle):
    return read_archive(bundle)


@pytest.fixture(scope="module")
def key_of_another_library(run):
    """The signer's public key as securesystemslib has it."""
    public = {"public": run.public.hex()}
    return SSlibKey(key_id(run.public), "ed25519", "ed25519", public)


def command(*arguments):
    return CliRunner().invoke(app, ["evidence", *map(str, arguments)])


def statement(files, name):
    return json.loads(base64.b64decode(json.loads(files[name])["payload"]))


# --- the whole


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


# --- statements, checked by other projects' code


@pytest.mark.parametrize("name", STATEMENTS)
def test_securesystemslib_verifies_every_envelope(files, name, key_of_another_library):
    envelope = Envelope.from_dict(json.loads(files[name]))
    assert envelope.verify([key_of_another_library], 1)
    assert envelope.pae() == pae(envelope.payload)
    envelope.payload += b" "
    with pytest.raises(VerificationError):
        envelope.verify([key_of_another_library], 1)


def test_the_id_of_a_key_is_the_one_that_securesystemslib_computes(run):
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    theirs = SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(run.public))
    assert key_id(run.public) == theirs.keyid


@pytest.mark.parametrize("name", STATEMENTS)
def test_in_toto_accepts_every_statement(files, name):
    plain = statement(files, name)
    built = in_toto.Statement(
        [in_toto.ResourceDescriptor(name=s["name"], digest=s["digest"]).pb for s in plain["subject"]],
        plain["predicateType"],
        plain["predicate"],
    )
    built.validate()
    assert plain["_type"] == "https://in-toto.io/Statement/v1"


def test_an_envelope_opens_for_its_signer_alone():
    key, other = fresh_secret(), fresh_secret()
    raw = seal_statement({"_type": "x"}, key)
    assert open_envelope(raw, signing_public(key)) == {"_type": "x"}
    with pytest.raises(AuditError, match="names the key"):
        open_envelope(raw, signing_public(other))
    named = json.loads(raw)
    named["signatures"][0]["keyid"] = key_id(signing_public(other))
    with pytest.raises(AuditError, match="the signature is not that of --key"):
        open_envelope(json_bytes(named), signing_public(other))


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b'{"payload": "!", "signatures": [{}]}', b"\xff"])
def test_what_is_no_envelope_is_one_line(raw):
    with pytest.raises(AuditError, match="is no DSSE envelope"):
        open_envelope(raw, bytes(32))


def test_the_findings_keep_their_schema_and_hold_every_measure_every_client_and_every_attack(run, files):
    schema = json.loads(SCHEMA.read_bytes())
    found = statement(files, archive.FINDINGS)["predicate"]
    jsonschema.Draft202012Validator(schema).validate(found)
    report = read_source(run.folder, run.key).report
    (configuration,) = report.configurations
    assert [m["key"] for m in found["trilemma"][0]["measures"]] == [m.key for m in configuration.measures]
    assert {(a["id"], a["outcome"]) for a in found["attacks"]} == {
        (f.id, f.outcome.value) for f in configuration.findings
    }
    assert [(e["client"], e["epsilon"]) for e in found["epsilon"]] == [
        (client, SPENT["epsilon"]) for client in sorted(CLIENTS)
    ]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate({**found, "score": 1})


def test_the_gate_is_a_test_result_with_every_rule_in_its_list(files):
    predicate = statement(files, archive.GATE)["predicate"]
    verdict = json.loads(files[archive.VERDICT])
    assert predicate["result"] == {0: "PASSED", 1: "FAILED", 3: "WARNED"}[verdict["exit_code"]]
    listed = sum(len(predicate[k]) for k in ("passedTests", "warnedTests", "failedTests"))
    assert listed == len({(r["configuration"], r["rule"]) for r in verdict["rows"]})


# --- SBOM, models, cards


def test_cyclonedx_finds_the_sbom_valid_and_the_models_in_it(files):
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(files[archive.SBOM].decode()) is None
    components = json.loads(files[archive.SBOM])["components"]
    models = [c["name"] for c in components if c["type"] == "machine-learning-model"]
    assert models == [f"seed-0/{kind}" for kind in ("adapter", "fused", "proxy")]
    libraries = {c["name"]: c for c in components if c["type"] == "library"}
    assert {"fedproxy-secure", "torch", "cryptography", "flwr", "numpy"} <= set(libraries)
    assert "hypothesis" not in libraries  # what only developers need is no part of what ran
    assert libraries["flwr"]["properties"][0]["value"] == "the run's audit log"


@pytest.mark.parametrize("kind", ["proxy", "adapter", "fused"])
def test_model_signing_verifies_the_signature_of_a_folder_and_refuses_an_altered_one(
    run, files, tmp_path, kind
):
    model_signing = pytest.importorskip("model_signing")
    folder = shutil.copytree(run.folder / "seed-0" / kind, tmp_path / kind)
    (tmp_path / "models.pem").write_bytes(files[archive.MODEL_SIGNER])
    (tmp_path / "model.sig").write_bytes(files[f"model-signatures/seed-0/{kind}.sig"])
    verifier = model_signing.verifying.Config().use_elliptic_key_verifier(
        public_key=tmp_path / "models.pem"
    )
    verifier.verify(folder, tmp_path / "model.sig")
    weights = next(folder.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes() + b"\0")
    with pytest.raises(ValueError, match="mismatch"):
        verifier.verify(folder, tmp_path / "model.sig")


def test_the_digest_of_a_model_depends_on_the_order_of_names_alone():
    a, b = {"b": "11" * 32, "a": "22" * 32}, {"a": "22" * 32, "b": "11" * 32}
    assert root_digest(a) == root_digest(b)


@pytest.mark.parametrize("kind", ["proxy", "adapter", "fused"])
def test_the_hub_reads_a_card_that_says_what_was_measured_and_what_was_not(files, kind):
    card = ModelCard(files[f"model-cards/seed-0/{kind}.md"].decode())
    data = card.data.to_dict()
    assert data["library_name"] == ("peft" if kind == "adapter" else "transformers")
    assert kind in data["tags"]
    assert "license" not in data  # nobody told us which
    for part in ("## How it was made", "## Measured", "## Guarantees", "## Not measured", "## Files"):
        assert part in card.text
    assert "protect.scheme = masking" in card.text
    assert ("gap_closed" in card.text) == (kind == "fused")


def test_epsilon_is_stated_for_each_client_with_unit_delta_and_limit(files):
    stated = json.loads(files[archive.PRIVACY])["statements"]
    assert {s["client"] for s in stated} == set(CLIENTS)
    assert {(s["unit"], s["epsilon"], s["delta"], s["limit"]) for s in stated} == {
        ("record", 7.25, 1e-5, 8.0)
    }


def test_threat_models_are_there_as_they_are_declared(files):
    server = yaml.safe_load(files["threat-models/server.yaml"])
    declared = every_threat_model()["server"]
    assert server["capabilities"] == list(declared.capabilities)
    assert server["non_goals"] == list(declared.non_goals)


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
