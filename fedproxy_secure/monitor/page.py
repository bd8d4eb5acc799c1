"""A federation's status as one small HTML page, without scripts, in light and dark.

Guarantees: everything is escaped by the template, and text is shown without control characters; the page
loads nothing and sends nothing. It shows only what `state` lists.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedproxy_secure.dp.guarantees import rounded_up
from fedproxy_secure.monitor.state import RENEW_DAYS, FederationStatus
from fedproxy_secure.report.html.drawing import DARK, LIGHT
from fedproxy_secure.report.html.page import MORE_DARK, MORE_LIGHT
from fedproxy_secure.runtime.escape import printable
from fedproxy_secure.runtime.progress import duration

SECURITY_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
REFRESH_S = 15
_COLOURS = ("ink", "muted", "rule", "paper", "raised", "link", "alarm-ink", "alarm-paper", "calm")
_TEMPLATES = Path(__file__).parent / "templates"
Rows = list[tuple[str, str]]


def page(standing: FederationStatus, *, refreshing: bool = True) -> str:
    """Return the page as text; with `refreshing` it says that the browser reloads it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    rendered: str = environment.get_template("status.html.j2").render(
        at=standing,
        tables=[(title, rows) for title, rows in tables(standing).items() if rows],
        refreshing=refreshing,
        refresh_s=REFRESH_S,
        style=Markup(_style()),  # noqa: S704 - colours of ours
    )
    return rendered


def tables(at: FederationStatus) -> dict[str, Rows]:
    """Return the page's tables by heading: names and values as text. Unknown values have no row."""
    return {
        "Progress": _known(
            ("Rounds done", at.rounds_done if at.rounds is None else f"{at.rounds_done} of {at.rounds}"),
            ("Round, from 0", at.round),
            ("Last round took", _time(at.round_seconds)),
            ("Time left, at this pace", _time(at.left_seconds)),
        ),
        "Clients": _known(
            ("Cohort of a round", at.cohort),
            ("Connected after set-up", at.connected),
            ("Took part in the last round", at.clients),
            ("Absent in the last round", ", ".join(at.absent) or None),
        ),
        "Traffic": _known(
            ("Messages answered", at.messages),
            ("Sent", _size(at.bytes_sent)),
            ("Received", _size(at.bytes_received)),
        ),
        "Certificate": _certificate(at),
        "Privacy spent by this site": _spent(at),
        "Aborted": [(reason, str(count)) for reason, count in sorted(at.aborts.items())],
        "Last event": _last(at),
    }


def _known(*rows: tuple[str, object]) -> Rows:
    return [(name, str(value)) for name, value in rows if value is not None]


def _certificate(at: FederationStatus) -> Rows:
    if at.certificate_ends is None:
        return []
    days = max(0, (at.certificate_ends - at.read_at).days)
    renew = "; renew it" if days < RENEW_DAYS else ""
    return [("Ends (UTC)", f"{at.certificate_ends:%Y-%m-%d}, in {days} days{renew}")]


def _spent(at: FederationStatus) -> Rows:
    if at.role != "site" or at.spending is None:
        return []
    epsilon = at.spending.epsilon
    return [
        ("Epsilon so far", "infinite" if math.isinf(epsilon) else rounded_up(epsilon)),
        ("Limit on epsilon", f"{at.spending.limit:.4g}"),
        ("Delta", rounded_up(at.spending.delta)),
    ]


def _last(at: FederationStatus) -> Rows:
    if at.last is None:
        return []
    return _known(
        ("Time (UTC)", at.last.time.strftime("%Y-%m-%d %H:%M:%S")),
        ("Kind", at.last.message or at.last.kind),
        ("Took", _time(at.last.seconds)),
        ("Ended", at.last.outcome if at.last.reason is None else f"aborted: {at.last.reason}"),
        ("Unreadable lines in the log", at.skipped or None),
    )


def _time(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return f"{seconds:.2f} s" if seconds < 10 else duration(seconds)


def _size(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def _style() -> str:
    def block(colours: Mapping[str, Any]) -> str:
        return " ".join(f"--{name}: {colours[name]};" for name in _COLOURS)

    light, dark = block({**LIGHT, **MORE_LIGHT}), block({**DARK, **MORE_DARK})
    css = (_TEMPLATES / "status.css").read_text(encoding="utf-8")
    return (
        f":root {{ color-scheme: light dark; {light} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n{css}"
    )
