"""The folder of a run: it belongs to one set of settings, and its files are written atomically.

    manifest.json      the kind of work and the SHA-256 of its settings; written first
    config.yaml        the resolved settings, every default spelled out
    environment.json   Python, packages (plug-ins included), platform
    running.json       while a process works here (`only_one`)
    ...                whatever the run writes

Every write goes to a temporary file beside the target, is flushed to the disk and then renamed over the
target. A crash or a full disk leaves the old file or none, never a part of one.

Files of other parties are read by `fedproxy_secure.runtime.untrusted`, so that no file can exhaust the
stack.
"""

from __future__ import annotations

import errno
import json
import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import yaml

from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.runtime.files.belonging import Work, check_work, differing_settings
from fedproxy_secure.runtime.files.names import ENVIRONMENT, MANIFEST, RUNNING, SETTINGS_FILE
from fedproxy_secure.runtime.files.whole import PARTIAL, replacing, sync_folder
from fedproxy_secure.runtime.quoting import one_line
from fedproxy_secure.runtime.untrusted import parse_json, read_bytes

_PACKAGES = (
    "fedproxy-secure",
    "torch",
    "transformers",
    "peft",
    "tokenizers",
    "safetensors",
    "datasets",
    "numpy",
    "scipy",
    "flwr",
    "ray",
    "opacus",
    "tenseal",
    "cryptography",
)


class Settings(Protocol):
    """The part of a `Config` that a run folder needs."""

    def sha256(self) -> str:
        """Return the hex digest of all settings."""

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """Return the settings as plain values."""

    def counted(self) -> dict[str, Any]:
        """Return the settings that the digest can depend on, as plain values."""


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A folder that belongs to one resolved config. One process writes to it at a time.

    `private`: only the owner may read its files (0600, see `private_folder`), regardless of the umask.
    """

    path: Path
    private: bool = False

    @classmethod
    def create(cls, path: Path, config: Settings, work: Work = "run") -> RunFolder:
        """Create a run folder for one kind of work; the folder may exist if it is empty.

        Raises `RunFolderError` if it is not empty or cannot be written.
        """
        _check_empty(path)
        folder = cls(path=path)
        folder.write_json(MANIFEST, {"work": work, "config_sha256": config.sha256()})
        folder._complete(config)
        return folder

    @classmethod
    def resume(cls, path: Path, config: Settings, work: Work = "run") -> RunFolder:
        """Go on in a run folder; create it if it does not exist or is empty.

        Files that are missing because its creation was killed are written now.

        Raises `RunFolderError` if it belongs to another kind of work or to other settings, or is not a run
        folder.
        """
        if not _contents(path):
            return cls.create(path, config, work)
        owner = check_work(path, work)
        if owner != config.sha256():
            digests = f"SHA-256 {one_line(owner[:12])}, these have {config.sha256()[:12]}"
            differing = differing_settings(path, config.counted()) or digests
            raise RunFolderError(
                f"{path}: belongs to other settings ({differing}); choose another --out, or put them back"
            )
        folder = cls(path=path)
        folder._complete(config)
        return folder

    def _complete(self, config: Settings) -> None:
        if not (self.path / SETTINGS_FILE).exists():
            self.write_settings(config)
        if not (self.path / ENVIRONMENT).exists():
            self.write_json(ENVIRONMENT, environment())

    def write_settings(self, config: Settings) -> Path:
        """Write the resolved settings atomically. Raises `RunFolderError` if that fails."""
        settings = config.model_dump(mode="json")
        return self.write_text(SETTINGS_FILE, yaml.safe_dump(settings, sort_keys=False))

    def write_bytes(self, name: str, data: bytes) -> Path:
        """Write a file of the folder atomically. Raises `RunFolderError` if that fails."""
        write_bytes(self.path / name, data, private=self.private)
        return self.path / name

    def write_text(self, name: str, text: str) -> Path:
        """Write UTF-8 text atomically. Raises `RunFolderError` if that fails."""
        return self.write_bytes(name, text.encode())

    def write_json(self, name: str, value: Any) -> Path:
        """Write indented JSON atomically. Raises `RunFolderError` if that fails."""
        return self.write_bytes(name, json_bytes(value))

    def append_jsonl(self, name: str, record: dict[str, Any]) -> Path:
        """Add one line of JSON and flush it to the disk.

        A last line that a crash left unfinished is dropped first. Raises `RunFolderError` if the line
        cannot be written, or the file is a link; the file is then unchanged.
        """
        path = self.path / name
        line = json.dumps(record, sort_keys=True, allow_nan=False).encode() + b"\n"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
            with open(os.open(path, flags, 0o600 if self.private else 0o666), "ab+", buffering=0) as file:
                if self.private:
                    os.fchmod(file.fileno(), 0o600)  # an existing file may have any mode
                end = _end_of_last_whole_line(file.seek(0, os.SEEK_END), path)
                file.truncate(end)
                try:
                    _write_all(file.fileno(), line)
                    os.fsync(file.fileno())
                    if end == 0:
                        sync_folder(path.parent)  # the file is new
                except OSError:
                    file.truncate(end)
                    raise
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise RunFolderError(f"{path}: is a link; must be a file; delete the link") from error
            raise RunFolderError(f"{path}: cannot be written: {error.strerror}") from error
        return path

    def read_jsonl(self, name: str) -> list[dict[str, Any]]:
        """Return the complete lines of a file of `append_jsonl`; none if there is no such file.

        Raises `RunFolderError` if a complete line is not JSON.
        """
        path = self.path / name
        try:
            lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline is unfinished
            return [parse_json(line) for line in lines]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RunFolderError(f"{path}: cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise RunFolderError(f"{path}: is damaged: {error}") from error


def is_new(path: Path) -> bool:
    """Return whether the folder is missing or empty, so that `RunFolder.resume` would create it."""
    return not _contents(path)


def check_new(path: Path) -> None:
    """Raise `RunFolderError` if the folder is not empty, unless another process seems to work in it.

    `RunFolder.create` checks again; this earlier check reports the error before any slow work.
    """
    if not (path / RUNNING).exists():
        _check_empty(path)


def json_bytes(value: Any) -> bytes:
    """Return indented JSON, as `RunFolder.write_json` writes it."""
    return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def private_folder(path: Path) -> Path:
    """Create a folder with mode 0700, or set that mode on an existing one, and return it.

    Folders above it get their usual mode: users who may not enter `path` reach nothing below it.

    Raises `RunFolderError` if it cannot be created.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)  # regardless of the umask and of an existing folder's mode
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be written: {error.strerror}") from error
    return path


def read_file(path: Path) -> bytes:
    """Read a file of a run; raises `RunFolderError` if there is none, or it is too large."""
    try:
        return read_bytes(path)
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise RunFolderError(f"{path}: is damaged: {error}") from error


def write_bytes(path: Path, data: bytes, *, private: bool = False) -> None:
    """Write `data` to `path` atomically, and create its folder if there is none.

    A `private` file has mode 0600 regardless of the umask; other files have the usual mode of a new file.
    Several processes may write a file at once, but only one a private file, because the next call removes
    the unfinished private file that a kill leaves.

    Raises `RunFolderError` if the disk is full or the folder cannot be written; an earlier file at `path`
    is then unchanged.
    """
    with replacing(path, private=private, at_once=not private) as partial:
        partial.write_bytes(data)


def environment(device: str | None = None) -> dict[str, Any]:
    """Return versions of Python, main packages and plug-ins, the platform, and `device` by torch's name."""
    return {
        "python": platform.python_version(),
        "packages": {name: version for name in _packages() if (version := installed(name)) is not None},
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count() or 1,
        "device": device,
    }


def _packages() -> tuple[str, ...]:
    """Return the main packages, then those with plug-ins, whose versions may change results, too."""
    all_points = metadata.entry_points()
    points = [
        p for g in all_points.groups if g.startswith("fedproxy_secure.") for p in all_points.select(group=g)
    ]
    plug_ins = {p.dist.name for p in points if p.dist is not None and "Name" in p.dist.metadata}
    return (*_PACKAGES, *sorted(plug_ins - {*_PACKAGES}))


def installed(package: str) -> str | None:
    """Return the installed version of `package`, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _check_empty(path: Path) -> None:
    if _contents(path):
        raise RunFolderError(f"{path}: is not empty; add --resume to go on, or choose another --out")


def _contents(path: Path) -> list[str]:
    """Return the names in the folder, without leftovers of an interrupted write or process."""
    try:
        return [n for n in os.listdir(path) if not n.startswith(PARTIAL) and n != RUNNING]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be a run folder: {error.strerror}") from error


def _end_of_last_whole_line(size: int, path: Path) -> int:
    """Return the offset after the last newline: nearly always `size`, found without reading the file."""
    with path.open("rb") as file:
        if size == 0:
            return 0
        file.seek(size - 1)
        if file.read(1) == b"\n":
            return size
        file.seek(0)
        return file.read().rfind(b"\n") + 1


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
