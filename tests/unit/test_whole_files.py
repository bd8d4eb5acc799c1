"""Files are written whole or not at all, and nothing unfinished is left behind."""

import errno
import os
import resource
import stat
from contextlib import contextmanager, nullcontext

import pytest

from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.experiments.sweeps.prepared_proxies import forget_weights
from fedproxy_secure.runtime.files.names import HEALING, PROXIES
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


def test_nothing_is_written_through_a_link_that_has_the_name_of_an_unfinished_file(tmp_path):
    file, other = tmp_path / "a", tmp_path / "other"
    other.write_text("somebody's")
    unfinished(file).symlink_to(other)
    write_private(file, b"key")
    assert (file.read_bytes(), file.is_symlink()) == (b"key", False)
    with pytest.raises(RunFolderError, match="cannot be written"), replacing(file) as partial:
        put_a_link(partial, other)
    assert other.read_text() == "somebody's"
    assert mode(other) == mode_of_new(tmp_path)


def put_a_link(partial, other):
    partial.unlink()
    partial.symlink_to(other)


def mode_of_new(folder):
    (folder / "new").write_text("")
    return mode(folder / "new")


def test_what_cannot_be_opened_takes_nothing_away(tmp_path):
    unfinished(tmp_path / "a").mkdir()
    with pytest.raises(RunFolderError, match="a: cannot be written"), replacing(tmp_path / "a"):
        pass
    assert unfinished(tmp_path / "a").is_dir()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_a_file_system_that_syncs_no_folders_is_no_error(tmp_path, monkeypatch, number):
    real = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, "for the test")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    refused = pytest.raises(OSError, match="for the test") if number == errno.EIO else nullcontext()
    with refused, created_private(tmp_path / "a") as partial:
        partial.write_text("first")
    assert (tmp_path / "a").read_text() == "first"


def test_only_what_is_to_last_waits_for_the_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    with replacing(tmp_path / "a", durable=False) as partial:
        partial.write_text("a")
    assert not synced
    with replacing(tmp_path / "a") as partial:
        partial.write_text("b")
    assert len(synced) == 2


@pytest.mark.parametrize(("umask", "public"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
@pytest.mark.parametrize("at_once", [False, True])
def test_the_umask_decides_who_reads_a_file_unless_it_is_private(tmp_path, umask, public, at_once):
    before = os.umask(umask)
    try:
        for private, expected in ((False, public), (True, 0o600)):
            with replacing(tmp_path / "a", private=private, at_once=at_once) as partial:
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

    from fedproxy_secure.compress.healing.state import HealingState

    state = HealingState(tmp_path, key="k")
    state.finish([nn.Parameter(torch.ones(4))], {"kl": 1.0})
    with full_disk(), pytest.raises(RunFolderError, match=f"{HEALING}: cannot be written"):
        state.finish([nn.Parameter(torch.ones(4000))], {"kl": 2.0})
    read = [nn.Parameter(torch.zeros(4))]
    assert state.finished(read) == {"kl": 1.0}
    assert read[0].tolist() == [1.0] * 4
    assert os.listdir(tmp_path) == [HEALING]
    assert mode(tmp_path / HEALING) == 0o600


def test_weights_that_no_cell_needs_leave_nothing_behind(tmp_path):
    place = tmp_path / PROXIES / "0.5-seed0"
    place.mkdir(parents=True)
    for name in (HEALING, unfinished(place / HEALING).name):
        (place / name).write_text("")
    forget_weights(tmp_path, [])
    assert os.listdir(tmp_path) == []


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
    importance_memo.remembered(importance, nn.Linear(2, 2), torch.zeros(1, 2).long(), 1)
    (file,) = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert mode(file) == 0o600
