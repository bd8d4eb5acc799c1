"""A SuperLink stores of each node what an answer may have, and deletes what nobody will take."""

from fedproxy_secure.flower.internals.pushed import of_bounded_size
from tests.support.superlink_state import State, named


class PushedPart:
    """A request in which a node sends one part of its answer."""

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
