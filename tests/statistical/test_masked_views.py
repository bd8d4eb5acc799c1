"""What a server with colluders sees is uniform while one honest pair remains; a known-bad mask is not safe.

Two-sided: the tests accept the right generator and reject wrong ones.
"""

import numpy as np
import pytest
from scipy import stats

from fedproxy_secure.secagg.masking.keys import mask_key, pairwise_key
from fedproxy_secure.secagg.masking.masks import add_masks
from fedproxy_secure.secagg.messages import MaskedInput
from fedproxy_secure.secagg.selftest.rehearsal import Cohort, identities, names, ring, terms_for

K, D = 5, 1 << 16
ALPHA = (
    1e-9  # keys are drawn anew in each run, so chance alone must not fail it; words that are seen give 0
)


def byte_p_value(raw: bytes) -> float:
    counts = np.bincount(np.frombuffer(raw, np.uint8), minlength=256)
    return float(stats.chisquare(counts).pvalue)


def masked_vectors(bits):
    keys, roster = identities(K)
    terms = terms_for(ring(K, D, bits=bits), roster)
    seen, sessions = {}, {}

    class Watching(Cohort):
        def _ask(self, step, clients, ask, take):
            sessions.update({n: c for n, c in clients.items()})
            if step == "confirm":  # secrets are still there: let the colluders tell theirs
                self.secrets = {
                    n: (c._secret("self mask"), c._secret("mask key")) for n, c in clients.items()
                }
                self.book = clients["c00"]._book
            super()._ask(step, clients, ask, take)

    def watch(at, who, message):
        if isinstance(message, MaskedInput):
            seen[who] = message.masked
        return message

    cohort = Watching(terms=terms, keys=keys, roster=roster, tamper=watch)
    cohort.run({n: np.full(D, 0.001, np.float32) for n in names(K)})
    return cohort, terms, seen


@pytest.mark.parametrize("bits", [16, 24, 32])
def test_a_masked_constant_looks_uniform(bits):
    _, _, seen = masked_vectors(bits)
    for raw in seen.values():
        assert byte_p_value(raw) > ALPHA


def test_the_plain_words_do_not():
    cohort, _, _ = masked_vectors(32)
    assert byte_p_value(cohort.quantised["c00"].words.tobytes()) < ALPHA


@pytest.mark.parametrize("honest", [("c00", "c04"), ("c02", "c03")])
def test_with_all_others_colluding_and_self_masks_known_a_vector_of_the_honest_pair_stays_uniform(honest):
    cohort, terms, seen = masked_vectors(32)
    context = terms.context()
    target, partner = honest
    words = np.frombuffer(seen[target], np.uint32).copy()
    # the server learns every self mask when it unmasks; colluders give their pairwise masks
    minus = [mask_key(cohort.secrets[target][0], context)]
    plus = []
    for colluder in names(K):
        if colluder not in honest:
            i = cohort.book.clients.index(target)
            key = pairwise_key(
                cohort.secrets[colluder][1], cohort.book.mask_keys[i], context, colluder, target
            )
            (minus if target < colluder else plus).append(key)
    add_masks(words, plus=plus, minus=minus)
    assert byte_p_value(words.tobytes()) > ALPHA
    # and it is the honest pair's mask alone that hides it: with that one too, the plain words are there
    i = cohort.book.clients.index(target)
    key = pairwise_key(cohort.secrets[partner][1], cohort.book.mask_keys[i], context, partner, target)
    add_masks(words, plus=[] if target < partner else [key], minus=[key] if target < partner else [])
    assert np.array_equal(words, cohort.quantised[target].words)


def test_words_of_two_clients_are_independent():
    _, _, seen = masked_vectors(32)
    a, b = (np.frombuffer(seen[n], np.uint32).astype(float) for n in ("c00", "c01"))
    assert abs(np.corrcoef(a, b)[0, 1]) < 6 / np.sqrt(D)
