"""The private parts of Flower that are used do what `flower.internals` says, in the version installed."""

import re
import threading
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectUnavailableError,
    pull_and_inflate_object_from_tree,
    pull_objects,
)
from flwr.supernode import start_client_internal
from flwr.supernode.runtime import run_clientapp

from fedproxy_secure.flower import internals
from fedproxy_secure.flower.internals import messages, supernode

TRIED_WITH = ("1.41.0",)
PACKAGES = [Path(internals.__file__).parents[2], *(Path(__file__).parents[2] / p for p in ("attacks",))]


def test_the_installed_flower_is_one_that_the_private_parts_were_tried_with():
    assert version("flwr") in TRIED_WITH


def test_a_message_made_in_this_process_is_the_servers():
    messages.act_as_server()
    message = Message(RecordDict({"a": ConfigRecord({"b": 1})}), 2, "query.setup")
    assert (message.metadata.run_id, message.metadata.src_node_id) == (1, 1)


def test_each_message_gets_an_id_of_its_own_which_its_reply_names():
    messages.act_as_server()
    one, two = (Message(RecordDict(), 2, "train") for _ in range(2))
    ids = {messages.give_id(one), messages.give_id(two)}
    assert len(ids) == 2
    assert one.metadata.message_id in ids
    reply = Message(RecordDict(), reply_to=one)
    assert reply.metadata.reply_to_message_id == one.metadata.message_id


def test_a_node_looks_soon_after_an_answer_then_less_often_and_rarely_when_nothing_came_for_a_minute():
    slept = []
    impatient = supernode.Impatient(slept.append)
    for _ in range(200):
        impatient.sleep(supernode.IDLE_S)
    assert slept[0] == supernode.SOON_S
    assert slept == sorted(slept)
    patient = slept.index(supernode.IDLE_S)
    assert supernode.PATIENT_S <= sum(slept[:patient]) <= supernode.PATIENT_S + supernode.LOOK_S
    assert set(slept[20:patient]) == {supernode.LOOK_S}
    assert slept[patient:] == [supernode.IDLE_S] * (200 - patient)
    impatient.sleep(0.5)  # waits for an answer: there was a message
    impatient.sleep(supernode.IDLE_S)  # it has been sent
    assert slept[-2:] == [supernode.SOON_S] * 2


def test_a_node_does_not_lose_patience_with_its_own_training():
    slept = []
    impatient = supernode.Impatient(slept.append)
    for _ in range(1000):
        impatient.sleep(0.5)
    assert max(slept) == supernode.LOOK_S


def test_a_part_that_is_not_there_yet_is_looked_for_soon_and_without_an_end_of_tries(monkeypatch):
    """Flower's own function sleeps a second at first, and gives up after 500 tries."""
    left = 12

    def pull(object_id):
        nonlocal left
        left -= 1
        if left > 0:
            raise ObjectUnavailableError(object_id)
        return b"it"

    pauses = []

    class Noted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            if timeout is not None:
                pauses.append(timeout)
            return super().wait(timeout)

    monkeypatch.setattr(threading, "Event", Noted)
    sooner: Any = supernode.sooner(pull_objects, least_s=0.001, most_s=0.01)
    assert sooner(["a"], pull) == {"a": b"it"}
    assert len(pauses) == 11
    assert max(pauses) <= 0.01 * 1.2, "Flower varies each by a fifth"
    assert sooner.keywords["max_tries_per_object"] is None
    assert vars(start_client_internal)["pull_objects"] is pull_objects, "it is what the worker calls"
    assert vars(run_clientapp)["pull_and_inflate_object_from_tree"] is pull_and_inflate_object_from_tree


def test_flowers_worker_sleeps_as_long_as_the_node_expects():
    source = Path(start_client_internal.__file__).read_text(encoding="utf-8")
    assert sorted(set(re.findall(r"time\.sleep\(([\d.]+)\)", source))) == ["0.5", "3"]


def test_no_other_module_uses_parts_of_flower_that_are_not_public():
    private = re.compile(r"from flwr\.(?!app import|clientapp import|serverapp import)|metadata\.__dict__")
    users = {
        file.parent.name
        for package in PACKAGES
        for file in package.rglob("*.py")
        if private.search(file.read_text(encoding="utf-8"))
    }
    assert users == {"internals"}
