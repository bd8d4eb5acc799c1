"""How long the attack suites take on a recorded demo run, and what their controls say: `make bench-suite`.

Records `configs/demo_attacked.yaml`, then runs `smoke` and `standard` from the default views. Wall times
are of the whole command and want an idle machine: some fifteen minutes on two cores.
"""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial

from attacks.base import OutOfTime, get
from fedproxy_secure.report.finding import Finding, Outcome, Profile, read_findings
from tests.bench.rows import FOLDER, Row, publish

COMMAND = "make bench-suite"
row = partial(Row, command=COMMAND)
RUN = FOLDER / "demo_attacked"
MOST_S: dict[Profile, float] = {"smoke": 60.0, "standard": 900.0}


def main() -> None:
    """Record once, run both, print, write."""
    _cli("run", "demo_attacked", "--record", "--out", str(RUN), "--resume")
    rows: list[Row] = []
    for profile, most_s in MOST_S.items():
        began = time.perf_counter()
        _cli("attack", "run", "--run", str(RUN), "--suite", profile)
        seconds = time.perf_counter() - began
        target, ok = f"<= {most_s:g}", seconds <= most_s
        rows.append(row(metric=f"{profile}: seconds", value=seconds, n=1, unit="s", target=target, ok=ok))
        rows += outcome_rows(profile, read_findings(RUN))
        publish("suite", rows)


def outcome_rows(profile: Profile, found: list[Finding]) -> list[Row]:
    """How many attacks raised, and how many negative controls lie above chance: none should."""
    raised = [f for f in found if f.outcome == Outcome.ERROR]
    negatives = [f for f in found if f.negative is not None]
    above = [f for f in negatives if f.negative and (f.negative.low or 0.0) > get(f.attack).info.chance]
    timed_out = [f for f in found if f.reason.startswith(OutOfTime.BEGINS)]
    none = {"unit": "rows", "target": "0"}
    return [
        row(metric=f"{profile}: {what}", value=len(bad), n=len(of), ok=not bad, **none)
        for what, bad, of in (
            ("attacks that raised", raised, found),
            ("attacks out of time", timed_out, found),
            ("negative controls whose interval lies above chance", above, negatives),
        )
    ]


def _cli(*arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "fedproxy_secure", *arguments], check=True, stdout=subprocess.DEVNULL
    )


if __name__ == "__main__":
    main()
