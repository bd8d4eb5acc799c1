"""What a client finds of another's details, by protection: `python -m tests.bench.client_details`.

Four clients of `configs/demo_trilemma.yaml` that all write discharge notes, 48 each, with ten local epochs
in every round, as in the paper. One client lets the tuned proxy write after its own prefixes (A16, after
arXiv 2506.06060). Every detail of the other three that it does not hold itself is a target. The same with
the round-0 proxy, which has read no note, says what is met by chance.

The cells are runs as `fedproxy-secure run` makes them, kept in build/bench/client_details. Some ten minutes
on one core.
"""

from __future__ import annotations

import re
import sys
import time
from collections import Counter

import torch

from attacks.base import Budget, Exam, Truth
from attacks.memorization.client_details import KINDS, ClientDetails
from attacks.statistics import share
from attacks.suite import read_truth
from fedproxy_secure.config import Config, load_config
from fedproxy_secure.evidence.estimate import independent_difference
from fedproxy_secure.experiments.run import run
from fedproxy_secure.record.view import View, view
from fedproxy_secure.runtime.randomness import stream
from tests.bench.rows import FOLDER, Row, publish
from threat_models import get as threat_model

COMMAND = "python -m tests.bench.client_details"
CONFIG = "configs/demo_trilemma.yaml"
SEEDS = (0,)
CLIENT = "{{name: ward{0}, task: discharge_note, train_split: 'train[{1}:{2}]', test_records: 50}}"
NOTES = 96  # of each client, half of which are set aside
WORLD = "data.clients=[" + ", ".join(CLIENT.format(i, NOTES * i, NOTES * (i + 1)) for i in range(4)) + "]"
COMMON = (WORLD, "federate.rounds=4", "audit.canaries=[]", "audit.record=true", "attacks.suite=none")
OPEN = ("local.steps=40", "local.batch_size=12")  # ten epochs
PRIVATE = (
    *("privacy.unit=record", "privacy.target_epsilon=8", "privacy.randomness=unsafe_simulated"),
    *("local.steps=10", "local.batch_size=48", "local.learning_rate=1.0e-3"),
)
PROTECTIONS = {
    "unprotected": ("protect.scheme=unsafe_plaintext", *OPEN),
    "masking": ("protect.scheme=masking", *OPEN),
    "masking + DP 8": ("protect.scheme=masking", *PRIVATE),
}
UNTUNED = "round-0 proxy"
BUDGET = Budget(profile="standard", seconds=1e6)  # the number of texts decides

Found = dict[tuple[str, str], Counter[str]]  # by protection and kind of detail: hits, targets


def main() -> None:
    """Measure every protection, print, write."""
    torch.set_num_threads(1)
    found: Found = {}
    for name, changes in PROTECTIONS.items():
        for seed in SEEDS:
            began = time.monotonic()
            seen, truth = recorded(name, load_config(CONFIG, [*COMMON, *changes]), seed)
            took = time.monotonic() - began
            exam = ClientDetails().exam(truth, seen, stream(seed, "bench exam"))
            written_out(found, name, seen, exam, seed)
            if name == "unprotected":
                untuned, same = ClientDetails().negative(seen, exam, stream(seed, "bench negative"))
                written_out(found, UNTUNED, untuned, same, seed)
            print(
                f"{name}, seed {seed}: run {took:.0f} s, attack {time.monotonic() - began - took:.0f} s",
                file=sys.stderr,
                flush=True,
            )
        publish("client_details", rows_of(found))


def recorded(name: str, config: Config, seed: int) -> tuple[View, Truth]:
    """Return one client's view of a run, which is made if it is not there, and what the others held."""
    slug = re.sub(r"\W+", "-", name)
    folder = FOLDER / "client_details" / f"{slug}-seed{seed}"
    run(
        config.model_copy(update={"seeds": (seed,)}),
        folder.resolve(),
        resume=folder.exists(),
        command=COMMAND,
        in_cell=True,
    )
    model = threat_model("client")
    place = folder / f"seed-{seed}"
    return view(place, model), read_truth(place, honest_besides=model.clients)


def written_out(found: Found, name: str, seen: View, exam: Exam, seed: int) -> None:
    """Add what the attack wrote out, kind by kind, and how much there was."""
    guess = ClientDetails().guess(seen, exam.question, BUDGET, stream(seed, "bench", "client_details"))
    for kind in KINDS:
        wanted = {d for details in exam.answer for d in details if d.kind == kind}
        hits = len(wanted & set(guess.ranked.get(kind, ())))
        counts = found.setdefault((name, kind), Counter())
        counts.update(hits=hits, targets=len(wanted))


def rows_of(found: Found) -> list[Row]:
    """Return the share written out by protection and kind, and its difference to the round-0 proxy's."""
    rows = []
    for (name, kind), counts in found.items():
        if not counts["targets"]:
            continue
        metric = f"{name}: {kind}s written out, {counts['hits']} of {counts['targets']}"
        mine = share(counts["hits"], counts["targets"], metric=metric)
        rows.append(Row.of(metric, mine, command=COMMAND))
        if name != UNTUNED:
            base = found[UNTUNED, kind]
            chance = share(base["hits"], base["targets"], metric=UNTUNED)
            metric = f"{name}: {kind}s, minus the {UNTUNED}'s"
            rows.append(
                Row.of(metric, independent_difference(mine, chance, metric=metric), command=COMMAND)
            )
    return rows


if __name__ == "__main__":
    main()
