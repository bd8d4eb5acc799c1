"""Take clients' paths out of what a bundle copies: each becomes `[redacted]`, and none may be left.

A bundle holds only what `archive.MAY_HOLD` names. Of that, reports and audit logs are copies, and may
quote a path: in the command that made the run, or in the error that ended it. Settings say which paths are
a client's: `data.root`, `clients.source`, `privacy.ledger`, `protect.keys`, `audit.folder`. A client on a
machine of its own has others, so every absolute path in an error or a note is taken out, too; so is all of
what ended an aborted run. What was redacted is named in `redactions.json`, with the SHA-256 that the run's
own signature has. What a client tells a server on another machine goes by the same places
(`line_for_others`).

A path may contain blanks and brackets, so its end is ambiguous. What is removed therefore runs from the
first separator to the next colon or comma that precedes a blank, or to the end of the line; after a quote,
to the closing quote. The part up to the first blank or bracket is also removed wherever it occurs alone.
"""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any

from fedproxy_secure.errors import ConfigError, FedProxyError
from fedproxy_secure.federate.client_policy import load_policy

MARK = "[redacted]"
# from where a path may begin to `: `, `, ` or the end of the line; within it the next one may begin
ABSOLUTE = re.compile(
    r"""(?=((?:(?<![^\s'"`(\[{=:,;])(?:file:/{1,3}(?!/)|/(?!/)|(?<!:)//+|~[\w.-]*/|[a-z]:[\\/]|\\\\+)"""
    r"""|(?<=file://)/)(?=[^\s/\\])(?:(?!: |, )[^\r\n])+))""",
    re.IGNORECASE,
)
SHORT = re.compile(r"""[^\s'"`,;:)\]}]+""")  # of a path, what stands before the first sign that may end it
ENDS = "'\"`.,;:)]}"  # at the end of a path they are the sentence's
PLACES = (("data", "root"), ("privacy", "ledger"), ("protect", "keys"), ("audit", "folder"))


def private_strings(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the paths in a run's settings that a bundle must not hold, the longest first.

    A name without a folder in it, such as `data`, says nothing and is not among them.
    """
    root = _at(settings, "data", "root")
    found = {str(value) for place in PLACES if (value := _at(settings, *place)) is not None}
    for client in _at(settings, "data", "clients") or ():
        source = str(client.get("source", "")) if isinstance(client, Mapping) else ""
        if source.startswith("hub:"):
            continue
        filled = source.replace("{data}", str(root or ""))
        found |= {source, filled, filled.partition("{")[0]}
        for part in ("train_split", "test_split"):
            found.add(filled.replace("{split}", str(client.get(part, part.partition("_")[0]))))
    found |= {str(Path(text).resolve()) for text in found if text and "{" not in text}
    return tuple(sorted(filter(_is_path, found), key=lambda text: (-len(text), text)))


def paths_in(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the absolute paths that sentences quote.

    >>> paths_in(["client c0: /home/c0/records.jsonl: cannot be read", "1 / 2 of 3/4"])
    ('/home/c0/records.jsonl',)
    >>> paths_in(["/srv/St Mary/x: is missing"])
    ('/srv/St Mary/x', '/srv/St')
    """
    found = dict.fromkeys(path for text in texts for path in _paths(text))
    return tuple(path for path in found if _is_path(path))


def _paths(text: str) -> Iterator[str]:
    """Yield each absolute path as far as it may reach, and as far as it reaches at least."""
    for match in ABSOLUTE.finditer(text):
        path, before = match[1], text[match.start() - 1 : match.start()]
        if before and before in "'\"`":
            path = path.partition(before)[0]
        yield path.rstrip().rstrip(ENDS)
        scheme, drive = path[:5].lower() == "file:", path[1:2] == ":"
        start = 5 if scheme else 2 if drive else 0
        if short := SHORT.match(path, start):
            yield (path[:start] + short[0]).rstrip(ENDS)


def line_for_others(line: str, places: Iterable[str]) -> str | None:
    """Return an error's line with these places as `[redacted]`; None if it may name another place as well.

    A place is replaced where it stands alone. Of a file below it only the file system knows where its name
    ends, which may have colons, commas and blanks: the longest path that is there is replaced. A line that
    still has a separator in it names something that is not there, or is elsewhere, and is not for others.

    >>> line_for_others("/srv/St Mary, Boston: is no folder", ["/srv/St Mary, Boston"])
    '[redacted]: is no folder'
    >>> line_for_others("/srv/St Mary, Boston/missing.key: is not there", ["/srv/St Mary, Boston"])
    """
    known = sorted({form for place in places if _is_path(place) for form in _forms(place)}, key=len)
    if known:
        one = "|".join(re.escape(form) for form in reversed(known))
        line = re.sub(rf"""(?:{one})(?=$|[:,;'"`)\]])""", MARK, line)
        start = 0
        while match := re.compile(f"(?:{one})(?=[/\\\\])").search(line, start):
            end = _end_of_file_name(line, match.start())
            if end is None:
                return None
            line = line[: match.start()] + MARK + line[end:]
            start = match.start() + len(MARK)
    return None if re.search(r"[/\\]", line.replace(" 1 / ", " ")) else line  # errors have `below 1 / n`


def _end_of_file_name(line: str, start: int) -> int | None:
    """Return where the longest path of this machine that begins at `start` ends; None if there is none."""
    ends = [
        match.start() for match in re.finditer(r"""(?=: |, |['"`)\];])|$""", line) if match.start() > start
    ]
    return next((end for end in reversed(ends) if os.path.lexists(line[start:end])), None)


def places_of_a_client(policy_file: str) -> set[str]:
    """Return where a client's files lie, by its policy as far as that can be read, and who runs it."""
    file = Path(policy_file)
    places = {policy_file, str(file.parent)}
    with suppress(OSError, RuntimeError):  # a home or working folder that is not there
        places |= {str(file.resolve()), str(file.resolve().parent), str(Path.cwd()), str(Path.home())}
    with suppress(FedProxyError):
        own = load_policy(file, one_machine=True).model_dump(mode="json")
        own["data"] = {"root": own["data_root"], "clients": [own["client"]]}
        places |= {*private_strings(own)}
    return places


def redacted_text(text: str, private: Iterable[str]) -> str:
    """Return a text without the private strings, in any of the forms that they take in JSON or HTML."""
    for string in private:
        for form in _forms(string):
            text = text.replace(form, MARK)
    return text


def redacted_value(value: Any, private: Iterable[str]) -> Any:
    """Return plain JSON values with the private strings out of every text in them."""
    if isinstance(value, str):
        return redacted_text(value, private)
    if isinstance(value, dict):
        return {redacted_text(k, private): redacted_value(v, private) for k, v in value.items()}
    return [redacted_value(v, private) for v in value] if isinstance(value, list) else value


def check_nothing_private(files: Mapping[str, bytes], private: Iterable[str]) -> None:
    """Raise `ConfigError`, naming the file and not the string, if a private string is left in a file."""
    forms = [form.encode() for string in private for form in _forms(string)]
    for name, content in files.items():
        if any(form in content for form in forms):
            raise ConfigError(f"{name}: would hold a client's path; nothing was written")


def _forms(string: str) -> list[str]:
    spelled = (string, json.dumps(string)[1:-1], json.dumps(string, ensure_ascii=False)[1:-1])
    in_html = (html.escape(s).replace("&#x27;", "&#39;") for s in spelled)  # as the page's templates escape
    return list(dict.fromkeys((*spelled, *(html.escape(s) for s in spelled), *in_html)))


def _at(settings: Mapping[str, Any], section: str, key: str) -> Any:
    part = settings.get(section)
    return part.get(key) if isinstance(part, Mapping) else None


def _is_path(text: str) -> bool:
    """Return whether a text names a place in a folder; `demo` and `./` do not."""
    names = [part for part in PurePath(text).parts if part not in ("/", "\\", ".", "..")]
    return ("/" in text or "\\" in text) and bool(names)
