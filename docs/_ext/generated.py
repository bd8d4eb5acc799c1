"""Parts of pages that are written from the code when the pages are built, so that both always agree.

A page says `<!-- generated: NAME -->`, alone on a line; the line becomes what the function NAME of `PARTS`
returns, as Markdown. A name that is not known is a warning, which ends the build.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import api_pages
import attack_pages
import command_pages
import root_pages
import setting_pages
from sphinx.application import Sphinx
from sphinx.util import logging

log = logging.getLogger(__name__)
MARK = re.compile(r"^<!-- generated: ([a-z-]+) -->$", re.MULTILINE)
PARTS: dict[str, Callable[[], str]] = {
    "api": api_pages.public_names,
    "attack-table": attack_pages.table,
    "attacks": attack_pages.every_attack,
    "changelog": partial(root_pages.root_file, "CHANGELOG.md"),
    "claims": attack_pages.claims,
    "code-of-conduct": partial(root_pages.root_file, "CODE_OF_CONDUCT.md"),
    "commands": command_pages.every_command,
    "contributing": partial(root_pages.root_file, "CONTRIBUTING.md"),
    "errors": api_pages.errors,
    "extension-points": api_pages.extension_points,
    "gate-rules": attack_pages.gate_rules,
    "mapping": attack_pages.mapping,
    "measures": attack_pages.measures,
    "security": partial(root_pages.root_file, "SECURITY.md"),
    "settings": setting_pages.every_section,
    "threat-models": attack_pages.threat_models,
}


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the handler."""
    app.connect("source-read", _fill_in)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _fill_in(app: Sphinx, page: str, source: list[str]) -> None:
    def part(match: re.Match[str]) -> str:
        if match[1] not in PARTS:
            log.warning(
                "generated: %s: is not known; there are %s", match[1], ", ".join(PARTS), location=page
            )
            return ""
        app.env.note_reread()  # the code may change without the page
        return PARTS[match[1]]()

    source[0] = MARK.sub(part, source[0])
