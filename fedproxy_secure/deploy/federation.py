"""The owner's folder: a federation's settings, keys and members.

    federation.json         name, address, time of creation; written last, so an incomplete folder has none
    job.yaml                the settings of the run, every default spelled out
    owner.key               signs kits (mode 0600); its public half is on the card
    card.txt                the key that sites must get on another channel than the kits
    authority/              the certificate authority and the SuperLink's certificate
    sites/NAME.json         the request of each approved site, as it was received
    revoked/NAME-KEY.json   the requests of sites that may not take part any more
    epochs/N/               the members (roster.json) and the authority, by epoch; a kit belongs to one
    kits/NAME.kit.json      what a site needs to take part; it holds no secret

Written by `deploy run`:

    superlink/              logs and lock of a running SuperLink
    logs/events.jsonl       the log of events, for status and metrics
    run/                    the run: models, report, audit log
    run.audit.key           signs the run's audit log (mode 0600), unless the job names another key
    running.json            the process that runs `deploy run`
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from fedproxy_secure.config import Config, load_config
from fedproxy_secure.crypto.key_file import read_key, write_key
from fedproxy_secure.crypto.primitives import fresh_secret, signing_public
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.deploy.authority import (
    TlsFiles,
    bring,
    check_server,
    finish_renewal,
    make_authority,
    make_server,
)
from fedproxy_secure.deploy.signed import FORMAT
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.runtime.artifacts import RunFolder, private_folder
from fedproxy_secure.runtime.quoting import one_line
from fedproxy_secure.runtime.untrusted import read_json

DEFAULT_PORT = 9092
_MARK, _JOB = "federation.json", "job.yaml"
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_CARD = """Federation {name} at {address}

Tell every site this key on another channel than the kits (paper, telephone, a signed letter):

    {owner}

A site gives it once: fedproxy-secure deploy accept SITE KIT --owner KEY. From then on it takes kits of this
owner alone.
"""


@dataclass(frozen=True, kw_only=True)
class Federation:
    """An owner's folder that `init` has made.

    `address` is the host and port by which sites reach the SuperLink.
    """

    folder: Path
    name: str
    host: str
    port: int

    @property
    def address(self) -> str:
        """Host and port."""
        return f"{self.host}:{self.port}"

    @property
    def tls(self) -> TlsFiles:
        """The PEM files of the SuperLink."""
        return TlsFiles.below(self.folder / "authority")

    @property
    def run_folder(self) -> Path:
        """Where `deploy run` writes models, report and audit log."""
        return self.folder / "run"

    def job(self) -> Config:
        """Return the settings of the run. Raises `ConfigError` if they cannot be deployed."""
        config = self.written_job()
        try:
            _check_deployable(config)
        except ConfigError as error:
            raise ConfigError(f"{self.folder / _JOB}: {error}") from None
        return config

    def written_job(self) -> Config:
        """Return the settings as written, even if they were edited and cannot be deployed any more."""
        return load_config(self.folder / _JOB)

    def owner_key(self) -> Secret:
        """Return the key that signs kits."""
        return read_key(self.folder / "owner.key")


def init(
    config: Config, folder: Path, *, address: str, own_certificate: TlsFiles | None = None
) -> Federation:
    """Make an owner's folder from a run's settings; an existing folder of the same settings stays as it is.

    Args:
        config: the run; its clients are the sites that may ask to take part.
        address: HOST or HOST:PORT by which sites reach the SuperLink.
        own_certificate: certificate of an authority of the owner's own; None: an authority is made.

    Raises `ConfigError` for settings that cannot be deployed, an invalid address, a folder that belongs to
    something else, or a certificate other than that of an existing federation.
    """
    host, port = parse_address(address)
    _check_deployable(config)
    if (folder / _MARK).exists():
        existing = open_federation(folder)
        if (existing.host, existing.port) != (host, port) or existing.job().sha256() != config.sha256():
            raise ConfigError(f"{folder}: is the folder of another federation; choose another --out")
        if own_certificate is not None and not _same_files(own_certificate, existing.tls, host):
            raise ConfigError(
                f"{own_certificate.certificate}: is not the certificate of {folder}, which has one; "
                "leave out --certificate, or choose another --out"
            )
        return existing
    if (folder / "site.json").exists():
        raise ConfigError(f"{folder}: is a site's folder; choose another --out")
    check_unused(folder, ("authority", "owner.key", _JOB, "card.txt"))
    if own_certificate is not None:
        check_server(own_certificate, [host])
    private_folder(folder)
    private_folder(folder / "authority")
    if own_certificate is not None:
        bring(folder / "authority", own_certificate, [host])
    else:
        make_authority(folder / "authority", config.name)
        make_server(folder / "authority", [host])
    (folder / "owner.key").unlink(missing_ok=True)  # left by an `init` that was killed: nobody has seen it
    key = fresh_secret()
    write_key(folder / "owner.key", key)
    files = RunFolder(path=folder)
    files.write_text(_JOB, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    federation = Federation(folder=folder, name=config.name, host=host, port=port)
    owner = signing_public(key).hex()
    files.write_text("card.txt", _CARD.format(name=config.name, address=federation.address, owner=owner))
    created = datetime.now(UTC).isoformat(timespec="seconds")
    files.write_json(
        _MARK, {"format": FORMAT, "name": config.name, "host": host, "port": port, "made": created}
    )
    return federation


def _same_files(files: TlsFiles, own_files: TlsFiles, host: str) -> bool:
    check_server(files, [host])  # also that they can be read
    pairs = (
        (files.certificate, own_files.certificate),
        (files.key, own_files.key),
        (files.authority, own_files.authority),
    )
    return all(given.read_bytes() == existing.read_bytes() for given, existing in pairs)


def check_unused(folder: Path, ours: Collection[str]) -> None:
    """Raise `ConfigError` if a folder holds anything but `ours`, the files that a killed call may leave.

    Hidden files and a new volume's `lost+found` do not count.
    """
    if not folder.is_dir():
        return
    foreign = sorted(
        f.name for f in folder.iterdir() if f.name not in (*ours, "lost+found") and f.name[0] != "."
    )
    if foreign:
        raise ConfigError(
            f"{folder}: holds {one_line(foreign[0], 80)}; must be empty; choose another --out"
        )


def is_federation(folder: Path) -> bool:
    """Return whether a folder is an owner's folder."""
    return (folder / _MARK).exists()


def open_federation(folder: Path) -> Federation:
    """Return the federation in an owner's folder. Raises `ConfigError` if there is none.

    Puts the certificate of a killed `deploy rotate` in place.
    """
    raw = read_mark(folder / _MARK, "an owner's folder; `deploy init` makes one")
    finish_renewal(folder / "authority")
    try:
        return Federation(
            folder=folder, name=str(raw["name"]), host=str(raw["host"]), port=int(raw["port"])
        )
    except (KeyError, ValueError, TypeError):
        raise ConfigError(f"{folder / _MARK}: is damaged") from None


def read_mark(file: Path, what: str) -> Mapping[str, Any]:
    """Return the fields of the file that marks a folder.

    Raises `ConfigError` if the folder is not `what`, or if the file is unreadable or damaged.
    """
    try:
        raw = read_json(file)
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            raise ValueError("was written by another version")
    except FileNotFoundError:
        raise ConfigError(f"{file.parent}: is not {what}") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{file}: is damaged: {error}") from None
    return raw


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of HOST or HOST:PORT.

    >>> parse_address("owner.example")
    ('owner.example', 9092)
    """
    bare, _, port = text.rpartition(":")
    if text.startswith("["):
        host, _, port_part = text[1:].partition("]")
        port = port_part.removeprefix(":") if port_part else str(DEFAULT_PORT)
    elif text.count(":") == 1:
        host = bare
    else:
        host, port = text, str(DEFAULT_PORT)
    if ":" in host:
        raise ConfigError(
            f"address={text}: an IPv6 address cannot be used so far; give a name or IPv4 address"
        )
    try:
        ipaddress.ip_address(host)
    except ValueError:
        if not _HOST.fullmatch(host):
            raise ConfigError(f"address={text}: must be HOST or HOST:PORT") from None
    if not (re.fullmatch(r"[0-9]{1,5}", port) and 0 < int(port) < 2**16):
        raise ConfigError(f"address={text}: the port must be a number from 1 to 65535")
    return host, int(port)


def _check_deployable(config: Config) -> None:
    """Raise `ConfigError` for settings that only make sense where one machine plays all parties."""
    if len(config.seeds) != 1:
        raise ConfigError(f"seeds={list(config.seeds)}: a deployment trains once; choose one, as seeds=[0]")
    if config.audit.record or config.audit.canaries:
        raise ConfigError(
            f"audit.record={config.audit.record}, audit.canaries={list(config.audit.canaries)}: work only "
            "if one machine has all records; leave them out of a deployment"
        )
    if config.privacy.randomness != "os":
        raise ConfigError(
            f"privacy.randomness={config.privacy.randomness}: must be os; sites refuse noise that the "
            "owner could compute"
        )
    if config.protect.keys is not None or config.privacy.ledger is not None:
        raise ConfigError("protect.keys, privacy.ledger: are each site's own; leave them out")
    if any(client.part is not None for client in config.data.clients):
        raise ConfigError(
            "data.partition, data.clients.part: work only in simulation; name the sites in data.clients, "
            "each with records of its own"
        )
    config.check_protection()
    config.check_epsilon()
