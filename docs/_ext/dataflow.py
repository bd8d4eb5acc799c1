"""Diagrams of who holds what and what crosses the wire, drawn as SVG from a few lines of text.

    ```{dataflow} What the picture shows, for people who cannot see it
    lanes: Each client | Server
    holds: its records; its identity key | the LLM; the proxy
    step: 1 train
    <- the adapter so far
    -> ! the client's whole update
    learns: what came of it | every client's update
    ```

`->` goes from the first lane to the second, `<-` back; `!` marks what must be kept from the receiver and is
not. The drawing is part of the page (no script, no request), takes its colours from the theme, and the text
above is what a reader without a browser sees.
"""

from __future__ import annotations

import textwrap
from html import escape
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

WIDTH, LANE, MARGIN = 760, 240, 10
LINE, CHARACTERS = 17, 34  # height of a line of text; characters that fit into a lane's box
ARROW_CHARACTERS = 68


class Dataflow(Directive):
    """One diagram of two lanes; the argument is its description."""

    required_arguments = 1
    final_argument_whitespace = True
    has_content = True

    def run(self) -> list[nodes.Node]:
        """The drawing, or a one-line error that names the line."""
        try:
            drawing = draw(list(self.content), self.arguments[0])
        except ValueError as error:
            raise self.error(f"dataflow: {error}") from error
        return [nodes.raw("", drawing, format="html")]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("dataflow", Dataflow)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def draw(lines: list[str], description: str) -> str:
    """The diagram as an SVG element. Raises `ValueError` for a line that it cannot read."""
    shapes: list[str] = []
    y = MARGIN
    lifelines_from = y
    for line in lines:
        kind, _, rest = line.strip().partition(" ")
        if not kind:
            continue
        if kind == "lanes:":
            shapes += [
                _text(x, y + LINE, words, "flow-lane") for x, words in zip((0, 1), _two(rest), strict=True)
            ]
            y += LINE + MARGIN
        elif kind in ("holds:", "learns:"):
            boxes, height = _boxes(kind[:-1], _two(rest), y)
            shapes += boxes
            y += height + MARGIN
            if kind == "holds:":
                lifelines_from = y - MARGIN
            else:
                shapes[:0] = _lifelines(lifelines_from, y - height - MARGIN)
        elif kind == "step:":
            y += LINE + MARGIN
            shapes.append(f'<text class="flow-step" x="{WIDTH / 2}" y="{y}">{escape(rest)}</text>')
            y += MARGIN / 2
        elif kind in ("->", "<-"):
            arrow, height = _arrow(rest, y, to_right=kind == "->")
            shapes += arrow
            y += height
        else:
            raise ValueError(f"{line.strip()!r}: must begin with lanes:, holds:, step:, ->, <- or learns:")
    body = "\n".join(shapes)
    return (
        f'<figure class="flow"><svg viewBox="0 0 {WIDTH} {y:g}" role="img" '
        f'aria-label="{escape(description)}">\n'
        f"{_MARKERS}\n{body}\n</svg>\n<figcaption>{escape(description)}</figcaption></figure>"
    )


_MARKERS = "".join(
    f'<defs><marker id="flow-{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
    f'orient="auto-start-reverse"><path class="flow-head flow-{name}" d="M0 0L8 4L0 8z"/></marker></defs>'
    for name in ("plain", "exposed")
)


def _two(text: str) -> list[str]:
    parts = [part.strip() for part in text.split("|")]
    if len(parts) != 2:
        raise ValueError(f"{text!r}: must have two parts with | between them")
    return parts


def _centre(lane: int) -> float:
    return LANE / 2 if lane == 0 else WIDTH - LANE / 2


def _text(lane: int, y: float, words: str, kind: str) -> str:
    return f'<text class="{kind}" x="{_centre(lane)}" y="{y:g}">{escape(words)}</text>'


def _boxes(heading: str, contents: list[str], y: float) -> tuple[list[str], float]:
    """A box for each lane, of equal height, with what it holds or learns, one item a line or two."""
    items = [
        [
            ("! " if item.strip().startswith("!") else "") + part
            for item in content.split(";")
            for part in textwrap.wrap(item.strip().removeprefix("!").strip(), CHARACTERS)
        ]
        for content in contents
    ]
    height = (max(map(len, items)) + 1) * LINE + 2 * MARGIN
    shapes = []
    for lane, texts in enumerate(items):
        left = _centre(lane) - LANE / 2
        exposed = any(text.startswith("! ") for text in texts)
        shapes.append(
            f'<rect class="flow-box{" flow-exposed" if exposed else ""}" x="{left + 1:g}" y="{y:g}" '
            f'width="{LANE - 2}" height="{height:g}" rx="8"/>'
        )
        shapes.append(
            f'<text class="flow-heading" x="{left + 12:g}" y="{y + MARGIN + 11:g}">{heading}</text>'
        )
        for i, text in enumerate(texts):
            kind = "flow-item flow-exposed" if text.startswith("! ") else "flow-item"
            shapes.append(
                f'<text class="{kind}" x="{left + 12:g}" y="{y + MARGIN + 11 + (i + 1) * LINE:g}">'
                f"{escape(text.removeprefix('! '))}</text>"
            )
    return shapes, height


def _arrow(text: str, y: float, *, to_right: bool) -> tuple[list[str], float]:
    kind = "exposed" if text.startswith("!") else "plain"
    words = textwrap.wrap(text.removeprefix("!").strip(), ARROW_CHARACTERS)
    left, right = LANE / 2 + 6, WIDTH - LANE / 2 - 6
    start, end = (left, right) if to_right else (right, left)
    shapes = [
        f'<text class="flow-message flow-{kind}" x="{WIDTH / 2}" y="{y + (i + 1) * LINE:g}">'
        f"{escape(word)}</text>"
        for i, word in enumerate(words)
    ]
    below = y + len(words) * LINE + 7
    shapes.append(
        f'<line class="flow-arrow flow-{kind}" x1="{start:g}" y1="{below:g}" x2="{end:g}" y2="{below:g}" '
        f'marker-end="url(#flow-{kind})"/>'
    )
    return shapes, len(words) * LINE + 15


def _lifelines(top: float, bottom: float) -> list[str]:
    return [
        f'<line class="flow-life" x1="{_centre(lane)}" y1="{top:g}" x2="{_centre(lane)}" y2="{bottom:g}"/>'
        for lane in (0, 1)
    ]
