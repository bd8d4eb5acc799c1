"""The blind baseline: if texts alone tell members from others, the split leaks and not the model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from attacks.base import Inconclusive
from attacks.statistics import auc_estimate
from fedproxy_secure.data.encode import Encoded
from fedproxy_secure.evidence.estimate import Estimate

TELLS = 1.5  # a blind baseline this many lower half-widths of its interval above chance is no accident
FEWEST = 8  # documents of each kind, below which nothing is fitted on them


def check_blind(documents: Sequence[Encoded], labels: np.ndarray) -> None:
    """Raise `Inconclusive` if a classifier that sees only texts tells members from others.

    Args:
        documents: members and others.
        labels: which are members, bool [n].
    """
    if min(labels.sum(), (~labels).sum()) >= FEWEST:
        refuse_told(blind_auc(bag_of_words(documents), labels))


def refuse_told(blind: Estimate) -> None:
    """Raise `Inconclusive` if a blind baseline is above chance beyond accident."""
    if blind.low is not None and blind.value - 0.5 > TELLS * (blind.value - blind.low):
        raise Inconclusive(
            f"a blind baseline reaches AUC {blind.value:.3g}: the texts alone tell members from others"
        )


def bag_of_words(documents: Sequence[Encoded]) -> np.ndarray:
    """Return token counts of documents, float32 [n, tokens found in two documents or more]."""
    tokens = sorted({t for d in documents for t in d.ids})
    index = {t: i for i, t in enumerate(tokens)}
    counts = np.zeros((len(documents), len(tokens)), dtype=np.float32)
    for row, d in enumerate(documents):
        for t in d.ids:
            counts[row, index[t]] += 1
    return counts[:, (counts > 0).sum(axis=0) >= 2]


def blind_auc(counts: np.ndarray, labels: np.ndarray) -> Estimate:
    """Return the AUC of a classifier that sees texts alone, fitted on one half of the documents.

    The AUC is taken on the other half. Cross-validation would use all documents, but the errors of its
    folds depend on each other: at 240 documents its interval was above chance in 18 % of splits that
    carried no information.
    """
    from sklearn.linear_model import LogisticRegression

    test = np.zeros(len(labels), dtype=bool)
    for kind in (True, False):
        test[np.flatnonzero(labels == kind)[::2]] = True
    model = LogisticRegression(C=0.05, max_iter=500).fit(counts[~test], labels[~test])
    odds = model.decision_function(counts[test])
    return auc_estimate(np.asarray(odds), labels[test], metric="auc, blind baseline", seed=0)
