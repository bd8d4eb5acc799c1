"""Who lacks the signer's key changes nothing of a finished run unseen: each attempt is found and placed."""

import json
import os
import shutil
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from fedproxy_secure.audit.chain import NAME, START, make_entry, parse_line
from fedproxy_secure.audit.keys import own_key_file
from fedproxy_secure.audit.seal import FINDINGS, SIGNATURE, sign_report
from fedproxy_secure.audit.verify import verify_run
from fedproxy_secure.audit.vouched import check_finished_seeds, vouched_files
from fedproxy_secure.audit.witness import Witness, reopen_findings
from fedproxy_secure.cli.app import app
from fedproxy_secure.cli.evidence import signed_as
from fedproxy_secure.config import parse_config
from fedproxy_secure.crypto.primitives import fresh_secret, signing_public
from fedproxy_secure.errors import AuditError, ConfigError
from fedproxy_secure.report.publish import write_texts
from fedproxy_secure.runtime.artifacts import RunFolder
from tests.support.sample_report import sample_report

ROUNDS = 4
CONFIG = parse_config({"seeds": [0]})
LINES = 1 + 1 + ROUNDS + 2  # opened, started, rounds, finished, files


@pytest.fixture
def run(tmp_path):
    """A finished run, told and signed as `run` does it, without the training."""
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    witness = Witness.open(folder, CONFIG, command="fedproxy-secure run x")
    witness.started(0)
    for number in range(ROUNDS):
        line = {"round": number, "participants": ["bank", "clinic"]}
        folder.append_jsonl("seed-0/federation/rounds.jsonl", line)
        folder.append_jsonl("seed-0/federation/ledger.jsonl", {"round": number})
        witness.round(0, line)
    folder.write_bytes("seed-0/fused/model.safetensors", bytes(100))
    witness.finished(0, b'{"seed": 0}\n', epsilon={})
    head = witness.settle()
    write_texts(replace(sample_report(), audit_head=head), folder.path)
    witness.sign()
    assert verify_run(folder.path).whole
    return folder.path


def lines_of(run):
    return (run / NAME).read_bytes().splitlines()


def put(run, lines):
    (run / NAME).write_bytes(b"".join(line + b"\n" for line in lines))


def forged(folder, *told):
    """Write a log that anybody can make, of events and their bodies, signed by a key of its own."""
    key, previous, lines = fresh_secret(), START, []
    for seq, (event, body) in enumerate(told):
        more = {"public_key": signing_public(key).hex(), "schema_version": 1} if seq == 0 else {}
        entry = make_entry(key, previous=previous, seq=seq, time="", event=event, body={**body, **more})
        lines.append(entry.line())
        previous = entry.hash
    folder.mkdir(parents=True, exist_ok=True)
    put(folder, lines)


def inner(*names):
    return [("inner", {"folder": name, "head": START}) for name in names]


def problems(run, **more):
    return verify_run(run, **more).problems


def public_of(run):
    return bytes.fromhex(parse_line(lines_of(run)[0]).body["public_key"])


@pytest.mark.parametrize("number", range(1, LINES + 1))
def test_an_altered_line_is_found_wherever_it_is(run, number):
    lines = lines_of(run)
    assert len(lines) == LINES
    fields = json.loads(lines[number - 1])
    fields["time"] = "1999-01-01T00:00:00+00:00"
    lines[number - 1] = json.dumps(fields, sort_keys=True).encode()
    put(run, lines)
    assert any(p.startswith(f"{NAME}: line {number}: was altered") for p in problems(run))


@pytest.mark.parametrize("number", range(1, LINES))
def test_a_line_altered_with_its_hash_lacks_the_signature(run, number):
    lines = lines_of(run)
    entry = parse_line(lines[number - 1])
    forged = make_entry(
        fresh_secret(),
        previous=entry.previous,
        seq=entry.seq,
        time="1999-01-01T00:00:00+00:00",
        event=entry.event,
        body=entry.body,
    )
    lines[number - 1] = forged.line()
    put(run, lines)
    found = problems(run)
    assert f"{NAME}: line {number}: was altered: the signature is not the signer's" in found
    assert f"{NAME}: line {number + 1}: does not follow from the line before it" in found


@pytest.mark.parametrize("number", range(1, LINES))
def test_a_missing_line_is_found_where_it_was(run, number):
    lines = lines_of(run)
    del lines[number - 1]
    put(run, lines)
    holds = (
        f"{NAME}: line {number}: holds event {number} where event {number - 1} must be: lines are missing"
    )
    assert holds in problems(run)


@pytest.mark.parametrize("number", range(1, LINES))
def test_two_lines_that_change_places_are_found(run, number):
    lines = lines_of(run)
    lines[number - 1], lines[number] = lines[number], lines[number - 1]
    put(run, lines)
    found = problems(run)
    assert any(p.startswith(f"{NAME}: line {number}: holds event {number} where event") for p in found)
    assert any("were moved or repeated" in p for p in found)


def test_a_repeated_line_is_found(run):
    lines = lines_of(run)
    put(run, [*lines[:3], lines[2], *lines[3:]])
    assert any(p.startswith(f"{NAME}: line 4: holds event 2 where event 3") for p in problems(run))


@pytest.mark.parametrize("kept", range(1, LINES))
def test_lines_cut_off_at_the_end_are_found_by_the_reports_signature(run, kept):
    put(run, lines_of(run)[:kept])
    found = problems(run)
    assert f"{NAME}: lines are missing after line {kept}: the report is signed over a later one" in found


def test_a_log_that_is_gone_is_no_log(run):
    (run / NAME).unlink()
    with pytest.raises(AuditError, match="cannot be read"):
        verify_run(run)
    put(run, [])
    assert any("does not open a log" in p for p in problems(run))


@pytest.mark.parametrize(
    "line", [b"", b"{}", b"[]", b"null", b"\xff\xfe", b"{" * 5000, b'{"seq": 0}', b"not JSON"]
)
def test_a_line_that_is_none_is_named(run, line):
    lines = lines_of(run)
    put(run, [*lines[:2], line, *lines[2:]])
    assert f"{NAME}: line 3: is not a line of an audit log" in problems(run)


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line.replace(b'"seq": 3', b'"seq":  3'),
        lambda line: line.replace(b'"seq": 3', b'"seq": 99, "seq": 3'),
        lambda line: line.replace(b'"seq": 3', b'"seq": 3.0'),
        lambda line: line.replace(b'"seq": 3', b'"seq": true'),
        lambda line: line + b" ",
        lambda line: line.replace(b"}", b', "zz": 1}', 1),
    ],
    ids=["space", "key twice", "float", "true", "space at the end", "field more"],
)
def test_a_line_that_only_means_the_same_is_not_the_same(run, change):
    lines = lines_of(run)
    assert change(lines[3]) != lines[3]
    lines[3] = change(lines[3])
    put(run, lines)
    assert any(p.startswith(f"{NAME}: line 4: ") for p in problems(run))


def test_every_bit_of_a_line_counts(run):
    lines = lines_of(run)
    for at in range(0, len(lines[2]), 5):
        for bit in (1, 32):  # 32 makes a capital of a hex digit
            changed = bytearray(lines[2])
            changed[at] ^= bit
            put(run, [*lines[:2], bytes(changed), *lines[3:]])
            assert problems(run), at


def test_every_bit_of_the_reports_signature_counts(run):
    raw = (run / SIGNATURE).read_bytes()
    for at in range(0, len(raw), 5):
        for bit in (1, 32):
            changed = bytearray(raw)
            changed[at] ^= bit
            (run / SIGNATURE).write_bytes(bytes(changed))
            assert problems(run), at


def test_an_altered_missing_or_added_file_is_found_with_its_line(run):
    model = run / "seed-0/fused/model.safetensors"
    model.write_bytes(bytes(99) + b"\x01")
    assert (
        f"seed-0/fused/model.safetensors: was altered: its SHA-256 is not that of line 7 of {NAME}"
        in problems(run)
    )
    model.unlink()
    assert f"seed-0/fused/model.safetensors: is missing (line 7 of {NAME} has it)" in problems(run)
    model.write_bytes(bytes(100))
    (run / "seed-0/fused/modeling_evil.py").write_text("import os")
    assert problems(run) == (f"seed-0/fused/modeling_evil.py: was added: {NAME} does not have it",)


@pytest.mark.parametrize(
    "name",
    [
        "seed-0/.hidden",
        "seed-0/fused/.gitattributes",
        "seed-0/.partial-forged",
        "seed-0/federation/evil.key",
        "seed-0/.cache/x.py",
    ],
)
def test_hidden_files_and_keys_that_were_added_to_a_seed_are_found(run, name):
    RunFolder(path=run).write_text(name, "import os")
    assert problems(run) == (f"{name}: was added: {NAME} does not have it",)


def test_a_folder_that_is_linked_into_a_seed_is_found(run, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "modeling_evil.py").write_text("import os")
    (run / "seed-0/more").symlink_to(tmp_path / "elsewhere")
    (run / "seed-0/nowhere").symlink_to(tmp_path / "gone")
    assert problems(run) == (
        f"seed-0/more: a link was added: {NAME} does not have it",
        f"seed-0/nowhere: a link was added: {NAME} does not have it",
    )


@pytest.mark.parametrize(
    "name", ["seed-0/fused/model.safetensors", "seed-0/fused", "seed-0", "report.json"]
)
def test_what_was_moved_away_and_linked_back_is_found_though_its_bytes_are_the_same(run, tmp_path, name):
    """Its content can be changed later, where nobody looks."""
    shutil.move(run / name, tmp_path / "moved")
    (run / name).symlink_to(tmp_path / "moved")
    found = problems(run)
    assert any(p.startswith(f"{name}: is a link") for p in found)


def test_a_pipe_in_the_place_of_a_file_is_found_and_hangs_nobody(run):
    for name in ("seed-0/fused/model.safetensors", "report.json"):
        (run / name).unlink()
        os.mkfifo(run / name)
    os.mkfifo(run / "seed-0/pipe")
    found = problems(run)
    assert any(p.startswith("seed-0/fused/model.safetensors: is missing") for p in found)
    assert any(p.startswith("report.json: is missing") for p in found)
    assert f"seed-0/pipe: was added: {NAME} does not have it" in found


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (os.mkfifo, "is no file"),
        (lambda file: file.symlink_to("/dev/zero"), "is a link; must be a file"),
        (lambda file: file.symlink_to("report.json"), "is a link; must be a file"),
        (lambda file: file.mkdir(), "cannot be read: Is a directory"),
        (lambda file: (file.touch(), os.truncate(file, 2**24 + 1)), "has more than 16,777,216 bytes"),
    ],
)
def test_what_is_no_signature_but_a_pipe_a_link_or_endless_is_found_and_hangs_nobody(run, make, says):
    (run / SIGNATURE).unlink()
    make(run / SIGNATURE)
    assert f"{SIGNATURE}: {says}" in problems(run)


@pytest.mark.parametrize("make", [os.mkfifo, lambda file: file.symlink_to("/dev/zero")])
@pytest.mark.parametrize("command", ["verify", "show"])
def test_a_log_that_is_a_pipe_or_a_link_is_refused_in_one_line(run, make, command):
    (run / NAME).unlink()
    make(run / NAME)
    done = CliRunner().invoke(app, ["audit", command, str(run)])
    assert done.exit_code == 2
    assert len(done.output.splitlines()) == 1
    assert done.output.startswith(f"error: {run / NAME}: is ")


HOSTILE = [
    ("previous", "\ud800"),
    ("previous", "0" * 63),
    ("previous", "A" * 64),
    ("hash", "\x1b]0;owned\x07"),
    ("hash", "0" * 63 + "\n"),
    ("signature", "0" * 127),
    ("signature", "\x1b[2J"),
]


@pytest.mark.parametrize(("field", "value"), HOSTILE)
@pytest.mark.parametrize("number", [1, LINES])
def test_a_hash_or_signature_of_another_form_is_no_line_and_does_not_reach_the_terminal(
    run, field, value, number
):
    lines = lines_of(run)
    lines[number - 1] = json.dumps({**json.loads(lines[number - 1]), field: value}, sort_keys=True).encode()
    put(run, lines)
    assert f"{NAME}: line {number}: is not a line of an audit log" in problems(run)
    done = CliRunner().invoke(app, ["audit", "verify", str(run)])
    assert done.exit_code == 1
    assert not {"\x1b", "\x07"} & set(done.output)


def test_a_finished_seed_whose_number_is_a_path_is_not_looked_for_outside_the_folder(run, tmp_path):
    (tmp_path / "somebody-elses.txt").write_text("x")
    (run / "seed-").mkdir()
    forged(run, ("opened", {}), ("finished", {"seed": "/../..", "files": {}}))
    assert not any("somebody-elses" in p for p in problems(run))


@pytest.mark.parametrize(
    "name",
    [
        "better-report.html",
        ".hidden",
        "evil.key",
        "more/x.py",
        ".git/config",
        "attacks/more.json",
        "seed-results.json",
    ],
)
def test_what_lies_beside_the_report_and_is_not_signed_is_named(run, name):
    RunFolder(path=run).write_text(name, "x")
    found = verify_run(run, key=public_of(run))
    assert found.unsettled == (f"{name}: neither {NAME} nor {SIGNATURE} has it",)
    assert not found.verified


def test_folders_beside_the_seeds_that_are_links_are_named(run, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    for name in ("more", "attacks", "tracking", "seed-0.csv"):
        (run / name).symlink_to(tmp_path / "elsewhere")
    found = verify_run(run, key=public_of(run))
    assert set(found.unsettled) == {
        f"seed-0.csv: neither {NAME} nor {SIGNATURE} has it",
        f"more: neither {NAME} nor {SIGNATURE} has it",
        "attacks: is a link",
        "tracking: is a link",
    }


def test_a_clients_key_that_was_there_when_the_seed_ended_may_be_there_or_be_removed(tmp_path):
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    witness = Witness.open(folder, CONFIG, command="c")
    folder.write_text("seed-0/federation/privacy/bank.salt.key", "00")
    witness.finished(0, b"{}", epsilon={})
    write_texts(replace(sample_report(), audit_head=witness.settle()), folder.path)
    witness.sign()
    assert verify_run(folder.path).whole
    (folder.path / "seed-0/federation/privacy/bank.salt.key").unlink()
    assert verify_run(folder.path).whole
    folder.write_text("seed-0/federation/privacy/clinic.salt.key", "00")
    assert problems(folder.path) == (
        f"seed-0/federation/privacy/clinic.salt.key: was added: {NAME} does not have it",
    )


@pytest.mark.parametrize("name", ["report.json", "report.md", "config.yaml", "seed-0/result.json"])
def test_no_file_of_the_report_or_its_evidence_can_be_altered(run, name):
    (run / name).write_bytes((run / name).read_bytes() + b" ")
    assert any(p.startswith(f"{name}: was altered") for p in problems(run))


def test_a_report_whose_head_was_replaced_is_found(run):
    text = (run / "report.json").read_text()
    head = json.loads(text)["audit_head"]
    (run / "report.json").write_text(text.replace(head, "00" * 32))
    assert "report.json: its audit_head is not the one that report.sig has" in problems(run)


@pytest.mark.parametrize("field", ["head", "public_key", "signature", "files", "schema_version"])
def test_no_field_of_the_reports_signature_can_be_altered(run, field):
    seal = json.loads((run / SIGNATURE).read_text())
    changed = {
        "head": parse_line(lines_of(run)[3]).hash,
        "public_key": signing_public(fresh_secret()).hex(),
        "signature": "00" * 64,
        "files": {**seal["files"], "report.json": "00" * 32},
        "schema_version": 2,
    }
    (run / SIGNATURE).write_text(json.dumps({**seal, field: changed[field]}))
    assert any(p.startswith(SIGNATURE) for p in problems(run))


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", '{"head": 1}', "\ud83d".encode("utf-8", "ignore")]
)
def test_a_damaged_signature_is_a_problem_not_a_crash(run, text):
    (run / SIGNATURE).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert any(p.startswith(SIGNATURE) for p in problems(run))


def test_without_a_signature_the_end_is_open_and_never_whole(run):
    (run / SIGNATURE).unlink()
    put(run, lines_of(run)[:-1])
    found = verify_run(run)
    assert not found.whole
    assert any("nothing says where the log ends" in line for line in found.unsettled)


def test_a_whole_forgery_by_another_key_falls_to_the_pinned_key(run):
    """Everything made anew, consistently: only who knows the signer's key beforehand can tell."""
    signer, thief = public_of(run), fresh_secret()
    previous, forged = START, []
    for raw in lines_of(run):
        entry = parse_line(raw)
        body = entry.body
        if entry.event == "opened":
            body = {**body, "public_key": signing_public(thief).hex()}
        if entry.event == "round":
            body = {**body, "participants": ["bank", "clinic", "nobody"]}
        made = make_entry(
            thief, previous=previous, seq=entry.seq, time=entry.time, event=entry.event, body=body
        )
        previous = made.hash
        forged.append(made.line())
    put(run, forged)
    report = json.loads((run / "report.json").read_text())
    (run / "report.json").write_text(json.dumps({**report, "audit_head": previous}))
    sign_report(run, thief, previous)
    assert verify_run(run).whole  # integrity alone, and not pinned
    assert not verify_run(run).pinned
    assert not verify_run(run).verified
    unpinned = CliRunner().invoke(app, ["audit", "verify", str(run)])
    assert unpinned.exit_code == 3
    assert "not pinned: anybody may have signed this folder anew" in unpinned.stdout
    pinned = CliRunner().invoke(app, ["audit", "verify", str(run), "--key", signer.hex()])
    assert pinned.exit_code == 1
    found = verify_run(run, key=signer)
    assert found.problems == (f"{NAME}: line 1: names another signer than the key asked for",)
    assert not found.pinned


def test_a_line_of_another_run_of_the_same_signer_does_not_fit(run, tmp_path):
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(own_key_file(run).read_text()))
    assert key.public_key().public_bytes_raw() == public_of(run)
    other = RunFolder.create(tmp_path / "other", CONFIG)
    shutil.copy(own_key_file(run), own_key_file(other.path))
    witness = Witness.open(other, CONFIG, command="c")
    witness.started(0)
    witness.log.add("round", seed=0, round=0, participants=["nobody"], spends={})
    lines = lines_of(run)
    lines[2] = lines_of(other.path)[2]
    put(run, lines)
    assert f"{NAME}: line 3: does not follow from the line before it" in problems(run)


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/hostname", ""])
def test_a_log_cannot_point_out_of_its_folder(run, name):
    """A signer that nobody knows may write anything; reading it must stay inside."""
    thief = fresh_secret()
    body = {"public_key": signing_public(thief).hex(), "schema_version": 1}
    first = make_entry(thief, previous=START, seq=0, time="", event="opened", body=body)
    second = make_entry(
        thief, previous=first.hash, seq=1, time="", event="files", body={"files": {name: "00" * 32}}
    )
    third = make_entry(
        thief, previous=second.hash, seq=2, time="", event="inner", body={"folder": name, "head": "00"}
    )
    put(run, [e.line() for e in (first, second, third)])
    found = problems(run)
    assert any("lies outside the folder" in p for p in found)
    assert not any("is missing" in p and "outside" in p for p in found)


# --- going on over what was tampered with


def test_a_run_does_not_go_on_over_a_broken_chain(run):
    folder = RunFolder(path=run)
    for damage in (lambda s: s[:3] + s[4:], lambda s: [s[0], s[2], s[1], *s[3:]]):
        whole = lines_of(run)
        put(run, damage(whole))
        before = (run / NAME).read_bytes()
        with pytest.raises(AuditError, match=r"audit\.jsonl: line"):
            Witness.open(folder, CONFIG, command="c")
        assert (run / NAME).read_bytes() == before
        put(run, whole)


def test_a_run_does_not_go_on_from_a_result_that_was_altered(run):
    (run / "seed-0/result.json").write_text('{"seed": 0, "better": true}')
    with pytest.raises(AuditError, match=r"result\.json: is not as audit\.jsonl has it"):
        Witness.open(RunFolder(path=run), CONFIG, command="c")


@pytest.fixture
def attacked(run):
    """The run, with findings of attacks that its log vouches for."""
    (run / "attacks").mkdir()
    for name in FINDINGS:
        (run / name).write_text("SUCCEEDED")
    witness = Witness.open(RunFolder(path=run), CONFIG, command="c")
    signed_again(run, witness)
    assert verify_run(run).whole
    return run


def signed_again(run, witness):
    write_texts(replace(sample_report(), audit_head=witness.settle()), run)
    witness.sign()


@pytest.mark.parametrize("name", ["config.yaml", "environment.json", *FINDINGS])
def test_a_run_does_not_go_on_from_settings_or_findings_that_were_altered(attacked, name):
    """Else the owner's key would vouch for what somebody without it wrote."""
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
    (attacked / FINDINGS[0]).write_text("found by hand")
    assert not verify_run(attacked).problems
    assert not verify_run(attacked).whole
    signed_again(attacked, Witness.open(RunFolder(path=attacked), CONFIG, command="c"))
    assert verify_run(attacked).whole
    own_key_file(attacked).rename(attacked.with_name("elsewhere"))
    before = (attacked / NAME).read_bytes()
    reopen_findings(attacked)  # nobody can sign that they may change
    assert (attacked / NAME).read_bytes() == before


@pytest.mark.parametrize(
    "name", ["seed-0/federation/rounds.jsonl", "seed-0/fused/model.safetensors", FINDINGS[1]]
)
def test_nothing_is_attacked_that_was_altered_since_the_run_finished(attacked, name):
    """Findings of what somebody else put there would be signed, and the original put back."""
    (attacked / name).write_bytes(b"altered")
    with pytest.raises(AuditError, match=f"{name}: was altered"):
        reopen_findings(attacked)
    if name.startswith("seed-"):
        with pytest.raises(AuditError, match=f"{name}: was altered"):
            check_finished_seeds(attacked)


def test_findings_in_a_cell_are_left_to_the_log_above(attacked):
    """An earlier version logged them in the cell itself; such entries are reopened."""
    (attacked / FINDINGS[0]).write_text("of the cell's own suite")
    witness = Witness.open(RunFolder(path=attacked), CONFIG, command="c", findings=False)
    witness.settle(findings=False)
    assert not {*FINDINGS} & vouched_files(witness.log.entries).keys()
    assert not verify_run(attacked).problems


def test_a_run_does_not_sign_a_result_whose_line_was_cut_off(run):
    put(run, lines_of(run)[: 2 + ROUNDS])  # without `finished`
    (run / "seed-0/result.json").write_text('{"seed": 0, "better": true}')
    with pytest.raises(AuditError, match=r"result\.json: is not as audit\.jsonl has it"):
        Witness.open(RunFolder(path=run), CONFIG, command="c")


def test_a_finished_run_without_its_log_gets_no_new_one(run):
    (run / NAME).unlink()
    with pytest.raises(AuditError, match=r"audit\.jsonl: is missing, but seed-0 is finished"):
        Witness.open(RunFolder(path=run), CONFIG, command="c")


def test_a_run_without_its_key_does_not_go_on(run):
    own_key_file(run).unlink()
    with pytest.raises(ConfigError, match="is missing"):
        Witness.open(RunFolder(path=run), CONFIG, command="c")


# --- logs below a log


@pytest.fixture
def matrix(run, tmp_path):
    """A matrix whose one cell is `run`."""
    out = RunFolder.create(tmp_path / "matrix", CONFIG)
    shutil.copytree(run, out.path / "cells" / "a")
    shutil.copy(own_key_file(run), own_key_file(out.path))
    witness = Witness.open(out, CONFIG, command="fedproxy-secure matrix x")
    witness.inner("cells/a")
    witness.inner("cells/a")  # told once
    write_texts(replace(sample_report(), audit_head=witness.settle()), out.path)
    witness.sign()
    assert verify_run(out.path).whole
    assert [parse_line(x).event for x in lines_of(out.path)] == ["opened", "inner", "files"]
    return out.path


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


@pytest.mark.parametrize("name", FINDINGS)
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


def test_a_report_that_was_swapped_while_it_was_judged_does_not_count_as_signed(run):
    genuine = (run / "report.json").read_bytes()
    assert signed_as(run / "report.json", genuine).problems == ()
    better = genuine.replace(b'"name": "', b'"name": "better ', 1)
    assert better != genuine
    assert signed_as(run / "report.json", better).problems == (
        f"report.json: was altered: what was read is not what {SIGNATURE} has",
    )


def test_a_gate_says_what_is_wrong_with_a_report_without_its_terminal_sequences(run):
    text = json.loads((run / "report.json").read_text())
    (run / "report.json").write_text(json.dumps({**text, "schema_version": "\x1b]0;owned\x07"}))
    arguments = ["gate", "--report", str(run / "report.json"), "--policy", "research"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 3
    assert "schema_version=" in done.output
    assert not {"\x1b", "\x07"} & set(done.output)


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
