"""Registries of extensible kinds of things, filled by this project and by entry points.

A registry knows where each thing of its kind is defined and loads it on first use, so that reading settings
stays fast and does not import what the settings do not use.

    PROTECTIONS = Registry[Protection](
        kind="protection",
        group="fedproxy_secure.protections",
        own={"masking": "fedproxy_secure.protect.masking:MASKING"},
    )

Another project adds one in its `pyproject.toml`:

    [project.entry-points."fedproxy_secure.protections"]
    my_scheme = "my_package.my_scheme:MY_SCHEME"

A script or notebook adds one with `PROTECTIONS.add("my_scheme", MY_SCHEME)`. This addition lasts as long as
the process. Processes that a matrix or a comparison starts find only entry points. With `compare.jobs` or
`matrix.jobs` 1 no process is started, so that the script's additions are found.

Other groups of entry points name functions, all of which are called (`plugged_in`, `answers_of`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar, cast

from fedproxy_secure.errors import ConfigError, FedProxyError
from fedproxy_secure.runtime.nearest import nearest

T = TypeVar("T")
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")  # names become parts of names of files and folders


class Registry(Generic[T]):
    """The known things of one kind, by name.

    The attribute `own` has the names of this project's things, which do not depend on other packages.

    Args:
        kind: what a thing is called in errors, such as `protection`.
        group: the entry point group by which other projects add theirs; an entry point's name is the
            thing's name.
        own: this project's things, as name -> `module:attribute`. They come first, in this order.
        base: the class that all things are objects of, as `module:attribute`; None: any.
        texts: attributes that must be texts.
        named_by: the one of `texts` that must equal the registered name; None: no such attribute.
    """

    def __init__(
        self,
        *,
        kind: str,
        group: str,
        own: Mapping[str, str],
        base: str | None = None,
        texts: tuple[str, ...] = (),
        named_by: str | None = None,
    ) -> None:
        self.kind, self.group, self._base = kind, group, base
        self._texts, self._named_by = texts, named_by
        self._places = dict(own)
        self.own = tuple(own)
        self._loaded: dict[str, T] = {}
        self._looked = False

    def names(self) -> tuple[str, ...]:
        """Return all names, this project's first in their order, then others sorted; load nothing.

        Raises `ConfigError` if an entry point uses a name that exists already.
        """
        if not self._looked:
            for point in sorted(entry_points(group=self.group), key=lambda p: p.name):
                if self._places.setdefault(point.name, point.value) != point.value:
                    raise ConfigError(
                        f"{self.kind} {point.name!r}: is there already; entry point {point.value} of "
                        f"{self.group} must have another name"
                    )
            self._looked = True
        return tuple(dict.fromkeys([*self._places, *self._loaded]))

    def check(self, name: str, *, setting: str = "") -> None:
        """Raise `ConfigError` with the nearest name unless `name` is known; load nothing.

        Args:
            setting: the setting that has the name, such as `protect.scheme`.
        """
        if name not in self.names():
            subject = f"{setting}={name}" if setting else f"{self.kind} {name!r}"
            raise ConfigError(f"{subject}: is not known; {nearest(name, self.names())}")

    def get(self, name: str, *, setting: str = "") -> T:
        """Return the thing called `name`; load it first if it is not loaded yet.

        Raises `ConfigError` for an unknown name, and for a module of another project that cannot be loaded
        or whose object is not of this registry's kind.
        """
        self.check(name, setting=setting)
        if name not in self._loaded:
            place = self._places[name]
            try:
                thing = _at(place)
            except Exception as error:  # another project's module may raise anything
                if name in self.own:
                    raise
                raise ConfigError(f"{self.kind} {name!r}: {place}: cannot be loaded: {error}") from error
            if name not in self.own:
                self._check_thing(name, thing, place)
            self._loaded[name] = thing
        return self._loaded[name]

    def _check_thing(self, name: str, thing: object, place: str = "") -> None:
        """Raise `ConfigError` unless a thing of another project or a script is of this kind."""
        prefix = f"{self.kind} {name!r}: {place}: " if place else f"{self.kind} {name!r}: "
        if self._base is not None and not isinstance(thing, _at(self._base)):
            base = self._base.replace(":", ".")
            problem = "is a class" if isinstance(thing, type) else f"is a {type(thing).__name__}"
            raise ConfigError(f"{prefix}{problem}; must be an instance of {base}")
        for attribute in self._texts:
            text = getattr(thing, attribute, None)
            if not isinstance(text, str) or not text:
                raise ConfigError(f"{prefix}{attribute}={text!r}; must be a text")
        if self._named_by is None:
            return
        if (stated := getattr(thing, self._named_by, None)) != name:
            raise ConfigError(f"{prefix}{self._named_by}={stated!r}; must be {name!r}, as it is registered")
        if not NAME.fullmatch(name):
            raise ConfigError(f"{prefix}its name must be 1 to 64 letters, digits, '.', '_' and '-'")

    def every(self) -> dict[str, T]:
        """Return all things by name, loaded; raises as `get` does."""
        return {name: self.get(name) for name in self.names()}

    def add(self, name: str, thing: T) -> None:
        """Add a thing to this process.

        Raises `ConfigError` if the name is taken by another, or the thing is not of this kind.
        """
        self._check_thing(name, thing)
        if name in self.names() and self._loaded.get(name) is not thing:
            raise ConfigError(f"{self.kind} {name!r}: is there already; names must differ")
        self._loaded[name] = thing

    @contextmanager
    def added(self, name: str, thing: T) -> Iterator[None]:
        """Add a thing for the time of a `with` block."""
        self.add(name, thing)
        try:
            yield
        finally:
            del self._loaded[name]


def _at(place: str) -> Any:
    """Return the object at `module:attribute`, as entry points write it; raises the module's own errors."""
    return EntryPoint(name="", value=place, group="").load()


def plugged_in(group: str) -> list[Callable[..., Any]]:
    """Return the functions that the entry points of a group name.

    Raises `ConfigError` for one that cannot be loaded or is not a function.
    """
    return [_function(point) for point in entry_points(group=group)]


def answers_of(group: str, *given: object) -> list[Any]:
    """Call each function that the entry points of a group name with `given`, and return what they return.

    Raises `ConfigError` as `plugged_in` does, and for a function that raises.
    """
    answers = []
    for point in entry_points(group=group):
        function = _function(point)
        try:
            answers.append(function(*given))
        except Exception as error:  # another project's function may raise anything
            reason = str(error) if isinstance(error, FedProxyError) else f"{type(error).__name__}: {error}"
            raise ConfigError(f"{_named(point)}: {reason}") from error
    return answers


def _function(point: EntryPoint) -> Callable[..., Any]:
    try:
        function: Any = point.load()
    except Exception as error:  # another project's module may raise anything
        raise ConfigError(f"{_named(point)}: cannot be loaded: {error}") from error
    if not callable(function):
        raise ConfigError(f"{_named(point)}: is of {type(function).__name__}; must be a function")
    return cast("Callable[..., Any]", function)


def _named(point: EntryPoint) -> str:
    return f"entry point {point.name!r} of {point.group}: {point.value}"
