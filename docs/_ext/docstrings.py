"""Turn docstrings into reStructuredText: they use Markdown's single backticks and plain indented code.

Sphinx reads docstrings as reStructuredText, where `x` is no code, `*` opens emphasis, and an indented block
is a quotation. This extension changes those three things, after napoleon has read the Google sections, and
lets types of other projects in signatures stay plain text: their documentation is not on this machine.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.addnodes import desc_signature, pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

CODE = re.compile(r"(?<![`:\w])`([^`\n]+)`(?!`)")
SPECIAL = re.compile(r"(?<![\\*])([*|]|(?<=\w)_(?!\w))(?!\*)")
BEFORE_NAPOLEON, AFTER_NAPOLEON = 100, 900


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the handlers."""
    app.connect("autodoc-process-docstring", _keep_colons, priority=BEFORE_NAPOLEON)
    app.connect("autodoc-process-docstring", _as_rst, priority=AFTER_NAPOLEON)
    app.connect("missing-reference", _leave_types_as_text)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _keep_colons(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Keep napoleon from reading what stands before a property's first colon as its type."""
    if what in ("attribute", "property", "data"):
        lines.insert(0, "")


def _as_rst(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    lines[:] = as_rst(lines)


def as_rst(lines: list[str]) -> list[str]:
    """The lines of a docstring, with code marked as reStructuredText marks it.

    An indented block that follows a blank line and a line of prose is code; everything else is prose.
    """
    result: list[str] = []
    code_below: int | None = None  # the indentation of the prose above the current block of code
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if code_below is not None and line.strip() and indent <= code_below:
            code_below = None
        if code_below is not None:
            result.append(line)
            continue
        above = next((text for text in reversed(result) if text.strip()), None)
        follows_blank = number > 0 and not lines[number - 1].strip()
        if line.strip() and follows_blank and above is not None and _begins_code(above, indent):
            code_below = len(above) - len(above.lstrip())
            result += [" " * code_below + "::", "", line]
            continue
        result.append(_prose(line))
    return result


def _begins_code(above: str, indent: int) -> bool:
    """Whether a line indented by `indent` below the prose line `above` is code."""
    own = len(above) - len(above.lstrip())
    text = above.lstrip()
    return indent >= own + 4 and not text.startswith((":", "..", "- ", "* ")) and not text.endswith("::")


def _prose(line: str) -> str:
    """A line of prose: code in double backticks, and no character that opens markup by accident."""
    parts = re.split(r"(`[^`]+`|``[^`]+``|\*\*[^*]+\*\*|(?<!\*)\*\w[^*]*\w\*(?!\*))", line)
    for i, part in enumerate(parts):
        if i % 2 == 0 and not part.lstrip().startswith((":", "..", "- ", "* ")):
            parts[i] = SPECIAL.sub(r"\\\1", part)
    return CODE.sub(r"``\1``", "".join(parts))


def _leave_types_as_text(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.TextElement
) -> nodes.Node | None:
    """A type in a signature that these pages do not document stays text; links in prose must resolve."""
    parent = node.parent
    while parent is not None:
        if isinstance(parent, desc_signature):
            return contnode
        parent = parent.parent
    return contnode if node.get("reftype") == "class" and node.get("refspecific") is not None else None
