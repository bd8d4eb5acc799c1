"""The measures of a configuration, read from the files of its runs.

    result.json           accuracies, perplexities, fidelity, privacy events and their cost, seconds
    federation/*.jsonl    rounds (curves) and the leakage ledger (bytes, which party saw what)
    attacks/results.json  findings of a suite, if one ran

Each number is computed per seed first and then joined over seeds. Epsilon is composed over the seeds (see
`report.composition`), because they train on the same records. A number that a run does not have is left
out, never guessed; the report's `not_measured` names it with the reason.
"""

from fedproxy_secure.report.measured.configuration import configuration_of
from fedproxy_secure.report.measured.cost import cost_against
from fedproxy_secure.report.measured.seed import ATTACKED, SeedRun, attacked, read_seed, read_seeds
from fedproxy_secure.report.measured.unmeasured import (
    NO_GAP,
    lacking_on_some_seed,
    rows_without_losses,
    without_gap,
    without_losses,
)

__all__ = [
    "ATTACKED",
    "NO_GAP",
    "SeedRun",
    "attacked",
    "configuration_of",
    "cost_against",
    "read_seed",
    "read_seeds",
    "rows_without_losses",
    "lacking_on_some_seed",
    "without_gap",
    "without_losses",
]
