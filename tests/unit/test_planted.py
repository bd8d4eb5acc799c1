"""Canaries and records set aside: drawn anew for every seed of a run, and alike wherever it is played."""

import pytest

from fedproxy_secure.config import AuditConfig, ClientConfig
from fedproxy_secure.data.encode import encode_records
from fedproxy_secure.data.planted import draw_canaries, set_aside
from fedproxy_secure.data.records import Record
from fedproxy_secure.data.tasks import load_task
from fedproxy_secure.errors import DataError
from fedproxy_secure.federate.build import build_client
from fedproxy_secure.federate.client_policy import policy_for
from fedproxy_secure.federate.shared_proxy import with_proxy
from fedproxy_secure.flower.engines import federate
from fedproxy_secure.flower.recording import watched
from fedproxy_secure.record.private import read_private
from tests.support.recorded import AUDIT, prepared
from tests.support.tiny import tiny_tokenizer

AUDITED = AuditConfig(holdout=0.3, canaries=(1, 2))
RECORDS = [Record(prompt=f"{i}", choices=(" no", " yes"), label=0) for i in range(20)]


def test_every_seed_and_every_client_has_secrets_of_its_own():
    drawn = [draw_canaries(name, [1, 4, 16], seed=seed) for name in ("a", "b") for seed in (0, 1, 2)]
    assert drawn[1] == draw_canaries("a", [1, 4, 16], seed=1)
    secrets = [canary.secret for canaries in drawn for canary in canaries]
    assert len(set(secrets)) == len(secrets) == 18
    assert [c.repeats for c in drawn[0]] == [1, 4, 16]


def test_seeds_ask_for_other_secrets_after_the_same_prompts():
    one, two = (draw_canaries("a", [1, 4], seed=seed) for seed in (0, 1))
    assert [c.prompt for c in one] == [c.prompt for c in two]


def test_every_seed_sets_other_records_aside_and_always_as_many():
    splits = [set_aside(RECORDS, 0.3, "a", seed=seed) for seed in range(5)]
    assert splits[2] == set_aside(RECORDS, 0.3, "a", seed=2)
    for kept, aside in splits:
        assert len(aside) == 6
        assert sorted([*kept, *aside], key=RECORDS.index) == RECORDS
        assert kept == sorted(kept, key=RECORDS.index)
    assert len({tuple(r.prompt for r in aside) for _, aside in splits}) == 5


def test_too_few_records_to_train_on_is_said():
    with pytest.raises(DataError, match=r"holdout=0.9: leaves client a 1 of 10 records; must leave >= 2"):
        set_aside(RECORDS[:10], 0.9, "a", seed=0)


def test_a_task_without_an_audit_has_all_its_records_and_nothing_planted():
    client = ClientConfig(name="a", task="clinic", train_records=20, test_records=5)
    plain = load_task(client, root=None)
    audited = load_task(client, root=None, audit=AUDITED, seed=1)
    canaries = [c.record() for c in draw_canaries("a", (1, 2), seed=1) for _ in range(c.repeats)]
    assert plain.holdout == ()
    assert list(audited.train[-3:]) == canaries
    assert set(audited.train[:-3]) | set(audited.holdout) == set(plain.train)
    assert audited.test == plain.test


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("planted"), clients=3, federate={"rounds": 1})


@pytest.mark.parametrize("seed", [0, 1])
def test_a_client_trains_on_what_its_seed_planted_and_the_transcript_says_the_same(world, tmp_path, seed):
    job, proxy, initial = world
    federate(job.changed(seed=seed), proxy, initial, run_folder=tmp_path)
    for client in job.clients:
        state = read_private(tmp_path / "transcript", client.name)
        assert state.canaries == draw_canaries(client.name, AUDIT["canaries"], seed=seed)
        task = load_task(client, root=job.data_root, audit=job.audit, seed=seed)
        for records, items in ((task.train, state.train), (task.holdout, state.holdout)):
            assert encode_records(records, tiny_tokenizer(), max_tokens=job.max_tokens).items == items


def test_a_client_with_a_policy_of_its_own_draws_by_the_seed_that_the_server_named(world):
    job, proxy, _ = world
    policy = policy_for(job, 1, seeds=(0, 1))
    for seed in policy.seeds:
        asked = with_proxy(job.changed(seed=seed), proxy)
        own = policy.own_job(asked.changed(audit=AuditConfig()))  # the server's audit is not the client's
        assert build_client(own, 0, proxy).items == build_client(asked, 1, proxy).items


def test_a_run_that_goes_on_after_a_kill_keeps_its_secrets(world, tmp_path):
    job, proxy, initial = world
    audit = job.audit.model_copy(update={"folder": str(tmp_path)})
    job = with_proxy(job.changed(seed=1, audit=audit), proxy)
    states = []
    for _ in range(2):  # a client is built again after a kill
        client = watched(build_client(job, 0, proxy), job, 0, proxy)
        client.train(round=0, start=initial.adapter)
        states.append(read_private(tmp_path, client.name))
        assert client.items == states[0].train
    assert states[0].canaries == states[1].canaries
