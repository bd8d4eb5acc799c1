"""The ledger is written before privacy is spent, and says no in time."""

import json
import os

import pytest

from fedproxy_secure.dp.events import SampledGaussian
from fedproxy_secure.dp.ledger import PrivacyLedger, own_salt, read_all
from fedproxy_secure.errors import PrivacyError, RunFolderError

ROUND = SampledGaussian(noise_multiplier=2.0, sampling_rate=0.1, steps=10)
HERE, THERE = b"h" * 32, b"t" * 32


def ledger(folder, **changes):
    settings = {
        "folder": folder,
        "client": "clinic",
        "run": "run",
        "unit": "record",
        "delta": 1e-5,
        "max_epsilon": 2.0,
    }
    made = PrivacyLedger(**(settings | changes))
    made.open()
    return made


def test_a_round_is_on_disk_before_its_key_is_given(tmp_path):
    own = ledger(tmp_path)
    assert own.events() == []
    own.authorise(round=0, inputs_sha256=HERE, event=ROUND)
    assert ledger(tmp_path).events() == [ROUND]
    assert 0 < own.spent().epsilon < 2


def test_the_same_round_again_has_the_same_noise_and_is_free(tmp_path):
    first = ledger(tmp_path).authorise(round=0, inputs_sha256=HERE, event=ROUND)
    again = ledger(tmp_path)  # after a kill
    assert again.authorise(round=0, inputs_sha256=HERE, event=ROUND) == first
    assert again.events() == [ROUND]


@pytest.mark.parametrize("other", [(0, THERE), (1, HERE)])
def test_another_input_or_round_has_other_noise_and_is_paid_for(tmp_path, other):
    own = ledger(tmp_path)
    first = own.authorise(round=0, inputs_sha256=HERE, event=ROUND)
    assert own.authorise(round=other[0], inputs_sha256=other[1], event=ROUND) != first
    assert len(own.events()) == 2


def test_a_round_whose_key_is_gone_is_paid_for_again(tmp_path):
    own = ledger(tmp_path)
    first = own.authorise(round=0, inputs_sha256=HERE, event=ROUND)
    own.authorise(round=1, inputs_sha256=HERE, event=ROUND)  # overwrites the key of round 0
    assert own.authorise(round=0, inputs_sha256=HERE, event=ROUND) != first
    assert len(own.events()) == 3


def test_the_limit_holds_and_what_is_refused_is_not_written(tmp_path):
    own = ledger(tmp_path)

    def spend(rounds):
        for number in range(rounds):
            own.authorise(round=number, inputs_sha256=HERE, event=ROUND)

    with pytest.raises(PrivacyError, match=r"client clinic, round \d+: epsilon would be .* must be <= 2 "):
        spend(100)
    taken = len(own.events())
    assert 1 < taken < 100
    assert own.spent().epsilon <= 2
    with pytest.raises(PrivacyError):  # also after a restart
        ledger(tmp_path).authorise(round=200, inputs_sha256=HERE, event=ROUND)
    assert len(own.events()) == taken


def test_a_line_cut_short_was_never_spent_and_does_not_spoil_the_next(tmp_path):
    own = ledger(tmp_path)
    own.authorise(round=0, inputs_sha256=HERE, event=ROUND)
    with own.path.open("ab") as file:
        file.write(b'{"round": 1, "inp')
    assert ledger(tmp_path).events() == [ROUND]
    own.authorise(round=1, inputs_sha256=HERE, event=ROUND)
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
    "content", [b"", b"no json\n", b'{"client": "clinic"}\n{"event": {"kind": "x"}}\n', b"{}\n[1]\n"]
)
def test_a_damaged_ledger_stops_everything(tmp_path, content):
    own = ledger(tmp_path)
    own.path.write_bytes(content)
    with pytest.raises(RunFolderError, match=r"is damaged: .* what was spent is unknown"):
        own.authorise(round=0, inputs_sha256=HERE, event=ROUND)


def test_the_key_file_is_private_and_a_changed_one_is_not_used(tmp_path):
    own = ledger(tmp_path)
    key = own.authorise(round=0, inputs_sha256=HERE, event=ROUND)
    file = tmp_path / "clinic.noise.key"
    assert os.stat(file).st_mode & 0o777 == 0o600
    file.write_text(json.dumps({**json.loads(file.read_text()), "round": 7}))
    assert own.authorise(round=0, inputs_sha256=HERE, event=ROUND) != key


def test_a_folder_that_cannot_be_written_stops_everything(tmp_path):
    own = ledger(tmp_path)
    own.path.unlink()
    with pytest.raises(RunFolderError, match="cannot be read"):
        own.spent()


def test_all_ledgers_of_a_run_are_read_together(tmp_path):
    ledger(tmp_path).authorise(round=0, inputs_sha256=HERE, event=ROUND)
    ledger(tmp_path, client="bank")
    found = read_all(tmp_path)
    assert found["clinic"].epsilon > found["bank"].epsilon == 0


def test_a_salt_is_made_once_for_each_client_and_nobody_else_reads_it(tmp_path):
    one, two = own_salt(tmp_path, "one"), own_salt(tmp_path, "two")
    assert one != two
    assert own_salt(tmp_path, "one") == one
    assert (tmp_path / "one.salt.key").stat().st_mode & 0o777 == 0o600
