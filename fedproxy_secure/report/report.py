"""The report of a run, and `report.json`, its form for programs.

The JSON follows `report.schema.json`, which ships beside this module and is generated from these classes by
`python -m fedproxy_secure.report.schema`. `schema_version` increases if a reader of the old version would
misread the new one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from fedproxy_secure.errors import DataError, FedProxyError, RunFolderError
from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.report.trilemma import AttackDifference, Configuration
from fedproxy_secure.runtime import artifacts
from fedproxy_secure.runtime.artifacts import read_file
from fedproxy_secure.runtime.files.names import REPORT_JSON
from fedproxy_secure.runtime.untrusted import parse_json

SCHEMA_VERSION = 7


def pointer(path: str) -> str:
    """Return the source of a value of a report: `report.json` and, after `#`, its JSON pointer.

    >>> pointer("rows/0/average")
    'report.json#/rows/0/average'
    """
    return f"{REPORT_JSON}#/{path}"


@dataclass(frozen=True, kw_only=True)
class MethodRow:
    """One method at one remove ratio; None for a number that does not apply or was not measured.

    Losses have the unit `nats`, per token of free text's responses, which no accuracy includes. All other
    numbers have the unit `share` (1 = everything). They use lm-eval's `acc`, but those whose names end in
    `_norm` use its `acc_norm`, with log-likelihoods per character of the choice.
    """

    method: str
    remove_ratio: float | None = None  # None: the method has no proxy
    tasks: Mapping[str, Estimate] = field(default_factory=dict)  # fused LLM, by task
    average: Estimate | None = None  # fused LLM, mean over tasks
    tasks_norm: Mapping[str, Estimate] = field(default_factory=dict)  # `tasks` by acc_norm
    average_norm: Estimate | None = None  # `average` by acc_norm
    gap_closed: Estimate | None = None  # from zero-shot (0) to the centralised LLM (1)
    tuned_proxy: Estimate | None = None  # the tuned proxy alone, mean over tasks
    owners_edge: Estimate | None = None  # fused LLM minus tuned proxy
    gap_closed_norm: Estimate | None = None  # `gap_closed` by acc_norm
    tuned_proxy_norm: Estimate | None = None  # `tuned_proxy` by acc_norm
    owners_edge_norm: Estimate | None = None  # `owners_edge` by acc_norm
    gap_closed_counting: Estimate | None = None  # `gap_closed` over the tasks with `TaskScale.counts`
    size_effect: Estimate | None = None  # the proxy tuned on pooled records minus the centralised LLM
    federation_effect: Estimate | None = None  # tuned proxy minus the proxy tuned on pooled records
    owners_edge_effect: Estimate | None = None  # `owners_edge` of the seeds of these two effects
    tasks_loss: Mapping[str, Estimate] = field(default_factory=dict)  # fused LLM, by task of free text
    loss: Estimate | None = None  # fused LLM, mean over tasks of free text
    loss_gap_closed: Estimate | None = (
        None  # from the zero-shot loss (0) to that of the centralised LLM (1)
    )
    tuned_proxy_loss: Estimate | None = None  # the tuned proxy alone, mean over tasks of free text


@dataclass(frozen=True, kw_only=True)
class MethodDifference:
    """One method minus another at one remove ratio, paired by seed and, with one seed, by record.

    Args:
        method: the method.
        against: the method that is subtracted.
        remove_ratio: of both; of one of them if the other has no proxy; None if both have none.
        average: the difference of the fused LLMs' mean accuracies over tasks, by `acc`; unit `share`.
            Effects that both share, such as a seed's records, cancel out, so its interval may exclude 0
            although the methods' own intervals overlap. None if all tasks are free text.
        average_norm: the same by `acc_norm`.
        tasks: `average` task by task.
        loss: the difference of their mean losses on free text; unit `nats`, below 0 if the method's loss is
            smaller. None without free text.
        tasks_loss: `loss` task by task.
    """

    method: str
    against: str
    remove_ratio: float | None
    average: Estimate | None
    average_norm: Estimate | None = None
    tasks: Mapping[str, Estimate] = field(default_factory=dict)
    loss: Estimate | None = None
    tasks_loss: Mapping[str, Estimate] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TaskScale:
    """The scale of a coded task of a comparison: its ends and a constant answer, by `acc`, unit `share`.

    Args:
        task: the task.
        constant: accuracy of the most frequent answer of training records, given to every test record.
        zero_shot: accuracy of the LLM before tuning.
        ceiling: accuracy of the LLM tuned on all records together.
        above_constant, above_zero_shot: the ceiling minus each of the two, paired.
        counts: whether both differences lie above 0, beyond their intervals.
    """

    task: str
    constant: Estimate
    zero_shot: Estimate
    ceiling: Estimate
    above_constant: Estimate
    above_zero_shot: Estimate
    counts: bool


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """How close a proxy is to its LLM, on public text that nothing was chosen or healed by.

    Args:
        kl: KL(LLM || proxy) of next-token distributions, nats a token.
        agreement: share of positions where both predict the same token.
        llm_perplexity, proxy_perplexity: perplexities of both.
        cka: linear CKA of the outputs of proxy blocks and of their LLM originals, mean over blocks; None if
            proxy blocks have no originals.
        verbatim: share of the LLM's parameters that the proxy holds bit for bit.
    """

    kl: Estimate
    agreement: Estimate
    llm_perplexity: Estimate
    proxy_perplexity: Estimate
    cka: Estimate | None
    verbatim: Estimate


@dataclass(frozen=True, kw_only=True)
class ProxyRow:
    """A comparison's proxy at one remove ratio, before any tuning.

    Args:
        remove_ratio: share of the LLM that it lacks.
        fidelity: fidelity of the proxy that clients get; None without a record of it.
        before_healing: fidelity of the same proxy before it was healed; None if it was not healed.
        above_llm: accuracy of the proxy minus the LLM's, by `acc`, both untuned; unit `share`. None unless
            the comparison has both, and a task that is not free text.
    """

    remove_ratio: float
    fidelity: Fidelity | None = None
    before_healing: Fidelity | None = None
    above_llm: Estimate | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """All results of a run, and what is needed to reproduce it.

    Args:
        name: name of the run.
        command: the command that made the report.
        config_sha256: SHA-256 of the settings, hex.
        environment: versions and machine.
        seeds: the run's seeds.
        estimates: numbers outside `rows` and `configurations`, such as a proxy's fidelity.
        rows: the methods of a comparison.
        differences: pairs of its methods: each method minus those that `compare.against` names.
        task_scales: the scale of each task of a comparison, if it is known.
        proxies: a comparison's proxies, one for each remove ratio.
        unsafe: stamps of a comparison: warnings that every form shows, each with the methods it is about.
        unfinished: what an interrupted comparison lacks, in sentences that every form shows.
        notes: what a reader must know to interpret the numbers, such as truncated prompts.
        guarantees: what holds and what does not, in sentences.
        configurations: the trilemma's configurations with their measures.
        attack_differences: each attack under each protection, compared with no protection.
        not_measured: what was not measured, and why.
        audit_head: hash of the audit log's last line, hex, over which the report is signed; None without a
            log.
        total_epsilon: epsilon of all configurations together, which train on the same records; None if it
            is not finite or not known.
        composition: sentences about `total_epsilon`, and about which privacy costs add up.
        schema_version: version of the form.
    """

    name: str
    command: str
    config_sha256: str
    environment: Mapping[str, Any]
    seeds: tuple[int, ...]
    estimates: tuple[Estimate, ...] = ()
    rows: tuple[MethodRow, ...] = ()
    differences: tuple[MethodDifference, ...] = ()
    task_scales: tuple[TaskScale, ...] = ()
    proxies: tuple[ProxyRow, ...] = ()
    unsafe: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unfinished: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    guarantees: tuple[str, ...] = ()
    configurations: tuple[Configuration, ...] = ()
    attack_differences: tuple[AttackDifference, ...] = ()
    not_measured: tuple[str, ...] = ()
    audit_head: str | None = None
    total_epsilon: Estimate | None = None
    composition: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        names = [c.name for c in self.configurations]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise DataError(f"configurations: {twice!r} is there twice; names must differ")

    def to_json(self) -> str:
        """Return the report as indented JSON; all numbers in it are finite."""
        return json.dumps(asdict(self), indent=2, sort_keys=True, allow_nan=False) + "\n"

    def write(self, folder: Path) -> Path:
        """Write `report.json` atomically and return its path.

        Raises `RunFolderError` if the folder cannot be written; an existing file then stays.
        """
        artifacts.write_bytes(folder / REPORT_JSON, self.to_json().encode())
        return folder / REPORT_JSON

    @classmethod
    def load(cls, folder: Path) -> Report:
        """Read the report in `folder`; raises as `read` does."""
        return cls.read(folder / REPORT_JSON)

    @classmethod
    def read(cls, path: Path) -> Report:
        """Read a report's JSON.

        Raises `RunFolderError` if it is missing, damaged or of another schema version.
        """
        return cls.parse(read_file(path), path)

    @classmethod
    def parse(cls, raw: bytes, path: Path) -> Report:
        """Parse a report's JSON; errors name `path`.

        Raises `RunFolderError` if it is damaged or of another schema version.
        """
        try:
            values = parse_json(raw)
            if not isinstance(values, dict) or "schema_version" not in values:
                raise RunFolderError(
                    f"{path}: is damaged, or no report: has no schema_version; give a file that `run`, "
                    "`compare` or `matrix` wrote"
                )
            version = values["schema_version"]
            if version != SCHEMA_VERSION:
                raise RunFolderError(
                    f"{path}: schema_version={version}: must be {SCHEMA_VERSION}; make the report again"
                )
            report: Report = adapter().validate_python(values)
            return report
        except RunFolderError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, FedProxyError) as error:
            raise RunFolderError(f"{path}: is damaged: {str(error).splitlines()[0]}") from error


@cache
def adapter() -> Any:
    """Return Pydantic's `TypeAdapter` of `Report`, which reads plain values and knows the JSON schema."""
    from pydantic import TypeAdapter

    return TypeAdapter(Report)
