"""`run`: the pipeline for every seed, into a run folder that a killed run goes on from.

seed-0/proxy/             the proxy, a Hugging Face folder
seed-0/trace.key          with `compress.trace`: the secret key of the marks in clients' copies
seed-0/plan.json          the proxy's record: compression, which LLM blocks it holds, importance, fidelity
seed-0/federation/        server state after the last whole round, one line of metrics a round, and the
                          leakage ledger: what was sent and what it reveals
seed-0/adapter/           the tuned adapter, a PEFT folder for the proxy
seed-0/fused/             the fused LLM, a Hugging Face folder
seed-0/result.json        accuracies; written last
report.json, report.md    all seeds together; report.sig is their signature
audit.jsonl               what happened, in a signed chain: `fedproxy-secure audit verify`
tracking/                 rounds and measures for TensorBoard and others
running.json              exists while a process works here, so that a second one is refused
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedproxy_secure.audit.tracing import traced
from fedproxy_secure.audit.witness import Witness
from fedproxy_secure.compress.base import compression_of
from fedproxy_secure.compress.proxy import Proxy
from fedproxy_secure.config import Config
from fedproxy_secure.data.tasks import load_tasks, truncated_prompts
from fedproxy_secure.dp.ledger import all_events, read_all
from fedproxy_secure.experiments.inputs import check_inputs, check_same_inputs
from fedproxy_secure.experiments.results import to_texts
from fedproxy_secure.experiments.run_report import report_of
from fedproxy_secure.experiments.stages import (
    Materials,
    check_privacy,
    evaluate,
    exact_proxy,
    heal_proxy,
    make_fused_llm,
    prepare,
    tune,
)
from fedproxy_secure.experiments.tracking import (
    TrackedPlace,
    Tracker,
    measure_values,
    open_tracker,
    require,
    round_values,
)
from fedproxy_secure.federate.client_policy import check_keys
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.models.memory import peak_memory_bytes
from fedproxy_secure.protect.base import protection_of
from fedproxy_secure.protect.secure_sum.failures import failed_files
from fedproxy_secure.report.composition import to_json
from fedproxy_secure.report.measured import read_seeds
from fedproxy_secure.report.publish import publish, write_texts
from fedproxy_secure.report.report import Report
from fedproxy_secure.runtime.artifacts import RunFolder, check_new, json_bytes
from fedproxy_secure.runtime.files.names import (
    ADAPTER,
    FEDERATION,
    FUSED,
    HEALING,
    PLAN,
    PRIVACY,
    PROXY,
    RESULT,
    ROUNDS,
    seed_folder,
)
from fedproxy_secure.runtime.only_one import WAIT_S, WORKERS_S, only_run_in
from fedproxy_secure.runtime.progress import NoProgress, Progress, StageClock

if TYPE_CHECKING:
    from fedproxy_secure.flower.engines import Federate

STAGES = 5  # stages of one seed, for the progress bar


def run(
    config: Config,
    out: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    command: str = "",
    in_cell: bool = False,
    federate: Federate | None = None,
) -> Report:
    """Compress, federate, fuse and evaluate for every seed; write models and report below `out`.

    With `resume`, finished seeds are kept and an unfinished one goes on after its last whole round; the
    result is the same as that of an uninterrupted run, because other records, LLM or public text than it
    began with are refused. Events go into the folder's audit log, and the
    report is signed over its last line. In a cell of a sweep (`in_cell`) the report is written only as JSON
    and text, and a matrix's log vouches for findings of attacks. `federate` runs the rounds in
    place of the engine that the settings name.

    Raises `FedProxyError` in one line for anything wrong with settings, data, model or folder, such as
    another process that works in it; `AuditError` if the folder's files are not those in the log.
    """
    if not resume:
        check_new(out)
    config.check_protection()
    protection_of(config.protect).check_installed()
    compression_of(config.compress, config.heal)
    require(config.track)
    if not in_cell:  # the sweep has checked them
        config.check_epsilon()
        for seed in config.seeds:
            if not (out / seed_folder(seed) / RESULT).exists():
                check_keys(FederationJob.from_config(config, seed=seed))
        check_inputs(config, out)
    typed = command or "fedproxy_secure.run(...)"
    signed, config = config, config.with_signing_key(None)  # neither folder nor clients may have its path
    with only_run_in(out, wait_s=WORKERS_S if in_cell else WAIT_S):
        folder = RunFolder.resume(out, config) if resume else RunFolder.create(out, config)
        witness = Witness.open(folder, signed, command=typed)
        todo = [seed for seed in config.seeds if not (out / seed_folder(seed) / RESULT).exists()]
        with witness.aborts():
            truncated = _read_inputs(config, witness, check=not in_cell) if todo else 0
            for seed in todo:
                _run_seed(config, witness, seed, progress, federate, truncated)
            head = witness.settle(findings=not in_cell)
            seeds = read_seeds(out, config.seeds, root=out)
            report = replace(report_of(config, out, seeds, typed), audit_head=head)
            if witness.has_news():
                with closing(_tracker(config, witness, "report")) as tracker:
                    tracker.log(0, measure_values(report.configurations[0]))
            write_texts(report, out) if in_cell else publish(report, out)
            witness.sign()
    return report


def _read_inputs(config: Config, witness: Witness, *, check: bool) -> int:
    """Return how many prompts of the records are cut, the same for all seeds; the records are not kept.

    With `check` (a sweep has done it for its cells), they must be the ones that the run began with.
    """
    tasks = load_tasks(config.data)
    if check:
        check_same_inputs(config, witness, tasks)
    return truncated_prompts(config, tasks)


def _tracker(config: Config, witness: Witness, part: str) -> Tracker:
    place = TrackedPlace(folder=witness.folder, project=config.name, run=witness.run, part=part)
    begun = any((witness.folder / seed_folder(seed) / RESULT).exists() for seed in config.seeds)
    return open_tracker(config.track, place, again=begun)


def _track_rounds(witness: Witness, tracker: Tracker, seed: int) -> None:
    """Pass saved rounds to log and trackers that do not have them yet."""
    for line in witness.unlogged_rounds(seed):
        tracker.log(line["round"], round_values(line))
        witness.round(seed, line)


def _run_seed(
    config: Config,
    witness: Witness,
    seed: int,
    progress: Progress | None,
    federate: Federate | None,
    truncated: int,
) -> None:
    """Run or resume one seed; its result is the last file it writes."""
    from fedproxy_secure.compress.proxy import save_model
    from fedproxy_secure.data.evaluate import perplexity
    from fedproxy_secure.models.adapters import save_adapter

    name = seed_folder(seed)
    place = witness.folder / name
    witness.started(seed)
    display = progress or NoProgress()
    display.start(name, STAGES)
    clock = StageClock()
    materials = prepare(config, seed=seed)
    proxy, record = _compress(config, materials, seed, place, progress, clock)
    display.advance(name, note="compressed")
    zero_shot = evaluate(materials.llm, materials, config, progress=progress, name="LLM")
    proxy_before = evaluate(proxy.model, materials, config, progress=progress, name="proxy")
    clock.stop("evaluate")
    display.advance(name, note="measured before tuning")
    (place / FEDERATION).mkdir(parents=True, exist_ok=True)
    job = FederationJob.from_config(config, seed=seed)
    if config.compress.trace:
        job = job.changed(marks=traced(witness, seed, place / PROXY, [c.name for c in job.clients]))
    with closing(_tracker(config, witness, name)) as tracker:
        tuned = tune(
            job,
            proxy.model,
            place / PROXY,
            run_folder=place / FEDERATION,
            progress=progress,
            on_round=lambda: _track_rounds(witness, tracker, seed),
            federate=federate,
        )
    save_adapter(tuned, place / ADAPTER)
    rounds = RunFolder(path=place / FEDERATION).read_jsonl(ROUNDS)
    clock.stop("federate", at_least=sum(line["seconds"] for line in rounds))
    display.advance(name, note="federated")
    fusion = make_fused_llm(config, materials, proxy, tuned, progress=progress)
    fused = fusion.llm
    save_model(fused, materials.tokenizer, place / FUSED)
    clock.stop("fuse")
    display.advance(name, note="fused")
    ledgers = place / FEDERATION / PRIVACY
    spent = read_all(ledgers)
    result = {
        "seed": seed,
        **record,
        "plug_back": {
            **asdict(fusion.search),
            "aligned_blocks": fusion.aligned_blocks,
            "aligned_windows": fusion.aligned_windows,
        },
        "perplexity": {
            m: value if isfinite(value := perplexity(f, materials.fidelity_windows)) else None
            for m, f in (("tuned", tuned), ("fused", fused))
        },
        **to_texts("zero_shot", zero_shot),
        **to_texts("proxy", proxy_before),
        **to_texts("tuned", evaluate(tuned, materials, config, progress=progress, name="tuned proxy")),
        **to_texts("fused", evaluate(fused, materials, config, progress=progress, name="fused LLM")),
        "truncated": truncated,
        "privacy_notes": list(check_privacy(job, tuned, {})),
        "spent": {client: asdict(s) for client, s in spent.items()},
        "events": to_json(all_events(ledgers)),
    }
    clock.stop("evaluate")
    result |= {"seconds": clock.seconds, "peak_memory_bytes": peak_memory_bytes()}
    epsilon = {client: s.epsilon for client, s in spent.items()}
    # left out of the log: healing state (it has the proxy's weights), and whose training failed
    failed = [file.relative_to(place).as_posix() for file in failed_files(ledgers)]
    witness.finished(seed, json_bytes(result), epsilon=epsilon, without=(HEALING, *failed))
    display.done(name)


def _compress(
    config: Config,
    materials: Materials,
    seed: int,
    place: Path,
    progress: Progress | None,
    clock: StageClock,
) -> tuple[Proxy, dict[str, Any]]:
    """Build the proxy and write it and its record; return it with its fidelity as plain values.

    The clock counts all of the healing, also what an earlier process did of it.

    Raises `ModelError` for a proxy that is too broken to be measured.
    """
    from fedproxy_secure.compress.fidelity import fidelity_record
    from fedproxy_secure.compress.proxy import save_model
    from fedproxy_secure.models.llm import blocks_of

    proxy = exact_proxy(config, materials, seed=seed, remove_ratio=config.compress.remove_ratio)
    before: dict[str, Any] = {}
    if config.heal.heals:
        before = {"before_healing": fidelity_record(materials.llm, proxy, materials.fidelity_windows)}
    clock.stop("compress")
    proxy = heal_proxy(config, materials, proxy, seed=seed, folder=place, progress=progress)
    clock.stop("compress", at_least=proxy.details["healing"]["seconds"] if before else 0.0)
    save_model(proxy.model, materials.tokenizer, place / PROXY)
    fidelity = fidelity_record(materials.llm, proxy, materials.fidelity_windows)
    record = {
        "compression": config.compress.kind,
        "llm_blocks": len(blocks_of(materials.llm)),
        "kept": None if proxy.plan is None else list(proxy.plan.kept),  # None: they stand for none
        "importance": list(proxy.importance),
        "fidelity": fidelity["fidelity"],
        **before,
        **proxy.details,
    }
    RunFolder(path=place).write_json(PLAN, record)
    healing = {"healing": {**proxy.details["healing"], **before}} if before else {}
    clock.stop("compress")
    return proxy, {**fidelity, **healing}
