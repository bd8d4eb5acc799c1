"""One run of a deployed federation that is disturbed in each step, and what became of each disturbance."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from fedproxy_secure.runtime.files.names import ROUNDS
from tests.network.deployed import ENVIRONMENT, SITES, Deployed
from tests.network.disturbing import Running, disturb, reached, undo
from tests.network.exactness import Exactness, half_written, taken
from tests.network.schedule import BEFORE_ROUNDS, Plan
from tests.support.network.disks import small_disk
from tests.support.network.whole import Network

COMES_WITHIN_S = 600.0  # a step, the end of a round, the result: a minute or two on two busy cores
MOST_CALLS = 3  # of the owner's command for one disturbance: she ends without a result, and is called again
DISK_MB = 1300  # a site asks for 1 GiB

Outcome = Literal[
    "exact",  # at once, with all sites in every round
    "exact without a site",  # at once; a site was left out of a round, and the result is that of the others
    "exact when called again",
    "hang",
    "wrong result",
    "half-written",
    "no reason given",
    "never ends well",
]
GOOD: tuple[Outcome, ...] = ("exact", "exact without a site", "exact when called again")


@dataclass(frozen=True, kw_only=True)
class Ending:
    """What became of one disturbance.

    Attributes:
        plan: what was done.
        outcome: what it ended in.
        said: the last line of each call of the owner's command that ended without a result.
        seconds: from the disturbance to the next one, or to the end of the run.
    """

    plan: Plan
    outcome: Outcome
    said: tuple[str, ...]
    seconds: float


class WentWrong(Exception):
    """The run did not end well; names what came instead."""

    def __init__(self, outcome: Outcome, said: str) -> None:
        super().__init__(outcome, said)
        self.outcome, self.said = outcome, said


class Ended(Exception):
    """The owner's command has ended with a result."""


@dataclass(kw_only=True)
class _Window:
    """The time from a disturbance to the next one: what the owner said in it, and its first round."""

    plan: Plan
    first_round: int
    began: float = field(default_factory=time.monotonic)
    said: list[str] = field(default_factory=list)


def disturbed_run(
    network: Network, prepared: Deployed, exactness: Exactness, plans: Sequence[Plan], folder: Path
) -> list[Ending]:
    """Run a copy of the prepared federation in `folder`, disturb it as planned, in this order.

    Return what became of each disturbance whose step came before the run ended; others are left out. Where
    the run does not end well, that is the disturbance under which it went wrong, or all of them if the
    result is wrong.
    """
    with _started(network, prepared, plans, folder) as running:
        run = _Run(running)
        try:
            run.through(plans)
            _check(running, exactness)
            if stuck := running.stop_sites():
                raise WentWrong("hang", f"does not stop: {', '.join(stuck)}")
            if broken := half_written(folder):
                raise WentWrong("half-written", "; ".join(broken))
        except WentWrong as error:
            return run.gone_wrong(error)
        return run.endings()


class _Run:
    """The way of a run from one disturbance to the next, with the owner called again where she ends."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._windows: list[_Window] = []
        self._early: list[str] = []  # what the owner said before the first disturbance

    def through(self, plans: Sequence[Plan]) -> None:
        """Go through all disturbances to the end of the run; raises `WentWrong`."""
        self._running.start_missing_sites()
        self._running.start("owner")
        try:
            for plan in plans:
                self._one(plan)
            self._until(lambda: False, what="the result")
        except Ended:
            undo(self._running)

    def _one(self, plan: Plan) -> None:
        which = reached(self._running, plan)
        self._until(lambda: which() is not None, what=f"the step {plan.step}")
        if self._windows and self._windows[-1].plan.step in BEFORE_ROUNDS:
            undo(self._running)
        if which() != plan.step:
            return
        self._windows.append(_Window(plan=plan, first_round=self._rounds()))
        try:
            disturb(self._running, plan)
        except TimeoutError:  # what is to be killed does not run any more
            del self._windows[-1]
            return
        if plan.step in BEFORE_ROUNDS:
            return
        over = self._windows[-1].first_round + 1
        self._until(lambda: self._rounds() >= over, what="the end of the round")
        undo(self._running)

    def _until(self, happened: Callable[[], bool], *, what: str) -> None:
        """Wait until something has happened; raises `Ended` if the owner ends with a result before."""
        deadline = time.monotonic() + COMES_WITHIN_S
        while not happened():
            code = self._running.processes["owner"].poll()
            if code == 0:
                raise Ended
            if code is not None:
                self._call_again(code)
                deadline = time.monotonic() + COMES_WITHIN_S
            if time.monotonic() > deadline:
                raise WentWrong("hang", f"{what} did not come in {COMES_WITHIN_S:.0f} s")
            time.sleep(0.05)

    def _call_again(self, code: int) -> None:
        """Note why the owner ended, make all good, and call her command again, as a person would."""
        reason = _reason(self._running) if code > 0 else f"ended by signal {-code}"
        if reason is None:
            raise WentWrong("no reason given", _last_line(self._running))
        said = self._windows[-1].said if self._windows else self._early
        said.append(reason)
        if len(said) >= MOST_CALLS or not self._windows:
            raise WentWrong("never ends well", reason)
        undo(self._running)
        self._running.start("owner")

    def _rounds(self) -> int:
        file = self._running.deployed.state.parent / ROUNDS
        return file.read_text(encoding="utf-8").count("\n") if file.exists() else 0

    def endings(self) -> list[Ending]:
        """Return what became of each disturbance of a run that ended in the exact result."""
        took_part = taken(self._running.deployed.state.parent)
        ends = [window.first_round for window in self._windows[1:]] + [len(took_part)]
        # one round at least: what is disturbed before the first one shows in that
        return [
            self._ending(window, _outcome(window, took_part[first : max(end, first + 1)]))
            for window, end in zip(self._windows, ends, strict=True)
            for first in [min(window.first_round, len(took_part) - 1)]
        ]

    def gone_wrong(self, error: WentWrong) -> list[Ending]:
        """Return what became of the disturbances that the error may come from."""
        if not self._windows:
            raise error  # it was not disturbed
        windows = self._windows if error.outcome in ("wrong result", "half-written") else self._windows[-1:]
        endings = [self._ending(window, error.outcome) for window in windows]
        return [*endings[:-1], replace(endings[-1], said=(*endings[-1].said, error.said))]

    def _ending(self, window: _Window, outcome: Outcome) -> Ending:
        later = [one.began for one in self._windows if one.began > window.began]
        seconds = round(min([*later, time.monotonic()]) - window.began, 1)
        return Ending(plan=window.plan, outcome=outcome, said=tuple(window.said), seconds=seconds)


def _outcome(window: _Window, took_part: Sequence[Sequence[str]]) -> Outcome:
    if window.said:
        return "exact when called again"
    everybody = all(len(names) == len(SITES) for names in took_part)
    return "exact" if everybody else "exact without a site"


def _check(running: Running, exactness: Exactness) -> None:
    """Raise `WentWrong` unless the state is exact, and audit log and report are in order."""
    if not exactness.holds(running.deployed.state.parent):
        raise WentWrong("wrong result", "the state is not that of the sites that took part")
    # signed by the key that the owner's command named
    key = re.findall(r"^signed by ([0-9a-f]{64})", running.said("owner"), re.M)[-1]
    command = [sys.executable, "-m", "fedproxy_secure", "audit", "verify"]
    command += [str(running.deployed.owner / "run"), "--key", key]
    ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise WentWrong("wrong result", ended.stderr.strip())


@contextmanager
def _started(
    network: Network, prepared: Deployed, plans: Sequence[Plan], folder: Path
) -> Iterator[Running]:
    """A copy of the prepared folders on good cables; at the end of the block all processes have ended."""
    full = {
        "owner" if "owner" in plan.kind else SITES[plan.target] for plan in plans if "disk" in plan.kind
    }
    with ExitStack() as stack:
        disks = {
            name: stack.enter_context(small_disk(folder / name, megabytes=DISK_MB)) for name in sorted(full)
        }
        try:
            yield Running(network=network, deployed=prepared.copied(folder), disks=disks)
        finally:
            for host in network.hosts:
                host.end()
                host.link.clear()
                host.wrong_clock(0)


def _reason(running: Running) -> str | None:
    """Return the error line of the owner's command; None if it printed none, or a traceback."""
    text = running.said("owner")
    if "Traceback (most recent call last)" in text:
        return None
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    return lines[-1] if lines else None


def _last_line(running: Running) -> str:
    text = running.said("owner")
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "nothing was said"
