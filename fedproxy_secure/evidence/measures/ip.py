"""Measures of IP: how much of the owner's LLM gets out."""

from __future__ import annotations

import math

from fedproxy_secure.evidence.measure import MeasureKind

_POSITIVE = (0.0, math.inf)
_SHARE = (0.0, 1.0)
_AT_MOST_THE_LLM = (-math.inf, 1.0)  # of R, which is below 0 for a model worse than the proxy

VERBATIM_SHARE = MeasureKind(
    key="verbatim_share",
    title="LLM weights held by a client",
    heading="weights held (%)",
    meaning="Share of the LLM's parameters that the proxy holds unchanged.",
    phrase="a client holds {} of the LLM's weights unchanged",
    axis="ip",
    better="lower",
    unit="share",
    by="run",
    within=_SHARE,
    headline=1,
    counted=True,
)
OWNERS_EDGE = MeasureKind(
    key="owners_edge",
    title="owner's edge",
    meaning="Accuracy of the fused LLM minus that of the tuned proxy: what only the owner has.",
    phrase="the fused LLM's lead over what clients hold is {}",
    axis="ip",
    better="higher",
    unit="share",
    by="run",
    within=(-1.0, 1.0),
    signed=True,
    headline=2,
)
OWNERS_EDGE_NATS = MeasureKind(
    key="owners_edge_nats",
    title="owner's edge by loss",
    meaning="Nats a token by which the fused LLM loses less on free text than the tuned proxy.",
    phrase="the fused LLM's lead on free text over what clients hold is {}",
    axis="ip",
    better="higher",
    unit="nats",
    by="run",
    signed=True,
)
PROXY_ACCURACY = MeasureKind(
    key="proxy_accuracy",
    title="proxy before tuning",
    meaning="Share of correct answers of the untuned proxy.",
    axis="ip",
    better="neither",
    unit="share",
    by="run",
    within=_SHARE,
    in_trilemma=False,
)
PROXY_KL_NATS = MeasureKind(
    key="proxy_kl_nats",
    title="KL of LLM to proxy",
    meaning="Divergence of the models' predictions on public text; 0 means the same predictions.",
    axis="ip",
    better="neither",
    unit="nats",
    by="run",
    within=_POSITIVE,
    in_trilemma=False,
)
PROXY_CKA = MeasureKind(
    key="proxy_cka",
    title="CKA of LLM and proxy",
    meaning="Similarity of hidden states; 1 means the same.",
    axis="ip",
    better="neither",
    unit="CKA",
    by="run",
    within=_SHARE,
    in_trilemma=False,
)
PROXY_PERPLEXITY_RATIO = MeasureKind(
    key="proxy_perplexity_ratio",
    title="proxy's perplexity over the LLM's",
    meaning="Ratio of perplexities on public text; 1 means that the proxy predicts it as well as the LLM.",
    axis="ip",
    better="neither",
    unit="ratio",
    by="run",
    within=_POSITIVE,
    in_trilemma=False,
)
EXTRACTION_R = MeasureKind(
    key="extraction_R",
    title="extraction R",
    meaning="How far the strongest attacker gets, by queries or without, from the proxy (0 %) to the LLM "
    "(100 %).",
    phrase="the strongest attacker gets {} of the way to the LLM",
    axis="ip",
    better="lower",
    unit="share",
    within=_AT_MOST_THE_LLM,
    headline=4,
    relative=True,
)
KL_LEFT_NATS = MeasureKind(
    key="kl_left_nats",
    title="KL that is left",
    metric="KL that is left",
    meaning="KL divergence from the LLM's predictions to those of the strongest attacker's copy; 0 is a "
    "perfect copy. Unlike extraction R, it can be compared between proxies.",
    phrase="the best copy that an attacker makes remains {} away from the LLM",
    axis="ip",
    better="higher",
    unit="nats",
    within=_POSITIVE,
    headline=3,
)
API_GAIN = MeasureKind(
    key="api_gain",
    title="API gain",
    metric="API gain",
    meaning="What the queries add to extraction, in as many steps of training.",
    axis="ip",
    better="lower",
    unit="share",
    within=_AT_MOST_THE_LLM,
    in_trilemma=False,
    signed=True,
    relative=True,
)
PROXY_GAIN = MeasureKind(
    key="proxy_gain",
    title="proxy gain",
    meaning="What holding the proxy adds to extraction, in as many steps of training.",
    axis="ip",
    better="lower",
    unit="nats",
    in_trilemma=False,
    signed=True,
)
HEALING_R = MeasureKind(
    key="healing_R",
    title="healing R",
    meaning="The same as extraction R for an attacker without queries, with public text and compute only.",
    axis="ip",
    better="lower",
    unit="share",
    within=_AT_MOST_THE_LLM,
    in_trilemma=False,
    relative=True,
)
