"""An attack of one's own: records trained on are those whose worst token has become likelier."""

import numpy as np

from attacks import AttackInfo, attack, white_box
from attacks.membership.models import ModelMembership
from attacks.statistics import auc_estimate

ABOUT = AttackInfo(
    id="X1",
    name="worst_token",
    title="which records a model was trained on, by their least likely token",
    paper="ours",
    needs=(frozenset({"MOD"}),),
)


@attack(ABOUT)
class WorstToken(ModelMembership):  # the same question, the same controls
    def guess(self, view, question, budget, rng):
        box, worst, documents = white_box.load(view), [], question.documents[:200]
        for number in (min(view.adapters), max(view.adapters)):
            box.set(view.adapters[number])
            worst.append(np.array([p.max() for p in box.token_losses(documents)]))
        return worst[0] - worst[1]

    def score(self, guess, answer):
        return (auc_estimate(guess, answer[: len(guess)], metric="auc", seed=0),)
