"""Directives for the API reference: the public names, grouped by where they live, and the errors."""

from __future__ import annotations

import importlib
import inspect

import fedproxy_secure
from fedproxy_secure import errors as errors_module
from fedproxy_secure.runtime.registry import Registry

# the first package below `fedproxy_secure` that a name's home lies in -> heading
HEADINGS = {
    "config": "Settings",
    "experiments": "Runs and stages",
    "models": "Models and adapters",
    "compress": "Compression",
    "federate": "Federation",
    "fuse": "Fusion",
    "evidence": "Evidence",
    "report": "Reports",
    "gate": "Gate",
    "protect": "Protections",
    "flower": "Engines",
}
REGISTRIES, OTHER = "Registries", "Other names"


def public_names() -> str:
    """Every name of `fedproxy_secure.__all__`, grouped."""
    groups: dict[str, list[str]] = {}
    for name in fedproxy_secure.__all__:
        if name.startswith("__"):
            continue
        thing = getattr(fedproxy_secure, name)
        part = (getattr(thing, "__module__", "") or "").removeprefix("fedproxy_secure.").partition(".")[0]
        heading = REGISTRIES if isinstance(thing, Registry) else HEADINGS.get(part, OTHER)
        groups.setdefault(heading, []).append(name)
    order = [*dict.fromkeys(HEADINGS.values()), REGISTRIES, OTHER]
    return "\n\n".join(
        "\n\n".join((f"## {heading}", *(_directive(name) for name in groups[heading])))
        for heading in order
        if heading in groups
    )


# a heading and the names that somebody who adds one of the kind needs
EXTENSION_POINTS: dict[str, tuple[str, ...]] = {
    "Protections": (
        "fedproxy_secure.protect.base.Protection",
        "fedproxy_secure.protect.one_message.OneMessage",
        "fedproxy_secure.protect.base.ClientRequest",
        "fedproxy_secure.protect.base.ServerRound",
        "fedproxy_secure.protect.base.RoundResult",
        "fedproxy_secure.protect.gathering.gather",
        "fedproxy_secure.protect.gathering.fuse_sum",
        "fedproxy_secure.protect.gathering.check_reads_mean_alone",
        "fedproxy_secure.protect.kept.keep",
        "fedproxy_secure.protect.kept.take",
    ),
    "Fusion rules": (
        "fedproxy_secure.federate.fusion.rule.FusionRule",
        "fedproxy_secure.federate.fusion.elections.SignElection",
    ),
    "Methods": (
        "fedproxy_secure.experiments.method.Method",
        "fedproxy_secure.experiments.results.MethodResult",
    ),
    "Compressions": ("fedproxy_secure.compress.base.Compression", "fedproxy_secure.compress.proxy.Proxy"),
    "Attacks": (
        "attacks.base.AttackInfo",
        "attacks.base.Attack",
        "attacks.base.Exam",
        "attacks.base.Budget",
        "attacks.base.Feeds",
    ),
    "Measures": ("fedproxy_secure.evidence.measure.MeasureKind",),
    "Threat models": ("threat_models.base.ThreatModel",),
    "Registries": ("fedproxy_secure.runtime.registry.Registry",),
}


def extension_points() -> str:
    """What can be added from outside and what describes it, without the public names shown before."""
    public = {getattr(fedproxy_secure, name) for name in fedproxy_secure.__all__}
    parts = []
    for heading, names in EXTENSION_POINTS.items():
        here = [name for name in names if _object(name) not in public]
        if here:
            parts += [f"### {heading}", *(_rst(_entry(name)) for name in here)]
    return "\n\n".join(parts)


def _entry(name: str) -> str:
    is_class = inspect.isclass(_object(name))
    return f".. autoclass:: {name}\n   :members:" if is_class else f".. autofunction:: {name}"


def _object(dotted: str) -> object:
    module, _, name = dotted.rpartition(".")
    return getattr(importlib.import_module(module), name)


def errors() -> str:
    """The tree of errors that are raised on purpose."""
    kinds = [
        name
        for name, kind in vars(errors_module).items()
        if inspect.isclass(kind) and kind.__module__ == errors_module.__name__
    ]
    return _rst(
        *(f".. autoexception:: fedproxy_secure.errors.{name}\n   :show-inheritance:" for name in kinds)
    )


def _directive(name: str) -> str:
    thing = getattr(fedproxy_secure, name)
    if isinstance(thing, Registry):
        own = ", ".join(f"``{one}``" for one in thing.own)
        text = f"Every {thing.kind} by its name: {own}, and those of other packages (``{thing.group}``)."
        return _rst(f".. py:data:: fedproxy_secure.{name}\n   :type: Registry\n\n   {text}")
    kind = "autoclass" if inspect.isclass(thing) else "autofunction"
    options = "\n   :members:" if kind == "autoclass" else ""
    if kind == "autoclass" and "__call__" in vars(thing):  # a function's protocol
        options += "\n   :special-members: __call__"
    return _rst(f".. {kind}:: fedproxy_secure.{name}{options}")


def _rst(*directives: str) -> str:
    return "```{eval-rst}\n" + "\n\n".join(directives) + "\n```"
