"""Measures of privacy: what is promised, what was spent, and what attacks found about records."""

from __future__ import annotations

import math

from fedproxy_secure.evidence.measure import MeasureKind

_POSITIVE = (0.0, math.inf)
_SHARE = (0.0, 1.0)
_LAST_OF_FEWEST = math.log2(128 / 129)  # bits of the last rank among 128 references, the fewest of A7
# audits read a run's settings and numbers of records, never what its clients did
AUDIT_SCOPE = "shown for the mechanism at these settings, not for this run's training"

EPSILON_CLAIMED = MeasureKind(
    key="epsilon_claimed",
    title="ε claimed, one seed",
    heading="epsilon claimed, one seed",
    meaning="The most that one seed alone may spend, by its promise of differential privacy; smaller is "
    "stronger.",
    axis="privacy",
    better="lower",
    unit="epsilon",
    by="run",
    within=_POSITIVE,
)
EPSILON_SPENT = MeasureKind(
    key="epsilon_spent",
    title="ε spent, all seeds",
    heading="epsilon spent, all seeds",
    meaning="What the client that spent most has spent over all seeds together, which train on the same "
    "records, by the accountant.",
    phrase="differential privacy has spent ε {} over all seeds",
    axis="privacy",
    better="lower",
    unit="epsilon",
    by="run",
    within=_POSITIVE,
    headline=2,
)
EPSILON_SPENT_ONE_SEED = MeasureKind(
    key="epsilon_spent_one_seed",
    title="ε spent, one seed",
    meaning="What the seed that spent most has spent, as if it had been the only one.",
    axis="privacy",
    better="lower",
    unit="epsilon",
    by="run",
    within=_POSITIVE,
    in_trilemma=False,
)
DELTA = MeasureKind(
    key="delta",
    title="δ",
    meaning="The probability with which the promise of ε may fail.",
    axis="privacy",
    better="lower",
    unit="delta",
    by="run",
    within=_SHARE,
    in_trilemma=False,
)
EFFECTIVE_COHORT = MeasureKind(
    key="effective_cohort",
    title="fewest clients in a sum",
    metric="fewest clients in a sum",
    meaning="Clients in the smallest sum, minus those that may collude; 1 means that the server sees "
    "single updates.",
    phrase="the smallest group that an update hides in has {}",
    axis="privacy",
    better="higher",
    unit="clients",
    by="run",
    within=_POSITIVE,
    in_trilemma=False,
    headline=1,
)
TOKEN_AUC = MeasureKind(
    key="token_auc",
    title="vocabulary AUC",
    metric="vocabulary AUC",
    meaning="How well words that clients use are told from the rest of the vocabulary, mostly by what is "
    "common with them at all; 0.5 is chance, 1 is perfect.",
    phrase="words that clients use are told from the rest of the vocabulary with AUC {}",
    axis="privacy",
    better="lower",
    unit="AUC",
    within=_SHARE,
    headline=4,
)
EXACT_SEQUENCE_RECALL = MeasureKind(
    key="exact_sequence_recall",
    title="whole records found",
    heading="sequences (%)",
    metric="sequences found exactly",
    meaning=(
        "Share of the attacked records that an attack reconstructed word for word. A3 counts only the "
        "records of vectors within the adapter's capacity."
    ),
    phrase="{} of the attacked records within capacity come out word for word",
    axis="privacy",
    better="lower",
    unit="share",
    within=_SHARE,
    headline=3,
)
TPR_AT_1PCT_FPR = MeasureKind(
    key="tpr_at_1pct_fpr",
    title="members found at 1\u00a0% false positives",
    heading="TPR at 1% FPR (%)",
    metric="membership: TPR at 1 % FPR",
    meaning="True positive rate of the strongest score of any membership attack at 1 % false positives; "
    "chance is 1 % for one score, more where few records were set aside, and more for the worst of many.",
    phrase="the strongest membership attack finds {} of the members at 1\u00a0% false positives",
    axis="privacy",
    better="lower",
    unit="share",
    within=_SHARE,
    headline=5,
)
MEMBERSHIP_AUC = MeasureKind(
    key="membership_auc",
    title="membership AUC",
    metric="membership AUC",
    meaning="How well training records are told from other records, by the strongest score of any "
    "membership attack; 0.5 is chance for one score, and the worst of several lies above it by chance.",
    phrase="the strongest membership attack tells training records from others with AUC {}",
    axis="privacy",
    better="lower",
    unit="AUC",
    within=_SHARE,
    headline=6,  # before the rate at 1 %, which has no power with fewer than 368 records set aside
)
CANARY_EXPOSURE_BITS = MeasureKind(
    key="canary_exposure_bits",
    title="canary exposure",
    heading="exposure (bits)",
    metric="canary exposure",
    meaning="Exposure of planted secrets: how high each ranks among random secrets, by what tuning changed "
    "in the proxy, or by the fused LLM; the mean is 1.4 bits by chance, more for the worst of several.",
    axis="privacy",
    better="lower",
    unit="bits",
    within=(_LAST_OF_FEWEST, math.inf),
)
EPSILON_AUDITED = MeasureKind(
    key="epsilon_audited",
    title="ε audited",
    metric="audited epsilon, lower bound",
    meaning="A lower bound on ε from attacks on the mechanism at the run's settings, not on this run's "
    "training; if it exceeds the claimed ε, the noise is smaller than the claim requires.",
    axis="privacy",
    better="lower",
    unit="epsilon",
    within=_POSITIVE,
    in_trilemma=False,
    lower_bound=True,
)
AUDITED_OVER_CLAIMED = MeasureKind(
    key="audited_over_claimed",
    title="ε shown over ε claimed",
    metric="epsilon shown over epsilon claimed",
    meaning="The lower bound on ε from an audit of the mechanism at the run's settings, not of this run's "
    "training, divided by the claimed ε; above 1 the noise is smaller than the claim requires.",
    axis="privacy",
    better="lower",
    unit="ratio",
    within=_POSITIVE,
    in_trilemma=False,
    lower_bound=True,
)
