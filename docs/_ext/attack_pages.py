"""Attacks and threat models as Markdown, from their own descriptions."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable

from markdown_parts import markdown_table

from attacks.base import Attack
from attacks.fit import fitting
from attacks.registry import every
from fedproxy_secure.bundle import claims as bundle_claims
from fedproxy_secure.evidence.measure import AXES, MEASURES
from fedproxy_secure.gate.rules import OTHERS, limit_names, limit_of
from threat_models import every as every_threat_model


def table() -> str:
    """A row for each attack: what it finds, what its view must hold, the smallest suite that runs it."""
    rows = [
        (f"[{a.info.id} `{a.info.name}`](#{anchor(a)})", a.info.title, surfaces(a), smallest_suite(a))
        for a in every().values()
    ]
    return markdown_table(("attack", "finds", "needs", "smallest suite"), rows)


def every_attack() -> str:
    """A section for each family, and in it one for each attack, with its module's text."""
    families: dict[str, list[Attack]] = {}
    for one in every().values():
        families.setdefault(type(one).__module__.rpartition(".")[0], []).append(one)
    return "\n\n".join(_family(package, members) for package, members in families.items())


def _family(package: str, members: list[Attack]) -> str:
    title, text = _summary_and_rest(importlib.import_module(package).__doc__ or package)
    parts = [f"## {title.rstrip('.')}", text]
    told: set[str] = set()
    for one in members:
        module = type(one).__module__
        parts.append(_attack(one, with_text=module not in told))
        told.add(module)
    return "\n\n".join(part for part in parts if part)


def _attack(one: Attack, *, with_text: bool) -> str:
    info = one.info
    rows = [
        ("finds", info.title),
        ("needs", surfaces(one)),
        ("threat models", ", ".join(f"`{name}`" for name in fitting(one)) or "none"),
        ("succeeds", f"`{info.headline}` above {info.chance + info.margin:g} (chance {info.chance:g})"),
        ("measures", ", ".join(f"`{feeds.measure}`" for feeds in info.measures) or "none"),
        ("positive control", control(one, "positive")),
        ("negative control", control(one, "negative")),
        ("mapping", "; ".join(" ".join(entry) for entry in info.mapping) or "none"),
        ("paper", info.paper),
        ("smallest suite", f"`{smallest_suite(one)}`"),
    ]
    text = ""
    if with_text:
        text = as_markdown(sys.modules[type(one).__module__].__doc__ or type(one).__doc__ or "")
    heading = f"({anchor(one)})=\n### {info.id} `{info.name}`"
    return "\n\n".join(part for part in (heading, markdown_table(("", ""), rows), text) if part)


def control(one: Attack, kind: str) -> str:
    """What a control is: its docstring's first paragraph, or that it is the default one."""
    method = getattr(type(one), kind)
    if method is getattr(Attack, kind):
        return "the default one"
    return " ".join((method.__doc__ or "").split("\n\n")[0].split()) or "its own"


def surfaces(one: Attack) -> str:
    """The sets of surfaces, one of which a view must hold in full."""
    return " or ".join("+".join(sorted(needed)) for needed in one.info.needs)


def smallest_suite(one: Attack) -> str:
    """The smallest suite that runs the attack."""
    return "smoke" if one.info.smoke else "standard"


def anchor(one: Attack) -> str:
    """The label of an attack's section."""
    return "attack-" + one.info.name.replace("_", "-")


def measures() -> str:
    """A table for each axis of the trilemma: each measure's key, meaning, unit, and what measures it."""
    feeding: dict[str, list[str]] = {}
    for one in every().values():
        for feeds in one.info.measures:
            feeding.setdefault(feeds.measure, []).append(f"[`{one.info.name}`](attacks.md#{anchor(one)})")
    parts = []
    for axis in AXES:
        rows = [
            (
                f"`{key}`",
                f"**{kind.title}**. {kind.meaning}",
                kind.unit,
                kind.better,
                ", ".join(feeding.get(key, ())) or ("attacks" if kind.by == "attacks" else "the run"),
            )
            for key, kind in MEASURES.every().items()
            if kind.axis == axis
        ]
        heading = "IP" if axis == "ip" else axis.capitalize()
        parts += [
            f"#### {heading}",
            markdown_table(("key", "measure", "unit", "better", "measured by"), rows),
        ]
    return "\n\n".join(parts)


def gate_rules() -> str:
    """The rules that a policy can have: those that are no bound, and those whose name is not a key."""
    audit = "audits (A8, A9) of the mechanism at the run's settings, not of the run's training"
    judged = {"require_audit_within_claim": audit}
    rows = [(f"`{name}`", value, judged.get(name, "")) for name, value in OTHERS.items()]
    for name in limit_names():
        limit = limit_of(name)
        if limit is not None and limit.keys != (name[4:],):
            keys = ", ".join(f"`{key}`" for key in limit.keys) or "all configurations together"
            rows.append((f"`{name}`", limit.bound_text, keys))
    return markdown_table(("rule", "is given", "judges"), rows)


def mapping() -> str:
    """Return a table of each framework's identifiers and the attacks that carry them."""
    named: dict[tuple[str, str, str], list[str]] = {}
    for one in every().values():
        for entry in one.info.mapping:
            named.setdefault(entry, []).append(f"[`{one.info.name}`](attacks.md#{anchor(one)})")
    rows = [
        (f"{name} {version}", key, ", ".join(who)) for (name, version, key), who in sorted(named.items())
    ]
    return markdown_table(("framework", "identifier", "attacks"), rows)


def claims() -> str:
    """Return the table claim -> evidence -> command that a bundle of evidence has, too."""
    return bundle_claims.table(bundle_claims.claims(every().values()))


def threat_models() -> str:
    """A section for each threat model: who is corrupted, what they can do, what is not covered."""
    sections = []
    for model in every_threat_model().values():
        parties = [
            *(["the server"] if model.server else []),
            *([f"{model.clients} client{'s' * (model.clients > 1)}"] if model.clients else []),
            *(["the network"] if model.network else []),
            *(["a user of the API"] if model.api else []),
        ]
        manner = "may deviate from the protocol" if model.active else "follows the protocol"
        fit = [
            f"[`{a.info.name}`](attacks.md#{anchor(a)})"
            for a in every().values()
            if model.name in fitting(a)
        ]
        sections += [
            f"(threat-model-{model.name.replace('_', '-')})=\n### `{model.name}`: {model.title}",
            f"Corrupted: {', '.join(parties)}; {manner}. Knowledge: {model.knowledge}.",
            _list("Can", model.capabilities),
            _list("Assumed", model.assumptions),
            _list("Not meant to show", model.non_goals),
            f"**Attacks that fit:** {', '.join(fit) or 'none'}.",
        ]
    return "\n\n".join(sections)


def _list(heading: str, sentences: Iterable[str]) -> str:
    return "\n".join((f"**{heading}**", "", *(f"- {sentence}" for sentence in sentences)))


def _summary_and_rest(text: str) -> tuple[str, str]:
    first, _, rest = text.strip().partition("\n\n")
    return " ".join(first.split()), rest.strip()


def as_markdown(text: str) -> str:
    """A module's docstring as Markdown: its indented blocks are code there already."""
    return text.strip()
