"""A site's folder: its keys, which never leave it, and the kit and policy that it has accepted.

    site.json           name and generation of keys; written last, so an incomplete change has no effect
    generations/N/      the keys of generation N; earlier ones stay, with the journals beside them
        node.key        ECDSA key on P-384 by which the SuperLink knows the node (mode 0600)
        NAME.key        Ed25519 key by which other clients know this one (mode 0600); signs requests
        NAME.journal    the answers that were given with that key
        NAME.sequence   how often the journal was written, by which an older copy of it is noticed
        request.json    the public halves, for the owner
        roster.json     the members, from the kit
    NAME.request.json   the request of the keys in use, where a person finds it
    owner.pub           the owner whose kits this site takes
    kit.json            the kit that was accepted last
    client.yaml         the site's own policy and the place of its records, edited by hand
    ledger/             the spending of its records' privacy

Written by `deploy start`:

    policy.yaml         client.yaml with the folders of keys and ledger in it
    authority.pem       the certificate by which the node knows the SuperLink, from the kit
    cache/              the proxy, complete or partly received
    flower/             Flower's files, and the secret that SuperNode and worker share
    logs/               logs of both, and events.jsonl
    running.json        the process that runs here
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_public_key,
)

from fedproxy_secure import __version__
from fedproxy_secure.crypto.key_file import read_key, write_key
from fedproxy_secure.crypto.primitives import fresh_secret, sign, signing_public, verify
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.deploy.federation import check_unused, is_federation, read_mark
from fedproxy_secure.deploy.signed import FORMAT, Document, read_document, write_document
from fedproxy_secure.errors import ConfigError, ProtocolAborted
from fedproxy_secure.journal.store import carry_promises, create_journal, journal_file
from fedproxy_secure.runtime.artifacts import RunFolder, private_folder, write_bytes
from fedproxy_secure.runtime.files.names import ROSTER

REQUEST = "site request"
_MARK = "site.json"
_NODE_PROOF = b"fedproxy-secure node key of "
_ROTATION = b"fedproxy-secure next key "


@dataclass(frozen=True, kw_only=True)
class Request:
    """A site's request: its name and public keys.

    `identity`: Ed25519, 32 bytes; `node`: as OpenSSH writes it, without a comment: one key is one text;
    `replaces`: the identity before a rotation.
    """

    name: str
    identity: bytes
    node: bytes
    replaces: bytes | None


@dataclass(frozen=True, kw_only=True)
class Site:
    """A site's folder that `join` has made, with the generation of keys that is in use."""

    folder: Path
    name: str
    generation: int

    @property
    def keys(self) -> Path:
        """The folder of the keys in use, which `protect.keys` names in the site's policy."""
        return self.folder / "generations" / str(self.generation)

    @property
    def earlier_keys(self) -> list[Path]:
        """The folders of the keys of earlier generations."""
        return [self.folder / "generations" / str(number) for number in range(1, self.generation)]

    @property
    def node_key(self) -> Path:
        """The file of the node's private key, as OpenSSH writes it."""
        return self.keys / "node.key"

    @property
    def request(self) -> Path:
        """The file that goes to the owner."""
        return self.folder / f"{self.name}.request.json"

    @property
    def client_file(self) -> Path:
        """The file with the site's own policy."""
        return self.folder / "client.yaml"

    @property
    def ledger(self) -> Path:
        """The folder of the records' privacy ledger."""
        return self.folder / "ledger"

    def identity(self) -> Secret:
        """Return the key that signs for this site."""
        return read_key(self.keys / f"{self.name}.key")


def join(name: str, folder: Path) -> tuple[Site, Document]:
    """Make a site's keys and its request in `folder`, or return those that exist.

    Raises `ConfigError` for an invalid name, or a folder that belongs to another site.
    """
    check_name(name)
    if is_federation(folder):
        raise ConfigError(f"{folder}: is an owner's folder; choose another --out")
    if not (folder / _MARK).exists():
        check_unused(folder, ("generations",))
        private_folder(folder)
        return _begin(Site(folder=folder, name=name, generation=1), replaces=None)
    site = open_site(folder)
    if site.name != name:
        raise ConfigError(f"{folder}: belongs to the site {site.name}; choose another --out")
    return site, _publish_request(site)


def rotate_site(site: Site) -> tuple[Site, Document]:
    """Give a site new keys, and write a request that the old key vouches for.

    The old keys stay in place with their journal, so that nobody can answer twice with them. The agreements
    in the old journal are copied into the new one, so that new keys cannot be used to take part again in a
    job that was already answered with other sites. `remember` copies what is agreed to afterwards.

    Raises `ConfigError` if the keys in use are in no accepted kit: the owner could not verify the rotation.
    """
    if not (site.keys / ROSTER).exists():
        raise ConfigError(
            f"{site.folder}: its keys of generation {site.generation} are in no kit yet; accept one first"
        )
    following = Site(folder=site.folder, name=site.name, generation=site.generation + 1)
    return _begin(following, replaces=site.identity(), before=site)


def remember(site: Site) -> None:
    """Copy into the current journal the site's agreements with earlier keys, even after their rotation.

    A node may answer with its old keys until it is restarted. Raises `ProtocolAborted` if a journal cannot
    be used.
    """
    for keys in site.earlier_keys:
        carry_promises(journal_file(keys, site.name), journal_file(site.keys, site.name))


def open_site(folder: Path) -> Site:
    """Return the site in a folder. Raises `ConfigError` if there is none."""
    raw = read_mark(folder / _MARK, "a site's folder; `deploy join` makes one")
    try:
        return Site(folder=folder, name=str(raw["name"]), generation=int(raw["generation"]))
    except (KeyError, TypeError, ValueError):
        raise ConfigError(f"{folder / _MARK}: is damaged") from None


def check_name(name: str) -> None:
    """Raise `ConfigError` unless a name is one that settings allow for a client."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        raise ConfigError(f"name={name[:80]!r}: must be 1 to 64 letters, digits, hyphens or underscores")


def check_request(document: Document) -> Request:
    """Return the request in a document. Raises `ConfigError` unless its signer holds the keys it names."""
    body = document.body
    name, text = str(body.get("name")), str(body.get("node_public"))
    check_name(name)
    try:
        node = load_ssh_public_key(text.encode())
        if not isinstance(node, ec.EllipticCurvePublicKey):
            raise ValueError("its node key must be on an elliptic curve")
        proof = bytes.fromhex(str(body.get("node_proof")))
        node.verify(proof, _NODE_PROOF + document.public, ec.ECDSA(hashes.SHA384()))
        replaces = None if body.get("replaces") is None else bytes.fromhex(str(body["replaces"]))
        if replaces is not None:
            vouched = bytes.fromhex(str(body.get("replaces_proof")))
            verify(replaces, _ROTATION + document.public, vouched, subject="the key that it replaces")
    except InvalidSignature:
        raise ConfigError(f"request of {name}: does not prove that it holds its node key") from None
    except (ValueError, UnsupportedAlgorithm, ProtocolAborted) as error:
        raise ConfigError(f"request of {name}: is not in order: {error}") from None
    plain = node.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return Request(name=name, identity=document.public, node=plain, replaces=replaces)


def _begin(site: Site, *, replaces: Secret | None, before: Site | None = None) -> tuple[Site, Document]:
    """Make the keys of a site's generation, then put that generation into use."""
    private_folder(site.folder / "generations")
    if site.keys.exists():  # left by a call that was killed: nobody has seen these keys
        shutil.rmtree(site.keys)
    private_folder(site.keys)
    identity, node = fresh_secret(), ec.generate_private_key(ec.SECP384R1())
    create_journal(site.keys, site.name)
    if before is not None:
        carry_promises(journal_file(before.keys, site.name), journal_file(site.keys, site.name))
    write_key(site.keys / f"{site.name}.key", identity)
    pem = node.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    write_bytes(site.node_key, pem, private=True)
    public = signing_public(identity)
    body = {
        "format": FORMAT,
        "name": site.name,
        "version": __version__,
        "node_public": node.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode(),
        "node_proof": node.sign(_NODE_PROOF + public, ec.ECDSA(hashes.SHA384())).hex(),
        "replaces": None if replaces is None else signing_public(replaces).hex(),
        "replaces_proof": None if replaces is None else sign(replaces, _ROTATION + public).hex(),
    }
    write_document(site.keys / "request.json", REQUEST, body, identity)
    mark = {"format": FORMAT, "name": site.name, "generation": site.generation}
    RunFolder(path=site.folder).write_json(_MARK, mark)
    return site, _publish_request(site)


def _publish_request(site: Site) -> Document:
    """Copy the request of the keys in use to the site's folder, and return it."""
    document = read_document(site.keys / "request.json", REQUEST, by=signing_public(site.identity()))
    write_bytes(site.request, document.raw)
    return document
