"""What a deployment costs, and whether it stays flat: `make bench-deploy`.

An owner and five sites on this machine, with folders and processes of their own, TLS and masking, on the
embedded LLM: seconds from `deploy run` to the first finished round, and a round's seconds beside those of
the in-process engine with the same job. `python -m tests.bench.deploy soak 300` runs so many short rounds,
kills a program of a random site in every tenth or so, and compares memory and open files of every party
after a fifth of the rounds with those at the end.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from fedproxy_secure.config import Config, parse_config
from fedproxy_secure.crypto.primitives import signing_public
from fedproxy_secure.deploy.federation import Federation, init
from fedproxy_secure.deploy.kit import accept, make_kit
from fedproxy_secure.deploy.members import approve, next_epoch
from fedproxy_secure.deploy.signed import read_document
from fedproxy_secure.deploy.site import REQUEST, join
from fedproxy_secure.experiments.run import run
from fedproxy_secure.flower.launch.processes import free_port
from fedproxy_secure.runtime.artifacts import RunFolder
from tests.bench.rows import Row, publish

COMMAND = "make bench-deploy"
SITES = {"clinic": "clinic", "bank": "bank", "insurer": "insurer", "council": "council", "branch": "bank"}
ROUNDS = 4  # the first one also loads models
MOST_FIRST_S, MOST_RATIO, MOST_GROWTH = 60.0, 1.5, 0.05
ROLES = {
    "launch.superlink": "SuperLink",
    "serverapp": "server app",
    "launch.supernode": "five SuperNodes",
    "launch.worker": "five workers",
}
WIRE = ("SuperLink", "five SuperNodes", "server app")  # its own part of these is small: the fusion
WARM = 0.2  # the share of a soak after which caches are full
CALM_ROUNDS = 10  # at the end of a soak without drop-outs, in which what was restarted fills its caches
DROP_OUT_RATE = 0.1  # of a round between
WHOLE_ROUNDS = 3  # with all sites, before another one drops out


def main() -> None:
    """Measure what is asked for; print, write."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if sys.argv[1:2] == ["soak"]:
        publish("deploy_soak", soak(int(sys.argv[2])))
    else:
        publish("deploy", rounds())


def rounds() -> list[Row]:
    """Return the rows of a short federation, and of the same job in one process."""
    settings = config(rounds=ROUNDS)
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        federation = prepared(settings, folder)
        sites = [stack.enter_context(program("start", folder / name)) for name in SITES]
        time.sleep(15)  # sites that wait for their owner, as after a night
        began = time.monotonic()
        owner = stack.enter_context(program("run", federation.folder))
        everybody = [owner.pid, *(site.pid for site in sites)]
        place = federation.run_folder / "seed-0" / "federation"
        wait_for(place, 1)
        first = time.monotonic() - began
        before = processor_s(everybody)
        wait_for(place, ROUNDS)
        after = processor_s(everybody)
        deployed = taken(place)
        stack.close()
        run(settings, folder / "twin")
        alone = taken(folder / "twin" / "seed-0" / "federation")
    spent = {role: (after[role] - before.get(role, 0.0)) / (ROUNDS - 1) for role in sorted(after)}
    wire = sum(spent.get(role, 0.0) for role in WIRE) / len(os.sched_getaffinity(0))
    own, twin = statistics.median(deployed[1:]), statistics.median(alone[1:])
    return [
        _row("from `deploy run` to the first finished round", first, "s", n=1, at_most=MOST_FIRST_S),
        _median("a deployed round", deployed[1:]),
        _median("the same round in one process", alone[1:]),
        _row("a deployed round over one in one process", own / twin),
        _row("the wire of a deployed round: what Flower's processes take of all processors", wire, "s"),
        _row(
            "a deployed round without the wire over one in one process",
            (own - wire) / twin,
            at_most=MOST_RATIO,
        ),
        *(
            _row(f"processor time of a deployed round, {role}", seconds, "s")
            for role, seconds in spent.items()
        ),
    ]


def soak(count: int, seed: int = 0) -> list[Row]:
    """Return memory and open files of owner and sites at the end of `count` rounds over those before.

    Between the two a site's SuperNode or worker is killed at random; the site starts it again by itself.
    One more while that is away would leave too few sites, so it waits until all are back. If the owner's
    run ends early all the same, it is called again, as a person would.
    """
    settings = config(rounds=count, steps=1)
    draw, dropped, calls, began = random.Random(seed), 0, 1, time.monotonic()
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        federation = prepared(settings, folder)
        started = {name: stack.enter_context(program("start", folder / name)) for name in SITES}
        started["owner"] = stack.enter_context(program("run", federation.folder))
        place = federation.run_folder / "seed-0" / "federation"
        warm = max(2, int(WARM * count))
        wait_for(place, warm)
        before = {name: usage(one.pid) for name, one in started.items()}
        due = False
        for number in range(warm + 1, count):
            while len(took_part(place)) < number:
                time.sleep(0.2)
                if started["owner"].poll() is not None and len(took_part(place)) < count:
                    calls += 1
                    started["owner"] = stack.enter_context(program("run", federation.folder))
            if number % 10 == 0:
                left_min = (time.monotonic() - began) / number * (count - number) / 60
                so_far = f"round {number} of {count}, {dropped} programs killed"
                print(f"{so_far}, about {left_min:.0f} min left", flush=True)
            due = due or draw.random() < DROP_OUT_RATE
            everybody = [len(SITES)] * WHOLE_ROUNDS == took_part(place)[-WHOLE_ROUNDS:]
            if due and everybody and number < count - CALM_ROUNDS:
                site, what = draw.choice(list(SITES)), draw.choice(["launch.supernode", "launch.worker"])
                time.sleep(draw.uniform(0, 5))  # any step of the round
                dropped, due = dropped + kill(started[site].pid, what), False
        after = {name: usage(one.pid) for name, one in started.items()}
        taking = took_part(place)
    command = f"python -m tests.bench.deploy soak {count}"
    rows = [
        Row(metric=what, value=value, n=count, unit="", target="", ok=None, command=command)
        for what, value in (
            (f"programs killed in {count} rounds, seed {seed}", dropped),
            ("rounds without a site", sum(number < len(SITES) for number in taking)),
            ("calls of `deploy run`", calls),
        )
    ]
    for index, what in enumerate(("memory", "open files")):
        growth = {name: after[name][index] / before[name][index] - 1 for name in started}
        worst = max(growth, key=lambda name: growth[name])
        rows.append(
            Row(
                metric=f"growth of {what} over {count} rounds, worst party ({worst})",
                value=growth[worst],
                n=count,
                unit="",
                target=f"<= {MOST_GROWTH}",
                ok=growth[worst] <= MOST_GROWTH,
                command=command,
            )
        )
    return rows


def took_part(place: Path) -> list[int]:
    """Return how many sites took part in each round that is saved."""
    return [len(line["participants"]) for line in RunFolder(path=place).read_jsonl("rounds.jsonl")]


def kill(pid: int, words: str) -> int:
    """Kill the programs below a process that have these words in their command; return how many."""
    killed = 0
    for one in _below(pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            if words in Path(f"/proc/{one}/cmdline").read_text(encoding="utf-8"):
                os.kill(one, signal.SIGKILL)
                killed += 1
    return killed


def config(*, rounds: int, steps: int = 10) -> Config:
    """Return the settings: masked, five sites, the embedded LLM, half of its blocks removed."""
    return parse_config(
        {
            "name": "bench-deploy",
            "seeds": [0],
            "data": {"clients": [{"name": name, "task": task} for name, task in SITES.items()]},
            "local": {"steps": steps, "learning_rate": 3.0e-3},
            "protect": {"scheme": "masking"},
            "federate": {"rounds": rounds, "timeout_s": 120.0},
        }
    )


def prepared(settings: Config, folder: Path) -> Federation:
    """Make owner and sites below `folder`, up to kits that are accepted."""
    federation = init(settings, folder / "owner", address=f"127.0.0.1:{free_port()}")
    sites = [join(name, folder / name)[0] for name in SITES]
    for site in sites:
        approve(federation, read_document(site.request, REQUEST))
    epoch = next_epoch(federation)
    for site in sites:
        kit = make_kit(federation, epoch, site.name)
        accept(site, kit, owner=signing_public(federation.owner_key()))
    return federation


@contextmanager
def program(*words: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command of `deploy` in the background, until the `with` block is left."""
    command = [sys.executable, "-m", "fedproxy_secure", "deploy", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as started:
        try:
            yield started
        finally:
            started.send_signal(signal.SIGTERM)


def wait_for(place: Path, count: int) -> None:
    """Wait until so many rounds are saved."""
    while len(RunFolder(path=place).read_jsonl("rounds.jsonl")) < count:
        time.sleep(0.2)


def taken(place: Path) -> list[float]:
    """Return each round's seconds."""
    return [line["seconds"] for line in RunFolder(path=place).read_jsonl("rounds.jsonl")]


def usage(pid: int) -> tuple[int, int]:
    """Return resident KiB and open files of a process and of all that it started."""
    memory = files = 0
    for one in [pid, *_below(pid)]:
        try:
            status = Path(f"/proc/{one}/status").read_text(encoding="ascii")
            files += sum(1 for _ in Path(f"/proc/{one}/fd").iterdir())
        except FileNotFoundError:
            continue
        memory += next(int(s.split()[1]) for s in status.splitlines() if s.startswith("VmRSS"))
    return memory, files


def processor_s(pids: Iterable[int]) -> dict[str, float]:
    """Return processor seconds by role, over these processes and all that they started."""
    used: dict[str, float] = {}
    for pid in pids:
        for one in [pid, *_below(pid)]:
            with suppress(FileNotFoundError, ProcessLookupError):
                line = Path(f"/proc/{one}/cmdline").read_text(encoding="utf-8").replace("\0", " ")
                role = next((name for words, name in ROLES.items() if words in line), "other")
                # fields 14 and 15 of the file; the name in the second one may have blanks in it
                fields = Path(f"/proc/{one}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
                ticks = int(fields[11]) + int(fields[12])
                used[role] = used.get(role, 0.0) + ticks / os.sysconf("SC_CLK_TCK")
    return used


def _below(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return []
    return [int(child) for child in children] + [one for child in children for one in _below(int(child))]


def _row(
    metric: str, value: float, unit: str = "", *, n: int = ROUNDS - 1, at_most: float | None = None
) -> Row:
    target, ok = ("", None) if at_most is None else (f"<= {at_most:g}", value <= at_most)
    return Row(metric=metric, value=value, n=n, unit=unit, target=target, ok=ok, command=COMMAND)


def _median(metric: str, seconds: list[float]) -> Row:
    return Row(
        metric=metric,
        value=statistics.median(seconds),
        low=min(seconds),
        high=max(seconds),
        n=len(seconds),
        unit="s",
        target="",
        ok=None,
        command=COMMAND,
    )


if __name__ == "__main__":
    main()
