"""No record, key, path or error text of a run gets into its bundle."""

import json
import zipfile
from dataclasses import replace

import pytest

from fedproxy_secure.bundle import archive
from fedproxy_secure.bundle.archive import read_archive
from fedproxy_secure.bundle.build import bundle_files, make_bundle
from fedproxy_secure.bundle.redaction import (
    MARK,
    check_nothing_private,
    paths_in,
    private_strings,
    redacted_value,
)
from fedproxy_secure.bundle.source import read_source
from fedproxy_secure.bundle.verify import verify_bundle
from fedproxy_secure.cli.options import typed
from fedproxy_secure.errors import ConfigError
from tests.support.bundles import RESEARCH
from tests.support.signed_run import signed_run

SENTINELS = {
    "federation/transcript/events.jsonl": b"SENTINEL-transcript-event",
    "federation/transcript/blobs/aa.safetensors": b"SENTINEL-transcript-blob",
    "federation/transcript/clients/clinic/records.safetensors": b"SENTINEL-record",
    "federation/transcript/clients/clinic/canaries.json": b'"SENTINEL-canary"',
    "federation/privacy/clinic.ledger.jsonl": b'{"client": "SENTINEL-ledger"}\n',
    "federation/privacy/clinic.salt.key": b"SENTINEL-salt",
    "federation/keys/clinic.key": b"SENTINEL-client-key",
    "federation/state.safetensors": b"SENTINEL-server-state",
    "federation/ledger.jsonl": b'{"SENTINEL": "message-ledger"}\n',
    "adapter/notes.txt": b"SENTINEL-note-beside-a-model",
}


ROOT = "/srv/SENTINEL-clients"


@pytest.mark.parametrize(
    ("root", "command"),
    [
        (ROOT, typed("run", "mine.yaml")),
        (ROOT, typed("run", "x", set=[f"data.root={ROOT}"])),
        ("/srv/O'Brien's SENTINEL", typed("run", "x", set=["data.root=/srv/O'Brien's SENTINEL"])),
        ("/srv/O'Brien SENTINEL", typed("run", "x", set=["data={root: '/srv/O''Brien SENTINEL'}"])),
        ("/srv/Praxis\u00adSENTINEL", typed("run", "x", set=["data.root=/srv/Praxis\u00adSENTINEL"])),
        ("/srv/<\"a&b'\n\u00adSENTINEL", typed("run", "x", set=["data.root=/srv/<\"a&b'\n\u00adSENTINEL"])),
    ],
)
def test_no_byte_of_a_bundle_is_of_a_record_a_transcript_a_ledger_a_key_or_a_path(tmp_path, root, command):
    run = signed_run(tmp_path, command=command, root=root, more=SENTINELS)
    out = tmp_path / "b.zip"
    make_bundle(run.folder, out, policy=RESEARCH)
    raw = out.read_bytes()
    assert all(
        i.compress_type == zipfile.ZIP_STORED for i in zipfile.ZipFile(out).infolist()
    )  # as it reads
    assert b"SENTINEL" not in raw
    secret = run.key.reveal()
    assert secret not in raw
    assert secret.hex().encode() not in raw
    assert b"weights of the" not in raw
    assert b"PRIVATE KEY" not in raw
    checked = verify_bundle(out, run.public)
    assert checked.problems == ()


def test_a_path_in_the_command_is_redacted_in_report_page_and_log_and_the_bundle_verifies(tmp_path):
    run = signed_run(tmp_path, command=f"run x --set data.root={ROOT}", root=ROOT)
    make_bundle(run.folder, tmp_path / "b.zip")
    files = read_archive(tmp_path / "b.zip")
    redactions = json.loads(files[archive.REDACTIONS])
    assert set(redactions) == {"audit/audit.jsonl", archive.REPORT, archive.PAGE}
    assert redactions["audit/audit.jsonl"]["lines"] == [1]
    assert json.loads(files[archive.REPORT])["command"] == f"run x --set data.root={MARK}"
    assert verify_bundle(tmp_path / "b.zip", run.public).problems == ()


def test_what_ended_a_run_stays_out_of_its_bundle_and_the_copy_of_the_log_says_so(tmp_path):
    said = "client bank: task x, row 7: label='Jane Doe has HIV': must be 0 .. 1"
    run = signed_run(tmp_path, aborted=said)
    make_bundle(run.folder, tmp_path / "b.zip")
    files = read_archive(tmp_path / "b.zip")
    assert b"Jane Doe" not in (tmp_path / "b.zip").read_bytes()
    aborted = json.loads(files["audit/audit.jsonl"].splitlines()[2])
    assert aborted["event"] == "aborted"
    assert aborted["body"] == {"error": "DataError", "reason": MARK, "round": 0, "seed": 0}
    assert json.loads(files[archive.REDACTIONS]) == {"audit/audit.jsonl": {"lines": [3]}}
    assert verify_bundle(tmp_path / "b.zip", run.public).problems == ()


def test_an_abort_without_words_is_copied_as_it_is(tmp_path):
    run = signed_run(tmp_path, aborted="")
    make_bundle(run.folder, tmp_path / "b.zip")
    files = read_archive(tmp_path / "b.zip")
    assert files["audit/audit.jsonl"] == (run.folder / "audit.jsonl").read_bytes()
    assert json.loads(files[archive.REDACTIONS]) == {}


@pytest.mark.parametrize("path", ["/srv/St Mary HIV ward (2)/x.journal", r"\\ward7\jane doe\rec.jsonl"])
def test_a_path_of_a_clients_own_machine_in_a_failed_seeds_line_is_redacted_to_its_end(tmp_path, path):
    run = signed_run(tmp_path, failed=f"seed 3: client bank: {path}: has mode 644; must be 600")
    make_bundle(run.folder, tmp_path / "b.zip")
    files = read_archive(tmp_path / "b.zip")
    (line,) = json.loads(files[archive.REPORT])["configurations"][0]["failed"]
    assert line == f"seed 3: client bank: {MARK}: has mode 644; must be 600"
    assert set(json.loads(files[archive.REDACTIONS])) == {archive.REPORT}
    assert not any(part in files[archive.NOT_MEASURED] for part in (b"Mary", b"ward"))
    assert verify_bundle(tmp_path / "b.zip", run.public).problems == ()


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("x=/a/b: no", ("/a/b",)),
        ("~/data/r.csv is gone", ("~/data/r.csv is gone", "~/data/r.csv")),
        ("/srv/St Mary (2)/x: mode 644", ("/srv/St Mary (2)/x", "/srv/St")),
        ("/srv/St Mary's ward/x, gone", ("/srv/St Mary's ward/x", "/srv/St")),
        ("open '/srv/a b' or '/srv/c'", ("/srv/a b", "/srv/a", "/srv/c")),
        ("read /srv/a b\nthen wait", ("/srv/a b", "/srv/a")),
        ("//nas/a b/r: no", ("//nas/a b/r", "//nas/a")),
        (r"\\ward7\jane doe\r: no", (r"\\ward7\jane doe\r", r"\\ward7\jane")),
        ("file:///home/al/r: no", ("file:///home/al/r", "/home/al/r")),
        ("file:/home/al/r: no", ("file:/home/al/r", "/home/al/r")),
        ("file://ward7/a b/r: no", ("file://ward7/a b/r", "file://ward7/a")),
        ("~al/a b/r: no", ("~al/a b/r", "~al/a")),
        (r"C:\data\r.csv, gone", (r"C:\data\r.csv",)),
        ("seed-0/fused and/or 3/4 of https://x.org/y / z", ()),
    ],
)
def test_absolute_paths_are_told_from_other_slashes(text, paths):
    assert paths_in([text]) == paths


def test_what_redaction_misses_stops_the_bundle_and_is_not_told(run, tmp_path):
    source = read_source(run.folder, run.key)
    leaking = replace(source, private=(*source.private, "masking + DP 8"))
    with pytest.raises(ConfigError, match="would hold a client's path; nothing was written") as error:
        check_nothing_private(bundle_files(leaking, None), leaking.private)
    assert "masking" not in str(error.value)


def test_a_clients_paths_are_found_in_every_setting_that_has_one():
    settings = {
        "data": {
            "root": "/srv/data",
            "clients": [
                {"name": "a", "source": "{data}/a/{split}.jsonl", "train_split": "learn"},
                {"name": "b", "source": "/mnt/b/records.{split}.csv"},
                {"name": "c", "source": "demo"},
                {"name": "d", "source": "hub:org/set"},
            ],
        },
        "privacy": {"ledger": "/var/ledgers"},
        "protect": {"keys": "keys/a"},
        "audit": {"folder": None},
    }
    found = private_strings(settings)
    assert {"/srv/data", "/srv/data/a/learn.jsonl", "/mnt/b/records.", "/var/ledgers", "keys/a"} <= set(
        found
    )
    assert list(found) == sorted(found, key=lambda s: (-len(s), s))
    assert not {"demo", "hub:org/set", "", "/"} & set(found)


def test_a_private_string_is_taken_out_in_every_spelling():
    private = ('/srv/a"b&c',)
    value = {"k": ['open /srv/a"b&c/x failed'], '/srv/a"b&c': 1, "page": "<p>/srv/a&quot;b&amp;c</p>"}
    clean = redacted_value(value, private)
    assert clean == {"k": [f"open {MARK}/x failed"], MARK: 1, "page": f"<p>{MARK}</p>"}
    check_nothing_private({"a": json.dumps(clean).encode()}, private)
