"""Registries of what others can add: one per kind, filled by this project and by entry points.

A registry knows where each thing of its kind is defined and loads it when it is first asked for, so that
reading settings stays fast and does not import what the settings do not use.

    PROTECTIONS = Registry[Protection](
        kind="protection",
        group="fedproxy_secure.protections",
        own={"masking": "fedproxy_secure.protect.masking:MASKING"},
    )

Another project adds one in its `pyproject.toml`:

    [project.entry-points."fedproxy_secure.protections"]
    my_scheme = "my_package.my_scheme:MY_SCHEME"

A script or notebook adds one with `PROTECTIONS.add("my_scheme", MY_SCHEME)`. Such an addition lasts as long
as the process. Processes that a matrix or a comparison starts do not have it: they find entry points alone.
With `compare.jobs` or `matrix.jobs` 1 no process is started, and what the script has added is found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from fedproxy_secure.errors import ConfigError
from fedproxy_secure.runtime.nearest import nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """The known things of one kind, by name.

    `own`: names of this project's things, which do not change with what else is installed.

    Args:
        kind: what a thing is called in errors, such as `protection`.
        group: the entry point group by which other projects add theirs; an entry point's name is the
            thing's name.
        own: this project's things, as name -> `module:attribute`. They come first, in this order.
    """

    def __init__(self, *, kind: str, group: str, own: Mapping[str, str]) -> None:
        self.kind, self.group = kind, group
        self._places = dict(own)
        self.own = tuple(own)
        self._loaded: dict[str, T] = {}
        self._looked = False

    def names(self) -> tuple[str, ...]:
        """Return all names: this project's in their order, then the others' by name. Loads nothing.

        Raises `ConfigError` if an entry point takes a name that is there already.
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

    def check(self, name: str, *, where: str = "") -> None:
        """Raise `ConfigError` with the nearest name unless `name` is known. Loads nothing.

        Args:
            where: the setting that has the name, such as `protect.scheme`.
        """
        if name not in self.names():
            subject = f"{where}={name}" if where else f"{self.kind} {name!r}"
            raise ConfigError(f"{subject}: is not known; {nearest(name, self.names())}")

    def get(self, name: str, *, where: str = "") -> T:
        """Return the thing called `name`; load it first if it is not loaded yet.

        Raises `ConfigError` for a name that is not known, or another project's module that does not load.
        """
        self.check(name, where=where)
        if name not in self._loaded:
            module, _, attribute = self._places[name].partition(":")
            try:
                self._loaded[name] = getattr(import_module(module), attribute)
            except Exception as error:  # somebody else's module may raise anything
                if name in self.own:
                    raise
                raise ConfigError(
                    f"{self.kind} {name!r}: {self._places[name]}: cannot be loaded: {error}"
                ) from error
        return self._loaded[name]

    def every(self) -> dict[str, T]:
        """Return all things by name, loaded. Raises what `get` raises."""
        return {name: self.get(name) for name in self.names()}

    def add(self, name: str, thing: T) -> None:
        """Add a thing to this process. Raises `ConfigError` if the name is taken by another."""
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
