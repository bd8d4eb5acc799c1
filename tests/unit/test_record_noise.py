"""A client's noise follows from public numbers: neighbours get the same, and the same errors."""

import pytest

from fedproxy_secure.config import LocalConfig, PrivacyConfig
from fedproxy_secure.dp.events import SampledGaussian
from fedproxy_secure.dp.record_noise import public_size, record_noise
from fedproxy_secure.errors import ConfigError

pytestmark = pytest.mark.torch
PRIVACY = PrivacyConfig(unit="record", target_epsilon=8.0, target_delta=1e-5, clip_norm=0.5)


def asked(records, *, batch=2, delta=1e-5):
    """The noise of two steps in all: with sampling, more of them take longer to find."""
    privacy = PRIVACY.model_copy(update={"target_delta": delta})
    return record_noise(privacy, LocalConfig(steps=1, batch_size=batch), rounds=2, records=records)


def refused(records, **settings):
    with pytest.raises(ConfigError) as found:
        asked(records, **settings)
    return str(found.value)


def test_the_public_size_is_the_next_power_of_two():
    assert [public_size(n) for n in (1, 2, 3, 4, 5, 8, 9, 4097)] == [1, 2, 4, 4, 8, 8, 16, 8192]


@pytest.mark.parametrize(
    ("records", "batch"),
    # with sampling it takes seconds to find the noise: only for one rate, which the next test has, too
    [(3, 4), pytest.param(5, 2, marks=pytest.mark.slow), (7, 2), (9, 16), (300, 512), (4095, 4096)],
)
def test_one_record_more_changes_neither_rate_nor_noise(records, batch):
    pytest.importorskip("opacus")
    assert asked(records, batch=batch) == asked(records + 1, batch=batch)


def test_the_rate_is_the_batch_over_the_public_size_and_the_noise_reaches_the_target_at_it():
    pytest.importorskip("opacus")
    from fedproxy_secure.dp.accounting import spent

    noise = asked(5)
    assert (noise.sampling_rate, noise.clip_norm) == (2 / 8, 0.5)
    event = SampledGaussian(
        noise_multiplier=noise.noise_multiplier, sampling_rate=noise.sampling_rate, steps=2
    )
    assert 7.96 < spent([event], delta=1e-5).epsilon <= 8


def test_settings_that_are_refused_are_refused_for_neighbours_with_the_same_words():
    for settings, line in (
        (
            {"delta": 0.13},
            r"privacy.target_delta=0.13: must be < 1 / the client's number of records, rounded",
        ),
        ({"batch": 9}, "local.batch_size=9: must be <= the client's number of records, rounded up"),
    ):
        words = {refused(records, **settings) for records in (5, 6, 7, 8)}
        assert len(words) == 1
        assert words.pop().startswith(line)


def test_a_target_that_takes_next_to_no_noise_is_refused_before_anything_is_spent():
    pytest.importorskip("opacus")
    privacy = PRIVACY.model_copy(update={"target_epsilon": 1e9})
    with pytest.raises(ConfigError, match=r"target_epsilon=1e\+09: needs a noise multiplier below 0.001"):
        record_noise(privacy, LocalConfig(steps=3, batch_size=4), rounds=2, records=4)
