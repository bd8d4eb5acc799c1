"""Tools of other projects accept a bundle's statements, SBOM, model signatures and cards."""

import base64
import json
import shutil

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

from fedproxy_secure.bundle import archive
from fedproxy_secure.bundle.envelope import open_envelope, pae, seal_statement
from fedproxy_secure.bundle.findings import SCHEMA
from fedproxy_secure.bundle.model_signature import root_digest
from fedproxy_secure.bundle.source import read_source
from fedproxy_secure.crypto.primitives import fresh_secret, key_id, signing_public
from fedproxy_secure.errors import AuditError
from fedproxy_secure.runtime.artifacts import json_bytes
from tests.support.bundles import STATEMENTS
from tests.support.signed_run import CLIENTS, SPENT
from threat_models import every as every_threat_model


@pytest.fixture(scope="module")
def key_of_another_library(run):
    """The signer's public key as securesystemslib has it."""
    public = {"public": run.public.hex()}
    return SSlibKey(key_id(run.public), "ed25519", "ed25519", public)


def statement(files, name):
    return json.loads(base64.b64decode(json.loads(files[name])["payload"]))


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
