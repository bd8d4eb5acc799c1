"""Which kind of canary is remembered best: `python -m tests.bench.canaries`, ten minutes on one core.

The clients of `configs/demo_trilemma.yaml` (free-text notes of the embedded world) train in the clear by
FedAvg, once without privacy and once with the matrix's differential privacy. A canary is a prompt with
`LENGTH` tokens after it, and stands in a client's records once or not at all, by a coin:

    digits    four digits: the secrets that `audit.canaries` plants
    samples   tokens that the LLM wrote after the prompt at temperature 1 (arXiv 2606.10481: 0.8 or more)
    uniform   tokens drawn from the whole vocabulary
    new       tokens drawn from those that no client's record holds (arXiv 2503.06808)

All kinds are planted in the same run, and one coin decides for the canaries of a place, so kinds are paired
by place. As in A7, a canary is ranked among `REFERENCES` others that were drawn in the same way, by what
tuning took off its loss. The audit's bound is that of `attacks.audit.dp_audit`, by the same loss, with
guesses for half of the canaries. It takes the runs as one: a canary is in one of them at most.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from attacks.audit.dp_audit import lower_bound
from attacks.audit.one_run import Guesses
from attacks.base import Budget
from attacks.extraction.texts import continued
from attacks.membership.canaries import auc_of, exposure, rank_of
from attacks.membership.scores import continuation_losses
from attacks.statistics import auc_estimate, over_targets, share
from fedproxy_secure.config import Config, load_config
from fedproxy_secure.data.encode import Encoded, encode_records, prompt_ids, text_ids
from fedproxy_secure.data.planted import SECRET_DIGITS
from fedproxy_secure.dp.noise import Noise
from fedproxy_secure.dp.record_noise import record_noise
from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.experiments.stages import Materials, make_proxy, prepare
from fedproxy_secure.federate.private_training import train_privately
from fedproxy_secure.federate.training import train
from fedproxy_secure.models.adapters import attach, get_vector, set_vector
from fedproxy_secure.models.llm import Tokenizer
from fedproxy_secure.runtime.randomness import stream
from tests.bench.rows import Row, publish

COMMAND = "python -m tests.bench.canaries"
CONFIG = "configs/demo_trilemma.yaml"
KINDS = ("digits", "samples", "uniform", "new")
SEEDS = (0, 1, 2, 3)
PLACES = 6  # of each client, with one canary of each kind
LENGTH = 4
REFERENCES = 200
EPSILONS = (None, 8.0)
BUDGET = Budget(seconds=1e9)


@dataclass(frozen=True, kw_only=True)
class Canary:
    """A canary, and the references it is ranked among.

    `candidates` are sequences of token ids that may follow `prompt`; the first is the canary's own.
    """

    kind: str
    included: bool
    prompt: tuple[int, ...]
    candidates: tuple[tuple[int, ...], ...]

    def record(self, end: int) -> Encoded:
        """Return the training record that holds the canary, with the end token `end` after it."""
        return Encoded(ids=(*self.prompt, *self.candidates[0], end), response_start=len(self.prompt))


def main() -> None:
    """Measure both cells, print, write."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    for epsilon in EPSILONS:
        found: list[tuple[Canary, np.ndarray]] = []
        for seed in SEEDS:
            began = time.monotonic()
            found += gained(seed, epsilon)
            print(f"{_name(epsilon)}, seed {seed}: {time.monotonic() - began:.0f} s", file=sys.stderr)
        rows += rows_of(_name(epsilon), found)
        publish("canaries", rows)


def gained(seed: int, epsilon: float | None) -> list[tuple[Canary, np.ndarray]]:
    """Return every canary of a run with what tuning did to its candidates' losses, nats [candidates]."""
    config = _config(epsilon)
    materials = prepare(config, seed=seed)
    proxy = make_proxy(config, materials, seed=seed, remove_ratio=config.compress.remove_ratio)
    tuned = attach(proxy.model, config.adapter, seed=seed)
    tokenizer = materials.tokenizer
    records = {
        task.name: encode_records(task.train, tokenizer, max_tokens=config.data.max_tokens).items
        for task in materials.tasks
    }
    canaries = {name: drawn(name, records, materials, seed) for name in records}
    end = tokenizer.eos_token_id
    items = {
        name: [*of_client, *(c.record(end) for c in canaries[name] if c.included)]
        for name, of_client in records.items()
    }
    asked = [c for of_client in canaries.values() for c in of_client]
    before = _losses(tuned, asked)
    federate(config, tuned, items, tokenizer, seed=seed)
    return list(zip(asked, _losses(tuned, asked) - before, strict=True))


def drawn(
    name: str, records: dict[str, Sequence[Encoded]], materials: Materials, seed: int
) -> list[Canary]:
    """Return a client's canaries of every kind, place by place."""
    rng = stream(seed, "canaries of every kind", name)
    tokenizer = materials.tokenizer
    made = []
    for place in range(PLACES):
        included = bool(rng.integers(2))
        for kind in KINDS:
            text = f"The number of {name} {place} is" if kind == "digits" else f"Note {kind} {place}:"
            prompt = prompt_ids(text, tokenizer)
            candidates = _candidates(kind, prompt, records, materials, rng)
            made.append(
                Canary(kind=kind, included=included, prompt=tuple(prompt), candidates=tuple(candidates))
            )
    return made


def _candidates(
    kind: str,
    prompt: list[int],
    records: dict[str, Sequence[Encoded]],
    materials: Materials,
    rng: np.random.Generator,
) -> list[tuple[int, ...]]:
    """Return the canary and its references, all drawn in the same way and all distinct."""
    tokenizer = materials.tokenizer
    special = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]
    pool = np.setdiff1d(np.arange(len(tokenizer.get_vocab())), [t for t in special if t is not None])
    if kind == "new":
        pool = np.setdiff1d(pool, [t for items in records.values() for item in items for t in item.ids])
    found: dict[tuple[int, ...], None] = {}
    while len(found) <= REFERENCES:
        if kind == "digits":
            number = f"{rng.integers(10**SECRET_DIGITS):0{SECRET_DIGITS}d}"
            found[tuple(text_ids(f" {number}", tokenizer))] = None
        elif kind == "samples":
            generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
            begun = torch.tensor([prompt] * REFERENCES)
            with torch.inference_mode():
                written = continued(materials.llm, begun, tokens=LENGTH, generator=generator)
            found |= dict.fromkeys(tuple(row[len(prompt) :]) for row in written.tolist())
        else:
            found[tuple(rng.choice(pool, size=LENGTH).tolist())] = None
    return list(found)[: REFERENCES + 1]


def federate(
    config: Config,
    tuned: nn.Module,
    items: dict[str, list[Encoded]],
    tokenizer: Tokenizer,
    *,
    seed: int,
) -> None:
    """Tune the adapter in the clear by FedAvg, under the configuration's privacy."""
    now = get_vector(tuned)
    pad, local = tokenizer.pad_token_id, config.local
    for number in range(config.federate.rounds):
        updates = []
        for name, of_client in items.items():
            set_vector(tuned, now)
            if config.privacy.unit == "none":
                rng = stream(seed, "bench", name, number)
                train(tuned, of_client, steps=local.steps, local=local, pad_id=pad, rng=rng, subject=name)
            else:
                noise = record_noise(
                    config.privacy, local, rounds=config.federate.rounds, records=len(of_client)
                )
                key = stream(seed, "noise", name, number).bytes(32)
                train_privately(
                    tuned,
                    of_client,
                    steps=local.steps,
                    local=local,
                    private=noise,
                    noise=Noise(key),
                    pad_id=pad,
                    subject=name,
                )
            updates.append(get_vector(tuned) - now)
        now = (now + np.mean(updates, axis=0)).astype(np.float32)
    set_vector(tuned, now)


def rows_of(where: str, found: Sequence[tuple[Canary, np.ndarray]]) -> list[Row]:
    """Return the numbers of every kind, and each kind's AUC beside that of digits, paired by place."""
    rows = []
    aucs: dict[str, np.ndarray] = {}
    for kind in KINDS:
        mine = [(c, loss) for c, loss in found if c.kind == kind]
        planted = [loss for c, loss in mine if c.included]
        ranks = [rank_of(loss[0], loss[1:]) for loss in planted]
        aucs[kind] = np.array([auc_of(loss[0], loss[1:]) for loss in planted])
        bits = [exposure(loss[0], loss[1:]) for loss in planted]
        coins = np.array([c.included for c, _ in mine])
        scores = np.array([-loss[0] for _, loss in mine])
        at_most = 1 + REFERENCES // 100  # rank, with one reference in a hundred before it
        estimates = [
            over_targets(aucs[kind].tolist(), metric="AUC among references", unit="AUC"),
            over_targets(bits, metric="exposure gained", unit="bits"),
            share(sum(r <= at_most for r in ranks), len(ranks), metric="found at 1 % FPR"),
            auc_estimate(scores, coins, metric="AUC, in against out"),
            bound(scores, coins, delta=0.0 if where == _name(None) else 1e-5),
        ]
        rows += [Row.of(f"{where}, {kind}: {e.metric}", e, command=COMMAND) for e in estimates]
    for kind in KINDS[1:]:
        gain = over_targets((aucs[kind] - aucs["digits"]).tolist(), metric="difference", unit="AUC")
        rows.append(Row.of(f"{where}, {kind} minus digits: AUC among references", gain, command=COMMAND))
    return rows


def bound(scores: np.ndarray, coins: np.ndarray, *, delta: float) -> Estimate:
    """Return the epsilon that guesses for half of the canaries refute, a lower bound."""
    guesses = Guesses(count=len(scores) // 4 * 2, both=True)
    correct = guesses.correct(scores, coins)
    m, count = len(scores), guesses.count
    most = lower_bound(canaries=m, guesses=count, correct=count, delta=delta)  # if all were right
    return Estimate(
        metric=f"epsilon shown ({correct} of {count} right; at most {most:.2f})",
        value=lower_bound(canaries=m, guesses=count, correct=correct, delta=delta),
        low=None,
        high=None,
        n=m,
        unit="epsilon",
        seeds=SEEDS,
        how="lower bound at 95 %",
        nature="sampled",
    )


def _losses(model: nn.Module, asked: Sequence[Canary]) -> np.ndarray:
    """Return losses of all candidates after their prompts, nats [canaries, candidates]."""
    model.eval()
    return np.array([continuation_losses(model, c.prompt, c.candidates, budget=BUDGET) for c in asked])


def _name(epsilon: float | None) -> str:
    return "unprotected" if epsilon is None else f"DP {epsilon:g}"


def _config(epsilon: float | None) -> Config:
    plain = ["audit.canaries=[]", "protect.scheme=unsafe_plaintext"]
    if epsilon is None:
        return load_config(CONFIG, plain)
    private = ["privacy.unit=record", f"privacy.target_epsilon={epsilon}"]
    schedule = ["local.steps=6", "local.batch_size=64", "local.learning_rate=1.0e-3"]
    return load_config(CONFIG, [*plain, *private, *schedule, "privacy.randomness=unsafe_simulated"])


if __name__ == "__main__":
    main()
