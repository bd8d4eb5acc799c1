"""Bundles of a real run and of a real matrix, recorded: they verify, and hold no record and no canary."""

import json

import pytest
from typer.testing import CliRunner

from fedproxy_secure.audit.keys import own_key_file, parse_public
from fedproxy_secure.audit.verify import verify_run
from fedproxy_secure.bundle.archive import FINDINGS, MODELS, PRIVACY, REDACTIONS, read_archive
from fedproxy_secure.cli.app import app
from fedproxy_secure.config import parse_config
from fedproxy_secure.crypto.key_file import read_key
from fedproxy_secure.crypto.primitives import signing_public
from fedproxy_secure.experiments.matrix import matrix
from fedproxy_secure.experiments.run import run
from tests.support.tiny import tiny_settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
RECORDED = {"record": True, "holdout": 0.3, "canaries": [1, 2]}


def bundled(folder, out):
    """Bundle a folder by the command, check the bundle by the other one, and return its files."""
    done = CliRunner().invoke(
        app, ["evidence", "bundle", str(folder), "--out", str(out), "--policy", "research"]
    )
    assert done.exit_code == 0, done.output
    public = signing_public(read_key(own_key_file(folder)))
    checked = CliRunner().invoke(app, ["evidence", "verify", str(out), "--key", public.hex()])
    assert checked.exit_code == 0, checked.output
    assert verify_run(folder, key=parse_public(public.hex())).verified  # bundling leaves the run as it was
    return read_archive(out)


def assert_nothing_of_records(files, settings, folder):
    """Search every file for the clients' folder, for every record's text and for every canary."""
    secrets = [settings["data"]["root"]]
    secrets += [
        f"{split} {client} {i}" for split in ("train", "test") for client in range(3) for i in range(12)
    ]
    for found in folder.rglob("canaries.json"):
        secrets += [text for text in _texts(json.loads(found.read_bytes())) if len(text) > 8]
    assert len(secrets) > 70
    for name, content in files.items():
        for secret in secrets:
            assert secret.encode() not in content, (name, secret)


def _texts(value):
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for each in inner for text in _texts(each)]


def test_a_recorded_private_run_is_bundled_with_its_epsilon_and_without_its_records(tmp_path):
    settings = tiny_settings(
        tmp_path / "tiny",
        federate={"rounds": 2},
        audit=RECORDED,
        privacy={"unit": "record", "max_epsilon": 8},
    )
    command = f"fedproxy-secure run tiny --set data.root={settings['data']['root']}"
    run(parse_config(settings), tmp_path / "run", command=command)
    files = bundled(tmp_path / "run", tmp_path / "run.zip")
    assert_nothing_of_records(files, settings, tmp_path / "run")
    assert "report/report.html" in json.loads(files[REDACTIONS])
    assert [s["client"] for s in json.loads(files[PRIVACY])["statements"]] == ["c0", "c1", "c2"]
    model_signing = pytest.importorskip("model_signing")
    (tmp_path / "models.pem").write_bytes(files["keys/models.pem"])
    for kind in ("proxy", "adapter", "fused"):
        (tmp_path / "model.sig").write_bytes(files[f"model-signatures/seed-0/{kind}.sig"])
        verifier = model_signing.verifying.Config().use_elliptic_key_verifier(
            public_key=tmp_path / "models.pem"
        )
        verifier.verify(tmp_path / "run/seed-0" / kind, tmp_path / "model.sig")


@pytest.mark.slow
def test_a_matrix_is_bundled_with_the_logs_and_the_models_of_its_cells(tmp_path):
    settings = tiny_settings(
        tmp_path / "tiny",
        fusion={"rule": "fedavg"},
        federate={"rounds": 1},
        attacks={"suite": "none"},
        matrix={"protections": [{"scheme": "unsafe_plaintext"}, {"scheme": "masking"}], "jobs": 1},
    )
    matrix(parse_config(settings), tmp_path / "m", command="fedproxy-secure matrix tiny")
    files = bundled(tmp_path / "m", tmp_path / "m.zip")
    assert_nothing_of_records(files, settings, tmp_path / "m")
    logs = [name for name in files if name.startswith("audit/cells/") and name.endswith("audit.jsonl")]
    models = json.loads(files[MODELS])["models"]
    assert len(logs) >= 2
    assert {m["name"].rsplit("/", 2)[0] for m in models} <= {
        log.removeprefix("audit/").removesuffix("/audit.jsonl") for log in logs
    }
    assert FINDINGS in files
    cards = [n for n in files if n.startswith("model-cards/cells/")]
    assert len(cards) == len(models) > 0
