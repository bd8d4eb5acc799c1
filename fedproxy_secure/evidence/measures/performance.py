"""Measures of performance: how good the fused LLM is."""

from __future__ import annotations

import math

from fedproxy_secure.evidence.measure import MeasureKind

_POSITIVE = (0.0, math.inf)
_SHARE = (0.0, 1.0)


def _loss(key: str, *, title: str, meaning: str) -> MeasureKind:
    """Return the measure of a model's loss on free text, which is no column of the trilemma."""
    return MeasureKind(
        key=key,
        title=title,
        meaning=meaning,
        in_trilemma=False,
        axis="performance",
        better="lower",
        unit="nats",
        by="run",
        within=_POSITIVE,
    )


ACCURACY_ZERO_SHOT = MeasureKind(
    key="accuracy_zero_shot",
    title="LLM before tuning",
    meaning="Share of correct answers of the LLM before tuning, mean over tasks.",
    axis="performance",
    better="higher",
    unit="share",
    by="run",
    within=_SHARE,
    in_trilemma=False,
)
ACCURACY_TUNED_PROXY = MeasureKind(
    key="accuracy_tuned_proxy",
    title="tuned proxy",
    meaning="Share of correct answers of the tuned proxy, which every client holds.",
    axis="performance",
    better="higher",
    unit="share",
    by="run",
    within=_SHARE,
    in_trilemma=False,
)
ACCURACY_FUSED = MeasureKind(
    key="accuracy_fused",
    title="fused LLM",
    meaning="Share of correct answers of the fused LLM, mean over tasks.",
    phrase="the fused LLM answers {} of the test records correctly",
    axis="performance",
    better="higher",
    unit="share",
    by="run",
    within=_SHARE,
    headline=3,
)
ACCURACY_CENTRALISED = MeasureKind(
    key="accuracy_centralised",
    title="centralised LLM",
    meaning="Share of correct answers of the LLM tuned on all records together: the ceiling.",
    axis="performance",
    better="higher",
    unit="share",
    by="run",
    within=_SHARE,
    in_trilemma=False,
)
GAP_CLOSED = MeasureKind(
    key="gap_closed",
    title="gap closed",
    meaning="0 % is the LLM before tuning, 100 % the LLM tuned on all records together.",
    phrase="the fused LLM closes {} of the gap to tuning on all records together",
    axis="performance",
    better="higher",
    unit="share",
    by="run",
    headline=4,
)
LOSS_ZERO_SHOT = _loss(
    "loss_zero_shot",
    title="LLM before tuning, loss",
    meaning="Nats a token that the LLM loses before tuning on test records of free text.",
)
LOSS_ZERO_SHOT_PROXY = _loss(
    "loss_zero_shot_proxy",
    title="proxy before tuning, loss",
    meaning="Nats a token that the proxy loses before tuning on test records of free text.",
)
LOSS_TUNED_PROXY = _loss(
    "loss_tuned_proxy",
    title="tuned proxy, loss",
    meaning="Nats a token that the tuned proxy, which every client holds, loses on free text.",
)
LOSS_FUSED = MeasureKind(
    key="loss_fused",
    title="fused LLM, loss",
    meaning="Nats a token that the fused LLM loses on free text, mean over tasks; exp of it: perplexity.",
    phrase="the fused LLM loses {} a token of free text",
    headline=1,
    axis="performance",
    better="lower",
    unit="nats",
    by="run",
    within=_POSITIVE,
)
LOSS_CENTRALISED = _loss(
    "loss_centralised",
    title="centralised LLM, loss",
    meaning="Nats a token that the LLM tuned on all records together loses on free text: the ceiling.",
)
LOSS_GAP_CLOSED = MeasureKind(
    key="loss_gap_closed",
    title="gap closed by loss",
    meaning="0 % is the loss on free text before tuning, 100 % that of tuning on all records together.",
    phrase="the fused LLM closes {} of the gap in loss to tuning on all records together",
    axis="performance",
    better="higher",
    unit="share",
    by="run",
    headline=2,
)
PERPLEXITY_BEFORE = MeasureKind(
    key="perplexity_before",
    title="perplexity before",
    meaning="Perplexity of the LLM on public text before tuning.",
    axis="performance",
    better="lower",
    unit="perplexity",
    by="run",
    within=_POSITIVE,
    in_trilemma=False,
)
PERPLEXITY_AFTER = MeasureKind(
    key="perplexity_after",
    title="perplexity after",
    meaning="Perplexity of the fused LLM on public text; above the value before, the LLM has forgotten.",
    axis="performance",
    better="lower",
    unit="perplexity",
    by="run",
    within=_POSITIVE,
    in_trilemma=False,
)
