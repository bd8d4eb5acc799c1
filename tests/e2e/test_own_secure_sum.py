"""The example of a secure sum from outside: what the server, attacks and settings make of it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord

from attacks.integrity.active_server import SecaggActive
from attacks.suite import read_truth
from attacks.trial import run_one
from fedproxy_secure.config import parse_config
from fedproxy_secure.config.kinds import PROTECTIONS
from fedproxy_secure.crypto import primitives as crypto
from fedproxy_secure.errors import ConfigError, DataError, ProtocolAborted
from fedproxy_secure.evidence.finding import Outcome
from fedproxy_secure.experiments.run import run
from fedproxy_secure.record.view import view
from fedproxy_secure.report.report import Report
from tests.support.examples import load_example
from tests.support.tiny import tiny_settings
from threat_models import get

SCHEME = {"scheme": "two_servers"}


@pytest.fixture(scope="module")
def module() -> object:
    return load_example("own_secure_sum")


@pytest.fixture
def two_servers(module) -> Iterator[object]:
    with PROTECTIONS.added("two_servers", module.TWO_SERVERS):
        yield module.TWO_SERVERS


@pytest.fixture(scope="module")
def ran(module, tmp_path_factory) -> tuple[Report, Path]:
    """The report and the folder of a recorded run under it."""
    folder = tmp_path_factory.mktemp("two_servers")
    settings = tiny_settings(folder, protect=SCHEME, fusion={"rule": "fedavg"}, audit={"record": True})
    with PROTECTIONS.added("two_servers", module.TWO_SERVERS):
        return run(parse_config(settings), folder / "run", in_cell=True), folder / "run"


def test_its_run_ends_like_one_in_the_clear(two_servers, ran, tmp_path):
    report, folder = ran
    settings = tiny_settings(
        tmp_path, protect={"scheme": "unsafe_plaintext"}, fusion={"rule": "fedavg"}, audit={"record": True}
    )
    run(parse_config(settings), tmp_path / "plain", in_cell=True)
    summed, plain = (view(f / "seed-0", get("server")) for f in (folder, tmp_path / "plain"))
    last = max(plain.adapters)
    np.testing.assert_allclose(summed.adapters[last], plain.adapters[last], atol=1e-4)
    upload = report.configurations[0].measure("upload_bytes")
    assert upload.estimate.value == 8 * len(plain.adapters[0])


def test_an_evaluation_gives_the_server_the_sum_and_no_update(two_servers, ran):
    _, folder = ran
    seen = view(folder / "seed-0", get("server"))
    assert not seen.updates
    assert set(seen.sums[0].segments) == {"update"}
    assert seen.surfaces >= {"AGG", "MOD"}
    assert "IND" not in seen.surfaces


def test_an_attack_that_plays_our_own_protocols_rounds_says_nothing_about_it(two_servers, ran):
    seen, truth = view(ran[1] / "seed-0", get("active_server")), read_truth(ran[1] / "seed-0")
    found = run_one(SecaggActive(), seen, truth, profile="smoke", seconds=60, seed=0)
    assert found.outcome == Outcome.INCONCLUSIVE
    assert "two_servers: its rounds cannot be played again here" in found.reason


@pytest.mark.parametrize(
    ("section", "setting", "message"),
    [
        (
            "protect",
            {"threshold": 3},
            r"protect\.threshold=3: is not enforced with .*two_servers; must be None",
        ),
        ("protect", {"colluders": 1}, r"protect\.colluders=1: is not enforced"),
        ("protect", {"min_cohort": 3}, r"protect\.min_cohort=3: is not enforced"),
        ("protect", {"refuse_differencing": True}, r"protect\.refuse_differencing=True: is not enforced"),
        ("protect", {"weights": "encrypted_gram"}, r"protect\.weights=encrypted_gram: is not enforced"),
        ("fusion", {"rule": "h_ties"}, r"fusion\.rule=h_ties: reads single updates"),
        ("fusion", {"pcr_lambda": 0.1}, r"fusion\.pcr_lambda=0\.1: .* the server learns no conflict"),
    ],
)
def test_settings_that_it_cannot_keep_are_refused(two_servers, tmp_path, section, setting, message):
    sections = {"protect": dict(SCHEME), "fusion": {"rule": "fedavg"}}
    sections[section] |= setting
    with pytest.raises(ConfigError, match=message):
        parse_config(tiny_settings(tmp_path, **sections))


def shares_of(module, name, words, *, flipped=0):
    """A client's message to the helper, with `flipped` added to the last byte of what is sealed."""
    ephemeral = crypto.fresh_secret()
    helper = crypto.agreement_public(module.HELPER)
    key = crypto.agree(ephemeral, helper, info=b"share", subject="helper's key")
    sealed = bytearray(crypto.seal(key, words.tobytes(), associated=name.encode()))
    sealed[-1] = (sealed[-1] + flipped) % 256
    return ConfigRecord({"key": crypto.agreement_public(ephemeral), "sealed": bytes(sealed)})


def test_a_share_opens_for_the_client_that_sealed_it_and_unchanged_alone(module):
    words = np.arange(4, dtype=np.uint32)
    np.testing.assert_array_equal(module.helpers_share("a", shares_of(module, "a", words), 4), words)
    with pytest.raises(ProtocolAborted):
        module.helpers_share("b", shares_of(module, "a", words), 4)
    with pytest.raises(ProtocolAborted):
        module.helpers_share("a", shares_of(module, "a", words, flipped=1), 4)


@pytest.mark.parametrize("words", [np.zeros(1, np.uint32), np.zeros(9, np.uint32)])
def test_a_share_of_another_length_is_refused_as_bad_data(module, words):
    with pytest.raises(DataError):
        module.helpers_share("a", shares_of(module, "a", words), 4)
