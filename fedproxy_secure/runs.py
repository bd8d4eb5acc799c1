"""`run`: the pipeline for every seed, into a run folder that a killed run goes on from.

seed-0/proxy/             the proxy, a Hugging Face folder
seed-0/plan.json          which LLM blocks it holds, importance, fidelity
seed-0/federation/        server state after the last whole round, one line of metrics a round, and the
                          leakage ledger: what flowed and what it reveals
seed-0/adapter/           the tuned adapter, a PEFT folder for the proxy
seed-0/fused/             the fused LLM, a Hugging Face folder
seed-0/result.json        accuracies; written last
report.json, report.md    all seeds together; report.sig is their signature
audit.jsonl               what happened, in a signed chain: `fedproxy-secure audit verify`
tracking/                 rounds and measures for TensorBoard and others
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fedproxy_secure.artifacts import RunFolder, environment, json_bytes
from fedproxy_secure.audit.witness import Witness
from fedproxy_secure.config import Config
from fedproxy_secure.dp.ledger import all_events, read_all
from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.llm import pick_device
from fedproxy_secure.pipeline import (
    Accuracy,
    average,
    check_privacy,
    cut_notes,
    evaluate,
    make_fused_llm,
    make_proxy,
    prepare,
    truncated_prompts,
    tune,
)
from fedproxy_secure.progress import NoProgress, Progress
from fedproxy_secure.report.composition import Training, composed, one_alone, to_json
from fedproxy_secure.report.estimate import Estimate, counted, mean_interval
from fedproxy_secure.report.measured import ATTACKED, attacked, configuration_of, read_seed
from fedproxy_secure.report.publish import publish
from fedproxy_secure.report.report import MethodRow, Report
from fedproxy_secure.report.spending import guarantees_of, total
from fedproxy_secure.run_plan import protection_note
from fedproxy_secure.secagg import ckks
from fedproxy_secure.stage_clock import StageClock, peak_memory_bytes
from fedproxy_secure.tracking import Place, Tracker, measure_values, open_tracker, require, round_values
from fedproxy_secure.untrusted import read_json

STAGES = 5  # of one seed, for the progress bar


def run(
    config: Config,
    out: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    command: str = "",
    page: bool = True,
) -> Report:
    """Compress, federate, fuse and evaluate for every seed; write models and report below `out`.

    With `resume`, finished seeds are kept and an unfinished one goes on after its last whole round; the
    result is the same as an unbroken run's. What happens goes into the folder's audit log, over whose last
    line the report is signed. Without `page` the report is written as JSON and text alone.

    Raises `FedProxyError` in one line for anything wrong with settings, data, model or folder; `AuditError`
    if what lies in the folder is not what the log has.
    """
    config.check_protection()
    if config.protect.scheme == "ckks":
        ckks.require()
    require(config.track)
    typed = command or "fedproxy_secure.run(...)"
    signed, config = config, config.with_signing_key(None)  # neither folder nor clients need to know it
    folder = RunFolder.resume(out, config) if resume else RunFolder.create(out, config)
    witness = Witness.open(folder, signed, command=typed)
    with witness.aborts():
        results = {seed: _run_seed(config, witness, seed, progress) for seed in config.seeds}
        report = replace(report_of(config, out, results, typed), audit_head=witness.settle())
        if witness.has_news():
            with closing(_tracker(config, witness, "report")) as tracker:
                tracker.log(0, measure_values(report.configurations[0]))
        publish(report, out) if page else report.write(out)
        witness.sign()
    return report


def _tracker(config: Config, witness: Witness, part: str) -> Tracker:
    place = Place(folder=witness.folder, project=config.name, run=witness.run, part=part)
    return open_tracker(config.track, place)


def _tell_rounds(witness: Witness, tracker: Tracker, seed: int) -> None:
    """Of rounds that are saved, whatever log and trackers do not have yet."""
    for line in witness.untold_rounds(seed):
        tracker.log(line["round"], round_values(line))
        witness.round(seed, line)


def _run_seed(config: Config, witness: Witness, seed: int, progress: Progress | None) -> dict[str, Any]:
    from fedproxy_secure.compress.fidelity import fidelity, verbatim_share
    from fedproxy_secure.compress.proxy import save_model
    from fedproxy_secure.data.evaluate import perplexity
    from fedproxy_secure.federate.adapters import save_adapter
    from fedproxy_secure.federate.job import FederationJob
    from fedproxy_secure.flower.engines import PRIVACY

    name, folder = f"seed-{seed}", witness.log.folder
    place = folder.path / name
    if (place / "result.json").exists():
        return _read(place / "result.json")
    witness.started(seed)
    shown = progress or NoProgress()
    shown.start(name, STAGES)
    clock = StageClock()
    materials = prepare(config)
    proxy = make_proxy(config, materials, seed=seed, remove_ratio=config.compress.remove_ratio)
    save_model(proxy.model, materials.tokenizer, place / "proxy")
    faithful = fidelity(materials.llm, proxy.model, proxy.plan, materials.windows)
    held = verbatim_share(materials.llm, proxy.model, proxy.plan)
    clock.stop("compress")
    folder.write_json(
        f"{name}/plan.json",
        {
            "llm_blocks": proxy.plan.llm_blocks,
            "kept": list(proxy.plan.kept),
            "importance": list(proxy.importance),
            "fidelity": asdict(faithful),
        },
    )
    shown.advance(name, note="compressed")
    zero_shot = evaluate(materials.llm, materials, config, progress=progress, name="LLM")
    proxy_before = evaluate(proxy.model, materials, config, progress=progress, name="proxy")
    clock.stop("evaluate")
    shown.advance(name, note="measured before tuning")
    (place / "federation").mkdir(parents=True, exist_ok=True)
    job = FederationJob.from_config(config, seed=seed)
    with closing(_tracker(config, witness, name)) as tracker:
        tuned = tune(
            job,
            proxy.model,
            place / "proxy",
            run_folder=place / "federation",
            progress=progress,
            on_round=lambda: _tell_rounds(witness, tracker, seed),
        )
    save_adapter(tuned, place / "adapter")
    clock.stop("federate")
    shown.advance(name, note="federated")
    fused = make_fused_llm(materials, proxy, tuned)
    save_model(fused, materials.tokenizer, place / "fused")
    clock.stop("fuse")
    shown.advance(name, note="fused")
    ledgers = place / "federation" / PRIVACY
    spent = read_all(ledgers)
    result = {
        "seed": seed,
        "fidelity": asdict(faithful),
        "verbatim_share": held,
        "perplexity": {
            m: perplexity(f, materials.windows) for m, f in (("tuned", tuned), ("fused", fused))
        },
        "zero_shot": _bits(zero_shot),
        "proxy": _bits(proxy_before),
        "tuned": _bits(evaluate(tuned, materials, config, progress=progress, name="tuned proxy")),
        "fused": _bits(evaluate(fused, materials, config, progress=progress, name="fused LLM")),
        "truncated": truncated_prompts(config),
        "privacy_notes": list(check_privacy(job, tuned, {})),
        "spent": {client: asdict(s) for client, s in spent.items()},
        "events": to_json(all_events(ledgers)),
    }
    clock.stop("evaluate")
    result |= {"seconds": clock.seconds, "peak_memory_bytes": peak_memory_bytes()}
    witness.finished(seed, json_bytes(result), epsilon={c: s.epsilon for c, s in spent.items()})
    shown.done(name)
    return result


def report_of(config: Config, out: Path, results: dict[int, dict[str, Any]], command: str) -> Report:
    """The report of a run's finished seeds, with the trilemma; findings are read where a suite ran."""

    def over_seeds(model: str) -> dict[int, float]:
        return {seed: _average(r[model]) for seed, r in results.items()}

    def row(method: str, model: str, **more: Any) -> MethodRow:
        tasks = {
            task: mean_interval(
                {s: _share(r[model][task]) for s, r in results.items()},
                metric=f"accuracy on {task}, {method}",
                unit="share",
            )
            for task in next(iter(results.values()))[model]
        }
        own = mean_interval(over_seeds(model), metric=f"accuracy, {method}", unit="share")
        return MethodRow(method=method, tasks=tasks, average=own, **more)

    seeds = [read_seed(out, seed, root=out) for seed in results]
    trainings = [seed.training(config) for seed in seeds]
    guaranteed = guarantees_of(config, trainings)
    configuration = configuration_of(
        seeds,
        config,
        name=config.name,
        settings={
            "protection": config.protect.scheme,
            "remove_ratio": f"{config.compress.remove_ratio:g}",
            "fusion": config.fusion.rule,
            "adapter": config.adapter.kind,
        },
        guarantees=guaranteed,
        commands=(command,),
    )
    together = total([configuration], same_records=True)
    fused, tuned = over_seeds("fused"), over_seeds("tuned")
    edge = mean_interval({s: fused[s] - tuned[s] for s in fused}, metric="owner's edge", unit="share")
    ratio = config.compress.remove_ratio
    truncated = max(r["truncated"] for r in results.values())
    return Report(
        name=config.name,
        command=command,
        config_sha256=config.sha256(),
        environment=environment(str(pick_device(config.model.device))),
        seeds=config.seeds,
        rows=(
            row("zero_shot", "zero_shot"),
            row("zero_shot_proxy", "proxy", remove_ratio=ratio),
            row(
                f"fedproxy_{config.fusion.rule}",
                "fused",
                remove_ratio=ratio,
                tuned_proxy=mean_interval(tuned, metric="tuned proxy accuracy", unit="share"),
                owners_edge=edge,
            ),
        ),
        estimates=tuple(
            mean_interval({s: r["fidelity"][key] for s, r in results.items()}, metric=metric, unit=unit)
            for key, metric, unit in (
                ("kl_nats", "KL of LLM to proxy on public text", "nats"),
                ("agreement", "same next token, LLM and proxy", "share"),
                ("llm_perplexity", "LLM perplexity on public text", "perplexity"),
                ("proxy_perplexity", "proxy perplexity on public text", "perplexity"),
            )
        )
        + _spent(trainings, config.seeds),
        notes=(
            protection_note(config),
            *cut_notes(truncated, config),
            *next(iter(results.values()))["privacy_notes"],
        ),
        guarantees=guaranteed,
        configurations=(configuration,),
        total_epsilon=together.epsilon,
        composition=together.says,
        not_measured=() if attacked(out) else (ATTACKED,),
    )


def _spent(trainings: Sequence[Training], seeds: Sequence[int]) -> tuple[Estimate, ...]:
    """Return the largest cost of any client: over all seeds by both accountants, and for one seed."""
    cost, alone = composed(trainings), one_alone(trainings)
    if cost is None or alone is None or not cost.finite:
        return ()
    by = {"rdp": cost.spent.rdp, "prv": cost.spent.prv} if cost.spent is not None else {}
    told = {"epsilon spent, client that spent most": cost.epsilon}
    told |= {
        f"epsilon spent, by the {name.upper()} accountant, client that spent most": value
        for name, value in by.items()
        if value is not None
    }
    if len(trainings) > 1:
        told["epsilon spent by one seed alone, client that spent most"] = alone
    made = [counted(v, metric=name, unit="epsilon", seeds=seeds) for name, v in told.items()]
    together = f"{len(trainings)} trainings together, " if len(trainings) > 1 else ""
    how = f"counted, exact: {together}{cost.how}"
    return tuple(e if "alone" in e.metric else replace(e, how=how) for e in made)


def _bits(accuracies: dict[str, Accuracy]) -> dict[str, str]:
    return {t: "".join("01"[int(b)] for b in a.correct) for t, a in accuracies.items()}


def _share(bits: str) -> float:
    return bits.count("1") / len(bits)


def _average(by_task: dict[str, str]) -> float:
    return average({t: Accuracy(correct=tuple(b == "1" for b in s)) for t, s in by_task.items()})


def _read(path: Path) -> dict[str, Any]:
    try:
        result: dict[str, Any] = read_json(path)
        return result
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path}: is damaged; delete it and resume") from error
