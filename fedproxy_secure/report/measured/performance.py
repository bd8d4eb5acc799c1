"""Performance: correct answers, losses on free text, the gap closed, perplexity; and curves over rounds."""

from __future__ import annotations

from collections.abc import Sequence

from fedproxy_secure.evidence.answers import alone, gap_over_seeds_or_records
from fedproxy_secure.evidence.estimate import mean_interval
from fedproxy_secure.evidence.losses import loss_gap_over_seeds_or_records, measured
from fedproxy_secure.evidence.measures import performance as kinds
from fedproxy_secure.report.measured.joining import answers, losses, values
from fedproxy_secure.report.measured.seed import SeedRun
from fedproxy_secure.report.trilemma import Curve, Measure
from fedproxy_secure.runtime.files.names import FEDERATION, RESULT, ROUNDS


def performance(seeds: Sequence[SeedRun]) -> list[Measure]:
    """Return the measures of performance of the run itself."""
    measures = [
        *answers(seeds, kinds.ACCURACY_ZERO_SHOT, alone, ["zero_shot"]),
        *answers(seeds, kinds.ACCURACY_TUNED_PROXY, alone, ["tuned"]),
        *answers(seeds, kinds.ACCURACY_FUSED, alone, ["fused"]),
    ]
    if all(s.ceiling for s in seeds):
        measures += answers(seeds, kinds.ACCURACY_CENTRALISED, alone, ["ceiling"])
        measures += _gap_closed(seeds)
    measures += _on_free_text(seeds)
    before = {s.seed: float(s.result["fidelity"]["llm_perplexity"]) for s in seeds}
    after = {
        s.seed: float(value)  # None: the model diverged
        for s in seeds
        if (value := s.result["perplexity"]["fused"]) is not None
    }
    return [
        *measures,
        *values(seeds, kinds.PERPLEXITY_BEFORE, before),
        *values(seeds, kinds.PERPLEXITY_AFTER, after),
    ]


def _gap_closed(seeds: Sequence[SeedRun]) -> list[Measure]:
    by_seed = {s.seed: [s.answers(model) for model in ("fused", "zero_shot", "ceiling")] for s in seeds}
    if not all(bits for models in by_seed.values() for bits in models):
        return []  # all tasks are free text
    estimate = gap_over_seeds_or_records(by_seed, kinds.GAP_CLOSED.estimate_name)
    source = seeds[0].source(RESULT, "fused")
    return [] if estimate is None else [Measure.of_kind(kinds.GAP_CLOSED, estimate, source)]


def _on_free_text(seeds: Sequence[SeedRun]) -> list[Measure]:
    measures = [
        *losses(seeds, kinds.LOSS_ZERO_SHOT, alone, ["zero_shot"]),
        *losses(seeds, kinds.LOSS_ZERO_SHOT_PROXY, alone, ["proxy"]),
        *losses(seeds, kinds.LOSS_TUNED_PROXY, alone, ["tuned"]),
        *losses(seeds, kinds.LOSS_FUSED, alone, ["fused"]),
    ]
    if all(s.ceiling_losses for s in seeds):
        measures += losses(seeds, kinds.LOSS_CENTRALISED, alone, ["ceiling"])
        measures += _loss_gap_closed(seeds)
    return measures


def _loss_gap_closed(seeds: Sequence[SeedRun]) -> list[Measure]:
    by_seed = {s.seed: [s.losses(model) for model in ("fused", "zero_shot", "ceiling")] for s in seeds}
    if not all(measured(lost) for models in by_seed.values() for lost in models):
        return []
    estimate = loss_gap_over_seeds_or_records(by_seed, kinds.LOSS_GAP_CLOSED.estimate_name)
    source = seeds[0].source(RESULT, "fused_loss")
    return [] if estimate is None else [Measure.of_kind(kinds.LOSS_GAP_CLOSED, estimate, source)]


def curves(seeds: Sequence[SeedRun]) -> tuple[Curve, ...]:
    """Return numbers round by round, for the rounds that all seeds have."""
    result = []
    for key, title, unit in (
        ("loss", "training loss (nats per token)", "nats"),
        ("step_norm", "how far the adapter moved", "norm"),
    ):
        if not all(r.get(key) is not None for s in seeds for r in s.rounds):
            continue  # under differential privacy clients do not send losses
        points = []
        for number in range(min(len(s.rounds) for s in seeds)):
            by_seed = {s.seed: float(s.rounds[number][key]) for s in seeds}
            points.append((number, mean_interval(by_seed, metric=f"{title}, round {number}", unit=unit)))
        source = seeds[0].source(f"{FEDERATION}/{ROUNDS}", key)
        result.append(Curve(key=key, title=title, points=tuple(points), source=source))
    return tuple(result)
