"""A SuperLink takes a node's own answers alone, hands whole messages on, and each once more at most."""

import hashlib
import threading
import time
from typing import Any

import pytest

from fedproxy_secure.flower.internals.pushed import (
    DEEPEST,
    MOST_MESSAGE_BYTES,
    MOST_OBJECTS,
    is_plain_tree,
    of_bounded_size,
    only_answers,
)
from fedproxy_secure.flower.internals.superlink import begins_anew, held, only_whole_answers


class Metadata:
    def __init__(self, src, dst=1, reply="asked"):
        self.src_node_id, self.dst_node_id, self.reply_to_message_id = src, dst, reply


class Pushable:
    """A message without its parts."""

    def __init__(self, metadata, size=200):
        self.metadata, self.size = metadata, size

    def ByteSize(self):  # noqa: N802 - protobuf's name
        return self.size


def named(name: str) -> str:
    """The id of an object, in the form of Flower's."""
    return hashlib.sha256(name.encode()).hexdigest()


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


class State:
    """A SuperLink's state with Flower's own store of objects."""

    def __init__(self):
        from flwr.supercore.object_store import ObjectStoreFactory

        store: Any = ObjectStoreFactory().store()
        self.message_ins_id_to_message_res_id: dict[str, str] = {}
        store.verify = False  # contents here are zeros, which their ids do not say
        self.object_store = store
        self.message_ins_store: dict[str, Any] = {}
        self.message_res_store: dict[str, Any] = {}

    def announce(self, root, *parts):
        """Store an answer's message, and announce its parts, as pushing it does."""
        from flwr.proto.message_pb2 import ObjectTree

        children = [ObjectTree(object_id=named(part)) for part in parts]
        self.message_res_store[named(root)] = "a message"
        self.object_store.preregister(1, ObjectTree(object_id=named(root), children=children))


class PushedPart:
    """A request of a node that pushes a part of an answer."""

    def __init__(self, name, size, node=7):
        self.object_id, self.object_content = named(name), bytes(size)
        self.node = type("Node", (), {"node_id": node})


def bounded(handed_out=None, most=100):
    """The handler under test, for parts of at most 100 bytes together; returns `stored` or a status."""
    from fastapi import HTTPException

    def push(request, state):
        if request.object_id not in state.object_store:
            return "not stored"
        state.object_store.put(request.object_id, request.object_content)
        return "stored"

    checked = of_bounded_size(push, lambda: most, set() if handed_out is None else handed_out)

    def ended(request, state):
        try:
            return checked(request, state)
        except HTTPException as error:
            return error.status_code

    return ended


def test_a_node_stores_as_much_as_an_answer_may_have_and_no_byte_more():
    state, push = State(), bounded()
    state.announce("answer", "a", "b", "c")
    pushed = [push(PushedPart(name, size), state) for name, size in (("a", 60), ("b", 40), ("c", 1))]
    assert pushed == ["stored", "stored", 413]


def test_a_part_that_is_pushed_again_counts_once():
    state, push = State(), bounded()
    state.announce("answer", "a")
    assert [push(PushedPart("a", 60), state) for _ in range(3)] == ["stored"] * 3


def test_each_node_has_a_bound_of_its_own():
    state, push = State(), bounded()
    state.announce("answer", "a", "b")
    assert push(PushedPart("a", 100, node=7), state) == "stored"
    assert push(PushedPart("b", 100, node=8), state) == "stored"


def test_what_no_answer_has_announced_is_neither_stored_nor_remembered():
    state, push = State(), bounded()
    state.announce("answer", "a")
    for number in range(200):
        assert push(PushedPart(f"unknown {number}", 99), state) == "not stored"
    assert push(PushedPart("a", 100), state) == "stored"


def test_what_the_server_app_has_taken_counts_no_longer():
    state, push = State(), bounded()
    state.announce("answer", "a")
    push(PushedPart("a", 100), state)
    del state.message_res_store[named("answer")]
    state.object_store.delete(named("answer"))  # as confirming does
    state.announce("next", "b")
    assert push(PushedPart("b", 100), state) == "stored"


def test_a_late_answer_that_nobody_will_take_makes_room_for_the_next():
    state, push = State(), bounded()
    for number in range(5):
        state.announce(f"answer {number}", f"part {number}")
        assert push(PushedPart(f"part {number}", 100), state) == "stored"
        del state.message_res_store[named(f"answer {number}")]  # its request has expired
    assert len(state.object_store) == 2, "the last one, and its part"


def test_an_answer_that_the_server_app_is_taking_is_not_deleted():
    handed_out = {named("answer")}
    state, push = State(), bounded(handed_out)
    state.announce("answer", "a")
    push(PushedPart("a", 100), state)
    del state.message_res_store[named("answer")]  # Flower drops the message as it hands it out
    state.announce("next", "b")
    assert push(PushedPart("b", 1), state) == 413
    assert named("a") in state.object_store
    state.object_store.delete(named("answer"))
    assert push(PushedPart("b", 100), state) == "stored"


def test_a_request_to_a_node_is_not_deleted_for_its_answers_room():
    state, push = State(), bounded()
    state.announce("request", "a")  # the node sends back what it was sent
    state.message_ins_store[named("request")] = state.message_res_store.pop(named("request"))
    state.announce("answer", "b")
    assert [push(PushedPart(name, 60), state) for name in ("a", "b")] == ["stored", 413]
    assert named("a") in state.object_store


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
