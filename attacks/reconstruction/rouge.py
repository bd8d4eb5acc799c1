"""ROUGE between token sequences, each truth matched to one guess at most."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def best_rouge(
    true: Sequence[tuple[int, ...]], found: Sequence[tuple[int, ...]]
) -> list[tuple[float, float, float]]:
    """ROUGE-1, -2, -L (F) of every true sequence with its one-to-one best match by ROUGE-L; 0 without."""
    from rouge_score.rouge_scorer import RougeScorer
    from scipy.optimize import linear_sum_assignment

    scores = [(0.0, 0.0, 0.0)] * len(true)
    if not true or not found:
        return scores
    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds, tokenizer=_Words())
    table = [[scorer.score(_text(t), _text(f)) for f in found] for t in true]
    values = np.array([[cell["rougeL"].fmeasure for cell in row] for row in table])
    for i, j in zip(*linear_sum_assignment(-values), strict=True):
        a, b, c = (float(table[i][j][k].fmeasure) for k in kinds)
        scores[i] = (a, b, c)
    return scores


class _Words:
    """For rouge-score: token ids are words."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()


def _text(ids: tuple[int, ...]) -> str:
    return " ".join(map(str, ids))
