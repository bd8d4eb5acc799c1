"""A signature covers every field of its message, the attempt, and for a grant the receiver."""

import importlib
import pkgutil
from dataclasses import fields, is_dataclass, replace

import pytest

from fedproxy_secure import secagg
from fedproxy_secure.secagg.ckks.messages import Hello, KeyGrant, Opened
from fedproxy_secure.secagg.messages import Advertise, Confirmation, Unmask

CONTEXT = b"c" * 32
ADVERTISE = Advertise(client="c00", share_key=b"s", mask_key=b"m", commitment=b"h", signature=b"")
UNMASK = Unmask(
    client="c00",
    survivors=["c00", "c01"],
    self_shares=[b"a", b"b"],
    dropped=["c02"],
    key_shares=[b"d"],
    signature=b"",
)
HELLO = Hello(client="c00", share_key=b"s", signature=b"")
GRANT = KeyGrant(leader="c00", share_key=b"s", public=b"p", sealed=b"x", signature=b"")
OPENED = Opened(client="c00", values=b"v", values_sha256=b"h", signature=b"")


def other(value):
    if isinstance(value, list):
        return [other(value[0]), *value[1:]]
    return value + (b"!" if isinstance(value, bytes) else "!")


def signed(message, context=CONTEXT):
    return message.signed(context, "c01") if isinstance(message, KeyGrant) else message.signed(context)


@pytest.mark.parametrize(
    "message", [ADVERTISE, UNMASK, HELLO, GRANT, OPENED], ids=lambda m: type(m).__name__
)
def test_no_field_can_be_changed_under_a_signature(message):
    covered = {signed(message), signed(message, other(CONTEXT))}
    free = {"signature", "values"}  # the opener's values are checked against their hash
    changed = [f.name for f in fields(message) if f.name not in free]
    for name in changed:
        covered.add(signed(replace(message, **{name: other(getattr(message, name))})))
    assert len(covered) == 2 + len(changed)


def test_a_grant_is_for_its_receiver_alone():
    assert GRANT.signed(CONTEXT, "c01") != GRANT.signed(CONTEXT, "c02")


def test_a_confirmation_covers_both_sets_and_the_attempt():
    a, b = ["c00", "c01", "c02"], ["c00", "c01"]
    assert (
        len({Confirmation.signed(c, s, u) for c in (CONTEXT, b"d" * 32) for s in (a, b) for u in (a, b)})
        == 8
    )
    assert Confirmation.signed(CONTEXT, a[::-1], b[::-1]) == Confirmation.signed(CONTEXT, a, b)


def test_what_kind_of_message_it_is_shows_in_what_is_signed():
    """Messages of other kinds with the same parts: a signature on one is none on the other."""
    hello = Hello(client="c00", share_key=b"h", signature=b"")
    opened = Opened(client="c00", values=b"", values_sha256=b"h", signature=b"")
    assert hello.signed(CONTEXT) != opened.signed(CONTEXT)


def test_values_that_were_checked_cannot_be_changed_afterwards_nor_given_by_place():
    found = []
    for module in pkgutil.walk_packages(secagg.__path__, f"{secagg.__name__}."):
        for kind in vars(importlib.import_module(module.name)).values():
            if isinstance(kind, type) and is_dataclass(kind) and kind.__module__ == module.name:
                found.append(kind)
    assert len(found) > 25
    for kind in found:
        assert kind.__name__ == "Cohort" or kind.__dataclass_params__.frozen, kind  # type: ignore[attr-defined]
        assert all(f.kw_only for f in fields(kind)), kind
