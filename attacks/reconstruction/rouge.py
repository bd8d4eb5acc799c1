"""ROUGE between token sequences, with each true sequence matched to at most one guess."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def best_rouge(
    true: Sequence[tuple[int, ...]], guesses: Sequence[tuple[int, ...]]
) -> list[tuple[float, float, float]]:
    """Return ROUGE-1, -2 and -L (F1) of every true sequence with its match; 0 without a match.

    Sequences are matched one to one so that the sum of ROUGE-L is largest.
    """
    from rouge_score.rouge_scorer import RougeScorer
    from scipy.optimize import linear_sum_assignment

    scores = [(0.0, 0.0, 0.0)] * len(true)
    if not true or not guesses:
        return scores
    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds, tokenizer=_Words())
    table = [[scorer.score(_text(t), _text(f)) for f in guesses] for t in true]
    values = np.array([[cell["rougeL"].fmeasure for cell in row] for row in table])
    for i, j in zip(*linear_sum_assignment(-values), strict=True):
        a, b, c = (float(table[i][j][k].fmeasure) for k in kinds)
        scores[i] = (a, b, c)
    return scores


class _Words:
    """A tokenizer for rouge-score to which token ids are words."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()


def _text(ids: tuple[int, ...]) -> str:
    return " ".join(map(str, ids))
