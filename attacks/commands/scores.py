"""The command `attack scores`: how attacks judged each target, as a table for analyses of one's own."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedproxy_secure.cli.errors import plain_errors
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.runtime.files.names import FINDINGS, seed_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedproxy_secure.evidence.finding import Finding
    from fedproxy_secure.evidence.targets import Targets

COLUMNS = (
    *("id", "attack", "view", "surface", "seed", "attack_seed", "outcome"),
    *("exam", "target", "member", "score", "rank"),
)
CONFIDENTIAL = (
    "Treat this file like the clients' records: whoever has a text and the models can compute the text's "
    "score, look for it here, and learn whether it was trained on."
)
Row = dict[str, Any]


def scores_command(
    run: Annotated[
        Path,
        typer.Option(
            "--run",
            metavar="PATH",
            help=f"The folder of a run or of a matrix's cell, or a findings file ({FINDINGS}).",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="FILE", help="The file to write: .csv, or .jsonl for a JSON object a line."
        ),
    ],
    spec: Annotated[
        list[str] | None,
        typer.Option("--spec", metavar="ATTACK", help="Only this attack, by name or id; may be repeated."),
    ] = None,
) -> None:
    """Write the score of each target of the attacks whose headline is an AUC, one row for each target.

    Membership attacks (A5, A6, A15) and some others give every target a score and call the highest ones
    members. With the rows you can draw ROC curves, set thresholds, or join attacks. Columns: id, attack,
    view, surface (what the attack read), seed (of the run), attack_seed, outcome (of the attack), exam,
    target, member (1 or 0), score (higher: rather a member; six digits), rank (of the score among the
    attack's, ties share one).

    Rows with the same target are about the same target: exams are equal if attack, seed, records and
    questions are, as for A6 and A15 with and without masking. A target's name is the exam's digest, the
    question's number and the place in the question. Scores are of the attack's headline, and
    compare only within one attack, view and seed. Exams of more than 5,000 targets are not kept.

    The file is readable by you alone. Treat it like the clients' records: whoever has a text and the models
    can compute the text's score, look for it here, and learn whether it was trained on.

    Example: `fedproxy-secure attack scores --run runs/demo_attacked --out scores.csv`
    """
    with plain_errors(again=None):
        from fedproxy_secure.evidence.finding import findings_in
        from fedproxy_secure.runtime.artifacts import write_bytes

        written = WRITTEN.get(out.suffix)
        if written is None:
            raise ConfigError(f"--out {out}: must end in {' or '.join(WRITTEN)}")
        source = run if run.is_file() else run / FINDINGS
        findings = findings_in(source)
        rows = rows_of(_chosen(findings, spec or []))
        if not rows:
            scored = sorted({f"{row['id']} {row['attack']}" for row in rows_of(findings)})
            if scored:
                raise ConfigError(
                    f"--spec {', '.join(spec or [])}: has no AUC over targets; must be one that has: "
                    f"{', '.join(scored)}"
                )
            raise ConfigError(
                f"{source}: has no scores: no attack there has an AUC over targets, or `attack run` must "
                "run it again"
            )
        write_bytes(out, written(rows).encode(), private=True)
        attacks = list(dict.fromkeys(row["id"] for row in rows))
        typer.echo(f"{out}: {len(rows)} rows of {', '.join(attacks)}")
        typer.echo(CONFIDENTIAL, err=True)


def rows_of(findings: Sequence[Finding]) -> list[Row]:
    """Return a row with the keys `COLUMNS` for each target of findings that keep scores."""
    from fedproxy_secure.evidence.surfaces import surface_of

    return [
        {
            "id": f.id,
            "attack": f.attack,
            "view": f.view,
            "surface": surface_of(f),
            "seed": seed_of(f.seed_folder),
            "attack_seed": f.seed,
            "outcome": f.outcome.value,
            "exam": f.targets.exam,
            **target,
        }
        for f in findings
        if f.targets is not None
        for target in _targets(f.targets)
    ]


def _targets(targets: Targets) -> list[Row]:
    """Return the rows of an exam.

    A target's name is the exam's digest, the question, and the target's place in the question, because an
    attack may judge only the first targets of each question.
    """
    if not targets.scores:
        return []
    each = zip(targets.places, targets.kinds, targets.scores, targets.values, strict=True)
    return [
        {"target": f"{targets.exam}-{question}-{place}", "member": int(kind), "score": score, "rank": rank}
        for (question, place), kind, score, rank in each
    ]


def _chosen(findings: Sequence[Finding], specs: Sequence[str]) -> list[Finding]:
    """Return the findings of these attacks, by name or id; `ConfigError` for one that is not there."""
    there = {name for f in findings for name in (f.id, f.attack)}
    if missing := next((spec for spec in specs if spec not in there), None):
        ids = sorted({f"{f.id} {f.attack}" for f in findings})
        raise ConfigError(f"--spec {missing}: no finding is of this attack; there are {', '.join(ids)}")
    return [f for f in findings if not specs or f.id in specs or f.attack in specs]


def as_csv(rows: Sequence[Row]) -> str:
    """Return rows as CSV with a line of headings."""
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def as_json_lines(rows: Sequence[Row]) -> str:
    """Return rows as JSON, one object a line."""
    return "".join(json.dumps(row) + "\n" for row in rows)


WRITTEN = {".csv": as_csv, ".jsonl": as_json_lines}
