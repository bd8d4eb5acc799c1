"""Disturbed runs of a deployed federation: each must end in the exact result, or in an abort that says why.

    python -m tests.network.disturbances --runs 15 --seed 1 --out runs/disturbed.jsonl

Every run starts an owner and four sites on a network of their own. In each step of the protocol it waits
until a site has been asked for it, and disturbs that site, the owner or all cables (`schedule`) then or a
moment later; in 15 runs every disturbance is planned once in every step. If the owner's command ends
without a result, all is made good and it is called again, as a person would. A step that does not come,
because an earlier disturbance took its site out, is not counted. Disturbances that are not in the file yet
are done by the next call. The table that is printed at the end has a row for each disturbance and a column
for each step. Ends with 1 if a run went wrong, or if something planned was not done.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tests.network.deployed import CONFIG, SITES, Deployed
from tests.network.disturbed import GOOD, Ending, disturbed_run
from tests.network.exactness import Exactness
from tests.network.schedule import KINDS, STEPS, Plan, plans
from tests.support.network.commands import missing as unable
from tests.support.network.whole import Network

# enough for five disturbed rounds, and some that pass while a site is away
SETTINGS = {**CONFIG, "federate": {**CONFIG["federate"], "rounds": 8}}


@dataclass(frozen=True, kw_only=True)
class Line:
    """What became of one disturbance, of a `run` of the schedule with a `seed`."""

    seed: int
    run: int
    ending: Ending

    def to_json(self) -> str:
        """Return it as one line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Line:
        """Read what `to_json` returned."""
        raw: dict[str, Any] = json.loads(text)
        ending = raw["ending"]
        ending = Ending(**{**ending, "plan": Plan(**ending["plan"]), "said": tuple(ending["said"])})
        return cls(seed=raw["seed"], run=raw["run"], ending=ending)


def read_lines(file: Path) -> list[Line]:
    """Read the lines of earlier runs; none if there is no file."""
    if not file.exists():
        return []
    return [Line.from_json(text) for text in file.read_text(encoding="utf-8").splitlines()]


def table(lines: Iterable[Line]) -> str:
    """Return a Markdown table of disturbance by step: how many ended well, of how many."""
    good: Counter[tuple[str, str]] = Counter()
    every: Counter[tuple[str, str]] = Counter()
    for ending in (line.ending for line in lines):
        kind, step = ending.plan.kind, ending.plan.step
        for cell in ((kind, step), (kind, ""), ("", step), ("", "")):
            every[cell] += 1
            good[cell] += ending.outcome in GOOD

    def share(kind: str, step: str) -> str:
        return f"{good[kind, step]}/{every[kind, step]}" if every[kind, step] else ""

    rows = [[kind, *(share(kind, step) for step in STEPS), share(kind, "")] for kind in KINDS]
    rows.append(["all", *(share("", step) for step in STEPS), share("", "")])
    head = ["disturbance", *STEPS, "all"]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def missing(
    lines: Iterable[Line], seed: int, count: int, only: Sequence[str]
) -> dict[int, tuple[Plan, ...]]:
    """Return, by run, the disturbances of the first `count` runs that are not in the lines yet.

    `only`: leaves those whose disturbance has one of these texts in it.
    """
    known = {(line.run, line.ending.plan.step) for line in lines if line.seed == seed}
    found = {}
    for run in range(count):
        found[run] = tuple(
            plan
            for plan in plans(seed, run, sites=len(SITES))
            if (run, plan.step) not in known and any(text in plan.kind for text in only or [""])
        )
    return {run: wanted for run, wanted in found.items() if wanted}


def disturbed(
    wanted: Iterable[tuple[int, Sequence[Plan]]], work: Path
) -> Iterator[tuple[int, list[Ending]]]:
    """Do runs one after another, in folders below `work`; yield what became of each one's disturbances."""
    with Network(sites=len(SITES)) as network:
        prepared = Deployed.prepare(network, work / "prepared", SETTINGS)
        exactness = Exactness()
        for run, planned in wanted:
            endings = disturbed_run(network, prepared, exactness, planned, work / f"run-{run}")
            yield (
                run,
                [replace(one, said=tuple(_short(text, work) for text in one.said)) for one in endings],
            )


def _short(said: str, work: Path) -> str:
    """Return what was said without the names of folders and numbers of processes."""
    return re.sub(rf"{re.escape(str(work))}/[^/ ]+/", "", said)[:500]


def main(arguments: list[str] | None = None) -> int:
    """Do what is not in the file yet, and print the table of all that is."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--runs", type=int, default=2, help="how many runs of the schedule, from the first")
    parser.add_argument("--seed", type=int, default=0, help="of the schedule")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/disturbed.jsonl"), help="a line for each disturbance"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after so many")
    parser.add_argument(
        "--only", action="append", metavar="TEXT", help="disturbances that have this in them; repeatable"
    )
    parser.add_argument("--keep", type=Path, help="keep the runs' folders here; must not exist")
    asked = parser.parse_args(arguments)
    wanted = missing(read_lines(asked.out), asked.seed, asked.runs, asked.only or [])
    if wanted and (why := unable()):
        print(f"error: {why}", file=sys.stderr)
        return 2
    began = time.monotonic()
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if asked.keep is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedproxy-disturbed-")))
        else:
            work = asked.keep.resolve()
            work.mkdir(parents=True)
        in_time = (one for one in wanted.items() if time.monotonic() < began + 60 * asked.minutes)
        for number, (run, endings) in enumerate(disturbed(in_time, work) if wanted else (), start=1):
            with asked.out.open("a", encoding="utf-8") as file:
                file.writelines(
                    Line(seed=asked.seed, run=run, ending=ending).to_json() + "\n" for ending in endings
                )
            for one in endings:
                place = f"{one.plan.step}, {SITES[one.plan.target]}"
                print(f"{run}: {one.plan.kind} ({place}): {one.outcome} {list(one.said)}")
            each_min = (time.monotonic() - began) / number / 60
            left = f"{len(wanted) - number} runs left, about {(len(wanted) - number) * each_min:.0f} min"
            print(f"run {run}: {len(endings)} disturbances, {each_min:.1f} min a run, {left}", flush=True)
    lines = read_lines(asked.out)
    print(table(lines))
    not_done = sum(map(len, missing(lines, asked.seed, asked.runs, asked.only or []).values()))
    if not_done:
        print(f"not done: {not_done}; call again for them")
    return int(not_done > 0 or any(line.ending.outcome not in GOOD for line in lines))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # removes the network
    sys.exit(main())
