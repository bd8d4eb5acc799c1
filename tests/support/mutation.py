"""Judge the mutants of secure aggregation: does a test notice when the code is wrong?

    make mutate-secagg                                           all removals, a sample of other changes
    python -m tests.support.mutation --sample 2000 --seed 7      more of them
    python -m tests.support.mutation --modules secagg.ring --line 96
                                                                 every mutant of one line
    python -m tests.support.mutation --again                     what survived or was not reached last time

Judged are `secagg` and what it stands on in `crypto`; modules are named from below `fedproxy_secure`.

Each mutant is judged in a process forked from one that has numpy, pytest and the rest loaded but none of
these modules; an import hook puts the changed module in, so the working tree stays as it is. First come the
module's own tests; what survives them meets the protocol's, but for the slow ones and Flower's. One mutant
at a time; the verdicts are in `build/mutation/secagg.json`, what survives and why in
`tests/security/MUTANTS.md`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.abc
import importlib.util
import json
import os
import resource
import select
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.support.mutants import PACKAGE, REMOVALS, ROOT, Mutant, changed, chosen, difference, mutants_of

SECURITY, UNIT = "tests/security/test_", "tests/unit/test_"
COVER = f"{SECURITY}what_signatures_cover.py"
SUMS = tuple(
    f"{SECURITY}masking_{part}.py"
    for part in ("server_tampers", "network_and_clients", "replay", "terms", "sessions_and_fields")
)
MASKING = ("tests/vectors/test_frozen_transcript.py", COVER, *SUMS)
CKKS = (COVER, "tests/vectors/test_what_ckks_messages_bind.py", f"{SECURITY}ckks_session.py")
GRAM = (f"{SECURITY}gram.py",)
GRANULARITY = (f"{UNIT}granularity.py", "tests/properties/test_granularity_properties.py")
PROVISION = (f"{SECURITY}provision.py",)
SHAMIR = (f"{UNIT}shamir_and_control.py",)
LYING = (f"{SECURITY}lying_clients.py",)
# The first judges. `secagg.selftest` plays attacks and is no part of the protocol. `secagg.ckks.probe` runs
# in a process of its own, where no module can be replaced.
TESTS = {
    "crypto.key_file": PROVISION,
    "crypto.primitives": ("tests/vectors", COVER, *SUMS),
    "crypto.secret": SHAMIR,
    "crypto.shamir": SHAMIR,
    "secagg.ckks.client": CKKS,
    "secagg.ckks.context": (f"{UNIT}ckks.py",),
    "secagg.ckks.gram": GRAM,
    "secagg.ckks.messages": CKKS,
    "secagg.ckks.products": GRAM,
    "secagg.ckks.row": CKKS,
    "secagg.ckks.server": CKKS,
    "secagg.control": (*SHAMIR, "tests/vectors/test_frozen_transcript.py"),
    "secagg.expectations": (f"{UNIT}expectations.py", *GRANULARITY),
    "secagg.granularity": GRANULARITY,
    "secagg.likeness": (f"{UNIT}sketch.py",),
    "secagg.masking.client": MASKING,
    "secagg.masking.keys": MASKING,
    "secagg.masking.masks": (f"{UNIT}ring.py", "tests/vectors"),
    "secagg.masking.server": MASKING,
    "secagg.messages": MASKING,
    "secagg.provision": PROVISION,
    "secagg.ring": (f"{UNIT}ring.py",),
    "secagg.signs": (*LYING, *GRANULARITY),
    "secagg.sketch": (f"{UNIT}sketch.py",),
    "secagg.steps": (*MASKING, *CKKS),
    "secagg.sum_checks": (*LYING, *GRANULARITY),
    "secagg.terms": MASKING,
}
# The last judges of every module: the protocol's tests, cheap ones first, because one failure is enough.
PROTOCOL = (
    "tests/vectors",
    *SHAMIR,
    f"{UNIT}ring.py",
    *PROVISION,
    COVER,
    *SUMS,
    f"{SECURITY}selftest.py",
    "tests/statistical/test_masked_views.py",
    "tests/properties/test_masking_properties.py",
)
UNDER_CKKS = (f"{UNIT}ckks.py", f"{SECURITY}ckks_session.py", *GRAM)
FOR_GRAM = ("secagg.likeness", "secagg.sketch")
LAST = {
    module: (*PROTOCOL, *(UNDER_CKKS if ".ckks." in module or module in FOR_GRAM else ()))
    for module in TESTS
}
SLOWNESS = 5  # a mutant may take so many times the CPU time of the unchanged code, and 5 s


class _Swap(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports `source` in the place of a module."""

    def __init__(self, name: str, source: str) -> None:
        self.name, self.source = name, source

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        return importlib.util.spec_from_loader(name, self, origin="mutant") if name == self.name else None

    def exec_module(self, module: ModuleType) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = compile(self.source, f"mutant of {self.name}", "exec")
        exec(code, module.__dict__)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`survived`, or killed `by` a test (or "time", or the error that ended the run); CPU `seconds`."""

    survived: bool
    by: str
    seconds: float


def judge(module: str, source: str | None, tests: tuple[str, ...], *, limit_s: int) -> Verdict:
    """Run `tests` in a fork in which `source` replaces the module; None: nothing replaced.

    `limit_s` is of CPU, so that a busy machine kills no mutant; one that hangs has fifty times as long.
    """
    before = os.times()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        resource.setrlimit(resource.RLIMIT_CPU, (limit_s, limit_s))
        _run_tests(module, source, tests, writer)
    os.close(writer)
    if not select.select([reader], [], [], 50 * limit_s)[0]:
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reader, "rb") as pipe:
        report = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    died = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    by = report or ("time" if died in (signal.SIGKILL, signal.SIGXCPU) else "crash")
    return Verdict(survived=by == "nobody", by=by, seconds=spent)


def _run_tests(module: str, source: str | None, tests: tuple[str, ...], writer: int) -> None:
    """In the child: never returns."""
    import pytest

    class First:
        failed = ""

        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.failed:
                self.failed = self.failed or report.nodeid

        def pytest_collectreport(self, report: Any) -> None:
            if report.failed:
                self.failed = self.failed or f"{report.nodeid} (import)"

    first, status = First(), -1
    if source is not None:
        sys.meta_path.insert(0, _Swap(f"{PACKAGE}.{module}", source))
    with open(os.devnull, "w") as nowhere, contextlib.suppress(BaseException):
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        options = "-x -q -n 0 -p no:cacheprovider --hypothesis-seed=0 --timeout=0 --tb=no --assert=plain"
        status = int(pytest.main([*options.split(), *tests], plugins=[first]))
    killer = "nobody" if status == 0 else first.failed or f"pytest exit {status}"
    os.write(writer, killer.encode())
    os._exit(0)


def preload() -> None:
    """Import what tests need besides the judged modules, once for all forks."""
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "HYPOTHESIS_PROFILE": "short",
        "HYPOTHESIS_STORAGE_DIRECTORY": tempfile.mkdtemp(prefix="hypothesis-"),
    }
    for name in (
        "cryptography.hazmat.primitives.asymmetric.ed25519",
        "cryptography.hazmat.primitives.ciphers.aead",
        "cryptography.hazmat.primitives.kdf.hkdf",
        "fedproxy_secure.errors",
        "hypothesis.strategies",
        "numpy",
        "pydantic",
        "pytest",
        "rich.console",
        "scipy.stats",
        "typer.testing",
        "yaml",
    ):
        importlib.import_module(name)
    with contextlib.suppress(ImportError):
        importlib.import_module("tenseal")
    loaded = [m for m in TESTS if f"{PACKAGE}.{m}" in sys.modules]
    assert not loaded, f"{loaded[0]} is loaded: it could not be replaced"


def main() -> None:
    """Judge the mutants, print what survives, write all verdicts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sample", type=int, default=150, help="places of changes that are no removals")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--modules", nargs="+", choices=sorted(TESTS), default=sorted(TESTS))
    parser.add_argument("--line", type=int, help="every mutant of this line of the modules")
    parser.add_argument("--again", action="store_true", help="keep the killed in the file of --out")
    parser.add_argument("--own-tests", action="store_true", help="the module's own tests alone judge")
    parser.add_argument("--count", action="store_true", help="count the mutants and stop")
    parser.add_argument("--out", type=Path, default=ROOT / "build/mutation/secagg.json")
    asked = parser.parse_args()
    os.chdir(ROOT)
    every = [m for module in asked.modules for m in mutants_of(module)]
    picked = chosen(every, sample=asked.sample, seed=asked.seed)
    if asked.line is not None:
        picked = [m for m in every if m.line == asked.line]
    earlier: list[dict[str, Any]] = []
    if asked.again:
        killed = [row for row in json.loads(asked.out.read_text())["mutants"] if not row["survived"]]
        # of this sample alone: of another one the killed would stay and the survivors be forgotten
        earlier = [row for row in killed if any(asdict(m).items() <= row.items() for m in picked)]
        picked = [m for m in picked if not any(asdict(m).items() <= row.items() for row in earlier)]
    if not asked.count:
        preload()
        rows = earlier
        for row in judged(picked, last={} if asked.own_tests else LAST):
            rows.append(row)
            print(f"{len(rows)} {row['module']}:{row['line']} {row['operator']}: {row['by']}", flush=True)
            verdicts = {"seed": asked.seed, "sample": asked.sample, "mutants": rows}
            asked.out.parent.mkdir(parents=True, exist_ok=True)
            asked.out.write_text(json.dumps(verdicts, indent=1) + "\n")
        for row in rows:
            if row["survived"]:
                print(f"survives: {row['module']}:{row['line']} {row['operator']}\n{row['change']}")
    else:
        rows = [asdict(m) | {"survived": True, "seconds": 0.0} for m in picked]
    _print_table(every, rows)


def judged(picked: list[Mutant], *, last: dict[str, tuple[str, ...]]) -> Iterator[dict[str, Any]]:
    """One row a mutant: fields, verdict and change. What survives its module's own tests meets `last`."""
    limits: dict[tuple[str, ...], int] = {}
    for m in picked:
        source = changed(m)
        if source is None:  # no Python: nothing to judge
            continue
        seconds = 0.0
        for tests in (TESTS[m.module], last.get(m.module)):
            if tests:
                limit = limits[tests] = limits.get(tests) or _limit(tests)
                verdict = judge(m.module, source, tests, limit_s=limit)
                seconds += verdict.seconds
                if not verdict.survived:
                    break
        yield asdict(m) | asdict(verdict) | {"seconds": round(seconds, 2), "change": difference(m)}


def _limit(tests: tuple[str, ...]) -> int:
    """CPU time for a mutant, s. Stops if the tests fail on the code as it is."""
    verdict = judge("", None, tests, limit_s=600)
    if not verdict.survived:
        sys.exit(f"error: {verdict.by} fails without any mutant")
    return round(5 + SLOWNESS * verdict.seconds)


def _print_table(every: list[Mutant], rows: list[dict[str, Any]]) -> None:
    removals = {k.__name__ for k in REMOVALS}
    print(f"{'module':22} {'removals':>8} {'places':>7} {'mutants':>8} {'judged':>7} {'killed':>7}")
    totals = [0] * 5
    for module in sorted({m.module for m in every}):
        own = [m for m in every if m.module == module]
        mine = [row for row in rows if row["module"] == module]
        counts = [
            sum(m.operator in removals for m in own),
            len({(m.line, m.column) for m in own if m.operator not in removals}),
            len(own),
            len(mine),
            sum(not row["survived"] for row in mine),
        ]
        totals = [a + b for a, b in zip(totals, counts, strict=True)]
        print(f"{module:22} {counts[0]:8} {counts[1]:7} {counts[2]:8} {counts[3]:7} {counts[4]:7}")
    print(f"{'all':22} {totals[0]:8} {totals[1]:7} {totals[2]:8} {totals[3]:7} {totals[4]:7}")
    print(f"{sum(row['seconds'] for row in rows):.0f} s of CPU")


if __name__ == "__main__":
    main()
