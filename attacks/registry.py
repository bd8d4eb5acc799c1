"""The registry of all attacks: this project's, and those that other packages provide by an entry point.

An attack registers itself with the decorator `attack`. Another project names its module in its
`pyproject.toml`:

    [project.entry-points."fedproxy_secure.attacks"]
    worst_token = "my_package.worst_token"

A measure of another package that is broken stops neither the package's attacks nor others: an attack no
longer feeds it, and a module that cannot be imported because of it is left out. A line of the log says so.
"""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TypeVar

from attacks.base import Attack, AttackInfo
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.evidence.finding import Profile
from fedproxy_secure.evidence.measure import MEASURES, BrokenMeasure, measure_kind
from fedproxy_secure.runtime.escape import printable
from fedproxy_secure.runtime.nearest import nearest

log = logging.getLogger(__name__)
GROUP = "fedproxy_secure.attacks"
A = TypeVar("A", bound=Attack)
_REGISTERED: dict[str, type[Attack]] = {}
_OWN = (  # modules; each registers its attacks when it is imported
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
    "attacks.membership.client_models",
    "attacks.memorization.client_details",
)


def attack(info: AttackInfo) -> Callable[[type[A]], type[A]]:
    """Return a class decorator that registers an attack under `info.name`.

    Several attacks may share an id, but a name must not be an id, as commands accept both. Raises
    `ConfigError` if the name is taken, or if the decorated object is not a subclass of `Attack`.
    """

    def register(kind: type[A]) -> type[A]:
        if not (isinstance(kind, type) and issubclass(kind, Attack)):
            raise ConfigError(f"attack {info.name!r}: {kind!r}: must be a subclass of attacks.base.Attack")
        registered = [k.info for k in _REGISTERED.values() if k.info.name != info.name]
        if info.name == info.id:  # else no other attack could share the id
            raise ConfigError(f"attack {info.name!r}: name and id are the same; must differ")
        if any(info.name == i.id or info.id == i.name for i in registered):
            raise ConfigError(
                f"attack {info.name!r}, id {info.id!r}: a registered attack has this name as its id, or "
                "this id as its name; names and ids must differ"
            )
        existing = _REGISTERED.get(info.name)
        if existing is not None and (existing.__module__, existing.__qualname__) != (
            kind.__module__,
            kind.__qualname__,
        ):
            raise ConfigError(f"attack {info.name!r}: is registered already; names must differ")
        kind.info = info
        _REGISTERED[info.name] = kind
        return kind

    return register


@cache
def _load() -> None:
    for module in _OWN:
        import_module(module)
    for point in entry_points(group=GROUP):
        source = f"entry point {point.name!r} of {GROUP}: {point.value}"
        before = dict(_REGISTERED)
        try:
            point.load()
        except BrokenMeasure as error:
            _REGISTERED.clear()  # the module may have registered attacks before it failed
            _REGISTERED.update(before)
            _left_out(f"{source}: is left out: {error}")
            continue
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from error
        except Exception as error:  # somebody else's module may raise anything
            raise ConfigError(f"{source}: cannot be loaded: {error or type(error).__name__}") from error
        if len(_REGISTERED) == len(before) and not _has_registered(point.module):
            raise ConfigError(
                f"{source}: registers no attack; decorate its class with `attack` of attacks.registry"
            )
    _feed_no_broken_measure([kind for kind in _REGISTERED.values() if kind.__module__ not in _OWN])


def _feed_no_broken_measure(kinds: Iterable[type[Attack]]) -> None:
    """Take measures of other packages that cannot be loaded out of what attacks feed.

    An attack then feeds its other measures as before, and no policy can name a measure that is left out.
    """
    broken: dict[str, bool] = {}
    for kind in kinds:
        for key in (feeds.measure for feeds in kind.info.measures):
            if key not in broken and key in MEASURES.names():
                try:
                    measure_kind(key)
                    broken[key] = False
                except ConfigError as error:
                    broken[key] = True
                    _left_out(f"entry point {key!r} of {MEASURES.group}: is left out: {error}")
        fed = tuple(feeds for feeds in kind.info.measures if not broken.get(feeds.measure))
        kind.info = replace(kind.info, measures=fed)


def _left_out(line: str) -> None:
    if multiprocessing.parent_process() is None:  # else the parent has said it
        log.warning(printable(line))


def _has_registered(module: str) -> bool:
    """Return whether attacks of a module, or of its package, are already registered."""
    package = module.partition(".")[0]
    contents = vars(import_module(module)).values()  # it is already loaded
    return any(
        kind.__module__.partition(".")[0] == package or any(kind is value for value in contents)
        for kind in _REGISTERED.values()
    )


def every() -> dict[str, Attack]:
    """Return all attacks by name, this project's first, then those of other packages.

    This project's attacks come in the order of their ids. Raises `ConfigError` if an entry point cannot be
    loaded.
    """
    _load()

    def number(kind: type[Attack]) -> tuple[int, str]:
        digits = "".join(c for c in kind.info.id if c.isdigit())
        is_own = kind.__module__ in _OWN
        return (int(digits) if is_own and digits else 999, kind.info.name)

    return {k.info.name: _instance(k) for k in sorted(_REGISTERED.values(), key=number)}


def _instance(kind: type[Attack]) -> Attack:
    try:
        return kind()
    except Exception as error:  # somebody else's class may raise anything
        if kind.__module__ in _OWN:
            raise
        raise ConfigError(
            f"attack {kind.info.name!r} of {kind.__module__}: cannot be made without arguments: {error}"
        ) from error


def find(name: str) -> list[Attack]:
    """Return the attack with this name, or all attacks with this id.

    Raises `ConfigError` that suggests the nearest name.
    """
    attacks = every()
    chosen = [a for a in attacks.values() if name in (a.info.name, a.info.id)]
    if not chosen:
        ids = dict.fromkeys(a.info.id for a in attacks.values())
        raise ConfigError(f"attack {name!r}: is not known; {nearest(name, [*attacks, *ids])}")
    return chosen


def get(name: str) -> Attack:
    """Return the attack with this name, or the first attack with this id.

    Raises `ConfigError` that suggests the nearest name.
    """
    return find(name)[0]


def suite(profile: Profile) -> list[Attack]:
    """Return the attacks that a profile runs."""
    return [a for a in every().values() if a.info.smoke or profile != "smoke"]


def check_measures(attacks: Iterable[Attack]) -> None:
    """Raise `ConfigError` with the nearest key if an attack feeds a measure that is not registered."""
    for one in attacks:
        for feeds in one.info.measures:
            measure_kind(feeds.measure, place=f"attack {one.info.name!r}: measures")
