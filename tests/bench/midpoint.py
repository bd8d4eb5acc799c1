"""Do A5 and A2 tell more of several AdamW steps at another point than the first: `make bench-midpoint`.

    python -m tests.bench.midpoint few   # the same of 5 and of 10 steps

An update of several steps is no gradient at the adapter that the round began with. A surrogate (SME, Zhu et
al. 2023) reads it as one at a point between the first adapter and the last,

    point = first + beta (last - first)

with one beta, or one for each tensor. Twelve clients of four tasks, 48 notes each, as in the world `notes`
of the attack benchmark, train three rounds: 80 steps from a fresh adapter, 20 and 80 from one that has had
a round. Each client's update and each mean of four clients' updates is attacked at beta 0, .5 and 1. All
variants are asked about the same records and tokens, so their differences are paired.

A5 takes the gradients of the records at the point. An adversary can fit beta by how much of the update the
records' gradients explain: one beta for all tensors, or for each tensor the beta at which it is explained
best while all others have the same. `all three` is the mean of the scores at the three points, each in
deviations: what A5 does of many steps.

A2's candidates are what block 0's queries, keys and values read: embeddings, which are frozen, so the span
of A's update holds the same inputs at every point. The point enters twice at most: the updates of random
text, whose scores are regressed out, are made at one; and rows of B's update are inputs seen through A,
which moves. `A and B` is scored with the A of the point. An adversary can fit beta by how far the highest
scores stand out (their skewness). In a first round B is zero, and random text moves no A at beta 0.

The interval of an A5 difference is DeLong's over records, each record's part being its mean over the rounds
where several rounds are joined. That of an A2 difference is Student's t over updates or sums. Some ten
minutes on one core.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
import torch
from scipy.stats import skew

from attacks import white_box
from attacks.base import Budget
from attacks.benchmark.grid import GRID, GridCell, config_of
from attacks.membership.gradients import Products, products, record_gradients
from attacks.membership.updates import BETAS, RIDGE, deviations, scores_of
from attacks.reconstruction.candidates import TEXTS, Candidates, random_text, token_scores
from attacks.reconstruction.row_spaces import Spaces, spaces_of
from attacks.reconstruction.spans import attack_one
from attacks.statistics import auc_estimate, auc_value, over_targets
from attacks.white_box import WhiteBox
from fedproxy_secure.compress.proxy import save_model
from fedproxy_secure.config import AuditConfig, Config
from fedproxy_secure.data.encode import Encoded, encode_records
from fedproxy_secure.evidence.estimate import CONFIDENCE, Estimate
from fedproxy_secure.evidence.targets import components
from fedproxy_secure.experiments.stages import make_proxy, prepare
from fedproxy_secure.federate.training import train
from fedproxy_secure.models.adapters import ADAPTER, get_vector
from fedproxy_secure.record.view import PublicSettings, View
from fedproxy_secure.runtime.randomness import stream
from tests.bench.rows import Row, publish

COMMAND = "make bench-midpoint"
COMMAND_FEW = "python -m tests.bench.midpoint few"
SEED = 0
CLIENTS, COHORT = 12, 4
MANY = {"first round, 80 steps": 80, "second round, 20 steps": 20, "second round, 80 steps": 80}
FEW = {f"{which} round, {steps} steps": steps for which in ("first", "second") for steps in (5, 10)}
STEPS_BETWEEN = 20  # of the round that leads to the second
ASKED_OF_SUMS = 24  # records of each client, and as many that were set aside
UNLIMITED = Budget(seconds=1e9)
A5_BASE, A2_BASE = "beta 0", "random text at 1"  # the attacks without a surrogate


@dataclass(frozen=True, kw_only=True)
class Client:
    """A client: its records, and as many that were set aside."""

    name: str
    members: tuple[Encoded, ...]
    others: tuple[Encoded, ...]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What an adversary saw: the mean of the `clients`' updates from `start`, both float32 [d].

    `members` and `others` are the records that A5 is asked about.
    """

    start: np.ndarray
    update: np.ndarray
    clients: tuple[Client, ...]
    members: tuple[Encoded, ...]
    others: tuple[Encoded, ...]

    def point(self, beta: float | np.ndarray) -> np.ndarray:
        """Return the adapter at `beta`, a number or float [d]."""
        return (self.start + beta * self.update).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The scores of one attack in one round, by variant, each float [n], and what was there, bool [n]."""

    scores: Mapping[str, np.ndarray]
    there: np.ndarray


def main() -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    few = sys.argv[1:] == ["few"]
    rounds = FEW if few else MANY
    cell = GridCell(world="notes", steps=max(rounds.values()), batch=12, clients=CLIENTS)
    config = config_of(GRID, cell, model=Config().model.path)
    config = config.model_copy(update={"audit": AuditConfig(holdout=0.5)})
    materials = prepare(config)
    clients = []
    for task in materials.tasks:
        members, others = (
            tuple(encode_records(r, materials.tokenizer, max_tokens=config.data.max_tokens).items)
            for r in (task.train, task.holdout)
        )
        clients.append(Client(name=task.name, members=members, others=others))
    proxy = make_proxy(config, materials, seed=SEED, remove_ratio=config.compress.remove_ratio)
    with tempfile.TemporaryDirectory() as folder:
        save_model(proxy.model, materials.tokenizer, Path(folder))
        view = View(threat_model="server", settings=public(config, clients), proxy=Path(folder))
        with white_box.opened(view) as box:
            found = rows(box, config, view, clients, rounds)
    if few:
        publish("midpoint_few", [replace(r, command=COMMAND_FEW) for r in found])
    else:
        publish("midpoint", found)


def public(config: Config, clients: Sequence[Client]) -> PublicSettings:
    """Return the settings that an adversary knows."""
    return PublicSettings(
        seed=SEED,
        d=0,
        adapter=config.adapter,
        local=config.local,
        fusion=config.fusion,
        federate=config.federate,
        protect=config.protect,
        privacy=config.privacy,
        max_tokens=config.data.max_tokens,
        blocks=None,
        clients=tuple(c.name for c in clients),
    )


def rows(
    box: WhiteBox, config: Config, view: View, clients: Sequence[Client], rounds: Mapping[str, int]
) -> list[Row]:
    """Return AUCs of every variant in each round, and differences to the attacks without a surrogate."""
    fresh = get_vector(box.tuned)
    counts = (*rounds.values(), STEPS_BETWEEN)
    first = trained(box, config, fresh, clients, counts)
    second_start = fresh + np.mean([u[STEPS_BETWEEN] for u in first], axis=0, dtype=np.float32)
    second = trained(box, config, second_start, clients, counts)
    found: list[Row] = []
    kinds = (("one update", 1), (f"sum of {COHORT}", COHORT))
    members: dict[str, list[Asked]] = {what: [] for what, _ in kinds}
    tokens: dict[str, list[dict[str, float]]] = {what: [] for what, _ in kinds}
    for name, steps in rounds.items():
        is_first = name.startswith("first")
        start, updates = (fresh, first) if is_first else (second_start, second)
        moved = [u[steps] for u in updates]
        for what, size in kinds:
            asked, aucs = [], []
            for at in range(0, len(clients), size):
                seen = together(start, moved[at : at + size], clients[at : at + size])
                asked.append(membership(box, seen))
                last = start + np.mean(moved[at // COHORT * COHORT :][:COHORT], axis=0)
                aucs.append(token_aucs(box, view, seen, last, fresh=is_first))
                print(f"{name}, {what}, {at + size} of {len(clients)}", file=sys.stderr, flush=True)
            members[what].append(joined(asked))
            tokens[what] += aucs
            found += membership_rows(f"A5, {name}, {what}", [members[what][-1]])
            found += token_rows(f"A2, {name}, {what}", aucs)
    for what, _ in kinds:
        found += membership_rows(f"A5, all rounds, {what}", members[what])
        found += token_rows(f"A2, all rounds, {what}", tokens[what])
    return found


def trained(
    box: WhiteBox, config: Config, start: np.ndarray, clients: Sequence[Client], counts: Sequence[int]
) -> list[dict[int, np.ndarray]]:
    """Return each client's update from `start` after each of `counts` steps of one training."""
    results = []
    for client in clients:
        updates: dict[int, np.ndarray] = {}
        box.set(start)

        def keep(step: int, into: dict[int, np.ndarray] = updates) -> None:
            if step + 1 in counts:
                into[step + 1] = get_vector(box.tuned) - start

        train(
            box.tuned,
            client.members,
            steps=max(counts),
            local=config.local,
            pad_id=box.tokenizer.pad_token_id,
            rng=stream(SEED, "bench", client.name),
            subject=client.name,
            on_step=keep,
        )
        results.append(updates)
    return results


def together(start: np.ndarray, updates: Sequence[np.ndarray], clients: Sequence[Client]) -> Seen:
    """Return the mean of the updates; fewer records of each client are asked about if there are several."""
    most = ASKED_OF_SUMS if len(clients) > 1 else None
    return Seen(
        start=start,
        update=np.mean(updates, axis=0, dtype=np.float32),
        clients=tuple(clients),
        members=tuple(d for c in clients for d in c.members[:most]),
        others=tuple(d for c in clients for d in c.others[:most]),
    )


# A5


def membership(box: WhiteBox, seen: Seen) -> Asked:
    """Return A5's scores of the records at every beta, and at those that the adversary fits."""
    documents = (*seen.members, *seen.others)
    sizes = [int(np.prod(shape)) for shape in box.shapes]
    scores, explained = {}, []
    for beta in BETAS:
        by_tensor = products_at(box, seen, seen.point(beta), documents, sizes)
        whole = added(by_tensor)
        scores[f"beta {beta:g}"] = scores_of(whole, "adamw")["auc"]
        explained.append([share_explained(p) for p in (whole, *by_tensor)])
    shares = np.array(explained)
    best = BETAS[int(shares[:, 0].argmax())]
    scores["beta fitted"] = scores[f"beta {best:g}"]
    betas = np.repeat(np.array(BETAS)[shares[:, 1:].argmax(axis=0)], sizes)
    fitted = added(products_at(box, seen, seen.point(betas), documents, sizes))
    scores["beta fitted by tensor"] = scores_of(fitted, "adamw")["auc"]
    scores["all three"] = np.mean([deviations(scores[f"beta {b:g}"]) for b in BETAS], axis=0)
    return Asked(scores=scores, there=np.arange(len(documents)) < len(seen.members))


def products_at(
    box: WhiteBox, seen: Seen, point: np.ndarray, documents: Sequence[Encoded], sizes: Sequence[int]
) -> list[Products]:
    """Return, for each tensor, what A5 computes from the documents' gradients at a point."""
    box.set(point)
    gradients = -record_gradients(box, documents, budget=UNLIMITED)
    ends = np.cumsum(sizes)
    return [
        products(gradients[:, end - size : end], seen.update[end - size : end], "adamw")
        for end, size in zip(ends, sizes, strict=True)
    ]


def added(parts: Sequence[Products]) -> Products:
    """Return the products over all tensors."""
    return Products(
        squares=np.sum([p.squares for p in parts], axis=0),
        along=np.sum([p.along for p in parts], axis=0),
        gram=np.sum([p.gram for p in parts], axis=0),
        against=np.sum([p.against for p in parts], axis=0),
        moved=sum(p.moved for p in parts),
    )


def share_explained(p: Products) -> float:
    """Return the share of the movement's squared length that A5's ridge regression explains."""
    size = float(np.trace(p.gram)) / len(p.gram)
    if size == 0 or p.moved == 0:
        return 0.0
    shares = np.linalg.solve(p.gram + RIDGE["adamw"] * size * np.eye(len(p.gram)), p.against)
    return float((2 * shares @ p.against - shares @ p.gram @ shares) / p.moved)


def joined(asked: Sequence[Asked]) -> Asked:
    """Return the scores of several updates end to end, standardised over the documents of each."""
    names = asked[0].scores
    return Asked(
        scores={n: np.concatenate([deviations(a.scores[n]) for a in asked]) for n in names},
        there=np.concatenate([a.there for a in asked]),
    )


def membership_rows(what: str, rounds: Sequence[Asked]) -> list[Row]:
    """Return each variant's AUC, if there is one round, and its difference to A5 at the first adapter."""
    made = []
    for name in rounds[0].scores:
        if len(rounds) == 1:
            auc = auc_estimate(rounds[0].scores[name], rounds[0].there, metric="auc")
            made.append(Row.of(f"{what}: {name}", auc, command=COMMAND))
        if name != A5_BASE:
            made.append(Row.of(f"{what}: {name} minus {A5_BASE}", paired(rounds, name), command=COMMAND))
    return made


def paired(rounds: Sequence[Asked], name: str) -> Estimate:
    """Return the mean difference of AUCs over rounds that asked about the same records."""
    d10, d01 = (
        np.mean(
            [
                components(a.scores[name], a.there)[i] - components(a.scores[A5_BASE], a.there)[i]
                for a in rounds
            ],
            axis=0,
        )
        for i in (0, 1)
    )
    value = float(d10.mean())
    half = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * float(
        np.sqrt(d10.var(ddof=1) / len(d10) + d01.var(ddof=1) / len(d01))
    )
    return Estimate(
        metric="auc",
        value=value,
        low=value - half,
        high=value + half,
        n=len(rounds[0].there),
        unit="AUC",
        seeds=(SEED,),
        how="difference paired by record, DeLong 95 %",
        nature="sampled",
    )


# A2


def token_aucs(box: WhiteBox, view: View, seen: Seen, last: np.ndarray, *, fresh: bool) -> dict[str, float]:
    """Return A2's AUC by variant; `last`: the adapter after the round; `fresh`: B began as zero."""
    found: dict[str, np.ndarray] = {}
    texts = {}
    for beta in BETAS[1:] if fresh else BETAS:
        box.set((seen.start + beta * (last - seen.start)).astype(np.float32))
        rng = stream(SEED, "attack", "random text")
        texts[beta] = [-box.gradient(random_text(box, rng)) for _ in range(TEXTS)]
        found[f"random text at {beta:g}"] = token_scores_of(box, view, seen, texts[beta], through=None)
    for beta in BETAS:
        found[f"A and B at {beta:g}"] = token_scores_of(
            box, view, seen, texts[1.0], through=seen.point(beta)
        )
    found["A and B fitted"] = found[max((f"A and B at {b:g}" for b in BETAS), key=lambda n: skew(found[n]))]
    there = np.zeros(box.vocabulary, dtype=bool)
    there[[t for c in seen.clients for d in c.members for t in d.ids[:-1]]] = True
    return {name: auc_value(scores, there) for name, scores in found.items()}


def token_scores_of(
    box: WhiteBox, view: View, seen: Seen, texts: Sequence[np.ndarray], *, through: np.ndarray | None
) -> np.ndarray:
    """Return A2's scores of all tokens, from A's update, and from B's through the A of an adapter."""
    assert view.settings is not None
    group = box.shared_input(box.adapted[0])
    maps: list[np.ndarray] = []
    if through is not None:
        box.set(through)
        maps = [layer.lora_A[ADAPTER].weight.detach().double().numpy().copy() for layer in group.layers]
    box.set(seen.start)

    def spaces(update: np.ndarray) -> Spaces:
        of_a = spaces_of(box, update, box.adapted[0], "lora")
        pieces = box.pieces(update)
        of_b = [
            piece
            for name in group.names
            for parameter, piece in pieces.items()
            if through is not None and f".{box.adapted[0]}.{name}.lora_B." in parameter
        ]
        return Spaces(matrices=(*of_a.matrices, *of_b), maps=(*of_a.maps, *maps), noise=of_a.noise)

    mine = spaces(seen.update)
    bare = Candidates.from_inputs(box.token_inputs(), mine.maps, exact=box.reads_tokens)
    usual = tuple(token_scores(bare, spaces(t)) for t in texts)
    candidates = Candidates(
        tokens=bare.tokens, rows=bare.rows, whiten=bare.whiten, exact=bare.exact, texts=usual
    )
    rng = stream(SEED, "attack", "lora_span_tokens", "guess")
    names, summed = tuple(c.name for c in seen.clients), len(seen.clients) > 1
    return attack_one(candidates, mine, view.settings, 0, names, rng, summed=summed).scores


def token_rows(what: str, aucs: Sequence[Mapping[str, float]]) -> list[Row]:
    """Return the mean AUC of each variant over vectors, and its mean difference to A2 as it is."""
    made = []
    for name in dict.fromkeys(n for a in aucs for n in a):
        values = [(a[name], a[A2_BASE]) for a in aucs if name in a]
        auc = over_targets([v for v, _ in values], metric="auc", unit="AUC")
        made.append(Row.of(f"{what}: {name}", auc, command=COMMAND))
        if name != A2_BASE:
            gap = over_targets([v - b for v, b in values], metric="auc", unit="AUC")
            made.append(Row.of(f"{what}: {name} minus {A2_BASE}", gap, command=COMMAND))
    return made


if __name__ == "__main__":
    main()
