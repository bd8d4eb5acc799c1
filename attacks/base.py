"""What an attack is, and where all of them are found.

    exam(truth, view, rng)              the examiner, who knows the truth, poses a question (or none)
    guess(view, question, budget, rng)  the adversary answers from its view; it gets nothing else
    score(guess, answer)                the examiner compares; all targets stand in the denominator

Surfaces that an attack may need: IND an individual update, AGG an aggregate, MR many rounds, MOD the models
of the rounds, API queries to the fused LLM, ACT the power to deviate.

Guarantees: `guess` is given no truth: neither run nor truth is an argument of it, and tests keep this
project's attacks from reading transcripts, frames or the garbage collector. Two calls with the same view,
question and seed give the same guess. Not guaranteed: that an attack of somebody else's guesses. The wall
is against mistakes, not against malice: an attack is code that runs as you, in the process that knows the
truth and with the right to read the run's files. Install attacks that you trust, and read those whose
numbers you rely on.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, ClassVar, Literal

import numpy as np

from fedproxy_secure.data.encode import Encoded
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.record.private import PrivateState
from fedproxy_secure.record.view import View
from fedproxy_secure.report.estimate import Estimate
from fedproxy_secure.report.finding import Profile

GROUP = "fedproxy_secure.attacks"
Surface = Literal["IND", "AGG", "MR", "MOD", "API", "ACT"]


KNOWN_BAD, NOBODY = "known-bad", "nobody"  # threat models' names in controls of active attacks


class NotApplicable(Exception):
    """Raised by an attack that this run gives nothing to attack; the text says why."""


class Inconclusive(Exception):
    """Raised by an attack that cannot tell; the text says why."""


class OutOfTime(Inconclusive):
    """The budget's seconds are over; a resumed suite tries such an attack again."""

    BEGINS = "ran out of its"

    def __init__(self, seconds: float) -> None:
        super().__init__(f"{self.BEGINS} {seconds:g} s")


@dataclass(frozen=True, kw_only=True)
class AttackInfo:
    """What an attack is for. `needs`: sets of surfaces, one of which the view must have in full.

    `headline`: the metric that decides, with its value by `chance` and the `margin` above it that counts
    as success. `mapping`: (framework, version, id) triples. `by`: parties of a threat model (`server`,
    `network`, `clients`, `api`), one of which must be corrupted; empty: whoever has the surfaces.
    """

    id: str
    name: str
    title: str
    paper: str
    needs: tuple[frozenset[Surface], ...]
    headline: str = "auc"
    chance: float = 0.5
    margin: float = 0.05
    mapping: tuple[tuple[str, str, str], ...] = ()
    smoke: bool = True  # whether the smoke suite runs it
    by: tuple[Literal["server", "network", "clients", "api"], ...] = ()
    long: int = 0  # started in falling order of it, so that processes end together


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much an attack may spend: wall seconds from `began`, model queries, and a profile for sizes."""

    profile: Profile = "smoke"
    seconds: float = 600.0
    queries: int = 4096
    began: float = field(default_factory=time.monotonic)

    def pick(self, *, smoke: Any, standard: Any, full: Any) -> Any:
        """The size that fits the profile."""
        return {"smoke": smoke, "standard": standard, "full": full}[self.profile]

    @property
    def left_s(self) -> float:
        """Seconds left; negative once over."""
        return self.began + self.seconds - time.monotonic()

    def check(self) -> None:
        """Raise `OutOfTime` once the seconds are over; long loops call it."""
        if self.left_s < 0:
            raise OutOfTime(self.seconds)


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What honest clients held, by name; only the examiner has it."""

    clients: Mapping[str, PrivateState]

    def used(self, round_number: int, clients: tuple[str, ...]) -> list[Encoded]:
        """The records that these clients drew in a round, each once."""
        found = []
        for name in clients:
            if name in self.clients and round_number in self.clients[name].rounds:
                state = self.clients[name]
                found += [state.train[i] for i in np.unique(state.rounds[round_number].used)]
        return found

    def tokens(self, round_number: int, clients: tuple[str, ...]) -> set[int]:
        """The tokens that a model read of those records: the last of each is predicted, never read."""
        return {t for item in self.used(round_number, clients) for t in item.ids[:-1]}


@dataclass(frozen=True, kw_only=True)
class Exam:
    """What the adversary is asked (it sees `question`), and what only the scorer sees."""

    question: Any = None
    answer: Any = None


class Attack:
    """Base of all attacks; subclasses set `info` by the decorator and write `guess` and `score`."""

    info: ClassVar[AttackInfo]

    def exam(self, truth: Truth, view: View, rng: np.random.Generator) -> Exam:
        """The question and its answer. As given: no question, and the truth is the answer."""
        return Exam(answer=truth)

    def guess(self, view: View, question: Any, budget: Budget, rng: np.random.Generator) -> Any:
        """The adversary's answer: arrays or tuples, no models."""
        raise NotImplementedError

    def score(self, guess: Any, answer: Any) -> tuple[Estimate, ...]:
        """Estimates, the headline first."""
        raise NotImplementedError

    def positive(self, view: View, truth: Truth) -> tuple[View, Truth] | None:
        """A view with protection off, where the attack must succeed, and its truth; None: there is none.

        As given: the same view, but every honest client's update is seen.
        """
        if view.updates or view.settings is None:
            return view, truth
        updates = {
            (r, name): done.update for name, s in truth.clients.items() for r, done in s.rounds.items()
        }
        return replace_view(view, updates=updates, sums={}), truth

    def negative(self, view: View, exam: Exam, rng: np.random.Generator) -> tuple[View, Exam]:
        """A view or exam in which nothing can be found, where the attack must be at chance.

        As given: the numbers of every update and sum are shuffled.
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
    """The adapters with each step between neighbours shuffled; the first stays as it is."""
    made: dict[int, np.ndarray] = {}
    before = None
    for number in sorted(adapters):
        if before is None or before not in made or number - 1 != before:
            made[number] = adapters[number]
        else:
            made[number] = made[before] + shuffled(adapters[number] - adapters[before])
        before = number
    return made


def replace_view(view: View, **changes: Any) -> View:
    """A copy of a view with some of it replaced."""
    from dataclasses import replace

    return replace(view, **changes)


_REGISTERED: dict[str, type[Attack]] = {}
_OWN = (
    "attacks.reconstruction.embedding",
    "attacks.reconstruction.spans",
    "attacks.reconstruction.sequences",
    "attacks.reconstruction.matching",
    "attacks.membership.updates",
    "attacks.membership.models",
    "attacks.membership.canaries",
    "attacks.audit.suite_entries",
    "attacks.integrity.active_server",
    "attacks.integrity.trapped_proxy",
    "attacks.integrity.passive_sums",
    "attacks.integrity.masked_words",
    "attacks.integrity.mask_seeds",
    "attacks.extraction.proxy",
    "attacks.extraction.logits",
    "attacks.integrity.poisoning",
    "attacks.membership.properties",
)


def attack(info: AttackInfo) -> Any:
    """Class decorator: register an attack under `info.name`.

    Several attacks may share an id. Raises `ConfigError` if the name is taken.
    """

    def register(kind: type[Attack]) -> type[Attack]:
        taken = _REGISTERED.get(info.name)
        if taken is not None and (taken.__module__, taken.__qualname__) != (
            kind.__module__,
            kind.__qualname__,
        ):
            raise ConfigError(f"attack {info.name!r}: is there already; names must differ")
        kind.info = info
        _REGISTERED[info.name] = kind
        return kind

    return register


@cache
def _load() -> None:
    for module in _OWN:
        import_module(module)
    for point in entry_points(group=GROUP):
        try:
            point.load()
        except ConfigError:
            raise
        except Exception as error:  # somebody else's module may raise anything
            raise ConfigError(
                f"entry point {point.name!r} of {GROUP}: {point.value}: cannot be loaded: {error}"
            ) from error


def every() -> dict[str, Attack]:
    """All attacks by name, in the order of their ids: this project's and those of entry points.

    Raises `ConfigError` if an entry point cannot be loaded.
    """
    _load()

    def number(kind: type[Attack]) -> tuple[int, str]:
        digits = "".join(c for c in kind.info.id if c.isdigit())
        own = kind.__module__ in _OWN
        return (int(digits) if own and digits else 999, kind.info.name)

    return {k.info.name: k() for k in sorted(_REGISTERED.values(), key=number)}


def find(name: str) -> list[Attack]:
    """The attack of a name, or all of an id. Raises `ConfigError` with the nearest name."""
    attacks = every()
    found = [a for a in attacks.values() if name in (a.info.name, a.info.id)]
    if found:
        return found
    known = [*attacks, *dict.fromkeys(a.info.id for a in attacks.values())]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(attacks)}"
    raise ConfigError(f"attack {name!r}: is not known; {hint}")


def get(name: str) -> Attack:
    """The attack of a name, or the first of an id. Raises `ConfigError` with the nearest name."""
    return find(name)[0]


def suite(profile: Profile) -> list[Attack]:
    """The attacks that a profile runs."""
    return [a for a in every().values() if a.info.smoke or profile != "smoke"]
