"""Pages that are files of the repository's root, with their links as they are from here."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)\s]+)\)")


def root_file(name: str) -> str:
    """The text of a file of the root; its links to such files lead to their pages."""
    return LINK.sub(lambda match: f"]({_from_here(match[1])})", (ROOT / name).read_text(encoding="utf-8"))


def _from_here(target: str) -> str:
    path, mark, heading = target.partition("#")
    if path.startswith("docs/"):
        return path.removeprefix("docs/") + mark + heading
    page = path.lower().replace("_", "-")
    return (page if (ROOT / "docs" / page).exists() else f"../{path}") + mark + heading
