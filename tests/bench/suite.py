"""How long the attack suites take on a recorded demo run, and what their controls say: `make bench-suite`.

Records `configs/demo_attacked.yaml`, then runs `smoke` and `standard` from the default views. Wall times
are of the whole command and want an idle machine: some fifteen minutes on two cores.
"""

from __future__ import annotations

import time
from functools import partial

from attacks.judging.outcome import low_end
from attacks.registry import get
from fedproxy_secure.evidence.finding import Finding, Outcome, Profile, read_findings
from tests.bench.rows import FOLDER, Row, publish
from tests.support.command import run_command

COMMAND = "make bench-suite"
row = partial(Row, command=COMMAND)
RUN = FOLDER / "demo_attacked"
MOST_S: dict[Profile, float] = {"smoke": 60.0, "standard": 900.0}
REPEATS: dict[Profile, int] = {"smoke": 3, "standard": 1}


def main() -> None:
    """Record once, run both, print, write."""
    run_command("run", "demo_attacked", "--record", "--out", str(RUN), "--resume")
    rows: list[Row] = []
    for profile, most_s in MOST_S.items():
        took = sorted(_seconds(profile) for _ in range(REPEATS[profile]))
        rows.append(
            row(
                metric=f"{profile}: median, lowest, highest",
                value=took[len(took) // 2],
                low=took[0],
                high=took[-1],
                n=len(took),
                unit="s",
                target=f"<= {most_s:g}",
                ok=took[len(took) // 2] <= most_s,
            )
        )
        rows += outcome_rows(profile, read_findings(RUN))
        publish("suite", rows)


def _seconds(profile: Profile) -> float:
    began = time.perf_counter()
    run_command("attack", "run", "--run", str(RUN), "--suite", profile)
    return time.perf_counter() - began


def outcome_rows(profile: Profile, found: list[Finding]) -> list[Row]:
    """How many attacks raised, and how many negative controls lie above chance: none should."""
    raised = [f for f in found if f.outcome == Outcome.ERROR]
    negatives = [f for f in found if f.negative is not None]
    above = [f for f in negatives if f.negative and low_end(f.negative) > get(f.attack).info.chance]
    timed_out = [f for f in found if f.out_of_time]
    none = {"unit": "rows", "target": "0"}
    return [
        row(metric=f"{profile}: {what}", value=len(bad), n=len(of), ok=not bad, **none)
        for what, bad, of in (
            ("attacks that raised", raised, found),
            ("attacks out of time", timed_out, found),
            ("negative controls whose interval lies above chance", above, negatives),
        )
    ]


if __name__ == "__main__":
    main()
