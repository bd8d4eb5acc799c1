"""A10: tokens leak from a proxy in which only a chosen token moves a chosen number.

Where an adapter reads zeros, its A gets no gradient. So column j of the A of an adapted map moves if and
only if a record with token j was drawn. This holds for AdamW as for SGD, and in a sum as in one update; the
sum hides whose record it was. The server needs no message out of turn: it chooses the proxy and the first
adapter, and all clients get the same.

`proxy_traps` makes such proxies. Clients check a proxy before they train it (`load_proxy`), and the exam
plays only what they would have accepted: the first trap that loads. The check refuses traps in embeddings;
a trap in neurons of the first block's MLP passes and reads as much. Only differential privacy bounds the
leak: of a record's gradient (unit `record`) or of a client's update (unit `client`).

The exam plays one round with the recorded clients' records, at the run's settings. A target is a token: one
of the cohort's under a sum, one of each client's where updates are in the clear. Where A is frozen, block 0
has no adapter, or every trap is refused, the attack is not applicable and says why.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from attacks import white_box
from attacks.base import Attack, AttackInfo, Budget, Exam, NotApplicable, Truth, replace_view
from attacks.integrity.passive_sums import SECURE_AGGREGATION
from attacks.integrity.proxy_traps import TRAPS, Trap
from attacks.integrity.rehearsal import client_of, job_of
from attacks.integrity.trap_columns import columns, first_adapter, maps_of
from attacks.registry import attack
from attacks.statistics import auc_estimate
from attacks.white_box import WhiteBox
from fedproxy_secure.data.encode import Encoded
from fedproxy_secure.dp import discrete
from fedproxy_secure.dp.ledger import PrivacyLedger
from fedproxy_secure.dp.noise import Noise
from fedproxy_secure.dp.record_noise import record_noise
from fedproxy_secure.errors import ModelError
from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.federate.client import LocalClient, Privacy
from fedproxy_secure.federate.update import ClientUpdate
from fedproxy_secure.models.adapters import attach
from fedproxy_secure.protect.base import protection_of
from fedproxy_secure.protect.secure_sum import noise as client_privacy
from fedproxy_secure.protect.secure_sum.terms import chosen_clip, first_clip, parts_of, ring_plan
from fedproxy_secure.proxy_intake.model import load_proxy
from fedproxy_secure.record.view import PublicSettings, View
from fedproxy_secure.secagg.control import encode_control
from fedproxy_secure.secagg.ring import quantise, read_sum

MOST_TRAPS = 64  # tokens; half of them are in the records
EVERYBODY = "the cohort"


@dataclass(frozen=True, kw_only=True)
class Round:
    """The server's view of a round.

    Args:
        seen: vectors, float32 [d], by the name of their owner.
        tokens: tokens with a trap; the trap of the j-th token is column j.
        trap: the kind of trap that clients take.
    """

    seen: Mapping[str, np.ndarray]
    tokens: tuple[int, ...]
    trap: Trap


@attack(
    AttackInfo(
        id="A10",
        name="trapped_proxy",
        title="tokens of a round's records, from a proxy that is made to leak them",
        paper="ours; after Fowl et al. 2022, arXiv 2110.13057",
        needs=(frozenset({"ACT", "MOD"}),),
        mapping=SECURE_AGGREGATION,
        smoke=False,
        by=("server",),
        long=2,
    )
)
class TrappedProxy(Attack):
    """The attack that tells from the columns that moved which tokens the records hold.

    Args:
        traps: the ways to make the proxy leak, in the order in which they are tried.
        checked: whether clients check the proxy; False shows what their check takes from the attack.
    """

    def __init__(self, traps: Sequence[Trap] = TRAPS, *, checked: bool = True) -> None:
        self.traps, self.checked = traps, checked

    def exam(self, truth: Truth, view: View, rng: np.random.Generator) -> Exam:
        """Play a round on the trapped proxy; the answer is which tokens each vector's owner drew."""
        settings = view.settings
        if settings is None or not (view.masked or view.updates or view.sums):
            raise NotApplicable("no server is corrupted in this view")
        if settings.adapter.kind != "lora":
            raise NotApplicable("the adapter's A is frozen or has no columns: no trap is built for that")
        records = {n: s.train for n, s in truth.clients.items()}
        with tempfile.TemporaryDirectory(prefix="fedproxy-trap-") as name:
            folder, reasons = Path(name), []
            for candidate in self.traps:
                try:
                    tokens = self._tokens(view, candidate, records, rng)
                    trapped = trap(view, settings, candidate, tokens, folder, checked=self.checked)
                    break
                except (NotApplicable, ModelError) as error:
                    reasons.append(f"{candidate.name}: {error}")
            else:
                raise NotApplicable("; ".join(reasons))
            start = first_adapter(trapped, candidate, rng)
            updates, drawn = _trained(trapped, settings, records, start, folder)
        seen = revealed(updates, settings, sizes=[int(np.prod(s)) for s in trapped.shapes], rng=rng)
        everywhere = set.union(*drawn.values())
        held = {who: everywhere if who == EVERYBODY else drawn[who] for who in seen}
        labels = {who: np.array([t in held[who] for t in tokens]) for who in seen}
        return Exam(question=Round(seen=seen, tokens=tokens, trap=candidate), answer=labels)

    def _tokens(
        self, view: View, one: Trap, records: Mapping[str, Sequence[Encoded]], rng: np.random.Generator
    ) -> tuple[int, ...]:
        with white_box.opened(view) as box:
            name = maps_of(box, one)[0]
            numbers = box.shapes[box.names.index(name)][1]
            width = int(box.tuned.get_input_embeddings().weight.shape[1])  # type: ignore[operator]
            most = int(one.share * min(numbers, width))
            return chosen(records, vocabulary=len(box.tokenizer), most=most, rng=rng)

    def guess(
        self, view: View, question: Round, budget: Budget, rng: np.random.Generator
    ) -> tuple[str, dict[str, np.ndarray]]:
        """Return the kind of trap, and how far each trap's column moved, float64 [tokens], by owner."""
        with white_box.opened(view) as box:
            traps = len(question.tokens)
            moved = {who: columns(box, v, question.trap, traps) for who, v in question.seen.items()}
        return question.trap.name, moved

    def score(
        self, guess: tuple[str, Mapping[str, np.ndarray]], answer: Mapping[str, np.ndarray]
    ) -> tuple[Estimate, ...]:
        """Return the AUC over the tokens of all vectors; its `how` names the trap.

        A token has the same outcome in all vectors, so more vectors do not make the interval narrower.
        """
        kind, moved = guess
        scores = np.concatenate([moved[who] for who in answer])
        labels = np.concatenate([answer[who] for who in answer])
        estimate = auc_estimate(scores, labels, metric="auc", inflation=math.sqrt(len(answer)))
        return (replace(estimate, how=f"{estimate.how}; the trap {kind}"),)

    def positive(self, view: View, truth: Truth) -> tuple[View, Truth] | None:
        """Return the same proxy with updates in the clear and without differential privacy."""
        if view.settings is None:
            return None
        protect = view.settings.protect.model_copy(update={"scheme": "unsafe_plaintext"})
        privacy = view.settings.privacy.model_copy(update={"unit": "none"})
        return replace_view(view, settings=view.settings.changed(protect=protect, privacy=privacy)), truth

    def negative(self, view: View, exam: Exam, rng: np.random.Generator) -> tuple[View, Exam]:
        """Return the server's view with the numbers of each vector shuffled."""
        mixed = {who: rng.permutation(vector) for who, vector in exam.question.seen.items()}
        return view, Exam(question=replace(exam.question, seen=mixed), answer=exam.answer)


def chosen(
    records: Mapping[str, Sequence[Encoded]], *, vocabulary: int, most: int, rng: np.random.Generator
) -> tuple[int, ...]:
    """Return as many tokens that some record holds as tokens that no record holds, in random order.

    There are at most `most` of them, and all have ids above 2.

    Raises `NotApplicable` if there are not two of each kind.
    """
    held = {t for items in records.values() for item in items for t in item.ids[:-1]}
    present = [t for t in sorted(held) if t > 2]
    absent = [t for t in range(3, vocabulary) if t not in held]
    count = min(len(present), len(absent), min(most, MOST_TRAPS) // 2)
    if count < 2:
        raise NotApplicable(
            f"records hold {len(present)} of {vocabulary} tokens; at least two must be in records "
            "and two not"
        )
    both = [*rng.choice(present, count, replace=False), *rng.choice(absent, count, replace=False)]
    return tuple(int(t) for t in rng.permutation(both))


def trap(
    view: View,
    settings: PublicSettings,
    one: Trap,
    tokens: Sequence[int],
    folder: Path,
    *,
    checked: bool = True,
) -> WhiteBox:
    """Return the trapped proxy with the run's adapter, loaded and checked as clients do it.

    Raises `ModelError` if clients refuse the proxy, `NotApplicable` if the trap cannot be built or other
    tokens leave a trace as well. Without `checked` nothing is refused.
    """
    from fedproxy_secure.compress.proxy import save_model
    from fedproxy_secure.models.llm import load_llm

    assert view.proxy is not None
    model, tokenizer = load_llm(view.proxy, device="cpu", dtype="float32")
    one.craft(model, tokenizer, tokens)
    if checked:
        save_model(model, tokenizer, folder / "proxy")
        loaded = load_proxy(folder / "proxy", max_tokens=settings.max_tokens, device="cpu", dtype="float32")
        model, tokenizer = loaded.model, loaded.tokenizer
    tuned = attach(model, settings.adapter, seed=settings.seed, blocks=settings.blocks)
    return WhiteBox(tuned.eval(), tokenizer)


def revealed(
    updates: Mapping[str, ClientUpdate],
    settings: PublicSettings,
    *,
    sizes: Sequence[int],
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Return the vectors that the protection shows the server: each update, or the sum in the ring."""
    protection = protection_of(settings.protect)
    if protection.server_learns == "updates":
        return {name: update.update for name, update in updates.items()}
    if protection.protocol is None:  # another package's sum, whose rounding and clipping are not known here
        return {EVERYBODY: np.sum([update.update for update in updates.values()], axis=0)}
    job, clients = job_of(settings), len(updates)
    clip = chosen_clip(settings, 0) or first_clip(settings)
    if settings.privacy.unit == "client":
        clip = client_privacy.ring_clip(settings.privacy, bits=settings.protect.bits, clients=clients)
    plan = ring_plan(job, sizes, clip=clip, clients=clients)
    total = np.zeros(plan.words, dtype=plan.word_type)
    for update in updates.values():
        values, control = parts_of(update, job, sizes, plan, previous=None)
        total += quantise(plan, {**values, **encode_control(control, bytes(32))}).words
    if settings.privacy.unit == "client":
        noisy = client_privacy.noise_of(
            job,
            d=settings.d,
            clients=clients,
            threshold=client_privacy.planned_threshold(job, clients),
        )
        share = noisy.variance / noisy.summands
        for _ in range(clients):
            drawn = discrete.draw(noisy.mechanism, share, Noise(rng.bytes(32)), settings.d)
            total[: settings.d] += drawn.astype(total.dtype)
    return {EVERYBODY: read_sum(plan, total)["update"]}


def _trained(
    box: WhiteBox,
    settings: PublicSettings,
    records: Mapping[str, Sequence[Encoded]],
    start: np.ndarray,
    folder: Path,
) -> tuple[dict[str, ClientUpdate], dict[str, set[int]]]:
    """Return each client's update from `start`, and the tokens that it read."""
    updates: dict[str, ClientUpdate] = {}
    drawn: dict[str, set[int]] = {}
    for name, items in sorted(records.items()):
        client = _client(box, settings, name, items, folder)

        def note(_round: int, _update: ClientUpdate, used: list[int], name: str = name) -> None:
            drawn[name] = {t for i in set(used) for t in records[name][i].ids[:-1]}

        updates[name] = replace(client, on_trained=note).train(
            round=0, start=start, prox_mu=settings.fusion.prox_mu
        )
    return updates, drawn


def _client(
    box: WhiteBox, settings: PublicSettings, name: str, items: Sequence[Encoded], folder: Path
) -> LocalClient:
    """Return the project's client, private if the run's records are, with noise from the run's seed."""
    client = client_of(box, settings, name, items)
    if settings.privacy.unit != "record":
        return client
    noise = record_noise(
        settings.privacy, settings.local, rounds=settings.federate.rounds, records=len(items)
    )
    ledger = PrivacyLedger(
        folder=folder / "ledgers",
        client=name,
        run="trap",
        unit="record",
        delta=settings.privacy.target_delta,
        max_epsilon=settings.privacy.limit,
    )
    ledger.open()
    return replace(client, privacy=Privacy(noise=noise, ledger=ledger, simulated=True))
