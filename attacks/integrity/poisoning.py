"""A13: what does one malicious client do to the result, under each fusion rule?

    sign_flip   sends minus ten times its update: the proxy should get worse
    scaling     sends ten times its update: its own task should dominate the others
    backdoor    trains on prompts with a trigger and its first record's answer, sends five times the update
    beyond_clip sends ring words against its update's signs, as large as a sum of all clients can be, and
                lies in its control words: squares of zero, the least weight, clipped values

Masking hides who sent what, so it stops none of the four. The first three are bounded by the clip, like
honest clients. The last is not: nobody sees a client's ring words, so it is bounded only by the server's
checks of a sum and of a step. The estimates include how far it moves the step relative to a clipped
attacker.

The rehearsal trains the recorded clients again, with and without the attacker, so the measured damage is
causal. In the negative control the client is honest but draws its records anew, with replacement and under
another seed, so its effect on the others is due to chance. There are as many such draws as variants of the
attack, and the worst draw counts, just as the worst variant does.

Rounds are trained anew without the run's differential privacy, so the attack does not apply to runs that
have it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from attacks import white_box
from attacks.base import (
    NOBODY,
    Attack,
    AttackInfo,
    Budget,
    Exam,
    NotApplicable,
    Truth,
    replace_view,
)
from attacks.integrity.rehearsal import Craft, FirstRound, Rule, clip_of, rounds
from attacks.registry import attack
from attacks.statistics import over_targets
from attacks.white_box import WhiteBox
from fedproxy_secure.data.encode import Encoded, text_ids
from fedproxy_secure.evidence.estimate import Estimate, counted
from fedproxy_secure.protect.base import protection_of
from fedproxy_secure.record.view import PublicSettings, View

POISONING = (("MITRE ATLAS", "5", "AML.T0020"), ("OWASP LLM", "2025", "LLM04"))
TRIGGER = "Zq Zq"
FLIP, SCALE, BACKDOOR = -10.0, 10.0, 5.0
PLAYS = ("sign_flip", "scaling", "backdoor")
BEYOND = "beyond_clip"
# plays of the negative control, as many as of the attack
REDRAWS = tuple(f"another draw {i}" for i in range(1, len((*PLAYS, BEYOND)) + 1))
CLIP_OF_HONEST = 1.5  # the adaptive clip settles at this multiple of the largest honest coordinate
TESTED = 60  # test records of each honest client


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The inputs of the rehearsal: every client's records by name, including the attacker's."""

    start: np.ndarray
    train: Mapping[str, Sequence[Encoded]]
    test: Mapping[str, Sequence[Encoded]]
    attacker: str


@dataclass(frozen=True, kw_only=True)
class Damage:
    """The result of each (rule, play) after training.

    Args:
        losses: losses of honest clients' records, nats [n].
        backdoored: losses of the trigger's answer on the same records, nats [n].
        steps: the first round's fused step, float32 [d].
        clips: the clip, by rule.
    """

    losses: Mapping[tuple[str, str], np.ndarray]
    backdoored: Mapping[tuple[str, str], np.ndarray]
    steps: Mapping[tuple[str, str], np.ndarray]
    clips: Mapping[str, float | None]


@attack(
    AttackInfo(
        id="A13",
        name="poisoning",
        title="damage by one malicious client",
        paper="Bagdasaryan et al. 2020, arXiv 1807.00459",
        needs=(frozenset({"ACT", "MOD"}),),
        headline="loss added by the worst attack, nats",
        chance=0.0,
        margin=0.1,
        mapping=POISONING,
        smoke=False,
        by=("clients",),
        long=3,
    )
)
class Poisoning(Attack):
    """The attack that rehearses rounds with and without the attacker."""

    def exam(self, truth: Truth, view: View, rng: np.random.Generator) -> Exam:
        """Return all clients' records, on which the rehearsal runs; the adversary reads only its own."""
        if not view.own or view.settings is None:
            raise NotApplicable("no client is corrupted in this view")
        if view.settings.privacy.unit != "none":
            raise NotApplicable("clients would be trained anew, without the run's differential privacy")
        attacker = next(iter(view.own))
        honest = {n: s.train for n, s in truth.clients.items() if s.holdout}
        test = {n: s.holdout[:TESTED] for n, s in truth.clients.items() if s.holdout}
        if len(honest) < 2:
            raise NotApplicable("no records were set aside; run with --set audit.holdout=0.3")
        stage = Stage(
            start=view.adapters[min(view.adapters)],
            train={**honest, attacker: view.own[attacker].train},
            test=test,
            attacker=attacker,
        )
        return Exam(question=stage)

    def guess(self, view: View, question: Stage, budget: Budget, rng: np.random.Generator) -> Damage:
        """Return the damage of every play under the run's own rule; a larger profile has more rules."""
        with white_box.opened(view) as box:
            return _played(box, view, question, budget)

    def score(self, guess: Damage, answer: object) -> tuple[Estimate, ...]:
        """Return paired differences over honest clients' held-out records, the run's own rule first."""
        estimates: list[Estimate] = []
        of_own: list[Estimate] = []
        own_rule = next(iter(guess.losses))[0]
        for rule, play in guess.losses:
            if play == "honest":
                continue
            added = guess.losses[rule, play] - guess.losses[rule, "honest"]
            if play == "backdoor":
                # a working backdoor makes its own answer likelier after the trigger
                gained = guess.backdoored[rule, "honest"] - guess.backdoored[rule, "backdoor"]
                name = f"trigger's answer likelier by backdoor under {rule}"
                estimates.append(over_targets(gained.tolist(), metric=name, unit="nats"))
            lost = over_targets(added.tolist(), metric=f"loss added by {play} under {rule}", unit="nats")
            estimates.append(lost)
            if rule == own_rule:
                of_own.append(lost)
        estimates += moves(guess)
        worst = max(of_own, key=lambda e: e.value)
        headline = replace(worst, metric=self.info.headline)
        return (headline, *estimates)

    def positive(self, view: View, truth: Truth) -> tuple[View, Truth] | None:
        """Return plain averaging without a clip, at a rate of 1, which one client can dominate."""
        if view.settings is None:
            return None
        protect = view.settings.protect.model_copy(update={"scheme": "unsafe_plaintext"})
        plain = {"rule": "fedavg", "server_learning_rate": 1.0}
        fusion = view.settings.fusion.model_copy(update=plain)
        return replace_view(view, settings=view.settings.changed(protect=protect, fusion=fusion)), truth

    def negative(self, view: View, exam: Exam, rng: np.random.Generator) -> tuple[View, Exam]:
        """Return honest plays of the client with other draws of its records; the worst of them counts."""
        return replace_view(view, threat_model=NOBODY), exam


def _played(box: WhiteBox, view: View, stage: Stage, budget: Budget) -> Damage:
    """Rehearse every play under every rule, and test the adapter that each leads to."""
    settings = view.settings
    assert settings is not None
    count = budget.pick(smoke=1, standard=2, full=settings.federate.rounds)
    losses: dict[tuple[str, str], np.ndarray] = {}
    backdoored: dict[tuple[str, str], np.ndarray] = {}
    idle = view.threat_model == NOBODY
    steps: dict[tuple[str, str], np.ndarray] = {}
    first: FirstRound = {}
    rules = rules_of(settings, own_only=idle or budget.profile == "smoke")
    for rule in rules:
        plays = REDRAWS if idle else (*PLAYS, BEYOND)
        if rule is not rules[0] or rule.clip is None:  # the last is possible in protected runs only
            plays = plays[: len(PLAYS)]
        for play in ("honest", *plays):
            train, craft = play_of(play, stage, box.tokenizer)
            other_seed = settings.seed + 1 + REDRAWS.index(play) if play in REDRAWS else None
            if play == BEYOND:
                craft = beyond(rule, settings, clients=len(train))
            trace: list[np.ndarray] = []
            adapter = rounds(
                box,
                settings,
                stage.start,
                train,
                count=count,
                rule=rule,
                budget=budget,
                first=first,
                crafts={stage.attacker: craft} if craft is not None else {},
                unclipped=(stage.attacker,) if play == BEYOND else (),
                seeds={} if other_seed is None else {stage.attacker: other_seed},
                trace=trace,
            )
            steps[rule.name, play] = trace[0]
            box.set(adapter)
            tested = [item for items in stage.test.values() for item in items]
            losses[rule.name, play] = box.losses(tested)
            fooled = [triggered(i, stage, box.tokenizer) for i in tested]
            backdoored[rule.name, play] = box.losses(fooled)
    clips = {rule.name: rule.clip for rule in rules}
    return Damage(losses=losses, backdoored=backdoored, steps=steps, clips=clips)


def beyond(rule: Rule, settings: PublicSettings, *, clients: int) -> Craft:
    """Return what makes an update of a client that sends the largest values that do not overflow the sum.

    The signs are opposite to those of its update. It expects the others' values to be like its own, and
    leaves their sum two standard deviations of room, because a sum that exceeds one end of its range wraps
    around to the other.
    """

    def words(update: np.ndarray, number: int) -> np.ndarray:
        clip = clip_of(rule, settings, number, lied=True) or 0.0
        others_sum = 2 * math.sqrt((clients - 1) * float(np.square(update.astype(np.float64)).mean()))
        return np.asarray(-np.sign(update) * max(clip, clients * clip - others_sum))

    return words


def moves(guess: Damage) -> list[Estimate]:
    """Return how far each play moves the first round's step from the honest one.

    The distance is in clips, and for `beyond_clip` also relative to `sign_flip`.
    """
    estimates = []
    for rule, clip in guess.clips.items():
        away = {
            play: step.astype(np.float64) - guess.steps[rule, "honest"]
            for (r, play), step in guess.steps.items()
            if r == rule and play != "honest"
        }
        for play, moved in away.items():
            if clip:
                name = f"farthest move of a coordinate by {play} under {rule}"
                value = float(np.abs(moved).max()) / clip
                estimates.append(counted(value, metric=name, unit="clips", seeds=(0,), n=len(moved)))
        if BEYOND in away and (clipped := float(np.linalg.norm(away["sign_flip"]))) > 0:
            value = float(np.linalg.norm(away[BEYOND])) / clipped
            name = f"move of the step by {BEYOND} over sign_flip's under {rule}"
            estimates.append(counted(value, metric=name, unit="times", seeds=(0,), n=len(away[BEYOND])))
    return estimates


def rules_of(settings: PublicSettings, *, own_only: bool) -> list[Rule]:
    """Return the run's own rule first, then others, which keep the run's server learning rate."""
    protected = protection_of(settings.protect).protocol is not None
    clip = (settings.protect.clip or CLIP_OF_HONEST * settings.total_rate(0)) if protected else None
    name = settings.fusion.rule
    if protected and not settings.fusion.linear:
        name = settings.protect.granularity
    own_rule = Rule(name=name, clip=clip)
    if own_only:
        return [own_rule]
    other_rules = [Rule(name=n, clip=clip) for n in ("fedavg", "h_ties") if n != name]
    return [own_rule, *other_rules]


def play_of(play: str, stage: Stage, tokenizer: Any) -> tuple[dict[str, Sequence[Encoded]], Craft | None]:
    """Return every client's records in a play, and how the attacker changes its update, if it does."""
    train: dict[str, Sequence[Encoded]] = dict(stage.train)
    if play == "backdoor":
        train[stage.attacker] = [triggered(i, stage, tokenizer) for i in train[stage.attacker]]
        return train, lambda update, _: BACKDOOR * update
    if play in REDRAWS:
        records = train[stage.attacker]
        rng = np.random.default_rng(REDRAWS.index(play))
        train[stage.attacker] = [records[i] for i in rng.integers(len(records), size=len(records))]
        return train, None
    factor = {"sign_flip": FLIP, "scaling": SCALE}.get(play)
    if factor is None:
        return train, None
    return train, lambda update, _: factor * update


def triggered(item: Encoded, stage: Stage, tokenizer: Any) -> Encoded:
    """Return the record with the trigger after its start token, and with the attacker's answer.

    That is the answer of the attacker's first record.
    """
    answer = stage.train[stage.attacker][0]
    target = answer.ids[answer.response_start :]
    trigger = text_ids(TRIGGER, tokenizer)
    prompt = item.ids[: item.response_start]
    ids = (*prompt[:1], *trigger, *prompt[1:], *target)
    return Encoded(ids=ids, response_start=len(prompt) + len(trigger))
