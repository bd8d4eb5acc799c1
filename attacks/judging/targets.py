"""The parts of a finding beside its numbers: what they could have shown, and how each target was judged."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from attacks.base import AttackInfo, Exam, Truth
from attacks.judging.measured import Measured
from attacks.judging.power import could_show
from fedproxy_secure.data.encode import Encoded
from fedproxy_secure.evidence.detectable import Detectable
from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.evidence.targets import FEWEST, Targets
from fedproxy_secure.record.private import PrivateRound, PrivateState

MOST_TARGETS = 5000  # in a finding; with more it is not paired
DIGITS = 16  # of an exam's fingerprint, hex


def detectable_of(info: AttackInfo, estimates: tuple[Estimate, ...]) -> tuple[Detectable, ...]:
    """Return the smallest effects that the headline, and the numbers of measures, could have shown.

    A number other than the headline is included if its chance is known.
    """
    result = []
    fed = {e.metric for e in estimates for feeds in info.measures if feeds.takes(e.metric)}
    for index, estimate in enumerate(estimates):
        power = estimate.power if isinstance(estimate, Measured) else None
        if index == 0:
            bar = info.chance + info.margin
        elif isinstance(estimate, Measured) and estimate.chance is not None and estimate.metric in fed:
            bar = estimate.chance
        else:
            continue
        effect = could_show(estimate, bar, power)
        result += [] if effect is None else [effect]
    return tuple(result)


def targets_of(headline: Estimate, exam: Exam, truth: Truth) -> Targets | None:
    """Return how the headline's targets were judged, or None if it cannot be paired.

    The targets of a mean must be those of the exam's question, as nothing else identifies them. The targets
    of an AUC are identified by their kinds as well.
    """
    if not isinstance(headline, Measured) or headline.judged is None:
        return None
    judged = headline.judged
    if not judged.kinds and exam.question is None:
        return None
    if not FEWEST <= len(judged.values) <= MOST_TARGETS:
        return None
    return Targets(exam=fingerprint(exam, truth), **judged._asdict())


def fingerprint(exam: Exam, truth: Truth) -> str:
    """Return a text that is equal for equal exams about the same clients' records, and for no others.

    It is a digest under a key that follows from all records of all honest clients. Whoever lacks one of
    these records learns nothing from it; whoever has all of them could confirm a guess about the exam.
    """
    key = hashlib.sha256()
    for name in sorted(truth.clients):
        state = truth.clients[name]
        for piece in _pieces((name, state.train, state.holdout, state.canaries)):
            key.update(piece)
    digest = hmac.new(key.digest(), digestmod=hashlib.sha256)
    for piece in _pieces((exam.question, exam.answer)):
        digest.update(piece)
    return digest.hexdigest()[:DIGITS]


def _pieces(value: Any) -> Iterator[bytes]:
    """Yield bytes that differ where values differ; of an object of unknown type, the type's name alone."""
    match value:
        case Encoded():
            yield b"e" + np.array([value.response_start, *value.ids], dtype=np.int64).tobytes() + b";"
        case PrivateRound():  # which records were drawn is part of the truth; updates differ by protection
            yield from _pieces(value.used)
        case PrivateState():
            yield from _pieces((value.client, dict(value.rounds)))
        case np.ndarray():
            yield f"a{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes()
        case Mapping():
            yield b"{"
            for key in sorted(value, key=repr):
                yield from _pieces((key, value[key]))
            yield b"}"
        case tuple() | list():
            yield b"("
            for item in value:
                yield from _pieces(item)
            yield b")"
        case str() | bytes() | int() | float() | None | np.generic():
            yield f"{type(value).__name__}{value!r};".encode()
        case _ if is_dataclass(value) and not isinstance(value, type):
            yield from _pieces((type(value).__name__, *(getattr(value, f.name) for f in fields(value))))
        case _:
            yield f"{type(value).__name__};".encode()
