"""The report's page: one HTML file that opens offline, on a phone, on paper, in light and dark.

The file contains style, script, charts and numbers. Its content security policy forbids the browser to load
or send anything, and to run any script except the two whose hashes it names. Text from settings, attacks or
clients is escaped and has no control characters.

Every measured number is in a `data` element with `data-n`, `data-seeds` and `data-source`. It also has an
interval (`data-low` and `data-high`), or `data-exact` if it was counted, or `data-single` if one value
allows no interval.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

from fedproxy_secure.evidence.finding import Outcome
from fedproxy_secure.evidence.number import Number
from fedproxy_secure.report import method_words, owner, page_words
from fedproxy_secure.report.html.charts import figures
from fedproxy_secure.report.html.drawing import DARK, LIGHT, kind_slots, to_svg, vega_script, visible
from fedproxy_secure.report.html.figure import Figure
from fedproxy_secure.report.html.findings import GRAVEST, attack_groups
from fedproxy_secure.report.html.ledger import ledger_tables
from fedproxy_secure.report.page_words import OUTCOME_WORDS, Verbatim
from fedproxy_secure.report.protections import rows, verdicts
from fedproxy_secure.report.report import Report, pointer
from fedproxy_secure.report.sweep import common_settings, kinds_of, labelled
from fedproxy_secure.report.tables import measures
from fedproxy_secure.report.tables.comparison import METHODS_TITLE, comparison_tables
from fedproxy_secure.runtime.artifacts import write_bytes
from fedproxy_secure.runtime.escape import printable
from fedproxy_secure.runtime.files.names import REPORT_PAGE

_MOST_OPEN = 12  # an attack that succeeded is shown open if it has at most this many findings
_TEMPLATES = Path(__file__).parent / "templates"
MORE_LIGHT = {
    "raised": "#fafbfc",
    "edge": "#8b939d",
    "link": "#1d5fbf",
    "alarm": "#b42318",
    "alarm-ink": "#7a1a12",
    "alarm-paper": "#fdeceb",
    "warn": "#8a5a00",
    "warn-ink": "#5f3f00",
    "warn-paper": "#fdf4e1",
    "calm": "#0f6b57",
    "fault": "#8f1d6b",
}
MORE_DARK = {
    "raised": "#1b1f24",
    "edge": "#6d7783",
    "link": "#7fb2ff",
    "alarm": "#ff8577",
    "alarm-ink": "#ffd5d0",
    "alarm-paper": "#3a1714",
    "warn": "#e0b050",
    "warn-ink": "#f5deb0",
    "warn-paper": "#33270f",
    "calm": "#4fc9a8",
    "fault": "#f09ad0",
}


def write_page(report: Report, folder: Path) -> Path:
    """Write `report.html` into `folder`, atomically, and return its path.

    Raises `RunFolderError` if the folder cannot be written.
    """
    write_bytes(folder / REPORT_PAGE, page(report).encode())
    return folder / REPORT_PAGE


def page(report: Report) -> str:
    """Return the whole page as text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=_visible,
    )
    environment.tests["number"] = lambda part: isinstance(part, Number)
    environment.tests["said"] = lambda part: isinstance(part, Verbatim)
    all_figures = figures(report)
    scripts = [vega_script(), (_TEMPLATES / "page.js").read_text(encoding="utf-8")] if all_figures else []
    rendered: str = environment.get_template("page.html.j2").render(
        **_content(report, all_figures),
        policy=_policy(scripts),
        scripts=[Markup(script) for script in scripts],
        specs=Markup(_specs(all_figures)),
        stills={f.id: Markup(to_svg(f.spec)) for f in all_figures},
        style=Markup(_style()),
        source=_source,
        ticked=_ticked,
    )
    return rendered


def _content(report: Report, all_figures: list[Figure]) -> dict[str, Any]:
    """Return the values for the template."""
    items = labelled(report.configurations)
    kinds = kinds_of(items)
    by_kind = sorted(items, key=lambda i: kinds.index(i.kind))
    groups = attack_groups(report)
    tables = measures.full_tables(report)
    outcomes = {o for g in groups for o, _ in g.counts}
    curve_figures = [f for f in all_figures if f.id.startswith("curves")]
    methods = next((c.kinds for f in all_figures if f.id == "methods" for c in f.charts), ())
    content: dict[str, Any] = {
        "report": report,
        "version": metadata.version("fedproxy-secure"),
        "items": items,
        "kinds": kinds or list(methods),
        "slots": dict(zip(kinds or methods, kind_slots(kinds or methods), strict=True)),
        "common": common_settings(report.configurations) if len(items) > 1 else [],
        "scope": page_words.scope(report),
        "stamps": measures.stamps(report),
        "failed": measures.failures(report),
        "cards": page_words.cards(report),
        "compared": method_words.compared(report),
        "contrasts": page_words.contrasts(report),
        "missing": page_words.missing(report),
        "first_tables": measures.first_tables(report),
        "full_tables": tables,
        "cost_table": next((t for t in tables if t.axis == "cost"), None),
        "breaks": [i for i, (a, b) in enumerate(pairwise(items), 1) if a.rest != b.rest],
        "figures": {
            name: next((f for f in all_figures if f.id == name), None)
            for name in ("glance", "pareto", "methods", "roc")
        },
        "curve_figures": curve_figures,
        "labels": any(i.rest for i in items),
        "comparison_tables": comparison_tables(report),
        "attack_groups": groups,
        **_beside_no_protection(report),
        "owner": {"rows": owner.owners_rows(report), "title": owner.TITLE, "about": owner.ABOUT},
        "opened": [
            index
            for index, g in enumerate(groups, 1)
            if len(g.rows) <= _MOST_OPEN and Outcome.SUCCEEDED in g.outcomes
        ],
        "outcomes": [o for o in GRAVEST if o in outcomes],
        "outcome_words": OUTCOME_WORDS,
        "by_kind": by_kind,
        "spans": [(kind, sum(i.kind == kind for i in items)) for kind in kinds],
        "ledger_tables": ledger_tables(report),
        "guarantees": measures.guarantee_groups(report),
        "environment": _facts(report.environment),
        "commands": [(c.name, c.commands) for c in report.configurations if c.commands],
        "total": None
        if report.total_epsilon is None
        else Number(report.total_epsilon, pointer("total_epsilon")),
        "estimates": [Number(e, pointer(f"estimates/{i}")) for i, e in enumerate(report.estimates)],
    }
    content["contents"] = _contents(content)
    return content


def _beside_no_protection(report: Report) -> dict[str, Any]:
    """Return the verdicts on protections and the attacks side by side; None for a part without content."""
    judgements, table = verdicts.verdicts(report), rows.side_table(report)
    words = {"title": rows.TITLE, "about": rows.ABOUT, "not_paired": rows.NOT_PAIRED}
    return {
        "verdicts": judgements and {"said": judgements, "title": verdicts.TITLE, "about": verdicts.ABOUT},
        "side": table and {"table": table, **words},
    }


def _contents(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return id and title of the sections that have content."""
    report: Report = content["report"]
    parts = (
        ("summary", "In plain words", True),
        ("trilemma", "Trilemma", content["items"]),
        ("fronts", "Pareto fronts", content["figures"]["pareto"]),
        ("curves", "Round by round", content["curve_figures"]),
        ("methods", METHODS_TITLE, report.rows),
        ("findings", "Findings", content["attack_groups"]),
        ("roc", "ROC curves", content["figures"]["roc"]),
        ("ledger", "Who saw what", content["ledger_tables"]),
        ("guarantees", "Guarantees", content["guarantees"]),
        ("cost", "Cost", content["cost_table"]),
        ("not-measured", "Not measured", report.not_measured),
        ("reproduce", "Reproduce", True),
        ("records", "Records", True),
    )
    return [(id, title) for id, title, present in parts if present]


def _facts(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the environment as pairs of a name and a text."""
    lines = []
    for name, value in sorted(environment.items()):
        if isinstance(value, Mapping):
            value = ", ".join(f"{k} {v}" for k, v in sorted(value.items()))
        if value is not None:
            lines.append((name.replace("_", " ").capitalize(), str(value)))
    return lines


def _style() -> str:
    def block(colours: Mapping[str, str]) -> str:
        return " ".join(f"--{name}: {value};" for name, value in colours.items())

    light, dark = block({**LIGHT, **MORE_LIGHT}), block({**DARK, **MORE_DARK})
    return (
        f":root {{ color-scheme: light dark; {light} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
        f"@media print {{ :root {{ color-scheme: light; }} }}\n"
        + (_TEMPLATES / "page.css").read_text(encoding="utf-8")
    )


def _specs(all_figures: list[Figure]) -> str:
    """Return the charts' specs as JSON that cannot end its script element."""
    specs = {c.id: [visible(spec) for _, spec in c.specs] for f in all_figures for c in f.charts}
    text = json.dumps(specs, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _policy(scripts: list[str]) -> str:
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    allowed = " ".join(f"'sha256-{h}'" for h in hashes) or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _visible(value: Any) -> Any:
    """Return plain texts without control characters except line breaks, and other values unchanged."""
    return printable(value, keep="\n") if type(value) is str else value


def _ticked(text: str) -> Any:
    """Return text in which parts between backticks are code elements."""
    from markupsafe import Markup

    parts = printable(text).split("`")
    pieces = [Markup("<code>{}</code>" if i % 2 else "{}").format(part) for i, part in enumerate(parts)]
    return Markup("").join(pieces)


def _source(source: str) -> Any:
    """Return a source as a link to its file if that is a plain relative path, else unchanged."""
    from markupsafe import Markup, escape

    path, _, place = printable(source).partition("#")
    if not re.fullmatch(r"[\w][\w .@=+-]*(/[\w .@=+-]+)*", path) or ".." in path.split("/"):
        return source
    detail = f" {place}" if place else ""
    return Markup('<a href="{}">{}</a>{}').format(path, path, escape(detail))
