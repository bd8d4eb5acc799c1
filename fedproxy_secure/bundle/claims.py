"""The table claim -> evidence -> command for the frameworks that compliance teams work with.

Rows on attacks follow from the identifiers that attacks carry (`AttackInfo.mapping`), one for each
identifier and attack. The other rows are about the content of every bundle. References are no finer than
the frameworks' parts named here: an identifier says what evidence is *about*, not that a requirement is
met.

The core imports neither attacks nor threat models: it asks those that are installed, by the entry point
groups `fedproxy_secure.described_attacks` and `fedproxy_secure.described_threat_models`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import yaml

from fedproxy_secure.bundle.archive import FINDINGS, GATE, NOT_MEASURED, PRIVACY, REPORT, SBOM
from fedproxy_secure.dp.guarantees import NOT_COVERED
from fedproxy_secure.evidence.finding import Outcome, in_order
from fedproxy_secure.report.report import Report
from fedproxy_secure.report.text.table import markdown_table
from fedproxy_secure.runtime.artifacts import json_bytes
from fedproxy_secure.runtime.escape import Markdown
from fedproxy_secure.runtime.registry import answers_of

ATTACKS_GROUP = "fedproxy_secure.described_attacks"
THREAT_MODELS_GROUP = "fedproxy_secure.described_threat_models"
HEADINGS = ("framework", "item", "claim", "evidence", "command")
AI_ACT, AI_RMF, OWASP = "EU AI Act 2024/1689", "NIST AI RMF 1.0", "OWASP LLM 2025"
DP_GUIDE = "NIST SP 800-226"
FRAMEWORKS = (AI_ACT, AI_RMF, DP_GUIDE, OWASP)


class DescribedAttack(Protocol):
    """The part of an attack that this module reads: its description."""

    @property
    def info(self) -> Any:
        """The description: `id`, `title`, `mapping`."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One row of the table.

    Args:
        framework, item: its subject, such as `NIST SP 800-226` and `unit`.
        claim: the claim, in a sentence.
        evidence: where in a bundle it can be looked up.
        command: the command that makes or checks the evidence; RUN is the run's folder.
        attack: id of the attack that the row is about; empty for any other row.
    """

    framework: str
    item: str
    claim: str
    evidence: str
    command: str
    attack: str = ""


GENERAL = (
    Claim(
        framework=AI_ACT,
        item="Annex IV",
        claim="Parts of the technical documentation: models, what they are made of, settings. Intended "
        "purpose, data governance and risk management are not included.",
        evidence=f"`model-cards/`, `{SBOM}`, `models.json`; settings by their SHA-256 in `{REPORT}`",
        command="fedproxy-secure evidence bundle RUN --out FILE",
    ),
    Claim(
        framework=AI_ACT,
        item="Annex IV",
        claim="What the run did is logged, and nobody without the key changed the log.",
        evidence="`audit/`: a signed chain, and the report's signature over its end",
        command="fedproxy-secure audit verify RUN --key PUB",
    ),
    Claim(
        framework=AI_ACT,
        item="Art. 15",
        claim="Accuracy is measured, with intervals.",
        evidence=f"`trilemma` in `{FINDINGS}`: the measures of the axis performance",
        command="fedproxy-secure report RUN",
    ),
    Claim(
        framework=AI_ACT,
        item="Art. 15",
        claim="A release keeps stated bounds.",
        evidence=f"`{GATE}`, where a policy was given",
        command="fedproxy-secure gate --report RUN/report.json --policy release --key PUB",
    ),
    Claim(
        framework=DP_GUIDE,
        item="unit",
        claim="What is hidden is stated: one record or one client, and which data are neighbours.",
        evidence=f"`unit` in `{PRIVACY}`, and the sentence *neighbours* among its guarantees",
        command="fedproxy-secure report RUN",
    ),
    Claim(
        framework=DP_GUIDE,
        item="parameters",
        claim="Epsilon and delta are what each client spent over all rounds (of a deployment: what is "
        "claimed); the accountant is named.",
        evidence=f"`epsilon`, `delta`, `accountant` in `{PRIVACY}`; the events in `audit/`",
        command="fedproxy-secure report RUN",
    ),
    Claim(
        framework=DP_GUIDE,
        item="trust model",
        claim="Who is trusted with what is stated for each adversary.",
        evidence=f"`threat-models/`; what the server sees: `notes` in `{FINDINGS}`",
        command="fedproxy-secure threat-model show server",
    ),
    Claim(
        framework=DP_GUIDE,
        item="side channels",
        claim=f"What the guarantee leaves out is stated. {NOT_COVERED}",
        evidence=f"guarantees in `{PRIVACY}`; `{NOT_MEASURED}`",
        command="fedproxy-secure report RUN",
    ),
)


def claims(attacks: Iterable[DescribedAttack]) -> tuple[Claim, ...]:
    """Return all rows, by framework and item; attacks with one id are one row."""
    titles: dict[tuple[str, str, str], list[str]] = {}
    for one in attacks:
        for name, version, item in one.info.mapping:
            if f"{name} {version}" in FRAMEWORKS:
                titles.setdefault((f"{name} {version}", item, one.info.id), []).append(one.info.title)
    measured = [
        Claim(
            framework=framework,
            item=item,
            claim=f"How well attacks do is measured: {'; '.join(dict.fromkeys(wanted))}.",
            evidence=f"{id} under `attacks` in `{FINDINGS}`",
            command=f"fedproxy-secure attack run --run RUN --spec {id}",
            attack=id,
        )
        for (framework, item, id), wanted in titles.items()
    ]
    rows = (*GENERAL, *measured)
    return tuple(sorted(rows, key=lambda c: (FRAMEWORKS.index(c.framework), c.item, in_order(c.attack))))


def table(rows: Sequence[Claim], outcomes: Mapping[str, str] | None = None) -> str:
    """Return the rows as Markdown; with `outcomes`, attack -> text, also what this run has."""
    lines: list[tuple[str, ...]] = []
    for row in rows:
        evidence, command = Markdown(row.evidence), Markdown(f"`{row.command}`")
        here = outcomes.get(row.attack, "not run") if outcomes is not None and row.attack else "-"
        line = (row.framework, row.item, row.claim, evidence, command, here)
        lines.append(line[: len(HEADINGS) + (outcomes is not None)])
    headings = HEADINGS if outcomes is None else (*HEADINGS, "in this run")
    return markdown_table(headings, lines, right=False)


def claims_files(report: Report) -> tuple[bytes, str]:
    """Return `claims.json` and the table with what the attacks of this report found."""
    rows = claims(described_attacks())
    outcomes = _outcomes(report)
    content = [{**asdict(row), "outcome": outcomes.get(row.attack, "")} for row in rows]
    return json_bytes({"schema_version": 1, "claims": content}), table(rows, outcomes) + "\n"


def described_attacks() -> list[DescribedAttack]:
    """Return the attacks of all installed packages; [] without any.

    Raises `ConfigError` for a package that is broken.
    """
    return [one for attacks in answers_of(ATTACKS_GROUP) for one in attacks.values()]


def threat_model_files() -> dict[str, bytes]:
    """Return the threat models of all installed packages: path in the bundle -> YAML.

    Raises `ConfigError` for a package that is broken.
    """
    files = {}
    for models in answers_of(THREAT_MODELS_GROUP):
        for name, model in models.items():
            plain = json.loads(json.dumps(asdict(model)))  # lists, not tuples
            text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)
            files[f"threat-models/{name}.yaml"] = text.encode()
    return files


def _outcomes(report: Report) -> dict[str, str]:
    """Return each attack's outcomes and how often each was reached, as text by the attack's id."""
    counts: dict[str, Counter[Outcome]] = {}
    for configuration in report.configurations:
        for finding in configuration.findings:
            counts.setdefault(finding.id, Counter())[finding.outcome] += 1
    return {
        id: ", ".join(f"{count[o]} {o.value}" for o in Outcome if count[o]) for id, count in counts.items()
    }
