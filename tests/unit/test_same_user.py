"""Who is at the other end of a connection on this machine: as Linux says of that one connection."""

import os
import socket
import struct
import threading
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedproxy_secure.errors import ConfigError
from fedproxy_secure.flower.launch.same_user import (
    check_users_are_known,
    is_of_this_user,
    owner_in,
)
from tests.support.connections import another_users_connection, connected

ME = os.geteuid()
LOOPBACK = bytes([127, 0, 0, 1]).ljust(16, b"\0")
ENDS = struct.pack("!HH16s16s", 0xA001, 9092, LOOPBACK, LOOPBACK)
UNUSED_PROTOCOL = 31  # of netlink


def answer(*, kind=20, family=socket.AF_INET, state=1, ends=ENDS, user=ME, inode=4711):
    """What Linux answers: a header, then family, state, ends, interface, cookie, numbers, user, inode."""
    body = struct.pack("=BBBB", family, state, 0, 0) + ends + struct.pack("=III", 0, 7, 7)
    body += struct.pack("=IIIII", 0, 0, 0, user, inode)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 1, 0) + body


def test_a_connection_of_this_users_own_process_is_known():
    with connected() as (client, server):
        assert is_of_this_user(client, server)
        assert not is_of_this_user(client, ("127.0.0.1", 1))
        assert not is_of_this_user((client[0], client[1] % 65535 + 1), server)


def test_a_connection_of_another_user_is_not_this_users():
    with another_users_connection() as (client, server):
        assert not is_of_this_user(client, server)


def test_a_connection_that_its_client_has_closed_is_nobodys():
    """A closed end reads as root's, and who sent a request can close before it is judged."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        kept = socket.create_connection(listener.getsockname())
        server, client = listener.accept()
        with server:
            kept.sendall(b"request")
            assert is_of_this_user(client, server.getsockname())
            kept.close()
            assert not is_of_this_user(client, server.getsockname())


def test_who_listens_is_not_taken_for_who_connects():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert not is_of_this_user(listener.getsockname(), ("127.0.0.1", 1))


def test_while_others_connect_and_leave_the_answer_stays_right():
    """The list of all connections, which is read in pieces, misses some meanwhile."""
    done = threading.Event()

    def come_and_go():
        with socket.create_server(("127.0.0.1", 0)) as listener:
            while not done.is_set():
                with socket.create_connection(listener.getsockname()):
                    listener.accept()[0].close()

    others = [threading.Thread(target=come_and_go) for _ in range(2)]
    with connected() as (client, server):
        for other in others:
            other.start()
        try:
            assert all(is_of_this_user(client, server) for _ in range(300))
        finally:
            done.set()
            for other in others:
                other.join()


def test_an_answer_is_read_as_it_is_meant():
    assert owner_in(answer(), ENDS) == ME


@pytest.mark.parametrize(
    "changes",
    [
        {"user": ME + 1},
        {"state": 6},
        {"state": 8},
        {"state": 10},
        {"inode": 0},
        {"family": socket.AF_INET6},
        {"kind": 2},
        {"ends": ENDS[:1] + b"\2" + ENDS[2:]},
        {"ends": ENDS[:3] + b"\0" + ENDS[4:]},
        {"ends": ENDS[:7] + b"\2" + ENDS[8:]},
    ],
    ids=[
        "another user",
        "time wait",
        "close wait",
        "listener",
        "orphan",
        "IPv6",
        "error",
        "port",
        "server's port",
        "address",
    ],
)
def test_any_other_answer_is_not_this_users(changes):
    assert owner_in(answer(**changes), ENDS) != ME


@given(st.integers(0, len(answer()) - 1))
def test_an_answer_that_was_cut_is_none(length):
    with suppress(struct.error):
        assert owner_in(answer()[:length], ENDS) != ME


@pytest.mark.parametrize(
    ("client", "server"),
    [
        (("192.0.2.7", 1), ("127.0.0.1", 2)),
        (("::1", 1), ("127.0.0.1", 2)),
        (("", 1), ("127.0.0.1", 2)),
        (("127.0.0.1", 70000), ("127.0.0.1", 2)),
        (("127.0.0.1", 1), ("owner.example", 2)),
    ],
)
def test_what_is_no_address_of_loopback_is_not_this_users(client, server):
    assert not is_of_this_user(client, server)


def test_where_the_system_does_not_say_nobody_is_the_owner_and_the_owner_is_told_so():
    check_users_are_known()
    with connected() as (client, server):
        assert not is_of_this_user(client, server, protocol=UNUSED_PROTOCOL)
    with pytest.raises(ConfigError, match="run the owner's side on Linux"):
        check_users_are_known(UNUSED_PROTOCOL)
