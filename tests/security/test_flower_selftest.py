"""Over Flower messages every attack fails on this installation, and succeeds where a check is taken out."""

import logging
import re

import pytest
from typer.testing import CliRunner

from fedproxy_secure.cli.app import app
from fedproxy_secure.errors import ProtocolAborted, RoundAborted
from fedproxy_secure.flower import selftest as over_flower
from fedproxy_secure.flower.selftest import known_bad, liars, proxies, renewed
from fedproxy_secure.flower.selftest.attempts import Attempt, Limit, tried
from fedproxy_secure.flower.selftest.stage import listening, read, small_job, small_world, staged
from fedproxy_secure.protect.secure_sum import client as masked_client

# what the party that stops an attempt says
STOPPED_BY = {
    "asks for two masked vectors at once": "each step runs once",
    "a round again in a new run of Flower, other survivors": (
        "survivors: must be those that round 0 was unmasked for before"
    ),
    "a round again in a new run of Flower, another cohort": "round 0 was asked for with other clients",
    "a round again in a new run of Flower, another broadcast adapter": "round 0 was asked for with another",
    "a round again in a new run of Flower, another clip": "must be 0.0027, as asked for in this round",
    "another proxy under the same policy and seed": "to which this policy's seed 0 is bound",
    "a seed that the policy does not list": "seed=1 asked by the server: must be one of [0]",
    "journals put back, Flower's states not": "an older copy was restored",
    "journals put back, then a new run of Flower": "an older copy was restored",
    "asks for private rounds in parallel": "epsilon would become",
    "plaintext of clients whose policy says masking": "protect.scheme='unsafe_plaintext' asked by",
    "more rounds than the policy says": "federate.rounds=2 asked by the server: must be 1",
    "a round beyond the last": "round 1: must be 0 to 0",
    "a threshold below the policy's own": "threshold=3: must be 4 to 4",
    "a cohort smaller than the roster gives": "cohort of 3: must be >= 4",
    "a broadcast adapter for one client, zeros for the others": "broadcast adapter: differs",
    "proxy files that load other weights (adapter_config.json)": "proxy file 'adapter_config.json'",
    "weights exchanged on the disk after setup": "its files have changed since they came",
    "a proxy with fewer embeddings than tokens": "4 of 4 clients refuse the proxy, before a record is read",
    "a proxy that is not finite for a token": "4 of 4 clients refuse the proxy, before a record is read",
    "4 Sybils join 3 clients within a run": "began with; a run's roster is fixed",
    "two Sybils that are in no roster, and the victim": "cohort: c0 is not in the roster",
    "two Sybils under honest clients' names, and the victim": "roster: differs from this client's own",
    "two Sybils under honest clients' names, by a roster that changes within an attempt": (
        "roster: must be the one that the attempt was begun with"
    ),
    "fewer Sybils than the roster asks for, and the victim": "cohort of 3: must be >= 5",
    "says a weight that leaves 2^-20 in the sum": "weight in the sum is 9.53674e-07: must be 4",
    "says that it counts as two": "count in the sum is 5: must be 4",
    "says that it took 1000 steps": "steps in the sum is 1003: must be 4",
    "a proxy that overflows for a token": "of 4 clients refuse the proxy",
    "a proxy in which chosen tokens alone have gradients": "of its tokens have a zero embedding",
    "answers train with values of other types": "left out; the sum of the other 3",
    "answers query.mask with values of other types": "left out; the sum of the other 3",
}
ATTEMPTS = {a.name: a for a in over_flower.attempts() if isinstance(a, Attempt)}
LIMITS = {a.name: a for a in over_flower.attempts() if isinstance(a, Limit)}


@pytest.fixture(scope="module")
def world():
    with small_world() as made:
        yield made


@pytest.fixture
def heard():
    with listening() as found:
        yield found


def test_every_attempt_is_tried_here():
    assert set(ATTEMPTS) == set(STOPPED_BY)


@pytest.mark.parametrize("name", STOPPED_BY)
def test_an_attack_is_stopped_by_the_party_it_is_meant_for_and_succeeds_on_a_known_bad_one(
    world, heard, name
):
    installed, bad = tried(ATTEMPTS[name], world, heard)
    assert installed.ok
    assert installed.found.startswith("stopped: ")
    assert STOPPED_BY[name] in installed.found
    assert bad.ok
    assert bad.found.startswith("succeeds: ")
    assert bad.attempt.startswith(f"{name}, known-bad ")


@pytest.mark.parametrize("name", LIMITS)
def test_what_nothing_stops_is_played_and_said_never_called_ok(world, heard, name):
    (finding,) = tried(LIMITS[name], world, heard)
    assert finding.limit
    assert finding.ok
    assert finding.found.startswith("not stopped: ")
    assert finding.found.endswith(LIMITS[name].why)


def test_a_known_bad_party_that_resists_and_a_limit_that_is_stopped_are_found_bad(world, heard):
    def nothing(world):
        raise ProtocolAborted("for the test")

    tame = Attempt(
        adversary="nobody", name="nothing", attack=nothing, known_bad="party", without=known_bad.taken_out
    )
    assert [f.ok for f in tried(tame, world, heard)] == [True, False]
    (limit,) = tried(Limit(adversary="nobody", name="nothing", attack=nothing, why=""), world, heard)
    assert not limit.ok
    assert limit.found.startswith("is stopped after all: for the test")


def test_an_installation_with_a_check_taken_out_is_found_bad(world, heard):
    attempt = ATTEMPTS["a round beyond the last"]
    with known_bad.signing_clients():
        installed, _ = tried(attempt, world, heard)
    assert not installed.ok
    assert "gets the sum of round 1" in installed.found


def test_what_was_taken_out_is_back_afterwards_even_after_an_error():
    before = vars(masked_client)["TermsPolicy"]
    with pytest.raises(ZeroDivisionError), known_bad.taken_out((masked_client, "TermsPolicy", None)):
        raise ZeroDivisionError
    assert vars(masked_client)["TermsPolicy"] is before


def test_what_is_read_counts_only_if_it_is_the_victims(world):
    with staged(world) as stage:
        truth = stage.update()
        assert "reads all 2048 numbers of c3's update" in read(truth, truth, "c3")
        for other in (stage.update(0), 0 * truth):
            with pytest.raises(ProtocolAborted, match="is not c3's update"):
                read(other, truth, "c3")


def test_one_client_moves_a_coordinate_by_no_more_than_two_clips_where_an_honest_one_moves_half_a_clip(
    world,
):
    said = liars.within_the_bound(world)
    moved = re.search(r"by (\d\.\d\d) clips \(bound 2; an honest client 0\.5\)", said)
    assert 0.5 < float(moved[1]) <= 2


def test_under_record_level_privacy_a_proxy_that_overflows_for_a_token_fails_nobody(world, heard, tmp_path):
    pytest.importorskip("opacus")
    job = small_job(scheme="unsafe_plaintext")
    private = {"unit": "record", "target_delta": 1e-3, "ledger": str(tmp_path)}
    changed = job.privacy.model_copy(update=private)
    with proxies.takes_any_weights(), pytest.raises(ProtocolAborted, match="0 of 4 clients fail"):
        proxies.overflows_for_a_token(world, privacy=changed)


def test_clients_that_refuse_differences_stop_what_two_seeds_of_a_policy_would_tell(world, heard):
    assert "reads all 2048 numbers of c3's update" in renewed.other_seed(world, allowed=True)
    with pytest.raises(RoundAborted, match="confirm: 0 of 3 clients"):
        renewed.other_seed(world, allowed=True, refuse_differencing=True)
    assert "must not differ by one client from those of an earlier sum" in heard.take()


def test_the_tokens_read_off_a_masked_sum_are_true(world):
    with proxies.takes_any_weights():
        said = proxies.traps_in_a_sum(world)
    assert "in somebody's records and" in said
    assert said.endswith("and 0)")


def test_the_package_logs_as_before_when_the_attempts_are_over(world, caplog):
    log = logging.getLogger("fedproxy_secure")
    before = (log.propagate, list(log.handlers))
    list(over_flower.findings("active_network"))  # nobody's: a world is made and left
    assert (log.propagate, list(log.handlers)) == before


def test_a_reason_is_the_first_client_s_own(world, heard):
    (finding, _) = tried(ATTEMPTS["a round again in a new run of Flower, another clip"], world, heard)
    assert finding.found.startswith("stopped: clip 0.0024: must be 0.0027")
    assert finding.adversary == renewed.ADVERSARY


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_command_prints_a_line_an_attempt_and_marks_what_is_not_stopped():
    shown = CliRunner().invoke(app, ["selftest"])
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    assert not [line for line in lines if line.startswith("BAD")]
    limits = [line for line in lines if line.startswith("--")]
    assert len(limits) == len(LIMITS)
    assert all(": not stopped: " in line for line in limits)
    assert len([line for line in lines if "known-bad" in line]) > len(ATTEMPTS)
    assert lines[-1].endswith(f"{len(LIMITS)} known limits (--)")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_command_ends_with_2_on_an_installation_with_a_check_taken_out(monkeypatch):
    monkeypatch.setattr(masked_client, "TermsPolicy", known_bad.TakesAnyTerms)
    shown = CliRunner().invoke(app, ["selftest"])
    assert shown.exit_code == 2
    assert "BAD  active_server: a cohort smaller than the roster gives: gets a sum" in shown.stdout
    assert "did not end as expected" in shown.stderr
