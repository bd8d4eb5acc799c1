"""A10: a server that deviates, against the masking protocol as installed and against known-bad clients.

The attack runs the installation's own must-fail attempts, those that belong to the view's adversary
(`attacks.integrity.protocol_attempts`): key swap, split views of who survived (a client in both sets), a
lowered threshold, altered, repeated and reordered messages, messages sent at the same time, runs begun
again, disks rolled back, proxies with deceptive files, and Sybils that join. The attack also sends one
client a different adapter than the others (`attacks.integrity.inconsistency`), with the recorded clients'
records. Each attempt must end in an abort or in the exact sum of the others; a single attempt that does not
breaks the protocol. So attempts are counted, not treated as a sample, and the successful ones are named.
Against a party with one check removed, the same attempt must read a client's vector; otherwise a failed
attempt would prove nothing.

The attack plays rounds of its own, because parties in a recording can no longer deviate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from attacks import white_box
from attacks.base import (
    KNOWN_BAD,
    NOBODY,
    Attack,
    AttackInfo,
    Budget,
    Exam,
    Inconclusive,
    NotApplicable,
    Truth,
    replace_view,
)
from attacks.integrity.inconsistency import CANARY_BIT, SUPPRESSION, played_round, silenced
from attacks.integrity.passive_sums import SECURE_AGGREGATION
from attacks.integrity.protocol_attempts import asked, tried
from attacks.registry import attack
from fedproxy_secure.errors import ProtocolAborted
from fedproxy_secure.evidence.estimate import Estimate, counted
from fedproxy_secure.protect.base import protection_of
from fedproxy_secure.record.view import View

READ = 0.99  # cosine with the victim's own numbers above which they count as read
RECORDS = 8  # records of each client in a round that is played
BROADCASTS = ("active_server", "active_server_with_clients")  # who may send one client another adapter


@dataclass(frozen=True, kw_only=True)
class Attempts:
    """The adversary's attempts and their results.

    Args:
        protocol: the protocol's own attempts by name; whether each succeeded.
        read: by attempt, the adversary's guess of the victim's numbers, or why the round ended without
            them.
    """

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
        margin=0.0,
        mapping=SECURE_AGGREGATION,
        by=("server", "network"),
    )
)
class SecaggActive(Attack):
    """The attack that tries everything once, on the clients in question."""

    def exam(self, truth: Truth, view: View, rng: np.random.Generator) -> Exam:
        """Play rounds in which clients get two adapters; the answer is what the victim sent in them.

        The view's threat model says who is attacked: installed clients or known-bad ones.
        """
        settings = view.settings
        if settings is None or not (view.masked or view.updates or view.sums):
            raise NotApplicable("no server is corrupted in this view")
        protection = protection_of(settings.protect)
        if protection.server_learns == "updates":
            raise NotApplicable(f"{protection.name}: the server sees every update without cheating")
        if protection.protocol is None:
            raise Inconclusive(
                f"{protection.name}: its rounds cannot be played again here, so a server that deviates "
                "from them was not tried"
            )
        if protection.protocol == "ckks":
            raise NotApplicable(
                f"{protection.name}: the server and any one client open every update together, by design"
            )
        who, adversary = asked(view.threat_model)
        if adversary not in BROADCASTS:
            return Exam(question={}, answer={})
        records = {n: s.train[:RECORDS] for n, s in truth.clients.items()}
        known_bad = who == KNOWN_BAD
        seen: dict[str, np.ndarray | str] = {}
        sent: dict[str, np.ndarray] = {}
        last = max(view.adapters)
        with white_box.opened(view) as box:
            for attempt in (SUPPRESSION, CANARY_BIT):
                mask = silenced(box, attempt)
                if len(records) < 3 or (known_bad and settings.adapter.kind != "lora"):
                    continue
                try:
                    total, update = played_round(
                        box,
                        settings,
                        records,
                        view.adapters[last],
                        mask,
                        checked=not known_bad,
                        budget=Budget(),
                        round=last,
                    )
                    seen[attempt], sent[attempt] = total[mask], update[mask]
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
        """Use each sum as the guess of the victim's update, and run the protocol's own attempts."""
        return Attempts(protocol=tried(view.threat_model, budget), read=question)

    def score(self, guess: Attempts, answer: Mapping[str, np.ndarray]) -> tuple[Estimate, ...]:
        """Return the share of all attempts that succeeded, counted; `how` names those."""
        hits = [name for name, succeeded in guess.protocol.items() if succeeded]
        for attempt, seen in guess.read.items():
            if not isinstance(seen, str):
                true = answer[attempt].astype(np.float64)
                if seen @ true > READ * np.linalg.norm(seen) * np.linalg.norm(true):
                    hits.append(attempt)
        n = max(1, len(guess.protocol) + len(guess.read))
        estimate = counted(len(hits) / n, metric=self.info.headline, unit="share", seeds=(0,), n=n)
        return (replace(estimate, how=f"{estimate.how}; succeeded: {', '.join(hits) or 'none'}"),)

    def positive(self, view: View, truth: Truth) -> tuple[View, Truth] | None:
        """Return the same attempts against parties with one check removed."""
        return replace_view(view, threat_model=f"{KNOWN_BAD} {view.threat_model}"), truth

    def negative(self, view: View, exam: Exam, rng: np.random.Generator) -> tuple[View, Exam]:
        """Return one honest round of the protocol, in which nobody cheats."""
        return replace_view(view, threat_model=NOBODY), Exam(question={}, answer={})
