"""A small disk of its own below a folder, that can be filled and freed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.network.commands import fresh_name, is_stale, system

_FILLER = ".filler"


class Disk:
    """A small disk, mounted at `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self, *, leave: int = 0) -> None:
        """Fill the disk up with a file, and leave so many bytes free (in whole pages)."""
        state = os.statvfs(self.folder)
        wanted = state.f_bavail * state.f_frsize - leave
        if wanted <= 0:
            return
        with (self.folder / _FILLER).open("ab") as file, suppress_full():
            os.posix_fallocate(file.fileno(), file.tell(), wanted)

    def free(self) -> None:
        """Remove what `fill` wrote."""
        (self.folder / _FILLER).unlink(missing_ok=True)


@contextmanager
def small_disk(folder: Path, *, megabytes: int) -> Iterator[Disk]:
    """Mount a disk of so many MiB at a folder, which is made; at the end it is gone, and all that it holds.

    Mount it before the processes start that write there: they keep what was mounted when they started.
    """
    folder.mkdir(parents=True, exist_ok=True)
    system("mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0755", fresh_name("disk"), str(folder))
    try:
        yield Disk(folder)
    finally:
        system("umount", "--lazy", str(folder))


@contextmanager
def suppress_full() -> Iterator[None]:
    """Go on where the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


def remove_stale_disks() -> None:
    """Unmount disks of tests that were killed."""
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        source, folder, *_ = line.split()
        if is_stale(source):
            with suppress(OSError):
                system("umount", "--lazy", folder.encode().decode("unicode_escape"))
