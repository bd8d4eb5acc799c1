"""Attacks that train as the run did take the learning rate of the round that they stand for."""

from dataclasses import replace

import numpy as np
import pytest

from attacks.base import Truth
from attacks.integrity.rehearsal import Rule, clip_of, with_steps
from attacks.reconstruction.one_step import as_in_the_run, one_step_control
from tests.support.lab import make_lab, truth_of
from tests.support.reconstructions import maker_of_labs, rounds_of


def falling(settings, **local):
    """The settings with a linear schedule over four rounds."""
    return settings.changed(
        local=settings.local.model_copy(update={"schedule": "linear", **local}),
        federate=settings.federate.model_copy(update={"rounds": 4}),
    )


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return make_lab(tmp_path_factory.mktemp("lab"), clients=("a", "b", "c"), d=4).settings


def test_the_rehearsed_clips_fall_as_the_rates_do(settings):
    rule = Rule(name="fedavg", clip=0.1)
    own = falling(settings, optimizer="adamw", steps=1, learning_rate=0.05)
    honest, lied = ([clip_of(rule, own, r, lied=lies) for r in range(4)] for lies in (False, True))
    assert honest == pytest.approx([0.1, 0.075, 0.05, 0.025])
    assert lied == pytest.approx([0.1, 0.12, 0.08, 0.04])  # as far as clients accept


def test_rounds_of_few_steps_keep_the_rate_with_which_their_round_begins(settings):
    own = falling(settings, steps=8, learning_rate=0.1)
    for round, rate in ((0, 0.1), (3, 0.025), (4, 0.025)):  # the last adapter begins no round
        shadow = with_steps(own, 2, round=round).local
        assert (shadow.steps, shadow.schedule) == (2, "constant")
        assert shadow.learning_rate == pytest.approx(rate)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_control_on_an_update_takes_the_rates_of_the_updates_round(tmp_path_factory, optimizer):
    """In the third of four rounds of one step, the rate is half the first one."""
    lab = maker_of_labs(tmp_path_factory)(optimizer=optimizer, local={"steps": 1})
    items, updates = rounds_of(lab, clients=1)
    ((name, state),) = truth_of(updates, items).clients.items()
    truth = Truth(clients={name: replace(state, rounds={2: state.rounds[0]})})

    def length(settings):
        view = replace(lab.view(updates), settings=settings, adapters={2: lab.start})
        control = one_step_control(view, truth, records=1)
        ((update,),) = [as_in_the_run(control, settings)[0].updates.values()]
        return np.linalg.norm(update.astype(np.float64))

    constant = falling(lab.settings, schedule="constant")
    assert length(falling(lab.settings)) == pytest.approx(length(constant) / 2, rel=1e-3)
