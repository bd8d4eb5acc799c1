"""One data set split over clients: the settings, the records of each client, and a run on them."""

import json
from collections import Counter

import numpy as np
import pytest

from fedproxy_secure.config import AuditConfig, ClientConfig, Config, SplitConfig, load_config, parse_config
from fedproxy_secure.config.settings import without_nulls
from fedproxy_secure.data.encode import encode_records
from fedproxy_secure.data.partition import split_by_label
from fedproxy_secure.data.tasks import load_task, load_tasks
from fedproxy_secure.deploy.federation import init
from fedproxy_secure.errors import ConfigError, DataError
from fedproxy_secure.flower.engines import federate
from fedproxy_secure.record.private import read_private
from tests.support.recorded import prepared
from tests.support.tiny import tiny_tokenizer, write_records

CLINIC = {"task": "clinic", "clients": 4, "alpha": 0.5}
OF_FILES = {"task": "classification", "source": "{data}/0.{split}.jsonl", "clients": 3}


def data_of(partition, **data):
    return parse_config({"data": {"partition": partition, **data}}).data


def prompts(records):
    return [record.prompt for record in records]


def shares(task):
    found = Counter(record.label for record in task)
    return np.array([found[label] for label in range(4)]) / len(task)


def test_a_partition_is_ordinary_clients_whose_names_sort_in_order():
    (client, *others) = data_of(CLINIC | {"test_records": 40, "learn": "text"}).clients
    assert [c.name for c in (client, *others)] == ["part-0", "part-1", "part-2", "part-3"]
    assert (client.task, client.test_records, client.learn) == ("clinic", 40, "text")
    assert [c.part.index for c in (client, *others)] == [0, 1, 2, 3]
    names = [c.name for c in data_of({"task": "clinic", "clients": 11, "name": "site"}).clients]
    assert names == sorted(names)
    assert names[::10] == ["site-00", "site-10"]


def test_resolved_settings_are_read_again_as_they_were_written():
    config = parse_config({"data": {"partition": CLINIC}})
    again = parse_config(json.loads(config.model_dump_json()))
    assert again == config
    assert (again.sha256(), again.cell_sha256()) == (config.sha256(), config.cell_sha256())


def test_a_partition_of_resolved_settings_is_changed_if_its_clients_are_made_anew(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(parse_config({"data": {"partition": CLINIC}}).model_dump_json())
    config = load_config(
        file, ["data.partition.alpha=0.1", "data.partition.clients=3", "data.clients=null"]
    )
    assert config == parse_config({"data": {"partition": CLINIC | {"alpha": 0.1, "clients": 3}}})
    with pytest.raises(ConfigError, match=r"set data\.clients=null, too"):
        load_config(file, ["data.partition.alpha=0.1"])


def test_every_setting_of_a_split_is_in_the_digests():
    other = [{}, {"alpha": 1.0}, {"seed": 1}, {"clients": 5}, {"min_records": 9}]
    configs = [parse_config({"data": {"partition": CLINIC | changes}}) for changes in other]
    assert len({c.sha256() for c in configs}) == len({c.cell_sha256() for c in configs}) == 5


def test_settings_without_a_partition_have_the_digest_that_they_had_before_there_were_any():
    digested = without_nulls(Config().without(said_only=True))["data"]
    assert digested.keys() == {"clients", "public_text", "max_tokens"}
    assert digested["clients"][0].keys() == {"name", "task", "source", "train_split", "test_split"}


FOUR, OTHERS = {"partition": CLINIC}, {"clients": [{"name": "a", "task": "bank"}]}
NO_SUCH_PART = {"name": "a", "task": "bank", "part": {"index": 2, "clients": 2}}


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({"partition": {"alpah": 1, **CLINIC}}, "data.partition.alpah: unknown key; did you mean 'alpha'?"),
        (
            {"partition": CLINIC | {"alpha": 0}},
            "data.partition.alpha=0: must be greater than or equal to 0.001",
        ),
        (
            FOUR | OTHERS,
            "data: clients: must be left out or null with data.partition, which makes them; to change the "
            "partition of resolved settings, set data.clients=null, too",
        ),
        ({"clients": None}, "data.clients: is empty; must be a list"),
        ({"clients": [NO_SUCH_PART]}, "data.clients.0.part: index=2: must be < clients=2"),
    ],
)
def test_a_wrong_partition_is_refused_in_one_line(data, line):
    with pytest.raises(ConfigError) as raised:
        parse_config({"data": data})
    assert str(raised.value) == line


def test_a_deployment_refuses_a_partition(tmp_path):
    config = parse_config({"data": {"partition": CLINIC}})
    with pytest.raises(ConfigError, match=r"data.partition, .*: work only in simulation"):
        init(config, tmp_path / "owner", address="owner.example")
    assert not (tmp_path / "owner").exists()


def test_the_clients_together_have_every_record_of_the_data_set_once():
    whole = load_task(ClientConfig(name="a", task="clinic"), root=None)
    for alpha in (None, 0.1, 100.0):
        parts = load_tasks(data_of(CLINIC | {"alpha": alpha}))
        assert [len(part.train) for part in parts] == [100] * 4
        for kind in ("train", "test"):
            apart = [prompt for part in parts for prompt in prompts(getattr(part, kind))]
            assert Counter(apart) == Counter(prompts(getattr(whole, kind)))


def test_the_same_settings_split_alike_and_another_seed_otherwise():
    one, again, other = (load_tasks(data_of(CLINIC | {"seed": seed})) for seed in (0, 0, 1))
    assert one == again
    assert [prompts(part.train) for part in one] != [prompts(part.train) for part in other]


def test_test_records_have_labels_in_the_proportions_of_the_clients_training_records():
    for part in load_tasks(data_of(CLINIC | {"alpha": 0.3})):
        assert np.abs(shares(part.train) - shares(part.test)).max() < 0.1
        assert not shares(part.test)[shares(part.train) == 0].any()


def test_records_are_set_aside_and_secrets_planted_in_each_clients_own_part():
    audit = AuditConfig(holdout=0.3, canaries=(2,))
    data = data_of(CLINIC)
    for plain, zero, one in zip(
        load_tasks(data),
        load_tasks(data, audit=audit, seed=0),
        load_tasks(data, audit=audit, seed=1),
        strict=True,
    ):
        for audited in (zero, one):  # another seed of the run sets others aside, of the same part
            assert len(audited.holdout) == 30
            assert Counter(audited.train[:-2] + audited.holdout) == Counter(plain.train)
            assert audited.test == plain.test
        assert zero.holdout != one.holdout


def test_too_few_records_for_every_client_are_refused_with_the_numbers():
    with pytest.raises(DataError) as raised:
        load_tasks(data_of({"task": "clinic", "clients": 30, "train_records": 299}))
    assert str(raised.value) == (
        "data.partition or part: 299 training records over clients=30 are 9 for one of them; must be >= "
        "min_records=10"
    )
    assert len(load_tasks(data_of({"task": "clinic", "clients": 30, "train_records": 300}))) == 30


def test_a_client_that_chance_leaves_without_test_records_is_refused_with_what_helps():
    seldom = {"task": "clinic", "clients": 12, "alpha": 0.05, "test_records": 12}
    with pytest.raises(DataError) as raised:
        load_tasks(data_of(seldom))
    assert str(raised.value) == (
        "client part-01: has 0 test records; must have >= 1; use fewer clients, more test records or "
        "another seed in data.partition or part"
    )


def test_labels_of_records_with_different_answers_are_not_skewed(tmp_path):
    rows = [{"text": f"{i}", "choices": [f"a{i}", "b"], "label": i % 2} for i in range(40)]
    for split in ("train", "test"):
        (tmp_path / f"0.{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"alpha=0.5 skews labels, .* leave alpha out for a uniform split"):
        load_tasks(data_of(OF_FILES | {"alpha": 0.5}, root=str(tmp_path)))
    assert [len(part.train) for part in load_tasks(data_of(OF_FILES, root=str(tmp_path)))] == [14, 13, 13]


def test_files_that_changed_are_read_again(tmp_path):
    data = data_of(OF_FILES, root=write_records(tmp_path, clients=1, records=60))
    assert len(load_task(data.clients[0], root=data.root).train) == 20
    write_records(tmp_path, clients=1, records=90)
    assert len(load_task(data.clients[0], root=data.root).train) == 30


def test_a_label_that_runs_out_leaves_the_other_labels_to_the_last_clients():
    labels = np.repeat([0, 1], [95, 5])
    owners = split_by_label(labels, SplitConfig(clients=10, alpha=1e-3))
    assert np.bincount(owners).tolist() == [10] * 10
    assert np.bincount(owners[labels == 1], minlength=10).sum() == 5


def test_a_federation_trains_on_the_parts_and_its_transcript_has_the_truth_about_them(tmp_path):
    job, proxy, initial = prepared(tmp_path, clients=3, federate={"rounds": 1})
    root = write_records(tmp_path / "data", clients=1, records=60)
    job = job.changed(clients=data_of(OF_FILES | {"alpha": 1.0}).clients, data_root=root)
    federate(job, proxy, initial, run_folder=tmp_path)
    for client in job.clients:
        task = load_task(client, root=root, audit=job.audit, seed=job.seed)
        state = read_private(tmp_path / "transcript", client.name)
        assert len(task.holdout) == 6
        assert state.canaries
        for records, items in ((task.train, state.train), (task.holdout, state.holdout)):
            assert encode_records(records, tiny_tokenizer(), max_tokens=job.max_tokens).items == items
