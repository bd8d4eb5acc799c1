"""What decides an attack's outcome: attempts that are counted, controls that can fail, reasons that fit."""

import numpy as np
import pytest

from attacks.integrity.active_server import Attempts, SecaggActive
from attacks.judging.outcome import judge
from fedproxy_secure.evidence.finding import Outcome


def rng(seed=0):
    return np.random.default_rng(seed)


# A10: attempts are counted


@pytest.mark.parametrize("attempts", [1, 17, 18, 500])
def test_one_attempt_that_breaks_the_protocol_is_a_success_however_many_others_fail(attempts):
    attack, info = SecaggActive(), SecaggActive.info
    tried = {f"attempt {i}": i == 0 for i in range(attempts)}
    (found,) = attack.score(Attempts(protocol=tried, read={}), {})
    (perfect,) = attack.score(Attempts(protocol=dict.fromkeys(tried, True), read={}), {})
    (none,) = attack.score(Attempts(protocol=dict.fromkeys(tried, False), read={}), {})
    assert judge(info, found, perfect, none)[0] == Outcome.SUCCEEDED
    assert judge(info, none, perfect, none)[0] == Outcome.RESISTED
    assert found.how.endswith("succeeded: attempt 0")
    assert none.how.endswith("succeeded: none")


def test_a_sum_that_is_the_victims_vector_counts_as_an_attempt_that_succeeded():
    victim = rng().normal(size=20).astype(np.float32)
    read = {"suppression": victim, "canary bit": "the round was aborted"}
    (found,) = SecaggActive().score(
        Attempts(protocol={"server: lies": False}, read=read), {"suppression": victim, "canary bit": victim}
    )
    assert (found.value, found.low, found.n) == (pytest.approx(1 / 3), pytest.approx(1 / 3), 3)
    assert found.how.endswith("succeeded: suppression")
