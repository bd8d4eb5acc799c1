"""The fidelity of a comparison's proxy, from the records of the proxies of several seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from fedproxy_secure.evidence.estimate import Estimate, mean_interval
from fedproxy_secure.report.report import Fidelity

Record = Mapping[str, Any]  # a result of `compress.fidelity.fidelity_record`
FIDELITY = {  # key in its `fidelity` -> title, unit
    "kl_nats": ("KL of LLM to proxy on public text", "nats"),
    "agreement": ("same next token, LLM and proxy", "share"),
    "llm_perplexity": ("LLM perplexity on public text", "perplexity"),
    "proxy_perplexity": ("proxy perplexity on public text", "perplexity"),
}


def fidelity_of(records: Mapping[int, Record], name: str) -> Fidelity:
    """Return the means over seeds; raises `KeyError` or `TypeError` for records of another form.

    Args:
        records: by seed, at least one.
        name: the proxy's name in metrics.
    """

    def mean(title: str, unit: str, of: Callable[[Record], float]) -> Estimate:
        upper = 1.0 if unit in ("share", "CKA") else math.inf
        values = {seed: float(of(record)) for seed, record in records.items()}
        return mean_interval(values, metric=f"{title}, {name}", unit=unit, within=(0.0, upper))

    def fidelity(key: str) -> Estimate:
        title, unit = FIDELITY[key]
        return mean(title, unit, lambda r: r["fidelity"][key])

    blocks = all(r["fidelity"]["cka"] for r in records.values())
    return Fidelity(
        kl=fidelity("kl_nats"),
        agreement=fidelity("agreement"),
        llm_perplexity=fidelity("llm_perplexity"),
        proxy_perplexity=fidelity("proxy_perplexity"),
        cka=mean("mean CKA of blocks", "CKA", lambda r: _average(r["fidelity"]["cka"])) if blocks else None,
        verbatim=mean("weights held verbatim", "share", lambda r: r["verbatim_share"]),
    )


def _average(values: list[float]) -> float:
    return math.fsum(values) / len(values)
