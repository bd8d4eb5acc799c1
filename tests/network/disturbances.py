"""Disturbed runs of a deployed federation: each must end in the exact result, or in an abort that says why.

    python -m tests.network.disturbances --runs 50 --seed 1 --out runs/disturbed.jsonl

Every run starts an owner and five sites on a network of their own, waits until a site has been asked for a
step, and disturbs it (`schedule`). If the owner's command then ends without a result, all is made good and
it is called again, as a person would. Runs that are in the file already are not done again. The table that
is printed at the end has a row for each disturbance and a column for each step. Ends with 1 if a run went
wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tests.network.deployed import CONFIG, ENVIRONMENT, SITES, Deployed, wait_for
from tests.network.disturbing import Running, disturb, reached, undo
from tests.network.exactness import Exactness, half_written, taken
from tests.network.schedule import KINDS, STEPS, Plan, plan
from tests.support.network.commands import missing as unable
from tests.support.network.disks import small_disk
from tests.support.network.whole import Network

ENDS_WITHIN_S = 600.0  # a command of the owner; it takes a minute or two on two busy cores
TIMES = 3  # how often the owner's command is called, in all
DISK_MB = 1300  # a site asks for 1 GiB
GOOD = (
    "exact",  # at once, with all sites in every round
    "exact without a site",  # at once; a site was left out of a round, and the result is that of the others
    "exact when called again",
)
Outcome = Literal[
    "exact",
    "exact without a site",
    "exact when called again",
    "hang",
    "wrong result",
    "half-written",
    "no reason given",
    "never ends well",
    "not disturbed",  # it ended before the step came
]


@dataclass(frozen=True, kw_only=True)
class Line:
    """What became of one run.

    Attributes:
        seed: of the schedule.
        index: of the run in it.
        plan: what was done.
        outcome: what it ended in.
        calls: how often the owner's command was called.
        said: the last line of each call that did not end with a result.
        seconds: how long the run took in all.
        load: the machine's load average over a minute, at the end.
    """

    seed: int
    index: int
    plan: Plan
    outcome: Outcome
    calls: int
    said: tuple[str, ...]
    seconds: float
    load: float

    def to_json(self) -> str:
        """Return it as one line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)


class Runs:
    """Runs on one network, from one set of prepared folders."""

    def __init__(self, network: Network, prepared: Deployed, exactness: Exactness) -> None:
        self._network, self._prepared, self._exactness = network, prepared, exactness

    def one(self, plan: Plan, folder: Path) -> tuple[Outcome, int, tuple[str, ...]]:
        """Do one run in a new folder; return its outcome, and how often and with what the owner ended."""
        with _started(self._network, self._prepared, plan, folder) as running:
            running.start_missing_sites()
            running.start("owner")
            came = reached(running, plan)
            owner = running.processes["owner"]
            try:
                wait_for(lambda: came() or owner.poll() is not None, seconds=ENDS_WITHIN_S, what="the step")
            except TimeoutError:
                return "hang", 1, ("the step was never reached",)
            if owner.poll() is not None:
                return "not disturbed", 1, (_reason(running) or "",)
            disturb(running, plan)
            outcome, calls, said = self._to_the_end(running)
            undo(running)
            stuck = running.stop_sites()
            if outcome in GOOD and stuck:
                return "hang", calls, (*said, f"does not stop: {', '.join(stuck)}")
            broken = half_written(folder)
            if outcome in GOOD and broken:
                return "half-written", calls, (*said, *broken)
            return outcome, calls, said

    def _to_the_end(self, running: Running) -> tuple[Outcome, int, tuple[str, ...]]:
        said: list[str] = []
        for calls in range(1, TIMES + 1):
            owner = running.processes["owner"]
            try:
                code = owner.wait(ENDS_WITHIN_S)
            except subprocess.TimeoutExpired:
                return "hang", calls, tuple(said)
            if code == 0:
                return self._judged(running, calls), calls, tuple(said)
            reason = _reason(running)
            if code > 0 and reason is None:
                return "no reason given", calls, (*said, _last_line(running))
            said.append(reason if code > 0 and reason is not None else f"ended by signal {-code}")
            undo(running)
            running.start("owner")
        return "never ends well", TIMES, tuple(said)

    def _judged(self, running: Running, calls: int) -> Outcome:
        federation = running.deployed.state.parent
        if not self._exactness.holds(federation):
            return "wrong result"
        if not _is_verified(running):
            return "wrong result"
        if calls > 1:
            return "exact when called again"
        everybody = all(len(names) == len(SITES) for names in taken(federation))
        return "exact" if everybody else "exact without a site"


@contextmanager
def _started(network: Network, prepared: Deployed, plan: Plan, folder: Path) -> Iterator[Running]:
    """A copy of the prepared folders on good cables; at the end of the block all processes have ended."""
    with ExitStack() as stack:
        disk = None
        if "disk" in plan.kind:
            full = "owner" if "owner" in plan.kind else SITES[plan.target]
            disk = stack.enter_context(small_disk(folder / full, megabytes=DISK_MB))
        running = Running(network=network, deployed=prepared.copied(folder), disk=disk)
        try:
            yield running
        finally:
            for host in network.hosts:
                host.end()
                host.link.clear()
                host.wrong_clock(0)


def _reason(running: Running) -> str | None:
    """Return the line in which the owner's command says why it ended; None if it does not, or at length."""
    text = running.log("owner").read_text(encoding="utf-8", errors="replace")
    if "Traceback (most recent call last)" in text:
        return None
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    return lines[-1] if lines else None


def _is_verified(running: Running) -> bool:
    """Whether audit log and report are in order, and signed by the key that the owner's command named."""
    key = re.findall(r"^signed by ([0-9a-f]{64})", running.log("owner").read_text(encoding="utf-8"), re.M)[
        -1
    ]
    command = [sys.executable, "-m", "fedproxy_secure", "audit", "verify"]
    command += [str(running.deployed.owner / "run"), "--key", key]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, check=False).returncode == 0


def _last_line(running: Running) -> str:
    text = running.log("owner").read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "nothing was said"


def read_lines(file: Path) -> list[Line]:
    """Read the lines of earlier runs; none if there is no file."""
    if not file.exists():
        return []
    raw: list[dict[str, Any]] = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [Line(**{**one, "plan": Plan(**one["plan"]), "said": tuple(one["said"])}) for one in raw]


def table(lines: Iterable[Line]) -> str:
    """Return a Markdown table of disturbance by step: how many runs ended well, of how many."""
    good: Counter[tuple[str, str]] = Counter()
    every: Counter[tuple[str, str]] = Counter()
    for line in lines:
        for cell in (
            (line.plan.kind, line.plan.step),
            (line.plan.kind, ""),
            ("", line.plan.step),
            ("", ""),
        ):
            every[cell] += 1
            good[cell] += line.outcome in GOOD

    def share(kind: str, step: str) -> str:
        return f"{good[kind, step]}/{every[kind, step]}" if every[kind, step] else ""

    rows = [[kind, *(share(kind, step) for step in STEPS), share(kind, "")] for kind in KINDS]
    rows.append(["all", *(share("", step) for step in STEPS), share("", "")])
    head = ["disturbance", *STEPS, "all"]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def planned(seed: int, index: int) -> Plan:
    """Return what is done in a run of the schedule."""
    return plan(seed, index, sites=len(SITES), rounds=CONFIG["federate"]["rounds"])


def disturbed(seed: int, indices: Iterable[int], work: Path) -> Iterator[Line]:
    """Do the runs of a schedule, one after another, in folders below `work`; yield what became of each."""
    with Network(sites=len(SITES)) as network:
        prepared = Deployed.prepare(network, work / "prepared")
        runs = Runs(network, prepared, Exactness())
        for index in indices:
            began = time.monotonic()
            one = planned(seed, index)
            outcome, calls, said = runs.one(one, work / f"run-{seed}-{index}")
            yield Line(
                seed=seed,
                index=index,
                plan=one,
                outcome=outcome,
                calls=calls,
                said=tuple(_short(text, work) for text in said),
                seconds=round(time.monotonic() - began, 1),
                load=round(os.getloadavg()[0], 1),
            )


def _short(said: str, work: Path) -> str:
    """Return what was said without the names of folders and numbers of processes."""
    return re.sub(rf"{re.escape(str(work))}/[^/ ]+/", "", said)[:500]


def main(arguments: list[str] | None = None) -> int:
    """Do the runs that are not in the file yet, and print the table of all that are."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--runs", type=int, default=8, help="how many runs of the schedule, from the first")
    parser.add_argument("--seed", type=int, default=0, help="of the schedule")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/disturbed.jsonl"), help="a line for each run"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after so many")
    parser.add_argument(
        "--only", action="append", metavar="TEXT", help="runs whose disturbance has this in it; repeatable"
    )
    parser.add_argument("--keep", type=Path, help="keep the runs' folders here; must not exist")
    asked = parser.parse_args(arguments)
    known = {(line.seed, line.index) for line in read_lines(asked.out)}
    missing = [
        index
        for index in range(asked.runs)
        if (asked.seed, index) not in known
        and any(text in planned(asked.seed, index).kind for text in asked.only or [""])
    ]
    if missing and (why := unable()):
        print(f"error: {why}", file=sys.stderr)
        return 2
    until = time.monotonic() + 60 * asked.minutes
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if asked.keep is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedproxy-disturbed-")))
        else:
            work = asked.keep.resolve()
            work.mkdir(parents=True)
        in_time = (index for index in missing if time.monotonic() < until)
        for line in disturbed(asked.seed, in_time, work) if missing else ():
            if line.outcome != "not disturbed":  # it says nothing, and is tried again by the next call
                with asked.out.open("a", encoding="utf-8") as file:
                    file.write(line.to_json() + "\n")
            place = f"{line.plan.step} of round {line.plan.round}, {SITES[line.plan.target]}"
            print(f"{line.index}: {line.plan.kind} ({place}): {line.outcome} {list(line.said)}", flush=True)
    lines = read_lines(asked.out)
    print(table(lines))
    return int(any(line.outcome not in GOOD for line in lines))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # removes the network
    sys.exit(main())
