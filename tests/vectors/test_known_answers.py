"""The primitives give the answers that their standards print."""

import hashlib

import numpy as np
import pytest

from fedproxy_secure.crypto import primitives as crypto
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.errors import ProtocolAborted
from fedproxy_secure.secagg.masking.masks import add_masks
from fedproxy_secure.secagg.terms import HASH_BYTES


def secret(text: str) -> Secret:
    return Secret(bytes.fromhex(text))


def test_x25519_rfc_7748_section_6_1_as_input_of_hkdf():
    alice = secret("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    bob = secret("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    bob_public = "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    shared = secret("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
    assert crypto.agreement_public(bob).hex() == bob_public
    agreed = crypto.agree(alice, bytes.fromhex(bob_public), info=b"pair", subject="Bob's key")
    assert agreed.reveal() == crypto.derive(shared, info=b"pair").reveal()


@pytest.mark.parametrize("public", [bytes(32), b"\1" + bytes(31), b"", b"x" * 31])
def test_a_key_of_low_order_or_wrong_length_is_refused(public):
    with pytest.raises(ProtocolAborted, match="Mallory's key: verification failed"):
        crypto.agree(crypto.fresh_secret(), public, info=b"pair", subject="Mallory's key")


def test_hkdf_sha256_rfc_5869_test_case_3():
    made = crypto.derive(Secret(b"\x0b" * 22), info=b"")
    assert made.reveal().hex() == "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"


def test_ed25519_rfc_8032_test_1():
    key = secret("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    signature = (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b"
    )
    assert crypto.signing_public(key).hex() == public
    assert crypto.sign(key, b"").hex() == signature
    crypto.verify(bytes.fromhex(public), b"", bytes.fromhex(signature), subject="test 1")


def test_chacha20_poly1305_rfc_8439_section_2_8_2():
    key = Secret(bytes(range(0x80, 0xA0)))
    nonce = bytes.fromhex("070000004041424344454647")
    sealed = bytes.fromhex(
        "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d6"
        "3dbea45e8ca9671282fafb69da92728b1a71de0a9e060b2905d6a5b67ecd3b36"
        "92ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc"
        "3ff4def08e4b7a9de576d26586cec64b6116"
        "1ae10b594f09e26a7e902ecbd0600691"
    )
    associated = bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
    text = crypto.unseal(key, nonce + sealed, associated=associated, subject="the lecture")
    assert text == (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
        b"sunscreen would be it."
    )
    with pytest.raises(ProtocolAborted, match="the lecture: verification failed"):
        crypto.unseal(key, nonce + sealed, associated=associated + b"\0", subject="the lecture")


def test_the_mask_of_the_zero_key_begins_with_aes_256_of_the_zero_block():
    words = np.zeros(4, dtype=np.uint32)
    add_masks(words, plus=[Secret(bytes(32))], minus=[])
    assert words.astype("<u4").tobytes().hex() == "dc95c078a2408989ad48a21492842087"


def test_the_tag_is_aes_256_gcm_of_nothing_nist_test_case_13():
    key = Secret(bytes(32))
    assert crypto.tag(key, b"").hex() == "530f8afbc74536b9a963b4f1c4cb738b"
    crypto.check_tag(key, b"", bytes.fromhex("530f8afbc74536b9a963b4f1c4cb738b"), subject="case 13")
    for bad in (b"", bytes(16), bytes(15)):
        with pytest.raises(ProtocolAborted, match="case 13: verification failed"):
            crypto.check_tag(key, b"", bad, subject="case 13")


def test_a_digest_is_sha_256_of_its_parts_each_behind_its_length():
    assert crypto.digest().hex() == hashlib.sha256(b"").hexdigest()
    raw = b"\0" * 7 + b"\2ab" + b"\0" * 7 + b"\1c"
    assert crypto.digest(b"ab", b"c").hex() == hashlib.sha256(raw).hexdigest()
    assert crypto.digest(b"ab", b"c") != crypto.digest(b"a", b"bc")
    assert len(crypto.digest(b"ab")) == HASH_BYTES
