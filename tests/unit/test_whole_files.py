"""A file is written whole or not at all, whoever writes it, and nothing unfinished is left."""

import os
import resource
import stat
from contextlib import contextmanager

import pytest

from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.runtime.files.whole import (
    created_private,
    remove_private,
    replacing,
    unfinished,
    write_private,
)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_an_error_while_a_file_is_written_leaves_the_old_one_and_nothing_else(tmp_path):
    file = tmp_path / "new folder" / "a"
    for at_once in (False, True):
        with replacing(file, at_once=at_once) as partial:
            partial.write_text("old")
        with pytest.raises(ValueError, match="in the middle"), replacing(file, at_once=at_once) as partial:
            write_half(partial)
        assert file.read_text() == "old"
        assert os.listdir(file.parent) == ["a"]


def write_half(partial):
    partial.write_text("half")
    raise ValueError("in the middle")


def test_what_a_kill_has_left_is_overwritten_or_removed_by_name(tmp_path):
    file = tmp_path / "a.key"
    unfinished(file).write_text("longer than what comes")
    unfinished(file).chmod(0o644)
    write_private(file, b"key")
    assert file.read_bytes() == b"key"
    assert mode(file) == 0o600
    unfinished(file).write_text("half")
    remove_private(file)
    assert os.listdir(tmp_path) == []
    remove_private(file)


def test_modes_do_not_depend_on_the_umask(tmp_path):
    before = os.umask(0o077)
    try:
        for private, expected in ((False, 0o644), (True, 0o600)):
            with replacing(tmp_path / "a", private=private) as partial:
                assert mode(partial) == 0o600
            assert mode(tmp_path / "a") == expected
    finally:
        os.umask(before)


def test_a_created_file_never_takes_the_place_of_another(tmp_path):
    file = tmp_path / "a"
    with created_private(file) as partial:
        partial.write_text("first")
    with pytest.raises(FileExistsError), created_private(file) as partial:
        partial.write_text("second")
    assert file.read_text() == "first"
    assert mode(file) == 0o600
    assert os.listdir(tmp_path) == ["a"]


@contextmanager
def full_disk():
    """A limit on the size of files stands in for it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.torch
def test_healing_that_does_not_fit_on_the_disk_leaves_what_was_saved_before(tmp_path):
    import torch
    from torch import nn

    from fedproxy_secure.compress.healing.state import FILE, HealingState

    state = HealingState(tmp_path, key="k")
    state.finish([nn.Parameter(torch.ones(4))], {"kl": 1.0})
    with full_disk(), pytest.raises(RunFolderError, match=f"{FILE}: cannot be written"):
        state.finish([nn.Parameter(torch.ones(4000))], {"kl": 2.0})
    read = [nn.Parameter(torch.zeros(4))]
    assert state.finished(read) == {"kl": 1.0}
    assert read[0].tolist() == [1.0] * 4
    assert os.listdir(tmp_path) == [FILE]
    assert mode(tmp_path / FILE) == 0o644


@pytest.mark.torch
def test_importance_that_does_not_fit_on_the_disk_is_returned_all_the_same(tmp_path, monkeypatch):
    import torch
    from torch import nn

    from fedproxy_secure.compress import importance_memo

    monkeypatch.setenv("FEDPROXY_CACHE", str(tmp_path))
    monkeypatch.setattr(importance_memo, "WORTH_S", -1.0)

    def importance(llm, windows, keep):
        return [0.5] * 4000

    with full_disk():
        found = importance_memo.remembered(importance, nn.Linear(2, 2), torch.zeros(1, 2).long(), 1)
    assert found == [0.5] * 4000
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
