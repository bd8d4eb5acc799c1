"""Walks a page's HTML: its elements, its text, and the numbers that do not say what they rest on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

_VOID = {"meta", "link", "input", "br", "hr", "img", "path", "circle", "use"}
# Names, headings and quotations may hold digits that nobody measured.
_NAMES = {
    "h1",
    "h2",
    "h3",
    "h4",
    "th",
    "caption",
    "dt",
    "option",
    "legend",
    "label",
    "summary",
    "code",
    "a",
}
_UNREAD = {"noscript", "script", "style", "svg", "template"}
_SAID = {"said", "id", "kind", "rest", "what", "name"}


@dataclass
class Element:
    """A tag, its attributes and what is in it."""

    tag: str
    attributes: dict[str, str | None]
    parts: list[Element | str] = field(default_factory=list)

    @property
    def classes(self) -> set[str]:
        """Of the attribute `class`."""
        return set((self.attributes.get("class") or "").split())

    @property
    def text(self) -> str:
        """All text in it, spaces collapsed."""
        found = "".join(p if isinstance(p, str) else p.text for p in self.parts)
        return " ".join(found.split())

    def every(self, tag: str = "", *, css: str = "") -> Iterator[Element]:
        """Elements in it of this tag and class, itself too."""
        if (not tag or self.tag == tag) and (not css or css in self.classes):
            yield self
        for part in self.parts:
            if isinstance(part, Element):
                yield from part.every(tag, css=css)


class _Builder(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        made = Element(tag, dict(attrs))
        self.open[-1].parts.append(made)
        if tag not in _VOID:
            self.open.append(made)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].parts.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag in _VOID:
            return
        if self.open[-1].tag != tag:
            raise AssertionError(f"</{tag}> closes <{self.open[-1].tag}>")
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].parts.append(data)


def parse(html: str) -> Element:
    """The page as a tree. Raises `AssertionError` where tags do not match."""
    builder = _Builder()
    builder.feed(html)
    builder.close()
    if len(builder.open) != 1:
        raise AssertionError(f"<{builder.open[-1].tag}> is never closed")
    return builder.root


def numbers(root: Element) -> list[Element]:
    """Every element that shows a measured number."""
    return list(root.every("data", css="num"))


def faults(root: Element) -> list[str]:
    """Numbers of the measured sections that do not say what they rest on; [] if all do."""
    found = [f"{n.text}: {why}" for n in numbers(root) for why in _faults_of(n)]
    for section in root.every("section"):
        if "data-measured" in section.attributes:
            found += [f"{section.attributes['id']}: a bare number in {text!r}" for text in _bare(section)]
    return found


def _faults_of(number: Element) -> Iterator[str]:
    said = number.attributes
    if not re.fullmatch(r"[1-9]\d*", said.get("data-n") or ""):
        yield "no n"
    if not re.fullmatch(r"\d+( \d+)*", said.get("data-seeds") or ""):
        yield "no seeds"
    if not re.fullmatch(r"[^#\s]+\.(json|jsonl|yaml)(#.+)?", said.get("data-source") or ""):
        yield "no source"
    interval = {"data-low", "data-high"} <= set(said)
    if interval + sum(mark in said for mark in ("data-exact", "data-single", "data-at-least")) != 1:
        yield "not one of interval, exact, single, at least"
    if interval and not float(str(said["data-low"])) <= float(str(said["value"])) <= float(
        str(said["data-high"])
    ):
        yield "lies outside its interval"
    if (said.get("data-source") or "") not in (said.get("title") or ""):
        yield "its title does not tell the source"


def _bare(element: Element) -> Iterator[str]:
    for part in element.parts:
        if isinstance(part, str):
            if re.search(r"\d", part):
                yield " ".join(part.split())
        elif part.tag not in _NAMES | _UNREAD | {"data"} and not part.classes & _SAID:
            yield from _bare(part)
