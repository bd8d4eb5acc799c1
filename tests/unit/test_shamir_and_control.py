"""Secret sharing gives back the secret or refuses; control words add; secrets stay hidden."""

import contextlib
import copy
import itertools
import pickle

import numpy as np
import pytest

from fedproxy_secure.crypto.primitives import fresh_secret
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.crypto.shamir import PRIME, Combiner, split
from fedproxy_secure.errors import DataError, ProtocolAborted
from fedproxy_secure.secagg.control import Control, decode_control, encode_control, sentinels
from fedproxy_secure.secagg.ring import MAX_CLIENTS


def coefficients(count):
    return [Secret(fresh_secret().reveal() + fresh_secret().reveal()) for _ in range(count)]


def test_the_field_is_prime_and_the_smallest_above_every_secret():
    def probably_prime(n):
        d, s = n - 1, 0
        while d % 2 == 0:
            d, s = d // 2, s + 1
        for a in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37):
            x = pow(a, d, n)
            if x in (1, n - 1):
                continue
            for _ in range(s - 1):
                x = x * x % n
                if x == n - 1:
                    break
            else:
                return False
        return True

    assert probably_prime(PRIME)
    assert not any(probably_prime(n) for n in range(2**256 + 1, PRIME))


@pytest.mark.parametrize("secret", [Secret(bytes(32)), Secret(b"\xff" * 32), fresh_secret()])
def test_every_set_of_threshold_shares_gives_the_secret(secret):
    shares = split(secret, [1, 2, 3, 4, 5], coefficients(2))
    for points in itertools.combinations(shares, 3):
        assert Combiner(points).combine(shares).reveal() == secret.reveal()


def test_one_share_less_gives_something_else():
    secret = fresh_secret()
    shares = split(secret, [1, 2, 3, 4, 5], coefficients(2))
    for points in itertools.combinations(shares, 2):
        with contextlib.suppress(ProtocolAborted):  # it may fall into the few elements above 2^256
            assert Combiner(points).combine(shares).reveal() != secret.reveal()


def test_bad_shares_points_and_secrets_are_refused():
    shares = split(fresh_secret(), [1, 2, 3], coefficients(1))
    for points in ([], [1, 1], [0, 1], [1, PRIME]):
        with pytest.raises(ProtocolAborted, match="must be different and >= 1"):
            Combiner(points)
    for points in ([1, 1], [0, 1], [1, PRIME]):
        with pytest.raises(ProtocolAborted, match="must be different and >= 1"):
            split(fresh_secret(), points, coefficients(1))
    with pytest.raises(ProtocolAborted, match="threshold=3: must be <= 2"):
        split(fresh_secret(), [1, 2], coefficients(2))
    with pytest.raises(ProtocolAborted, match="secret of 31 bytes"):
        split(Secret(bytes(31)), [1, 2], coefficients(1))
    with pytest.raises(ProtocolAborted, match="share at point 2: must be there"):
        Combiner([1, 2]).combine({1: shares[1]})
    with pytest.raises(ProtocolAborted, match="share at point 2: must be there, with 33 bytes"):
        Combiner([1, 2]).combine({1: shares[1], 2: Secret(bytes(32))})
    with pytest.raises(ProtocolAborted, match="share at point 2: must be below the prime"):
        Combiner([1, 2]).combine({1: shares[1], 2: Secret(b"\xff" * 33)})
    top = Secret((2**256 + 5).to_bytes(33, "big"))
    with pytest.raises(ProtocolAborted, match="do not belong together"):
        Combiner([1, 2]).combine({1: top, 2: top})


def test_control_words_of_64_clients_add_up_in_the_smallest_ring():
    one = Control(weight=0.25, clipped=2**33, loss=9.5, steps=40, largest=1.5)
    context = b"c" * 32
    words = encode_control(one, context)
    sums = {name: MAX_CLIENTS * part for name, part in words.items()}
    assert max(int(part.max()) for part in sums.values()) < 2**16
    total = decode_control(sums, context, clients=MAX_CLIENTS)
    assert total == Control(
        clients=64, weight=16.0, clipped=64 * 2**33, loss=608.0, steps=2560, largest=96.0
    )


def test_wrong_sentinels_counts_and_numbers_are_refused():
    context, one = b"c" * 32, Control(weight=1.0, clipped=0, loss=1.0, steps=1, largest=0.0)
    words = encode_control(one, context)
    with pytest.raises(ProtocolAborted, match="sentinels: are wrong"):
        decode_control(words, context, clients=2)
    with pytest.raises(ProtocolAborted, match="sentinels: are wrong"):
        decode_control(words, b"d" * 32, clients=1)
    two = {"control": words["control"], "sentinels": 2 * words["sentinels"]}
    with pytest.raises(ProtocolAborted, match="count in the sum is 1: must be 2"):
        decode_control(two, context, clients=2)
    for bad in ({"loss": float("nan")}, {"loss": -1.0}, {"loss": 1e30}, {"steps": -1}, {"clipped": 2**48}):
        with pytest.raises(DataError, match="control word"):
            encode_control(Control(**(one.__dict__ | bad)), context)
    assert np.all((sentinels(context) >= 1) & (sentinels(context) <= 1000))


def test_what_a_number_means_decides_how_it_is_written_not_its_type():
    context = b"c" * 32
    plain = Control(weight=1.0, clipped=3, loss=2.0, steps=40, largest=0.5)
    typed = Control(weight=1, clipped=3.0, loss=np.float32(2), steps=np.int64(40), largest=np.float32(0.5))
    assert decode_control(encode_control(typed, context), context, clients=1) == plain


@pytest.mark.parametrize("claimed", [0.0, 1 + 2**-20, 3.0])
def test_a_weight_that_no_client_has_aborts_instead_of_shortening_the_mean(claimed):
    context = b"c" * 32
    words = encode_control(Control(weight=claimed, clipped=0, loss=0.0, steps=1, largest=0.0), context)
    with pytest.raises(ProtocolAborted, match=r"weight in the sum is .*: must be above 0 and at most 1"):
        decode_control(words, context, clients=1)


def test_an_error_about_a_control_word_does_not_say_its_value():
    """Clients' errors travel to the server as text."""
    with pytest.raises(DataError, match=r"^control word loss: must be >= 0 and below") as caught:
        encode_control(Control(weight=1.0, clipped=0, loss=1e30, steps=1, largest=0.0), b"c" * 32)
    assert "1e+30" not in str(caught.value)


def test_a_secret_hides_itself_and_cannot_be_copied():
    secret = Secret(b"very private")
    assert "private" not in repr(secret) + str(secret) + f"{secret}"
    assert secret != Secret(b"very private")
    for copying in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled or copied"):
            copying(secret)
