"""Must fail: hostile archives and altered bundles, each told in one line; nothing private gets out."""

import io
import json
import stat
import struct
import zipfile
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from fedproxy_secure.audit.keys import make_key
from fedproxy_secure.bundle import archive
from fedproxy_secure.bundle.archive import archive_bytes, read_archive
from fedproxy_secure.bundle.build import bundle_files, make_bundle
from fedproxy_secure.bundle.envelope import open_envelope, seal_statement
from fedproxy_secure.bundle.redaction import (
    MARK,
    check_nothing_private,
    paths_in,
    private_strings,
    redacted_value,
)
from fedproxy_secure.bundle.source import read_source
from fedproxy_secure.bundle.verify import verify_bundle
from fedproxy_secure.cli.app import app
from fedproxy_secure.crypto.primitives import fresh_secret
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.gate.policy import find_policy
from fedproxy_secure.runtime.artifacts import json_bytes
from tests.support.signed_run import resealed, signed_run

RESEARCH = find_policy("research")
REGULAR = stat.S_IFREG | 0o644


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return signed_run(tmp_path_factory.mktemp("bundled"))


@pytest.fixture(scope="module")
def files(run):
    return bundle_files(read_source(run.folder, run.key), RESEARCH)


@pytest.fixture
def check(run, tmp_path):
    """Pack files or take bytes, run the command, and return exit code and lines."""

    def checked(packed, key=None):
        out = tmp_path / "b.zip"
        out.write_bytes(packed if isinstance(packed, bytes) else archive_bytes(packed))
        arguments = ["evidence", "verify", str(out), "--key", (key or run.public).hex()]
        done = CliRunner().invoke(app, arguments)
        assert not done.exception or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.output.splitlines()

    return checked


def problems(outcome):
    code, lines = outcome
    assert code == 1
    return [line.removeprefix("BAD   ") for line in lines if line.startswith("BAD")]


def altered(files, name, change):
    value = json.loads(files[name])
    change(value)
    return {**files, name: (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()}


# --- altered bundles: exit code 1 and one line


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


# --- a signer who contradicts the report


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


# --- hostile archives: exit code 2 and one line


def zipped(*entries, comment=b"", compression=zipfile.ZIP_STORED):
    """A ZIP file of (name, content, mode) in this order."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        made.comment = comment
        for name, content, mode in entries:
            entry = zipfile.ZipInfo(name, archive.DATE)
            entry.external_attr = mode << 16
            entry.compress_type = compression
            made.writestr(entry, content)
    return out.getvalue()


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "is no bundle"),
        (b"PK\x05\x06" + bytes(10), "is no bundle"),
        (zipped(("../../etc/passwd", b"x", REGULAR)), "is no name for a file of a bundle"),
        (zipped(("/etc/passwd", b"x", REGULAR)), "is no name for a file of a bundle"),
        (zipped(("report/../../x", b"x", REGULAR)), "is no name for a file of a bundle"),
        (zipped(("report\\report.json", b"x", REGULAR)), "is no name for a file of a bundle"),
        (zipped(("report/", b"", stat.S_IFDIR | 0o755)), "is no name for a file of a bundle"),
        (zipped(("a\x1b[2Jb", b"x", REGULAR)), "is no name for a file of a bundle"),
        (zipped(("report/report.json", b"/etc/passwd", stat.S_IFLNK | 0o777)), "is a link"),
        (zipped(("models.json", b"x", stat.S_IFIFO | 0o644)), "is a link, a folder or a device"),
        (zipped(("bomb", bytes(10**7), REGULAR), compression=zipfile.ZIP_DEFLATED), "is compressed"),
        (zipped(("models.json", b"x", REGULAR), comment=b"hello"), "something besides its files"),
        (b"#!/bin/sh\n" + archive_bytes({"models.json": b"{}"}), "something besides its files"),
        (archive_bytes({"models.json": b"{}"}) + b"\0" * 8, "is no bundle"),
    ],
)
def test_a_hostile_archive_is_refused_in_one_line(check, raw, says):
    code, lines = check(raw)
    assert code == 2
    assert len(lines) == 1
    assert says in lines[0]
    assert "\x1b" not in lines[0]


def test_a_name_that_is_there_twice_is_refused(check):
    with pytest.warns(UserWarning, match="Duplicate name"):
        raw = zipped(("models.json", b"{}", REGULAR), ("models.json", b"[]", REGULAR))
    code, lines = check(raw)
    assert code == 2
    assert "models.json: is there twice" in lines[0]


def test_files_that_overlap_so_that_few_bytes_become_many_are_refused(check):
    content = b"x" * 1000
    raw = archive_bytes({"models.json": content})
    at = raw.index(b"PK\x01\x02")
    end = raw.index(b"PK\x05\x06")
    head = raw[at:end]
    again = head.replace(b"models.json", b"claims.json")
    count = (2).to_bytes(2, "little")
    tail = raw[end : end + 8] + count + count + (2 * len(head)).to_bytes(4, "little") + raw[end + 16 :]
    code, lines = check(raw[:at] + head + again + tail)
    assert code == 2
    assert "claim more bytes than the archive has" in lines[0] or "is no bundle" in lines[0]


def test_a_size_that_is_a_lie_is_refused(check):
    raw = bytearray(archive_bytes({"models.json": b"{}"}))
    at = raw.index(b"PK\x01\x02")
    raw[at + 20 : at + 28] = (2**31).to_bytes(4, "little") * 2
    assert check(bytes(raw))[0] == 2


def test_an_archive_above_the_bound_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MOST_BYTES", 1000)
    (tmp_path / "b.zip").write_bytes(bytes(1001))
    with pytest.raises(ConfigError, match="has more than 1,000 bytes"):
        read_archive(tmp_path / "b.zip")
    with pytest.raises(ConfigError, match="must have at most 1,000"):
        archive.write_archive(tmp_path / "c.zip", {"models.json": bytes(1001)})


def test_too_many_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MOST_FILES", 2)
    (tmp_path / "b.zip").write_bytes(archive_bytes(dict.fromkeys("abc", b"")))
    with pytest.raises(ConfigError, match="has 3 files; must have at most 2"):
        read_archive(tmp_path / "b.zip")


def crowded(count, *, named):
    """Return an archive of `count` empty files whose end record claims `named`."""
    raw = bytearray(archive_bytes({f"{n:05}": b"" for n in range(count)}))
    raw[-12:-10] = raw[-14:-12] = named.to_bytes(2, "little")
    return bytes(raw)


def with_a_second_end(raw):
    """Return the archive with a ZIP64 end record before its own, which lists the files again."""
    size, start = (int.from_bytes(raw[a : a + 4], "little") for a in (len(raw) - 10, len(raw) - 6))
    at = len(raw) - 22
    end = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 9, 9, size, start)
    where = struct.pack("<4sLQL", b"PK\x06\x07", 0, at, 1)
    mark = raw[at : at + 8] + bytes(4)  # no files, in a list without bytes, right before the end
    return raw[:at] + end + where + mark + struct.pack("<2LH", 0, at + len(end + where), 0)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (crowded(10_001, named=10_001), "has 10,001 files; must have at most 10,000"),
        (crowded(10_001, named=1), "something besides its files"),
        (with_a_second_end(archive_bytes({f"{n:05}": b"" for n in range(9)})), "something besides"),
    ],
    ids=["as it says", "though it says one", "in an end before the end"],
)
def test_an_archive_of_more_files_than_a_bundle_has_is_refused_before_they_are_listed(
    tmp_path, monkeypatch, raw, says
):
    listed = []
    monkeypatch.setattr(zipfile.ZipInfo, "__init__", lambda *_, **__: listed.append(1))
    (tmp_path / "b.zip").write_bytes(raw)
    with pytest.raises(ConfigError, match=says):
        read_archive(tmp_path / "b.zip")
    assert listed == []


@pytest.mark.parametrize("at", range(0, 400, 7))
def test_no_cut_of_an_archive_ends_in_anything_but_one_line(tmp_path, at):
    raw = archive_bytes({"models.json": b"{}", "claims.json": b"[]"})
    for broken in (raw[:at], raw[at:], raw[:at] + b"\xff" + raw[at + 1 :]):
        (tmp_path / "b.zip").write_bytes(broken)
        if broken != raw and at < len(raw):
            with pytest.raises(ConfigError, match=r"b\.zip"):
                read_archive(tmp_path / "b.zip")


# --- nothing private


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


@pytest.mark.parametrize("command", ["fedproxy-secure run mine.yaml", f"run x --set data.root={ROOT}"])
def test_no_byte_of_a_bundle_is_of_a_record_a_transcript_a_ledger_a_key_or_a_path(tmp_path, command):
    run = signed_run(tmp_path, command=command, root=ROOT, more=SENTINELS)
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
