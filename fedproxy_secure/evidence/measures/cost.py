"""Measures of cost: bytes, seconds, memory."""

from __future__ import annotations

import math

from fedproxy_secure.evidence.measure import MeasureKind

_POSITIVE = (0.0, math.inf)

UPLOAD_BYTES = MeasureKind(
    key="upload_bytes",
    title="upload",
    metric="upload bytes per client and round",
    meaning="Bytes that a client sends in a round.",
    axis="cost",
    better="lower",
    unit="bytes",
    by="run",
    within=_POSITIVE,
    counted=True,
    headline=1,
)
DOWNLOAD_BYTES = MeasureKind(
    key="download_bytes",
    title="download",
    metric="download bytes per client and round",
    meaning="Bytes that a client receives in a round.",
    axis="cost",
    better="lower",
    unit="bytes",
    by="run",
    within=_POSITIVE,
    counted=True,
    in_trilemma=False,
)
PROTOCOL_BYTES = MeasureKind(
    key="protocol_bytes",
    title="protocol",
    metric="protocol bytes per client and round",
    meaning="Bytes per client and round that are neither weights nor updates: keys, shares, signatures.",
    axis="cost",
    better="lower",
    unit="bytes",
    by="run",
    within=_POSITIVE,
    counted=True,
    in_trilemma=False,
)
SECONDS_FEDERATE = MeasureKind(
    key="seconds_federate",
    title="federation",
    meaning="Wall time of all rounds.",
    axis="cost",
    better="lower",
    unit="s",
    by="run",
    within=_POSITIVE,
    in_trilemma=False,
)
SECONDS_TOTAL = MeasureKind(
    key="seconds_total",
    title="whole run",
    heading="seconds",
    meaning="Wall time of compression, healing, federation, fusion and tests.",
    axis="cost",
    better="lower",
    unit="s",
    by="run",
    within=_POSITIVE,
)
PEAK_MEMORY_BYTES = MeasureKind(
    key="peak_memory_bytes",
    title="peak memory",
    meaning="The most memory that the process held.",
    axis="cost",
    better="lower",
    unit="bytes",
    by="run",
    within=_POSITIVE,
    in_trilemma=False,
)
UPLOAD_OVER_UNPROTECTED = MeasureKind(
    key="upload_over_unprotected",
    title="upload over unprotected",
    meaning="Bytes sent, divided by those of the same training without protection, same seed.",
    axis="cost",
    better="lower",
    unit="ratio",
    by="run",
    within=_POSITIVE,
    in_trilemma=False,
)
SECONDS_OVER_UNPROTECTED = MeasureKind(
    key="seconds_over_unprotected",
    title="rounds over unprotected",
    meaning="Wall time of all rounds, divided by that of the same training without protection, same seed.",
    axis="cost",
    better="lower",
    unit="ratio",
    by="run",
    within=_POSITIVE,
    in_trilemma=False,
)
