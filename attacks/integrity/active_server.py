"""A10: a server that deviates, against the masking protocol as installed and against known-bad clients.

Key swap, split views of who survived (a client in both sets), a lowered threshold, altered, repeated and
reordered messages; messages at once, runs begun again, disks put back; proxies whose files lie; Sybils that
join: the installation's own must-fail attempts, those that are the view's adversary's
(`attacks.integrity.protocol_attempts`). Another adapter for one client than for the others:
`attacks.integrity.inconsistency`, played with the recorded clients' records. Each must end in an abort or
in the exact sum of the others; against parties with one check taken out the same attack must read a
client's vector, or it proves nothing.

It plays rounds of its own: who is in a recording cannot deviate any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from attacks import white_box
from attacks.base import (
    KNOWN_BAD,
    NOBODY,
    Attack,
    AttackInfo,
    Budget,
    Exam,
    NotApplicable,
    Truth,
    attack,
    replace_view,
)
from attacks.integrity.inconsistency import CANARY_BIT, SUPPRESSION, played_round, silenced
from attacks.integrity.passive_sums import SECURE_AGGREGATION
from attacks.integrity.protocol_attempts import asked, tried
from attacks.statistics import share
from fedproxy_secure.errors import ProtocolAborted
from fedproxy_secure.record.view import View
from fedproxy_secure.report.estimate import Estimate

READ = 0.99  # cosine with the victim's own numbers from which on they count as read
RECORDS = 8  # of each client in a round that is played
BROADCASTS = ("active_server", "active_server_with_clients")  # who may send one client another adapter


@dataclass(frozen=True, kw_only=True)
class Attempts:
    """What the adversary tried: the protocol's own attempts by name, whether each succeeded; and what it
    takes for the victim's numbers, by attempt, or why the round ended without."""

    protocol: Mapping[str, bool]
    read: Mapping[str, np.ndarray | str]


@attack(
    AttackInfo(
        id="A10",
        name="secagg_active",
        title="a client's vector from a masking protocol whose server cheats",
        paper="Pasquini et al. 2022, arXiv 2111.07380; Bonawitz et al. 2017",
        needs=(frozenset({"ACT", "MOD"}),),
        headline="share of attempts that succeed",
        chance=0.0,
        margin=0.01,
        mapping=SECURE_AGGREGATION,
        by=("server", "network"),
    )
)
class SecaggActive(Attack):
    """Tries everything once, on the clients in question."""

    def exam(self, truth: Truth, view: View, rng: np.random.Generator) -> Exam:
        """Rounds with two adapters, as they go; the answer is what the victim sent in them.

        The view's threat model says who is attacked: installed clients or known-bad ones.
        """
        settings = view.settings
        if settings is None or not (view.masked or view.updates or view.sums):
            raise NotApplicable("no server is corrupted in this view")
        if settings.protect.scheme == "unsafe_plaintext":
            raise NotApplicable("unsafe_plaintext: the server has every update; nothing to cheat for")
        if settings.protect.scheme == "ckks":
            raise NotApplicable("ckks: any client with the server opens every update, by design")
        who, adversary = asked(view.threat_model)
        if adversary not in BROADCASTS:
            return Exam(question={}, answer={})
        box = white_box.load(view)
        records = {n: s.train[:RECORDS] for n, s in truth.clients.items()}
        known_bad = who == KNOWN_BAD
        seen: dict[str, np.ndarray | str] = {}
        sent: dict[str, np.ndarray] = {}
        for attempt in (SUPPRESSION, CANARY_BIT):
            mask = silenced(box, attempt)
            if len(records) < 3 or (known_bad and settings.adapter.kind != "lora"):
                continue
            try:
                total, own = played_round(
                    box,
                    settings,
                    records,
                    view.adapters[max(view.adapters)],
                    mask,
                    checked=not known_bad,
                    budget=Budget(),
                )
                seen[attempt], sent[attempt] = total[mask], own[mask]
            except ProtocolAborted as error:
                seen[attempt], sent[attempt] = str(error), np.zeros(int(mask.sum()), np.float32)
        return Exam(question=seen, answer=sent)

    def guess(
        self,
        view: View,
        question: Mapping[str, np.ndarray | str],
        budget: Budget,
        rng: np.random.Generator,
    ) -> Attempts:
        """The sums are taken for the victim's; the installation's own attempts are made here."""
        return Attempts(protocol=tried(view.threat_model, budget), read=question)

    def score(self, guess: Attempts, answer: Mapping[str, np.ndarray]) -> tuple[Estimate, ...]:
        """Of all attempts."""
        hits = sum(guess.protocol.values())
        for attempt, seen in guess.read.items():
            if not isinstance(seen, str):
                own = answer[attempt].astype(np.float64)
                hits += bool(seen @ own > READ * np.linalg.norm(seen) * np.linalg.norm(own))
        n = len(guess.protocol) + len(guess.read)
        return (share(hits, n, metric=self.info.headline, seed=0),)

    def positive(self, view: View, truth: Truth) -> tuple[View, Truth] | None:
        """The same attempts against parties with one check taken out."""
        return replace_view(view, threat_model=f"{KNOWN_BAD} {view.threat_model}"), truth

    def negative(self, view: View, exam: Exam, rng: np.random.Generator) -> tuple[View, Exam]:
        """Nobody cheats: one honest round of the protocol."""
        return replace_view(view, threat_model=NOBODY), Exam(question={}, answer={})
