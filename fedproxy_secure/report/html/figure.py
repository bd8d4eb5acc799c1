"""What a chart is, and a figure of several charts.

Every chart keeps the numbers that it draws, so that a page can list them beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedproxy_secure.evidence.number import Number
from fedproxy_secure.report.html.drawing import Spec, side_by_side


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One chart, as specs for a browser and as the numbers that it draws.

    `specs`: the choices, (name, spec), of which the first is shown; `choice`: what is chosen, in words.
    `numbers`: all drawn numbers, (name, number).
    """

    id: str
    title: str
    description: str
    specs: tuple[tuple[str, Spec], ...]
    numbers: tuple[tuple[str, Number], ...]
    kinds: tuple[str, ...]
    choice: str = ""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A group of charts, and a picture of all of them in a file beside the page."""

    id: str
    title: str
    charts: tuple[Chart, ...]
    columns: int
    width: int  # width of a chart in the picture, pixels

    @property
    def picture(self) -> str:
        """The name of its PNG file."""
        return f"{self.id}.png"

    @property
    def spec(self) -> Spec:
        """All its charts in one, of fixed size."""
        return side_by_side(
            [{**c.specs[0][1], "title": c.title} for c in self.charts],
            columns=self.columns,
            width=self.width,
        )
