"""Files written atomically and durably: a power cut leaves the old file or the new one.

Guarantees: `replacing`, and functions that use it, leave the old file or the new one, never a part of one,
on the disk when they return; `created_private` leaves the new file or none, and never changes an existing
file. The names of files that a kill leaves start with `PARTIAL`. Not guaranteed: that freed disk blocks are
overwritten.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedproxy_secure.errors import RunFolderError

PARTIAL = ".partial-"  # prefix of the name of an unfinished file


@contextmanager
def replacing(
    path: Path, *, private: bool = False, at_once: bool = False, durable: bool = True
) -> Iterator[Path]:
    """Yield the path of an empty file to write, which replaces `path` if the block succeeds.

    Args:
        private: whether the file has mode 0600, regardless of the umask; else the usual mode of a new file.
        at_once: whether several processes may write `path` at once. Unfinished files that a kill leaves are
            then never removed, so do not use it for large or secret files; with one writer at a time, at
            most one unfinished file is left.
        durable: whether to wait for the disk. If not, a power cut may leave the file damaged; this is for
            large files that are written often and can be recomputed.

    Creates the folder if there is none. Raises `RunFolderError` if the disk is full or the folder cannot be
    written; an earlier file at `path` is then unchanged.
    """
    partial: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(PARTIAL + secrets.token_hex(8)) if at_once else unfinished(path)
        if not at_once:
            _removed(new)  # it may be a link, which must not be written through
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
        partial = new
        try:
            # read from the file, because reading the umask changes it for all threads
            mode = 0o600 if private else stat.S_IMODE(os.fstat(descriptor).st_mode)
            os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
        yield partial
        _complete(partial, mode=mode, durable=durable)
        partial.replace(path)
        partial = None
        if durable:
            sync_folder(path.parent)
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        if partial is not None:
            with suppress(OSError):
                partial.unlink()


@contextmanager
def created_private(file: Path) -> Iterator[Path]:
    """Yield the path of an empty file to write, mode 0600, which becomes `file` if the block succeeds.

    Raises `FileExistsError` if `file` exists by then, and other errors of the operating system.
    """
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=PARTIAL)  # has mode 0600
    os.close(descriptor)
    try:
        yield Path(name)
        _complete(Path(name), mode=0o600)
        os.link(name, file)  # unlike a rename, replaces nothing
    finally:
        os.unlink(name)
    sync_folder(file.parent)


def write_private(path: Path, data: bytes) -> None:
    """Write `data` to `path`, mode 0600, for one writer at a time (see `replacing`).

    Raises `RunFolderError` if that fails.
    """
    with replacing(path, private=True) as partial:
        partial.write_bytes(data)


def remove_private(path: Path) -> None:
    """Remove a file and the unfinished file that an interrupted `write_private` may have left.

    Raises `RunFolderError` if one of them cannot be removed.
    """
    try:
        removed = [_removed(unfinished(path)), _removed(path)]
        if any(removed):
            sync_folder(path.parent)
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be removed: {error.strerror}") from error


def unfinished(path: Path) -> Path:
    """Return the path of the unfinished file that `replacing` renames to `path`, without `at_once`."""
    return path.with_name(f"{PARTIAL}{path.name}")


def sync_folder(folder: Path) -> None:
    """Make a creation, a rename or a removal in the folder survive a power cut.

    Some file systems do not support the request; they do this by themselves or not at all.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _complete(file: Path, *, mode: int, durable: bool = True) -> None:
    """Set a written file's mode and, if `durable`, wait until it is on the disk.

    The file is opened by name again, because a library may have replaced it.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_NOFOLLOW)
    try:
        os.fchmod(descriptor, mode)
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _removed(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True
