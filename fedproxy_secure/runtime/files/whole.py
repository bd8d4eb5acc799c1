"""Files written whole or not at all, which a power cut does not take back.

Guarantees: `replacing` and what stands on it leave the old file or the new one, never half of one, on the
disk when they return; `created_private` leaves the new file or none, and never touches one that is there.
What a kill has left begins with `PARTIAL`. Not guaranteed: that freed disk blocks are overwritten.
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

PARTIAL = ".partial-"  # the beginning of the name of an unfinished file


@contextmanager
def replacing(
    path: Path, *, private: bool = False, at_once: bool = False, durable: bool = True
) -> Iterator[Path]:
    """Yield the path of an empty file to write; it takes the place of `path` when the block ends well.

    Args:
        private: the file has mode 0600, whatever the umask; any other has the mode of any new file.
        at_once: several processes may write `path` at once. Unfinished files that a kill leaves are then
            never removed, so do not use it for large or secret files; with one writer at a time, at most
            one unfinished file is left.
        durable: whether to wait for the disk. If not, a power cut may leave the file damaged; this is for
            large files that are written often and can be made again.

    Makes the folder if there is none. Raises `RunFolderError` if the disk is full or the folder cannot be
    written; what was at `path` before is then still there, whole.
    """
    partial: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(PARTIAL + secrets.token_hex(8)) if at_once else unfinished(path)
        if not at_once:
            _removed(new)  # it may be a link, which nothing is to be written through
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
        partial = new
        try:
            # the umask as the system applied it: to ask for it is to change it, for all threads
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
    """Yield the path of an empty file to write, mode 0600; it becomes `file` when the block ends well.

    Raises `FileExistsError` if `file` is there by then, and what else the operating system raises.
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
    """Remove a file and what an interrupted `write_private` may have left of it.

    Raises `RunFolderError` if one is there and stays.
    """
    try:
        removed = [_removed(unfinished(path)), _removed(path)]
        if any(removed):
            sync_folder(path.parent)
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be removed: {error.strerror}") from error


def unfinished(path: Path) -> Path:
    """Return the path of the file that `replacing` makes into `path`, unless several write at once."""
    return path.with_name(f"{PARTIAL}{path.name}")


def sync_folder(folder: Path) -> None:
    """Make a new name, a rename or a removal in the folder itself last through a power cut.

    Some file systems cannot be asked for that, and do it by themselves or not at all.
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
    """Set a written file's mode and wait until it is on the disk.

    It is opened by its name again: a library may have put another file there.
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
