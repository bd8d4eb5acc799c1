"""The interface of an attack: an exam, a guess, a score.

    exam(truth, view, rng)              the examiner, who knows the truth, poses a question (or none)
    guess(view, question, budget, rng)  the adversary answers from its view only
    score(guess, answer)                the examiner compares; a target without a guess counts as missed

Surfaces are the parts of a view that an attack may need: IND individual updates, AGG aggregates, MR many
rounds, MOD the models of the rounds, API queries to the fused LLM, ACT deviation from the protocol.

Guarantees: `guess` is given no truth: neither the run nor the truth is an argument of it, and tests
keep this project's attacks from reading transcripts, frames or the garbage collector. Two calls with
the same view, question and seed give the same guess if the attack did as much work in both: A5, A6,
A12, A15, A16, the search for the hidden size and A3's control do less where the machine is too slow for
their seconds. `effort` says how much it was, and the finding holds it. Not guaranteed: that an attack
by a third party really guesses. The separation protects against mistakes, not against malice. An attack
is code that runs under your account, in the process that knows the truth, and it may read the run's
files. Install only attacks that you trust, and read the code of those whose numbers you rely on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from attacks.budget import Budget as Budget
from attacks.budget import OutOfTime as OutOfTime
from fedproxy_secure.data.encode import Encoded
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.record.private import PrivateState
from fedproxy_secure.record.view import View

Surface = Literal["IND", "AGG", "MR", "MOD", "API", "ACT"]
Party = Literal["server", "network", "clients", "api"]
KNOWN_BAD, NOBODY = "known-bad", "nobody"  # threat model names that the controls' views carry


class NotApplicable(Exception):
    """The run has nothing for this attack to work on; the text says why."""


class Inconclusive(Exception):
    """The attack cannot tell whether it succeeded; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Feeds:
    """A measure of the trilemma that an attack feeds, and the estimates that are its numbers.

    Args:
        measure: the measure's key (`fedproxy_secure.evidence.measure`).
        metric: the name of the estimates; a `*` at the end stands for any text.
    """

    measure: str
    metric: str

    def takes(self, metric: str) -> bool:
        """Return whether an estimate of this name is a number of the measure."""
        if self.metric.endswith("*"):
            return metric.startswith(self.metric[:-1])
        return metric == self.metric


@dataclass(frozen=True, kw_only=True)
class AttackInfo:
    """The description of an attack: what it finds, what it needs, how it is judged.

    Args:
        id: number of the attack, such as `A2`; several attacks may share it.
        name: unique name for commands and reports.
        title: what the attack finds, in a few words.
        paper: where the method comes from.
        needs: sets of surfaces; the view must have all surfaces of one of them.
        headline: name of the estimate that decides the outcome.
        chance: the headline's value where there is nothing to find.
        margin: how far above chance the headline's interval must begin to count as success.
        measures: the measures of the trilemma and of a gate that it feeds; for each measure the worst
            result of all attacks counts.
        mapping: (framework, version, id) triples.
        smoke: whether the smoke suite runs it.
        by: parties of a threat model, one of which must be corrupted; empty: whoever has the surfaces.
        long: how long the attack takes relative to others; longer attacks start first, so that all
            processes end at about the same time.
        shares: name of a result that other attacks or views can reuse, such as a trained control. Attacks
            that name the same result run in one process, which caches it. Empty: nothing is shared.

    Raises `ConfigError` in one line for a value that would stop a suite, or make its results unreadable.
    """

    id: str
    name: str
    title: str
    paper: str
    needs: tuple[frozenset[Surface], ...]
    headline: str = "auc"
    chance: float = 0.5
    margin: float = 0.05
    measures: tuple[Feeds, ...] = ()
    mapping: tuple[tuple[str, str, str], ...] = ()
    smoke: bool = True
    by: tuple[Party, ...] = ()
    long: int = 0
    shares: str = ""

    def __post_init__(self) -> None:
        surfaces, parties = get_args(Surface), get_args(Party)
        names, numbers = ", ".join(surfaces), ("chance", "margin")
        texts = ("id", "name", "title", "paper", "headline")
        sets = isinstance(self.needs, tuple) and all(isinstance(n, frozenset | set) for n in self.needs)
        rules = [
            *((t, isinstance(v := getattr(self, t), str) and v.strip() != "", "a text") for t in texts),
            ("needs", sets, "a tuple of sets of surfaces, such as (frozenset({'MOD'}),)"),
            ("needs", sets and {s for n in self.needs for s in n} <= {*surfaces}, f"of {names}"),
            *((n, _is_number(getattr(self, n)), "a finite number") for n in numbers),
            ("measures", _all(self.measures, Feeds), "a tuple of Feeds"),
            (
                "mapping",
                _all(self.mapping, tuple) and all(len(m) == 3 and _all(m, str) for m in self.mapping),
                "a tuple of (framework, version, id), all texts",
            ),
            ("smoke", isinstance(self.smoke, bool), "True or False"),
            ("by", _all(self.by, str) and {*self.by} <= {*parties}, f"a tuple of {', '.join(parties)}"),
            ("long", isinstance(self.long, int), "a whole number"),
            ("shares", isinstance(self.shares, str), "a text"),
        ]
        for field_name, holds, must in rules:
            if not holds:
                value = getattr(self, field_name)
                raise ConfigError(f"attack {self.name!r}: {field_name}={value!r:.80}: must be {must}")
        for field_name in numbers:  # numbers may be numpy's; findings hold Python's only
            object.__setattr__(self, field_name, float(getattr(self, field_name)))


def _all(values: object, kind: type) -> bool:
    return isinstance(values, tuple) and all(isinstance(v, kind) for v in values)


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an int that no float can hold
        return False


@dataclass(frozen=True, kw_only=True)
class Truth:
    """The records and rounds of each honest client, by its name; only the examiner has them."""

    clients: Mapping[str, PrivateState]

    def used(self, round_number: int, clients: tuple[str, ...]) -> list[Encoded]:
        """Return the records that these clients drew in a round, each once."""
        records = []
        for name in clients:
            if name in self.clients and round_number in self.clients[name].rounds:
                state = self.clients[name]
                records += [state.train[i] for i in state.drawn(round_number)]
        return records

    @cached_property
    def trained(self) -> frozenset[tuple[int, ...]]:
        """The token ids of all training records of honest clients, canaries included."""
        return frozenset(item.ids for state in self.clients.values() for item in state.train)

    def nonmembers(self, name: str) -> list[Encoded]:
        """Return the records that a client set aside, except texts that an honest client trains on."""
        return [item for item in self.clients[name].holdout if item.ids not in self.trained]

    def no_nonmembers(self) -> str:
        """Return why membership cannot be asked about, for truths with too few records to ask about."""
        if not any(state.holdout for state in self.clients.values()):
            return "no records were set aside; run with --set audit.holdout=0.3"
        return (
            "too few records were drawn, or set aside that no client trains on as well; run with a larger "
            "audit.holdout, more records, or records without duplicates"
        )

    def tokens(self, round_number: int, clients: tuple[str, ...]) -> set[int]:
        """Return the tokens of those records that a model read.

        The last token of each record is left out: it is predicted, never read.
        """
        return {t for item in self.used(round_number, clients) for t in item.ids[:-1]}

    def best_attended(self) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Return the clients of the round in which most trained, and all rounds that had these clients."""
        rounds = sorted({r for s in self.clients.values() for r in s.rounds})
        trained = {r: tuple(n for n, s in self.clients.items() if r in s.rounds) for r in rounds}
        names = max(trained.values(), key=len, default=())
        return names, tuple(r for r in rounds if trained[r] == names)

    def drawn_or_set_aside(self, round_number: int, clients: tuple[str, ...]) -> list[set[int]]:
        """Return the tokens, as in `tokens`, of each record that these clients drew or set aside."""
        set_aside = [
            item for name in clients if name in self.clients for item in self.clients[name].holdout
        ]
        return [set(item.ids[:-1]) for item in (*self.used(round_number, clients), *set_aside)]


@dataclass(frozen=True, kw_only=True)
class Exam:
    """The question that the adversary sees, and the answer that only the scorer sees."""

    question: Any = None
    answer: Any = None


class Attack:
    """Base class of all attacks; the decorator sets `info`, a subclass defines `guess` and `score`."""

    info: ClassVar[AttackInfo]

    def exam(self, truth: Truth, view: View, rng: np.random.Generator) -> Exam:
        """Return the question and its answer; by default no question, and the truth as the answer."""
        return Exam(answer=truth)

    def guess(self, view: View, question: Any, budget: Budget, rng: np.random.Generator) -> Any:
        """Return the adversary's answer as arrays or tuples; it must hold no models."""
        raise NotImplementedError

    def score(self, guess: Any, answer: Any) -> tuple[Estimate, ...]:
        """Return estimates of how good the guess is, the headline first."""
        raise NotImplementedError

    def effort(self, guess: Any) -> Mapping[str, int]:
        """Return how much work went into a guess, by what it counts, as far as it depends on the time."""
        return {}

    def positive(self, view: View, truth: Truth) -> tuple[View, Truth] | None:
        """Return a view in which the attack must succeed, and its truth; None without such a control.

        By default it is the same view with every honest client's update in the clear.
        """
        if view.updates or view.settings is None:
            return view, truth
        updates = {
            (r, name): done.update for name, s in truth.clients.items() for r, done in s.rounds.items()
        }
        return replace_view(view, updates=updates, sums={}), truth

    def negative(self, view: View, exam: Exam, rng: np.random.Generator) -> tuple[View, Exam]:
        """Return a view and an exam with nothing to find, on which the attack must stay at chance.

        By default the numbers in every update, sum and adapter step are shuffled.
        """

        def shuffled(vector: np.ndarray) -> np.ndarray:
            return rng.permutation(vector)

        return (
            replace_view(
                view,
                updates={k: shuffled(v) for k, v in view.updates.items()},
                sums={
                    r: type(s)(
                        clients=s.clients,
                        segments={**s.segments, "update": shuffled(s.segments["update"])},
                    )
                    for r, s in view.sums.items()
                },
                adapters=_shuffled_steps(view.adapters, shuffled),
            ),
            exam,
        )


def _shuffled_steps(adapters: Mapping[int, np.ndarray], shuffled: Any) -> dict[int, np.ndarray]:
    """Return the adapters with the steps between them shuffled; the first adapter stays."""
    result: dict[int, np.ndarray] = {}
    before = None
    for number in sorted(adapters):
        if before is None:
            result[number] = adapters[number]
        else:
            result[number] = result[before] + shuffled(adapters[number] - adapters[before])
        before = number
    return result


def replace_view(view: View, **changes: Any) -> View:
    """Return a copy of a view with some fields replaced."""
    return replace(view, **changes)
