"""What a run's folder keeps of its rounds is put in order on the way on, whole or not at all."""

import errno
import os

import numpy as np
import pytest

from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.federate.server import ServerState
from fedproxy_secure.record.leakage import Ledger
from fedproxy_secure.record.saved_rounds import (
    STATE,
    UNMASKED,
    note_unmasked,
    resumed,
    unmasked_for,
    with_remedy,
)
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.names import LEAKAGE, ROUNDS


def state(number):
    return ServerState(round=number, adapter=np.zeros(3, np.float32))


@pytest.fixture
def folder(tmp_path):
    """Two rounds with lines, of which the first has a state."""
    made = RunFolder(path=tmp_path)
    for number in (0, 1):
        ledger = Ledger(round=number)
        ledger.note("Update", to="server", reveals="an update", payload_bytes=12)
        ledger.write(made)
        made.append_jsonl(ROUNDS, {"round": number, "seconds": 1.0})
    state(1).save(tmp_path / STATE)
    return made


def test_a_round_without_a_state_did_not_end_but_what_flowed_in_it_stays(folder):
    assert resumed(folder, state(0)).round == 1
    assert [line["round"] for line in folder.read_jsonl(ROUNDS)] == [0]
    flowed = [(line["round"], line.get("aborted", False)) for line in folder.read_jsonl(LEAKAGE)]
    assert flowed == [(0, False), (1, True)]
    before = (folder.path / LEAKAGE).read_bytes()
    resumed(folder, state(0))
    assert (folder.path / LEAKAGE).read_bytes() == before


def test_on_a_full_disk_the_lines_stay_as_they_were(folder, monkeypatch):
    before = {name: (folder.path / name).read_bytes() for name in (ROUNDS, LEAKAGE)}

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFolderError, match="No space left"):
        resumed(folder, state(0))
    assert {name: (folder.path / name).read_bytes() for name in (ROUNDS, LEAKAGE)} == before


def test_a_state_of_another_size_is_another_runs(folder):
    with pytest.raises(RunFolderError, match=r"saved adapter of 3 numbers: this run's has 4"):
        resumed(folder, ServerState(round=0, adapter=np.zeros(4, np.float32)))


def test_an_abort_names_those_without_whom_the_round_cannot_be_opened():
    assert with_remedy("too few", None, ["a"]) == "too few"
    assert with_remedy("too few", ["a", "b"], ["b", "a"]) == "too few"
    assert "included b, now not connected" in with_remedy("too few", ["a", "b"], ["a"])


def test_for_whom_a_round_was_to_be_unmasked_is_read_back_for_that_round_alone(tmp_path):
    made = RunFolder(path=tmp_path)
    assert unmasked_for(made, 3) is None
    note_unmasked(made, 3, ["bank", "clinic"])
    assert unmasked_for(made, 3) == ["bank", "clinic"]
    assert unmasked_for(made, 4) is None


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "3", '{"round": 3}', '{"round": 3, "clients": "bank"}', '{"round": "3", "clients": []}'],
)
def test_a_damaged_note_of_whom_to_unmask_is_refused_with_a_remedy(tmp_path, text):
    (tmp_path / UNMASKED).write_text(text)
    with pytest.raises(
        RunFolderError, match=r"unmasked\.json: is damaged, .* put it back, or begin"
    ) as raised:
        unmasked_for(RunFolder(path=tmp_path), 3)
    assert "\n" not in str(raised.value)
