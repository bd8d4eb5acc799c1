"""An attack of one's own, with a measure of its own.

Records that a model was trained on are those whose least likely token has become likelier. A package names
both in its `pyproject.toml`:

    [project.entry-points."fedproxy_secure.attacks"]
    worst_token = "my_package.my_attack"

    [project.entry-points."fedproxy_secure.measures"]
    worst_token_auc = "my_package.my_attack:WORST_TOKEN_AUC"

Then the measure is a column of the trilemma, and a policy may ask for `max_worst_token_auc: 0.6`.
"""

from typing import Any

import numpy as np

import fedproxy_secure as fp
from attacks import AttackInfo, Budget, Feeds, attack, white_box
from attacks.membership.models import ModelMembership, ModelQuestion
from attacks.statistics import auc_estimate
from fedproxy_secure.record.view import View

WORST_TOKEN_AUC = fp.MeasureKind(
    key="worst_token_auc",
    title="worst token's AUC",
    meaning="How well records are told from others by their least likely token; 0.5 is chance.",
    axis="privacy",
    better="lower",
    unit="AUC",
    within=(0, 1),
)

ABOUT = AttackInfo(
    id="X1",
    name="worst_token",
    title="which records a model was trained on, by their least likely token",
    paper="ours",
    needs=(frozenset({"MOD"}),),
    measures=(Feeds(measure="worst_token_auc", metric="auc"),),
)


@attack(ABOUT)
class WorstToken(ModelMembership):  # the same question, the same controls
    def guess(
        self, view: View, question: ModelQuestion, budget: Budget, rng: np.random.Generator
    ) -> Any:  # the scores; a subclass may answer with anything that its `score` reads
        worst, documents = [], question.documents[:200]
        with white_box.opened(view) as box:
            for number in (min(view.adapters), max(view.adapters)):
                box.set(view.adapters[number])
                worst.append(np.array([p.max() for p in box.token_losses(documents)]))
        return worst[0] - worst[1]

    def score(self, guess: Any, answer: np.ndarray) -> tuple[fp.Estimate, ...]:
        return (auc_estimate(guess, answer[: len(guess)], metric="auc"),)
