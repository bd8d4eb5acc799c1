"""The terms of an attempt at a round, which its messages are bound to, and a client's policy on them.

The server proposes `Terms`, and a client checks them with its `TermsPolicy`. The context is their hash:

    context = SHA256(version, run, round, attempt, threshold, cohort, server's key, H(settings),
                     H(roster), H(broadcast), ring plan, H(cosines))

The context is part of every signature, every key derivation and every sealed share. So nothing can be
replayed across attempts, rounds, runs, settings, rosters or broadcast adapters.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from fedproxy_secure.crypto.primitives import KEY_BYTES, digest
from fedproxy_secure.errors import ConfigError, ProtocolAborted
from fedproxy_secure.runtime.untrusted import read_json
from fedproxy_secure.secagg.ring import MAX_CLIENTS, MIN_CLIENTS, RingPlan

VERSION = b"fedproxy-secure masking 1"
HASH_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class Roster:
    """The clients that may take part: Ed25519 public keys, 32 bytes, by name. Provisioning makes it.

    Raises `ConfigError` for a key of another length or a key given twice.
    """

    members: dict[str, bytes]

    def __post_init__(self) -> None:
        for name, key in self.members.items():
            if len(key) != KEY_BYTES:
                raise ConfigError(f"roster: key of {name} has {len(key)} bytes; must have {KEY_BYTES}")
        if len(set(self.members.values())) != len(self.members):
            raise ConfigError("roster: two clients have the same key; keys must differ")

    def sha256(self) -> bytes:
        """Return the hash of names and keys, sorted by name."""
        return digest(*(part for n in sorted(self.members) for part in (n.encode(), self.members[n])))

    def to_json(self) -> str:
        """Return the roster as JSON: an object of clients' names and their public keys in hex."""
        return json.dumps({n: self.members[n].hex() for n in sorted(self.members)}, indent=2) + "\n"

    @classmethod
    def load(cls, file: Path) -> Roster:
        """Read a file with the text of `to_json`. Raises `ConfigError` for anything else."""
        try:
            raw = read_json(file)
            return cls(members={str(n): bytes.fromhex(k) for n, k in raw.items()})
        except OSError as error:
            raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
        except (ValueError, AttributeError, TypeError) as error:
            raise ConfigError(f"{file}: is not a roster") from error


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The terms of one attempt at one round; hashes and keys are 32 bytes.

    Attributes:
        run: the run's name.
        round: from 0.
        attempt: the number of this try at the round.
        cohort: the invited clients, sorted.
        threshold: the least number of clients in every step and so in the sum.
        server_key: the server's X25519 key of this attempt, for the tags on clients' vectors.
        settings_sha256: of the settings that all parties agreed on.
        roster_sha256: of the roster.
        broadcast_sha256: of the adapter that all clients start from.
        plan: the ring.
        gram_sha256: with weights `encrypted_gram`, of the cosines that all clients opened; else empty.
    """

    run: str
    round: int
    attempt: int
    cohort: tuple[str, ...]
    threshold: int
    server_key: bytes
    settings_sha256: bytes
    roster_sha256: bytes
    broadcast_sha256: bytes
    plan: RingPlan
    gram_sha256: bytes = b""

    def context(self) -> bytes:
        """Return the hash that binds every message of the attempt to these terms."""
        return digest(
            VERSION,
            self.run.encode(),
            f"{self.round}|{self.attempt}|{self.threshold}".encode(),
            *(name.encode() for name in self.cohort),
            self.server_key,
            self.settings_sha256,
            self.roster_sha256,
            self.broadcast_sha256,
            self.plan.canonical(),
            self.gram_sha256,
        )

    def sketch_seed(self) -> bytes:
        """Return what places and signs of this round's sketches follow from: the same in every attempt.

        A client sketches one update in all attempts at a round. If a sketch differed between them, whoever
        opens several would solve them for the update.
        """
        return digest(b"sketch", self.run.encode(), str(self.round).encode(), self.broadcast_sha256)

    def point_of(self, name: str) -> int:
        """Return a client's point in secret sharing: its place in the cohort, from 1."""
        return self.cohort.index(name) + 1


def least_threshold(clients: int, colluders: int) -> int:
    """Return the least threshold t that is safe for K clients: t >= floor(2K/3) + 1 and 2t > K + colluders.

    Raises `ConfigError` if fewer than two of t clients could be honest. Colluders can subtract what they
    sent from the sum; with a single honest client, its update would remain.
    """
    if colluders > clients - 2:
        raise ConfigError(
            f"colluders={colluders}: must be <= {clients - 2}, so that two honest clients add up"
        )
    return max(2 * clients // 3 + 1, (clients + colluders) // 2 + 1)


@dataclass(frozen=True, kw_only=True)
class TermsPolicy:
    """What a client requires of terms, whatever the server proposes.

    Attributes:
        roster: the client's own copy.
        settings_sha256: of the client's own settings.
        colluders: how many other clients may work with the server without harm to this one.
        rounds: the number of rounds of the run; later ones are refused.
        min_cohort: the least cohort, where that is stricter than what is safe for any client.
        min_threshold: the least threshold, likewise; no sum is over fewer clients than the threshold.
    """

    roster: Roster
    settings_sha256: bytes
    colluders: int
    rounds: int
    min_cohort: int = 1
    min_threshold: int = 1

    def check(self, terms: Terms, *, name: str, broadcast_sha256: bytes, plan: RingPlan) -> None:
        """Raise `ProtocolAborted` unless the client may take part under these terms.

        Args:
            terms: as the server proposes them.
            name: of this client.
            broadcast_sha256: the hash of the adapter that this client received.
            plan: the ring that this client computed itself.
        """
        clients = len(terms.cohort)
        if not MIN_CLIENTS <= clients <= MAX_CLIENTS:
            raise ProtocolAborted(f"cohort of {clients}: must be {MIN_CLIENTS} to {MAX_CLIENTS}")
        if tuple(sorted(set(terms.cohort))) != terms.cohort or name not in terms.cohort:
            raise ProtocolAborted(f"cohort: must be sorted, without repeats, and contain {name}")
        if strangers := [n for n in terms.cohort if n not in self.roster.members]:
            raise ProtocolAborted(f"cohort: {strangers[0]} is not in the roster")
        if clients < self.min_cohort:
            raise ProtocolAborted(
                f"cohort of {clients}: must be >= {self.min_cohort}, this client's least (by its roster "
                "and federate.participation, or protect.min_cohort)"
            )
        least = max(least_threshold(clients, self.colluders), self.min_cohort, self.min_threshold)
        if not least <= terms.threshold <= clients:
            raise ProtocolAborted(f"threshold={terms.threshold}: must be {least} to {clients}")
        if not 0 <= terms.round < self.rounds:
            raise ProtocolAborted(f"round {terms.round}: must be 0 to {self.rounds - 1}, the run's last")
        if not 0 <= terms.attempt < 2**63:
            raise ProtocolAborted(f"attempt {terms.attempt}: must be >= 0 and below 2^63")
        for what, theirs, own in (
            ("settings", terms.settings_sha256, self.settings_sha256),
            ("roster", terms.roster_sha256, self.roster.sha256()),
            ("broadcast adapter", terms.broadcast_sha256, broadcast_sha256),
            ("ring plan", terms.plan.canonical(), plan.canonical()),
        ):
            if theirs != own:
                raise ProtocolAborted(f"{what}: differs from this client's own")
