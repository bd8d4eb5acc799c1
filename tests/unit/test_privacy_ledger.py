"""The ledger is written before privacy is spent, says no in time, and gives a round one result."""

import json
import os

import pytest

from fedproxy_secure.dp.ledger import all_events, own_salt, read_all
from fedproxy_secure.errors import PrivacyError, RunFolderError
from tests.support.ledgers import HERE, ROUND, THERE, key_of, ledger, never


def other_each_time(key):
    return os.urandom(8)


@pytest.mark.torch
def test_a_round_is_on_disk_before_its_key_is_given(tmp_path):
    own, seen = ledger(tmp_path), []
    assert own.events() == []

    def compute(key):
        seen.append(ledger(tmp_path).events())
        return b"result"

    assert own.once(round=0, inputs_sha256=HERE, event=ROUND, compute=compute) == b"result"
    assert seen == [[ROUND]] == [own.events()]
    assert 0 < own.spent().epsilon < 2


@pytest.mark.torch
def test_the_same_round_again_has_the_same_result_computes_nothing_and_is_free(tmp_path):
    """Also where computing again would give other numbers, as on a GPU that is not exact to the bit."""
    own = ledger(tmp_path)
    first = own.once(round=0, inputs_sha256=HERE, event=ROUND, compute=other_each_time)
    again = ledger(tmp_path)
    assert again.once(round=0, inputs_sha256=HERE, event=ROUND, compute=never) == first
    assert again.events() == [ROUND]


@pytest.mark.torch
@pytest.mark.parametrize("other", [(0, THERE), (1, HERE)])
def test_another_input_or_round_has_other_noise_and_is_paid_for(tmp_path, other):
    own = ledger(tmp_path)
    assert key_of(own) != key_of(own, *other)
    assert len(own.events()) == 2


@pytest.mark.torch
def test_a_round_whose_result_was_overwritten_is_paid_for_again(tmp_path):
    own = ledger(tmp_path)
    first = key_of(own)
    key_of(own, round=1)
    assert key_of(own) != first
    assert len(own.events()) == 3


@pytest.mark.torch
def test_no_noise_key_outlives_its_round(tmp_path):
    own, during = ledger(tmp_path), []

    def compute(key):
        during.append(key.hex() in (tmp_path / "clinic.noise.key").read_text())
        return b"result"

    own.once(round=0, inputs_sha256=HERE, event=ROUND, compute=compute)
    assert during == [True]
    assert sorted(os.listdir(tmp_path)) == [
        "clinic.ledger.jsonl",
        "clinic.ledger.lock",
        "clinic.result.key",
    ]


@pytest.mark.torch
def test_the_limit_holds_and_what_is_refused_is_not_written(tmp_path):
    own = ledger(tmp_path)

    def spend(rounds):
        for number in range(rounds):
            key_of(own, round=number)

    with pytest.raises(
        PrivacyError, match=r"client clinic, round \d+: epsilon would become .* must be <= 2 "
    ):
        spend(100)
    taken = len(own.events())
    assert 1 < taken < 100
    assert own.spent().epsilon <= 2
    with pytest.raises(PrivacyError):  # also after a restart
        ledger(tmp_path).once(round=200, inputs_sha256=HERE, event=ROUND, compute=never)
    assert len(own.events()) == taken
    key_of(own, round=taken - 1)  # the last round's result is still there
    assert len(own.events()) == taken


@pytest.mark.torch
def test_a_line_cut_short_was_never_spent_and_does_not_spoil_the_next(tmp_path):
    own = ledger(tmp_path)
    key_of(own)
    with own.path.open("ab") as file:
        file.write(b'{"round": 1, "inp')
    assert ledger(tmp_path).events() == [ROUND]
    key_of(own, round=1)
    assert ledger(tmp_path).events() == [ROUND, ROUND]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"run": "another"}, r"is of another run: run differs$"),
        ({"delta": 1e-6}, r"is of another run: delta differs \(1e-05\); must be 1e-06"),
        ({"unit": "client"}, r"is of another run: unit differs \('record'\)"),
    ],
)
def test_a_ledger_of_another_run_is_refused(tmp_path, change, line):
    ledger(tmp_path)
    with pytest.raises(RunFolderError, match=line):
        ledger(tmp_path, **change)


@pytest.mark.parametrize(
    "content",
    [b"", b"no json\n", b"[]\n", b'{"client": "clinic"}\n{"event": {"kind": "x"}}\n', b"{}\n[1]\n"],
)
def test_a_damaged_ledger_stops_everything(tmp_path, content):
    own = ledger(tmp_path)
    own.path.write_bytes(content)
    with pytest.raises(RunFolderError, match=r"is damaged: .* what was spent is unknown"):
        own.once(round=0, inputs_sha256=HERE, event=ROUND, compute=never)


@pytest.mark.parametrize(
    "changes",
    [{"client": "bank"}, {"client": 5}, {"delta": "x"}, {"delta": None}, {"max_epsilon": []}],
)
@pytest.mark.parametrize("reader", [read_all, all_events])
def test_a_ledger_with_a_damaged_header_is_added_up_by_nobody(tmp_path, changes, reader):
    own = ledger(tmp_path)
    header = json.loads(own.path.read_text())
    own.path.write_text(json.dumps({**header, **changes}) + "\n")
    with pytest.raises(RunFolderError, match=r"is damaged: its .* what was spent is unknown"):
        reader(tmp_path)


def test_a_folder_that_cannot_be_read_or_written_stops_everything(tmp_path):
    own = ledger(tmp_path)
    own.path.unlink()
    with pytest.raises(RunFolderError, match="cannot be read"):
        own.spent()
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"file: cannot be .*: File exists"):
        ledger(tmp_path / "file")
    (tmp_path / "a" / "clinic.ledger.lock").mkdir(parents=True)
    with pytest.raises(RunFolderError, match="cannot be locked: Is a directory"):
        ledger(tmp_path / "a")


@pytest.mark.torch
def test_all_that_is_written_is_for_the_client_alone(tmp_path):
    folder = tmp_path / "privacy"
    own, modes = ledger(folder), {}

    def compute(key):
        modes.update({p.name: p.stat().st_mode & 0o777 for p in folder.iterdir()})
        return b"result"

    own_salt(folder, "clinic")
    own.once(round=0, inputs_sha256=HERE, event=ROUND, compute=compute)
    modes.update({p.name: p.stat().st_mode & 0o777 for p in folder.iterdir()})
    assert folder.stat().st_mode & 0o777 == 0o700
    assert sorted(modes) == [
        "clinic.ledger.jsonl",
        "clinic.ledger.lock",
        "clinic.noise.key",
        "clinic.result.key",
        "clinic.salt.key",
    ]
    assert set(modes.values()) == {0o600}


@pytest.mark.torch
@pytest.mark.parametrize("field", ["round", "inputs", "line", "key"])
def test_a_kept_key_that_was_changed_is_not_used(tmp_path, field):
    own = ledger(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        own.once(round=0, inputs_sha256=HERE, event=ROUND, compute=interrupted)
    file = tmp_path / "clinic.noise.key"
    kept = json.loads(file.read_text())
    other = {"round": 7, "inputs": THERE.hex(), "line": 0, "key": "00"}[field]
    file.write_text(json.dumps({**kept, field: other}))
    assert key_of(own).hex() not in (kept["key"], other)
    assert len(own.events()) == 2


@pytest.mark.torch
@pytest.mark.parametrize(
    "spoil", [lambda raw: raw[:-1], lambda raw: raw + b"x", lambda raw: b"[" * 100_000]
)
def test_a_damaged_result_is_never_returned(tmp_path, spoil):
    own = ledger(tmp_path)
    first = key_of(own)
    file = tmp_path / "clinic.result.key"
    file.write_bytes(spoil(file.read_bytes()))
    assert key_of(own) != first
    assert len(own.events()) == 2


def interrupted(key):
    raise KeyboardInterrupt


@pytest.mark.torch
def test_an_error_is_an_answer_so_its_noise_does_not_serve_again(tmp_path):
    own, keys = ledger(tmp_path), []

    def fail(key):
        keys.append(key)
        raise ValueError("not finite")

    with pytest.raises(ValueError, match="not finite"):
        own.once(round=0, inputs_sha256=HERE, event=ROUND, compute=fail)
    assert not (tmp_path / "clinic.noise.key").exists()
    assert key_of(own) != keys[0]
    assert len(own.events()) == 2


@pytest.mark.torch
def test_an_interrupted_round_goes_on_with_its_noise_and_is_paid_for_once(tmp_path):
    own, keys = ledger(tmp_path), []

    def stop(key):
        keys.append(key)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        own.once(round=0, inputs_sha256=HERE, event=ROUND, compute=stop)
    assert key_of(ledger(tmp_path)) == keys[0]
    assert own.events() == [ROUND]


@pytest.mark.torch
def test_the_key_of_an_interrupted_round_does_not_serve_other_inputs(tmp_path):
    own = ledger(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        own.once(round=0, inputs_sha256=HERE, event=ROUND, compute=interrupted)
    kept = json.loads((tmp_path / "clinic.noise.key").read_text())["key"]
    assert key_of(own, inputs=THERE).hex() != kept
    assert key_of(own).hex() != kept
    assert len(own.events()) == 3


@pytest.mark.torch
def test_all_ledgers_of_a_run_are_read_together(tmp_path):
    key_of(ledger(tmp_path))
    ledger(tmp_path, client="bank")
    found = read_all(tmp_path)
    assert found["clinic"].epsilon > found["bank"].epsilon == 0


@pytest.mark.torch
def test_a_ledger_of_an_earlier_version_is_read_and_a_key_it_left_does_not_serve(tmp_path):
    own = ledger(tmp_path)
    place = {
        "round": 0,
        "inputs": HERE.hex(),
        "event": {"kind": "sampled_gaussian", **vars(ROUND)},
    }
    with own.path.open("a") as file:
        file.write(json.dumps(place) + "\n")
    (tmp_path / "clinic.noise.key").write_text(json.dumps({**place, "key": "ab" * 32}))
    assert read_all(tmp_path)["clinic"].epsilon > 0
    assert key_of(own).hex() != "ab" * 32
    assert own.events() == [ROUND, ROUND]


def test_a_salt_is_made_once_for_each_client_and_nobody_else_reads_it(tmp_path):
    one, two = own_salt(tmp_path, "one"), own_salt(tmp_path, "two")
    assert one != two
    assert own_salt(tmp_path, "one") == one
    assert (tmp_path / "one.salt.key").stat().st_mode & 0o777 == 0o600
    (tmp_path / "two.salt.key").write_bytes(b"short")
    with pytest.raises(RunFolderError, match="has 5 bytes; must have 32"):
        own_salt(tmp_path, "two")
