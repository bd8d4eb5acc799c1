"""No file that somebody else wrote ends in a stack that ran out: every reader says one line."""

import json
import time

import pytest
import yaml

from fedproxy_secure.audit.chain import parse_line
from fedproxy_secure.audit.seal import read_seal
from fedproxy_secure.audit.verify import verify_run
from fedproxy_secure.config import load_config, parse_config
from fedproxy_secure.data.sources import read_rows
from fedproxy_secure.data.templates import to_records
from fedproxy_secure.errors import AuditError, DataError, FedProxyError, RunFolderError
from fedproxy_secure.evidence.finding import read_findings
from fedproxy_secure.experiments.join import join
from fedproxy_secure.experiments.sweeps.method_cells import Cell, cell_file, read_cell
from fedproxy_secure.gate.policy import load_policy
from fedproxy_secure.record.private import read_private, write_records
from fedproxy_secure.record.view import api_policy_of
from fedproxy_secure.report.measured import read_seed
from fedproxy_secure.report.report import Report
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.names import AUDIT_LOG, FINDINGS, MANIFEST, SETTINGS_FILE, SIGNATURE
from fedproxy_secure.runtime.untrusted import (
    MOST_LINE_BYTES,
    MOST_NESTED,
    GivenTwice,
    parse_json,
    parse_yaml,
    yaml_reason,
)

DEEP = "[" * 200_000
CLOSED = "[" * 500 + "]" * 500  # the parser takes it; printing it needs as many frames
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)  # 10^9 texts once references are followed


# --- the two parsers


@pytest.mark.parametrize("text", [DEEP, CLOSED, '{"a":' * 200_000, '{"a": [' * 100 + "]}" * 100])
@pytest.mark.parametrize("form", [str, str.encode])
def test_json_nested_too_deeply_is_a_value_error(text, form):
    with pytest.raises(ValueError, match=r"is nested more than 64 levels deep|is not JSON"):
        parse_json(form(text))


def test_json_at_the_limit_is_read_and_one_level_more_is_not():
    deepest = "[" * MOST_NESTED + "1" + "]" * MOST_NESTED
    assert parse_json(deepest) == json.loads(deepest)
    with pytest.raises(ValueError, match="nested"):
        parse_json(f"[{deepest}]")


def test_brackets_in_texts_are_no_nesting():
    assert parse_json(json.dumps(["[" * 1000])) == ["[" * 1000]


def test_a_wide_value_is_no_deep_one():
    assert parse_json("[" + ",".join(["[]"] * 10_000) + "]") == [[]] * 10_000


@pytest.mark.parametrize("raw", [b"\xff\xfe", b"", b"{", b"1" * 5000, "é".encode("latin-1")])
def test_what_is_no_json_is_one_line(raw):
    with pytest.raises(ValueError, match="is not JSON: ") as raised:
        parse_json(raw)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [(DEEP, "nested"), (CLOSED, "nested"), (BOMB, "100,000 values"), ("&a [*a]", "nested|100,000 values")],
    ids=["open", "closed", "references", "a list in itself"],
)
def test_yaml_that_would_fill_stack_or_memory_is_a_value_error(text, line):
    with pytest.raises(ValueError, match=line):
        parse_yaml(text)


def test_yaml_with_references_of_ordinary_size_is_read():
    assert parse_yaml("a: &a [1, 2]\nb: *a") == {"a": [1, 2], "b": [1, 2]}


def test_merged_keys_are_no_keys_that_are_given_twice():
    text = "b: &b {k: 0}\nx: &x {<<: *b, k: 1}\nc: {<<: *x}\nd: {<<: *x, k: 2}\ne: {<<: [*b, *x]}\n"
    value = parse_yaml(text)
    assert value == yaml.safe_load(text)
    assert value["x"] == value["c"] == {"k": 1}


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\na: 2",
        "a: 1\n'a': 2",
        "on: 1\ntrue: 2",
        "1: 1\n0x1: 2",
        "x: [{c: 1}, {a: {b: 1, b: 2}}]",
        "? {a: 1, a: 2}\n: 1",
    ],
)
def test_keys_that_are_one_once_they_are_read_are_given_twice(text):
    with pytest.raises(GivenTwice, match=r"^line \d: .* is given twice$"):
        parse_yaml(text)


def test_merges_that_multiply_are_refused_before_they_are_made():
    text = "l0: &l0 {a: 1}\n"
    for level in range(1, 10):  # a billion keys
        text += f"l{level}: &l{level} {{<<: [{', '.join([f'*l{level - 1}'] * 10)}]}}\n"
    with pytest.raises(ValueError, match=r"holds more than 100,000 values"):
        parse_yaml(text)


def test_a_key_that_is_an_equals_sign_is_a_text():
    assert parse_yaml("=: 1") == {"=": 1}


def test_keys_that_only_look_alike_are_two():
    assert parse_yaml("1: a\n'1': b\n") == {1: "a", "1": "b"}


@pytest.mark.parametrize("text", ["!!seq a: 1", "!!bool a: 1", "a: !!timestamp b", "!!int '': 1"])
def test_a_value_that_is_not_of_its_tag_is_an_error_that_readers_expect(text):
    with pytest.raises((ValueError, yaml.YAMLError)):
        parse_yaml(text)


def test_text_that_is_yaml_and_too_much_is_not_said_to_be_no_yaml():
    for text, line in ((BOMB, "holds more than 100,000 values"), ("[" * 100 + "]" * 100, "is nested more")):
        with pytest.raises(ValueError, match=line) as raised:
            parse_yaml(text)
        assert yaml_reason(raised.value).startswith(line)
    with pytest.raises(yaml.YAMLError) as wrong:
        parse_yaml("a: [}")
    assert yaml_reason(wrong.value).startswith("is not YAML: line 1: ")


ODD_NUMBERS = {
    "many bits": ("0x" + "f" * 5000, r"line 1: 0xf+\.\.\.: must have at most 64 bits"),
    "many digits": ("1" * 5000, r"line 1: 1+\.\.\.: must have at most 64 bits"),
    "one bit too many": (str(2**64), "line 1: 18446744073709551616: must have at most 64 bits"),
    "base 60": ("12:30:45", "line 1: 12:30:45: is a number to base 60; must be decimal, or text in quotes"),
    "long base 60": ("1:" * 200_000 + "1", r"line 1: 1:[1:]+\.\.\.: is a number to base 60"),
    "a fraction": ("1:30.5", "line 1: 1:30.5: is a number to base 60"),
    "a tag": ("!!int '1:30'", "line 1: 1:30: is a number to base 60"),
}


@pytest.mark.parametrize(("text", "line"), ODD_NUMBERS.values(), ids=ODD_NUMBERS)
@pytest.mark.parametrize("form", ["a: {}", "[{}]", "? {}\n: 1"])
def test_numbers_that_take_quadratic_time_are_refused_in_a_line_of_ordinary_length(text, line, form):
    began = time.process_time()
    with pytest.raises(ValueError, match=line) as raised:
        parse_yaml(form.format(text))
    assert time.process_time() - began < 2  # YAML alone takes 7 s for the long one
    assert yaml_reason(raised.value) == str(raised.value)
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize("number", [2**64 - 1, -(2**63), 0])
def test_integers_of_64_bits_are_read(number):
    assert parse_yaml(f"a: {number}\nb: {number:#b}") == {"a": number, "b": number}


# --- every reader


def rows(place, text):
    (place / "x.jsonl").write_text('{"text": "a"}\n' + text + "\n")
    return read_rows(str(place / "x.jsonl"), "train", root=None, limit=None)


def choices(place, text):
    return to_records("classification", [{"text": "a", "choices": text, "label": 0}])


def report(place, text):
    (place / "report.json").write_text(text)
    return Report.load(place)


def joined(place, text):
    RunFolder(path=place).write_text("m/config.yaml", "name: m\n")
    RunFolder(path=place).write_text("m/report.json", text)
    RunFolder(path=place).write_text("m/cells/a/cell.json", "{}")
    return join([place / "m"], place / "out", command="c")


def findings(place, text):
    RunFolder(path=place).write_text(FINDINGS, text)
    return read_findings(place)


def result(place, text):
    RunFolder(path=place).write_text("seed-0/result.json", text)
    return read_seed(place, 0, root=place)


def lines(place, text):
    RunFolder(path=place).write_text("rounds.jsonl", text + "\n")
    return RunFolder(path=place).read_jsonl("rounds.jsonl")


def manifest(place, text):
    (place / MANIFEST).write_text(text)
    return RunFolder.resume(place, parse_config({}))


def seal(place, text):
    (place / SIGNATURE).write_text(text)
    return read_seal(place)


def audit_line(place, text):
    return parse_line(text.encode())


def cell(place, text):
    one = Cell(method="zero_shot", remove_ratio=None, seed=0)
    cell_file(place, one).parent.mkdir()
    cell_file(place, one).write_text(text)
    return read_cell(place, one)


def private(place, text):
    write_records(place, "a", train=[], holdout=[], canaries=[])
    (place / "clients/a/canaries.json").write_text(text)
    return read_private(place, "a")


def settings(place, text):
    (place / "c.yaml").write_text(text)
    return load_config(place / "c.yaml")


def policy(place, text):
    (place / "p.yaml").write_text(text)
    return load_policy(place / "p.yaml")


READERS = [
    rows, choices, report, joined, findings, result, lines, manifest, seal, audit_line, cell, private,
    settings, policy,
]  # fmt: skip


@pytest.mark.parametrize("text", [DEEP, CLOSED], ids=["open", "closed"])
@pytest.mark.parametrize("read", READERS, ids=lambda f: f.__name__)
def test_every_reader_says_one_line_of_a_file_that_is_nested_too_deeply(tmp_path, read, text):
    with pytest.raises(FedProxyError) as raised:
        read(tmp_path, text)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


def api(place, text):
    (place / SETTINGS_FILE).write_text(text)
    return api_policy_of(place)


@pytest.mark.parametrize("read", [settings, policy, api], ids=lambda f: f.__name__)
@pytest.mark.parametrize("number", ["0x" + "f" * 5000, "1:" * 20_000 + "1"], ids=["bits", "base 60"])
def test_a_number_that_takes_quadratic_time_is_one_line_of_every_reader(tmp_path, read, number):
    with pytest.raises(FedProxyError, match=r"at most 64 bits|to base 60") as raised:
        read(tmp_path, f"seeds: {number}")
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize("read", [settings, policy], ids=lambda f: f.__name__)
def test_references_that_name_a_billion_values_are_refused(tmp_path, read):
    with pytest.raises(FedProxyError, match="100,000 values"):
        read(tmp_path, BOMB)


def test_the_line_at_fault_is_named(tmp_path):
    with pytest.raises(DataError, match=r"x\.jsonl, line 2: is nested more than 64 levels deep"):
        rows(tmp_path, DEEP)


def test_a_line_too_long_to_be_a_record_is_named_before_it_is_held(tmp_path):
    with pytest.raises(DataError, match=r"x\.jsonl, line 2: is longer than 16,777,216 bytes"):
        rows(tmp_path, '{"text": "' + "a" * MOST_LINE_BYTES + '"}')


def test_a_line_of_an_audit_log_that_is_nested_too_deeply_is_a_problem_of_that_line(tmp_path):
    (tmp_path / AUDIT_LOG).write_text(DEEP + "\n" + CLOSED + "\n")
    found = verify_run(tmp_path).problems
    assert f"{AUDIT_LOG}: line 1: is not a line of an audit log" in found
    assert f"{AUDIT_LOG}: line 2: is not a line of an audit log" in found


def test_errors_keep_their_kind(tmp_path):
    with pytest.raises(RunFolderError, match=r"report\.json: is damaged: is nested"):
        report(tmp_path, DEEP)
    with pytest.raises(AuditError, match="is not a line of an audit log"):
        audit_line(tmp_path, DEEP)


def test_a_policy_whose_keys_are_lists_is_refused_in_one_line(tmp_path):
    with pytest.raises(FedProxyError) as raised:
        policy(tmp_path, "? [a]\n: 1\n? [a]\n: 2\n")
    assert "\n" not in str(raised.value)


def test_yaml_is_still_refused_as_before():
    with pytest.raises(yaml.YAMLError):
        parse_yaml("rules: [}")
