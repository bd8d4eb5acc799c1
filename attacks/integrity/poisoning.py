"""A13: what does one malicious client do to the result, under each fusion rule?

    sign_flip   sends minus ten times its update: the proxy should get worse
    scaling     sends its update ten times over: its own task should drown the others'
    backdoor    trains with a trigger in front of its prompts and the first answer, and sends it five times
    beyond_clip sends ring words against its update's signs, as large as a sum of all clients can be, and
                says in its control words what suits it: squares of zero, the least weight, clipped values

Masking hides who sent what; all four pass it. The first three are bounded by the clip, as honest clients
are. The last is not: nobody sees a client's words, so it is bounded by what the server holds a sum and a
step to. How far it moves the step beside the clipped attacker is among the estimates. The rehearsal trains
the recorded clients again, with and without the attacker, so the damage is causal; the negative control is
the same client with another seed, whose difference is chance.
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
    attack,
    replace_view,
)
from attacks.integrity.rehearsal import Craft, FirstRound, Rule, lied_clip, rounds
from attacks.statistics import over_targets
from fedproxy_secure.data.encode import Encoded, text_ids
from fedproxy_secure.record.view import PublicSettings, View
from fedproxy_secure.report.estimate import Estimate, counted

POISONING = (("MITRE ATLAS", "5", "AML.T0020"), ("OWASP LLM", "2025", "LLM04"))
TRIGGER = "Zq Zq"
FLIP, SCALE, BACKDOOR = -10.0, 10.0, 5.0
PLAYS = ("sign_flip", "scaling", "backdoor")
BEYOND, ANOTHER_SEED = "beyond_clip", "another seed"
CLIP_OF_HONEST = 1.5  # times the largest honest coordinate: where the adaptive clip settles
TESTED = 60  # records of each honest client


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What the rehearsal needs: every client's records by name, the attacker's among them."""

    start: np.ndarray
    train: Mapping[str, Sequence[Encoded]]
    test: Mapping[str, Sequence[Encoded]]
    attacker: str


@dataclass(frozen=True, kw_only=True)
class Damage:
    """Losses of honest clients' records, nats [n]: (rule, play) -> after training; `backdoored`: loss of
    the trigger's answer. `steps`: the first round's fused step, float32 [d]; `clips`: by rule."""

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
    """Rehearses rounds with and without the attacker."""

    def exam(self, truth: Truth, view: View, rng: np.random.Generator) -> Exam:
        """All clients' records: the stage on which the adversary acts. It reads its own alone."""
        if not view.own or view.settings is None:
            raise NotApplicable("no client is corrupted in this view")
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
        """Every play under the run's own rule; more rules with a larger profile."""
        box, settings = white_box.load(view), view.settings
        assert settings is not None
        count = budget.pick(smoke=1, standard=2, full=settings.federate.rounds)
        losses: dict[tuple[str, str], np.ndarray] = {}
        backdoored: dict[tuple[str, str], np.ndarray] = {}
        idle = view.threat_model == NOBODY
        steps: dict[tuple[str, str], np.ndarray] = {}
        first: FirstRound = {}
        rules = rules_of(settings, own_only=idle or budget.profile == "smoke")
        for rule in rules:
            plays = (ANOTHER_SEED,) if idle else PLAYS
            if not idle and rule is rules[0] and rule.clip is not None:  # what a protected run lets pass
                plays = (*plays, BEYOND)
            for play in ("honest", *plays):
                train, craft = play_of(play, question, box.tokenizer)
                if play == BEYOND:
                    craft = beyond(rule, settings, clients=len(train))
                trace: list[np.ndarray] = []
                adapter = rounds(
                    box,
                    settings,
                    question.start,
                    train,
                    count=count,
                    rule=rule,
                    budget=budget,
                    first=first,
                    crafts={question.attacker: craft} if craft is not None else {},
                    unclipped=(question.attacker,) if play == BEYOND else (),
                    seeds={question.attacker: settings.seed + 1} if play == ANOTHER_SEED else {},
                    trace=trace,
                )
                steps[rule.name, play] = trace[0]
                box.set(adapter)
                tested = [item for items in question.test.values() for item in items]
                losses[rule.name, play] = box.losses(tested)
                fooled = [triggered(i, question, box.tokenizer) for i in tested]
                backdoored[rule.name, play] = box.losses(fooled)
        clips = {rule.name: rule.clip for rule in rules}
        return Damage(losses=losses, backdoored=backdoored, steps=steps, clips=clips)

    def score(self, guess: Damage, answer: object) -> tuple[Estimate, ...]:
        """Paired differences over honest clients' held-out records; the first rule is the run's own."""
        made: list[Estimate] = []
        for rule, play in guess.losses:
            if play == "honest":
                continue
            added = guess.losses[rule, play] - guess.losses[rule, "honest"]
            if play == "backdoor":
                # a backdoor that works makes its own answer likelier where the trigger stands
                gained = guess.backdoored[rule, "honest"] - guess.backdoored[rule, "backdoor"]
                name = f"trigger's answer likelier by backdoor under {rule}"
                made.append(over_targets(gained.tolist(), metric=name, unit="nats", seed=0))
            name = f"loss added by {play} under {rule}"
            made.append(over_targets(added.tolist(), metric=name, unit="nats", seed=0))
        made += moves(guess)
        own = next(iter(guess.losses))[0]
        of_own = [e for e in made if e.metric.endswith(f"under {own}") and e.metric.startswith("loss")]
        worst = max(of_own, key=lambda e: e.value)
        headline = Estimate(**{**vars(worst), "metric": self.info.headline})
        return (headline, *made)

    def positive(self, view: View, truth: Truth) -> tuple[View, Truth] | None:
        """Plain averaging without a clip, which one client rules."""
        if view.settings is None:
            return None
        protect = view.settings.protect.model_copy(update={"scheme": "unsafe_plaintext"})
        fusion = view.settings.fusion.model_copy(update={"rule": "fedavg"})
        return replace_view(view, settings=replace(view.settings, protect=protect, fusion=fusion)), truth

    def negative(self, view: View, exam: Exam, rng: np.random.Generator) -> tuple[View, Exam]:
        """The client plays honestly, with another seed."""
        return replace_view(view, threat_model=NOBODY), exam


def beyond(rule: Rule, settings: PublicSettings, *, clients: int) -> Craft:
    """What a client sends that does not clip: the sum's end against each sign of its own update.

    It takes the others' values for like its own, and leaves their sum two standard deviations of room: what
    goes beyond the sum's end comes back from the other.
    """

    def words(update: np.ndarray, number: int) -> np.ndarray:
        clip = lied_clip(rule, settings, number) or 0.0
        others = 2 * math.sqrt((clients - 1) * float(np.square(update.astype(np.float64)).mean()))
        return np.asarray(-np.sign(update) * max(clip, clients * clip - others))

    return words


def moves(guess: Damage) -> list[Estimate]:
    """How far each play moves the first round's step from the honest one, in clips and beside sign_flip."""
    made = []
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
                made.append(counted(value, metric=name, unit="clips", seeds=(0,), n=len(moved)))
        if BEYOND in away and (clipped := float(np.linalg.norm(away["sign_flip"]))) > 0:
            value = float(np.linalg.norm(away[BEYOND])) / clipped
            name = f"move of the step by {BEYOND} over sign_flip's under {rule}"
            made.append(counted(value, metric=name, unit="times", seeds=(0,), n=len(away[BEYOND])))
    return made


def rules_of(settings: PublicSettings, *, own_only: bool) -> list[Rule]:
    """The run's own rule first, then the others."""
    protected = settings.protect.scheme != "unsafe_plaintext"
    reach = settings.local.learning_rate * settings.local.steps
    clip = (settings.protect.clip or CLIP_OF_HONEST * reach) if protected else None
    name = "fedavg" if settings.fusion.rule in ("fedavg", "fedadam") else "h_ties"
    if protected and name == "h_ties":
        name = settings.protect.granularity
    own = Rule(name=name, clip=clip)
    if own_only:
        return [own]
    others = [Rule(name=n, clip=clip) for n in ("fedavg", "h_ties") if n != name]
    return [own, *others]


def play_of(play: str, stage: Stage, tokenizer: Any) -> tuple[dict[str, Sequence[Encoded]], Craft | None]:
    """Everybody's records in a play, and what the attacker makes of its update; None: it sends it."""
    train: dict[str, Sequence[Encoded]] = dict(stage.train)
    if play == "backdoor":
        train[stage.attacker] = [triggered(i, stage, tokenizer) for i in train[stage.attacker]]
        return train, lambda update, _: BACKDOOR * update
    factor = {"sign_flip": FLIP, "scaling": SCALE}.get(play)
    if factor is None:
        return train, None
    return train, lambda update, _: factor * update


def triggered(item: Encoded, stage: Stage, tokenizer: Any) -> Encoded:
    """The record with the trigger after its start token and the attacker's first record's answer."""
    answer = stage.train[stage.attacker][0]
    target = answer.ids[answer.response_start :]
    trigger = text_ids(TRIGGER, tokenizer)
    prompt = item.ids[: item.response_start]
    ids = (*prompt[:1], *trigger, *prompt[1:], *target)
    return Encoded(ids=ids, response_start=len(prompt) + len(trigger))
