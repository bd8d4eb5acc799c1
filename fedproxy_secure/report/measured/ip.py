"""IP: how much of the owner's LLM its clients hold, measured by the run itself."""

from __future__ import annotations

import operator
from collections.abc import Sequence

from fedproxy_secure.evidence.answers import alone
from fedproxy_secure.evidence.measures import ip as kinds
from fedproxy_secure.report.measured.joining import answers, losses, values
from fedproxy_secure.report.measured.seed import SeedRun
from fedproxy_secure.report.trilemma import Measure


def ip(seeds: Sequence[SeedRun]) -> list[Measure]:
    """Return the measures of IP of the run itself."""
    verbatim = {s.seed: float(s.result["verbatim_share"]) for s in seeds}
    fidelity = {s.seed: s.result["fidelity"] for s in seeds}
    nats = {seed: float(f["kl_nats"]) for seed, f in fidelity.items()}
    # a proxy whose blocks do not stand for LLM blocks has no pairs of blocks to compare
    cka = {seed: float(sum(f["cka"]) / len(f["cka"])) for seed, f in fidelity.items() if f["cka"]}
    ratio = {seed: float(f["proxy_perplexity"] / f["llm_perplexity"]) for seed, f in fidelity.items()}
    return [
        *values(seeds, kinds.VERBATIM_SHARE, verbatim),
        *answers(seeds, kinds.OWNERS_EDGE, operator.sub, ["fused", "tuned"]),
        *losses(seeds, kinds.OWNERS_EDGE_NATS, operator.sub, ["tuned", "fused"]),
        *answers(seeds, kinds.PROXY_ACCURACY, alone, ["proxy"]),
        *values(seeds, kinds.PROXY_KL_NATS, nats),
        *values(seeds, kinds.PROXY_CKA, cka),
        *values(seeds, kinds.PROXY_PERPLEXITY_RATIO, ratio),
    ]
