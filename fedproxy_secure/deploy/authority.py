"""The owner's certificate authority and the certificate of her SuperLink (X.509, ECDSA on P-256).

The authority certifies one kind of thing, servers of this federation, and a site trusts it for this
federation alone: its certificate is in the site's kit, not in the machine's trust store. An owner who has
a certificate from an authority of her own uses that one instead (`bring`).
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedproxy_secure.errors import ConfigError
from fedproxy_secure.monitor.state import RENEW_DAYS
from fedproxy_secure.runtime.artifacts import json_bytes, write_bytes
from fedproxy_secure.runtime.files.locks import alone
from fedproxy_secure.runtime.files.whole import remove_private, write_private
from fedproxy_secure.runtime.untrusted import read_json

AUTHORITY_DAYS = 3650
SERVER_DAYS = 397  # browsers and libraries refuse server certificates that are valid for longer
CLOCK_SKEW = timedelta(hours=1)
RENEW = timedelta(days=RENEW_DAYS)  # a certificate that ends sooner than this gives a warning
RENEWAL = "renewal.json"  # what is to replace the files of the same names
LOCK, WAIT_S = "renewal.lock", 10.0  # one command replaces files at a time; others wait so long
_FILES = ("authority.key", "authority.pem", "server.key", "server.pem")
LOCAL_NAMES = ("localhost", "127.0.0.1")  # the SuperLink's own processes reach it by these


@dataclass(frozen=True, kw_only=True)
class TlsFiles:
    """The PEM files of a SuperLink: its certificate, its private key, and the authority that signed it."""

    certificate: Path
    key: Path
    authority: Path

    @classmethod
    def below(cls, folder: Path) -> TlsFiles:
        """Return the three files that this module writes into a folder."""
        return cls(
            certificate=folder / "server.pem", key=folder / "server.key", authority=folder / "authority.pem"
        )


def make_authority(folder: Path, name: str) -> None:
    """Write a new authority into `folder`: `authority.key` (mode 0600) and `authority.pem`."""
    _replace(folder, _named("authority", *_new_authority(name)))


def make_server(folder: Path, hosts: Sequence[str]) -> None:
    """Write a new key and certificate of a server reachable by `hosts`, signed by the folder's authority.

    A kill at any step leaves the old pair or, once `finish_renewal` was called, the new one. Raises
    `ConfigError` if the authority's files cannot be read.
    """
    key, authority = _read_key(folder / "authority.key"), read_certificate(folder / "authority.pem")
    _replace(folder, _named("server", *_new_server(key, authority, hosts)))


def renew_all(folder: Path, name: str, hosts: Sequence[str]) -> None:
    """Write a new authority into `folder`, and what `make_server` writes, signed by it.

    A kill leaves all of the old or, once `finish_renewal` was called, all of the new.
    """
    authority = _new_authority(name)
    server = _new_server(*authority, hosts)
    _replace(folder, {**_named("authority", *authority), **_named("server", *server)})


def finish_renewal(folder: Path) -> None:
    """Put the keys and certificates in place that a killed renewal has left in the folder.

    Raises `ConfigError` if what it has left cannot be read, `RunFolderError` if it cannot be put in place.
    """
    if (folder / RENEWAL).exists():
        with alone(folder / LOCK, wait_s=WAIT_S):
            _finish_renewal(folder)


def _finish_renewal(folder: Path) -> None:
    try:
        files = read_json(folder / RENEWAL)
        made = {name: str(files[name]).encode() for name in _FILES if name in files}
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"{folder / RENEWAL}: cannot be read: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{folder / RENEWAL}: is damaged: {error}") from None
    for name, pem in made.items():
        write_bytes(folder / name, pem, private=name.endswith(".key"))
    remove_private(folder / RENEWAL)


def _replace(folder: Path, files: Mapping[str, bytes]) -> None:
    """Put files in the place of those of the same names: all of them, if need be by `finish_renewal`."""
    with alone(folder / LOCK, wait_s=WAIT_S):
        write_private(folder / RENEWAL, json_bytes({name: pem.decode() for name, pem in files.items()}))
        _finish_renewal(folder)


def _named(name: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> dict[str, bytes]:
    """Return a key and its certificate in PEM form by the names of their files."""
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return {f"{name}.key": pem, f"{name}.pem": certificate.public_bytes(Encoding.PEM)}


def _new_authority(name: str) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} authority"[:64])])
    certificate = (
        _builder(subject, subject, key.public_key(), days=AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return key, certificate


def _new_server(
    authority_key: ec.EllipticCurvePrivateKey, authority: x509.Certificate, hosts: Sequence[str]
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    names = [_general_name(host) for host in dict.fromkeys([*hosts, *LOCAL_NAMES])]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
    issuer_id = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    certificate = (
        _builder(subject, authority.subject, key.public_key(), days=SERVER_DAYS)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_id), critical=False
        )
        .sign(authority_key, hashes.SHA256())
    )
    return key, certificate


def bring(folder: Path, files: TlsFiles, hosts: Sequence[str]) -> None:
    """Copy an owner's own certificate, key and authority into `folder`, once they are found to fit.

    Raises `ConfigError` if they cannot be read, do not belong together, or lack one of `hosts` or of
    `localhost` and `127.0.0.1`, by which the SuperLink's own processes reach it.
    """
    check_server(files, hosts)
    ours = TlsFiles.below(folder)
    write_bytes(ours.key, files.key.read_bytes(), private=True)
    write_bytes(ours.authority, files.authority.read_bytes())
    write_bytes(ours.certificate, files.certificate.read_bytes())


def check_server(files: TlsFiles, hosts: Sequence[str]) -> None:
    """Raise `ConfigError` unless a certificate fits its key, authority and `hosts`, and is valid now."""
    certificate = read_certificate(files.certificate)
    read_certificate(files.authority)
    if _load_key(files.key).public_key() != certificate.public_key():
        raise ConfigError(f"{files.key}: is not the key of {files.certificate}")
    check_dates(certificate, str(files.certificate))
    _check_chain(files)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise ConfigError(f"{files.certificate}: names no host (subjectAltName)") from None
    for host in [*hosts, *LOCAL_NAMES]:
        if _general_name(host) not in list(names):
            raise ConfigError(f"{files.certificate}: is not for {host}; its subjectAltName must name it")


def _check_chain(files: TlsFiles) -> None:
    """Raise `ConfigError` unless a site that has only the authority's file accepts the certificate.

    The TLS handshake is simulated in memory. The simulated site is as strict as any supported Python: 3.13
    checks the form of certificates (`VERIFY_X509_STRICT`), earlier versions require a chain up to a root.
    """
    try:
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(files.certificate, files.key)
        site = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        site.check_hostname = False  # `check_server` compares all names
        site.load_verify_locations(files.authority)
        site.verify_flags |= ssl.VERIFY_X509_STRICT
        site.verify_flags &= ~ssl.VERIFY_X509_PARTIAL_CHAIN
        to_site, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        ends = (
            site.wrap_bio(to_site, to_server),
            server.wrap_bio(to_server, to_site, server_side=True),
        )
        for end in (*ends, *ends):  # hello, certificate, the site's judgement of it
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
    except ssl.SSLCertVerificationError as error:
        raise ConfigError(
            f"{files.certificate}: must be signed by {files.authority} ({error.verify_message}); append "
            "the certificates of intermediate authorities to the former, and the root's to the latter"
        ) from None
    except ssl.SSLError as error:
        raise ConfigError(f"{files.certificate}: cannot be served: {error.reason}; renew it") from None


def check_dates(certificate: x509.Certificate, what: str) -> None:
    """Raise `ConfigError` unless a certificate is valid now."""
    now, first, last = datetime.now(UTC), certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not first <= now <= last:
        raise ConfigError(
            f"{what}: is valid from {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC, and now it is "
            f"{now:%Y-%m-%d %H:%M}; renew it, or set the clock"
        )


def ends_soon(last: datetime) -> str | None:
    """Return a few words if a certificate that is valid until then must be renewed soon, else None."""
    left = last - datetime.now(UTC)
    return None if left > RENEW else f"ends on {last:%Y-%m-%d}, in {max(0, left.days)} days"


def read_certificate(file: Path) -> x509.Certificate:
    """Return the certificate in a PEM file. Raises `ConfigError` if there is none."""
    try:
        return x509.load_pem_x509_certificate(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except ValueError:
        raise ConfigError(f"{file}: is no certificate in PEM form") from None


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, *, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _read_key(file: Path) -> ec.EllipticCurvePrivateKey:
    key = _load_key(file)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{file}: must be a key on an elliptic curve")
    return key


def _load_key(file: Path) -> PrivateKeyTypes:
    try:
        return load_pem_private_key(file.read_bytes(), None)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except (ValueError, TypeError):
        raise ConfigError(f"{file}: is no private key in PEM form without a password") from None
