"""A SuperLink takes a node's own answers alone, hands whole messages on, and each once more at most."""

import threading
import time
from typing import Any

import pytest

from fedproxy_secure.flower.internals.pushed import (
    DEEPEST,
    MOST_MESSAGE_BYTES,
    MOST_OBJECTS,
    is_plain_tree,
    only_answers,
)
from fedproxy_secure.flower.internals.superlink import begins_anew, held, only_whole_answers
from tests.support.superlink_state import State, named


class Metadata:
    def __init__(self, src, dst=1, reply="asked"):
        self.src_node_id, self.dst_node_id, self.reply_to_message_id = src, dst, reply


class Pushable:
    """A message without its parts."""

    def __init__(self, metadata, size=200):
        self.metadata, self.size = metadata, size

    def ByteSize(self):  # noqa: N802 - protobuf's name
        return self.size


class Pushed:
    """A request of node 7 that pushes messages."""

    def __init__(self, *metadata, trees=None):
        self.node = type("Node", (), {"node_id": 7})
        self.messages_list = [Pushable(one) for one in metadata]
        self.message_object_trees = [Tree("a")] * (len(metadata) if trees is None else trees)


class Tree:
    def __init__(self, object_id, *children):
        self.object_id, self.children = named(object_id), children


class Store:
    """What the checks ask of the SuperLink's state: the objects that it has."""

    def __init__(self, **children_of):
        self.object_store = self
        self.store = {
            named(name): type("Entry", (), {"child_object_ids": [named(child) for child in children]})
            for name, children in children_of.items()
        }


def test_a_node_pushes_answers_of_its_own():
    assert only_answers(lambda request, state: "taken")(Pushed(Metadata(7)), Store()) == "taken"


@pytest.mark.parametrize(
    "request_of_seven",
    [
        Pushed(Metadata(8)),
        Pushed(Metadata(1)),
        Pushed(Metadata(7, reply="")),
        Pushed(Metadata(7, dst=8)),
        Pushed(Metadata(7), Metadata(8)),
        Pushed(Metadata(7), trees=0),
        Pushed(),
    ],
)
def test_what_is_not_a_nodes_own_answer_is_refused(request_of_seven):
    from fastapi import HTTPException

    with pytest.raises(HTTPException):
        only_answers(lambda request, state: "taken")(request_of_seven, Store())


def test_a_tree_as_flower_makes_them_is_taken():
    piece = Tree("piece")
    tree = Tree("message", Tree("record", Tree("array", piece, Tree("other")), Tree("twin", piece)))
    assert is_plain_tree(tree, Store(piece=[], record=["array", "twin"]))


def deep(levels):
    return Tree(str(levels)) if levels == 1 else Tree(str(levels), deep(levels - 1))


def bomb(levels):
    """Build a tree in which each object lists its child twice: with its own children, and without."""
    return Tree("0") if levels == 0 else Tree(str(levels), bomb(levels - 1), Tree(str(levels - 1)))


@pytest.mark.parametrize(
    ("tree", "known"),
    [
        (deep(DEEPEST + 1), {}),
        (bomb(4), {}),
        (Tree("message", *[Tree(str(i)) for i in range(MOST_OBJECTS)]), {}),
        (Tree("message", Tree("record")), {"record": ["of another node"]}),
        (Tree("message", Tree("record", Tree("mine"))), {"record": []}),
    ],
)
def test_a_tree_that_expands_to_something_else_is_refused(tree, known):
    assert not is_plain_tree(tree, Store(**known))


class Answer:
    """What Flower's handler returns: here with the ids it was asked for, and no trees."""

    def __init__(self, request, state, task):
        self.message_ids, self.message_object_trees = list(request.message_ids), []


def test_an_answer_is_handed_on_once_all_of_it_is_there():
    """With the SuperLink's own store: Flower alone would hand on the announced answer and wait."""
    from flwr.proto.message_pb2 import ObjectTree
    from flwr.supercore.object_store import ObjectStoreFactory

    store: Any = ObjectStoreFactory().store()
    store.preregister(1, ObjectTree(object_id="a" * 64, children=[ObjectTree(object_id="b" * 64)]))
    state = type(
        "State", (), {"object_store": store, "message_ins_id_to_message_res_id": {"asked": "a" * 64}}
    )

    class Asked:
        def __init__(self, *ids):
            self.message_ids = list(ids)

    def seen(*ids):
        handed_on = only_whole_answers(Answer, set())(Asked(*ids), state, None)
        return handed_on.message_ids

    assert seen("asked", "other") == ["other"]
    store.store["a" * 64].is_available = True
    assert seen("asked", "other") == ["other"]
    store.store["b" * 64].is_available = True
    assert seen("asked", "other") == ["asked", "other"]
    del store.store["b" * 64]
    assert seen("asked", "other") == ["asked", "other"], "Flower says itself that a part is gone"


def test_each_part_of_an_awaited_answer_is_looked_at_once_and_none_after_one_that_is_missing():
    """Twenty layers in which each object is listed twice: a walk of the tree would take a million looks."""
    layers = [Part(str(level), [str(level + 1)] * 2 if level < 20 else []) for level in range(21)]
    parts = Counted({part.name: part for part in layers})
    store = type("Store", (), {"store": parts})
    state = type("State", (), {"object_store": store, "message_ins_id_to_message_res_id": {"asked": "0"}})
    request = type("Asked", (), {"message_ids": ["asked"]})
    hand_on = only_whole_answers(Answer, set())
    assert hand_on(request, state, None).message_ids == ["asked"]
    assert parts.looks == 21
    layers[0].is_available = False
    assert hand_on(request, state, None).message_ids == []
    assert parts.looks == 22


class Links:
    """A SuperLink's messages for nodes, and their parts."""

    def __init__(self):
        self.message_ins_store, self.object_store = {}, type("Store", (), {"store": {}})()
        self.message_ins_id_to_message_res_id, self.deleted = {}, set()

    def delete_messages(self, message_ins_ids):
        self.deleted |= message_ins_ids

    def add(self, name, node, *, whole=True, delivered_at=""):
        data = type("Metadata", (), {"dst_node_id": node, "delivered_at": delivered_at})
        self.message_ins_store[name] = type("Message", (), {"metadata": data})
        self.object_store.store[name] = Part(name, [])
        self.object_store.store[name].is_available = whole


class Looked(dict):
    """Messages; `at` is set when somebody looks them through."""

    def __init__(self):
        super().__init__()
        self.at = threading.Event()

    def items(self):
        self.at.set()
        return super().items()


def pulled_after_s(links, held_s=0.5, node=7, hold=held):
    began = time.monotonic()
    assert hold(lambda *_: "pulled", held_s=held_s)(asked_by(node), links, None) == "pulled"
    return time.monotonic() - began


def asked_by(node):
    return type("Pull", (), {"node": type("Node", (), {"node_id": node})})


def test_a_request_for_messages_is_held_until_a_whole_one_is_there():
    links = Links()
    links.add("of another", node=8)
    links.add("old", node=7, delivered_at="2026-01-01")
    links.add("mine", node=7, whole=False)
    del links.object_store.store["old"]  # it was confirmed
    assert pulled_after_s(links) >= 0.5, "there is none"
    later = threading.Timer(0.1, setattr, (links.object_store.store["mine"], "is_available", True))
    later.start()
    assert 0.1 <= pulled_after_s(links, held_s=60) < 30
    assert pulled_after_s(links, held_s=60) < 30


@pytest.mark.parametrize(("node", "most"), [(8, 1), (7, 24)], ids=["too many nodes", "the same node"])
def test_a_request_beyond_those_that_may_be_held_is_answered_at_once(node, most):
    links, pull = Links(), held(lambda *_: "pulled", held_s=60, most=most)
    links.message_ins_store = looked = Looked()
    first = threading.Thread(target=pull, args=(asked_by(7), links, None))
    first.start()
    assert looked.at.wait(30)
    assert pull(asked_by(node), links, None) == "pulled"
    assert first.is_alive()
    links.add("mine", node=7)
    first.join(30)
    assert not first.is_alive()


def test_a_message_that_a_node_took_and_did_not_confirm_is_handed_out_once_more():
    """The node's line was cut while the answer to its request was on the way."""
    links, pull = Links(), held(lambda *_: "pulled", held_s=0)
    links.add("lost", node=7, delivered_at="2026-01-01")
    links.add("of another", node=8, delivered_at="2026-01-01")
    links.add("confirmed", node=7, delivered_at="2026-01-01")
    links.add("answered", node=7, delivered_at="2026-01-01")
    del links.object_store.store["confirmed"]
    links.message_ins_id_to_message_res_id["answered"] = "answer"

    def delivered():
        return {name for name, one in links.message_ins_store.items() if one.metadata.delivered_at}

    pull(asked_by(7), links, None)
    assert delivered() == {"of another", "confirmed", "answered"}
    links.message_ins_store["lost"].metadata.delivered_at = "2026-01-02"
    pull(asked_by(7), links, None)
    assert "lost" in delivered(), "an app that a node refuses is never confirmed"


def test_what_a_node_had_taken_when_it_was_started_again_is_lost_at_once():
    links = Links()
    links.add("taken", node=7, delivered_at="2026-01-01")
    links.add("answered", node=7, delivered_at="2026-01-01")
    links.add("waits", node=7)
    links.add("of another", node=8, delivered_at="2026-01-01")
    links.message_ins_id_to_message_res_id["answered"] = "answer"
    answer = type("Activated", (), {"node_id": 7})
    assert begins_anew(lambda request, state: answer)(request=None, state=links) is answer
    assert links.deleted == {"taken"}


class Part:
    def __init__(self, name, children):
        self.name, self.child_object_ids, self.is_available = name, children, True


class Counted(dict):
    """What a SuperLink's store has by name, with a count of how often somebody looked."""

    looks = 0

    def get(self, name, default=None):
        self.looks += 1
        return super().get(name, default)


@pytest.mark.parametrize("object_id", ["a", "A" * 64, "a" * 65, named("a") + "\n", "../" + "a" * 61])
def test_an_object_whose_id_is_not_of_flowers_form_is_refused(object_id):
    tree = Tree("message", Tree("record"))
    assert is_plain_tree(tree, Store())
    tree.children[0].object_id = object_id
    assert not is_plain_tree(tree, Store())


def test_a_message_that_is_large_without_its_parts_is_refused():
    from fastapi import HTTPException

    request = Pushed(Metadata(7))
    request.messages_list = [Pushable(Metadata(7), size=MOST_MESSAGE_BYTES)]
    assert only_answers(lambda request, state: "taken")(request, Store()) == "taken"
    request.messages_list = [Pushable(Metadata(7), size=MOST_MESSAGE_BYTES + 1)]
    with pytest.raises(HTTPException):
        only_answers(lambda request, state: "taken")(request, Store())


def test_an_answer_that_is_handed_out_is_remembered_until_it_is_confirmed():
    from flwr.proto.message_pb2 import ObjectTree

    state, handed_out = State(), set[str]()
    state.announce("answer", "a")

    class Answered(Answer):
        def __init__(self, request, state, task):
            self.message_object_trees = [ObjectTree(object_id=one) for one in request.message_ids]

    class Asked:
        def __init__(self, *ids):
            self.message_ids = list(ids)

    pull = only_whole_answers(Answered, handed_out)
    pull(Asked(named("answer")), state, None)
    assert handed_out == {named("answer")}
    state.object_store.delete(named("answer"))
    pull(Asked(), state, None)
    assert handed_out == set()
