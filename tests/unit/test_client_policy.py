"""A client's policy is one complete file, and what `provision` writes agrees with the run it is for."""

import pytest
import yaml
from typer.testing import CliRunner

from fedproxy_secure.cli.app import app
from fedproxy_secure.cli.options import find_config
from fedproxy_secure.config import parse_config
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.federate.client_policy import ClientPolicy, check_keys, load_policy, policy_for
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.secagg.provision import load_identity, load_roster


def job(**changes):
    changes = {"protect": {"keys": "/srv/keys"}, **changes}
    return FederationJob.from_config(parse_config(changes), seed=0)


def test_a_policy_written_for_a_job_is_read_back_and_agrees_to_it(tmp_path):
    asked = job()
    policy = policy_for(asked, 1, seeds=(0, 1))
    policy.write(tmp_path / "bank.policy.yaml")
    assert load_policy(tmp_path / "bank.policy.yaml") == policy
    own = policy.own_job(asked.changed(device="cpu", data_root="/the/servers/choice"))
    assert own == asked.changed(clients=(asked.clients[1],))
    assert own.agreed_sha256() == asked.agreed_sha256()
    assert policy.own_job(asked.changed(seed=1)).seed == 1


@pytest.mark.parametrize("key", sorted(ClientPolicy.model_fields))
def test_a_policy_that_lacks_a_key_is_refused(tmp_path, key):
    raw = policy_for(job(), 0, seeds=(0,)).model_dump(mode="json")
    del raw[key]
    file = tmp_path / "policy.yaml"
    file.write_text(yaml.safe_dump(raw))
    with pytest.raises(ConfigError, match=f"policy.yaml: {key}: is missing; must be given"):
        load_policy(file)


@pytest.mark.parametrize(
    "key", ["adapter.rank", "local.learning_rate", "fusion.rho", "protect.weights", "privacy.randomness"]
)
def test_a_policy_whose_section_lacks_a_key_is_refused_and_does_not_take_the_default(tmp_path, key):
    raw = policy_for(job(), 0, seeds=(0,)).model_dump(mode="json")
    section, name = key.split(".")
    del raw[section][name]
    file = tmp_path / "policy.yaml"
    file.write_text(yaml.safe_dump(raw))
    with pytest.raises(ConfigError, match=f"policy.yaml: {key}: is missing; must be given"):
        load_policy(file)


def test_keys_that_are_the_clients_own_may_be_left_out_of_a_policys_sections(tmp_path):
    raw = policy_for(job(), 0, seeds=(0,)).model_dump(mode="json")
    del raw["client"]["test_split"], raw["privacy"]["ledger"], raw["audit"]["holdout"]
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump(raw))
    assert load_policy(tmp_path / "policy.yaml") == policy_for(job(), 0, seeds=(0,))


def test_a_policy_whose_noise_follows_from_the_seed_is_refused_unless_one_machine_plays_everybody(tmp_path):
    """The server knows the seed: with it, it computes the noise and takes it off."""
    private = {"unit": "record", "target_epsilon": 1.0, "randomness": "unsafe_simulated", "ledger": "/l"}
    file = tmp_path / "policy.yaml"
    policy_for(job(privacy=private), 0, seeds=(0,)).write(file)
    with pytest.raises(ConfigError, match=r"privacy\.randomness=unsafe_simulated: must be os"):
        load_policy(file)
    assert load_policy(file, one_machine=True).privacy.randomness == "unsafe_simulated"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: [", "is not YAML: line 1: "),
        ("[" * 100_000, "is nested more than 64 levels deep"),
        ("rounds: 1\nrounds: 2", r"policy\.yaml: line 2: rounds is given twice"),
        ("just text", "must be a mapping of settings"),
        ("", "must be a mapping of settings"),
    ],
    ids=["cut short", "deep", "twice", "text", "empty"],
)
def test_what_is_no_policy_is_refused_in_one_line(tmp_path, text, line):
    file = tmp_path / "policy.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=line) as refused:
        load_policy(file)
    assert "\n" not in str(refused.value)
    file.write_bytes("client: Zürich".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"policy\.yaml: is not YAML: 'utf-8' codec"):
        load_policy(file)
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: No such file"):
        load_policy(tmp_path / "none.yaml")


def test_two_policies_are_one_agreement_if_they_differ_in_places_records_and_seeds_alone():
    """Else a client that moves its records would have a second run of the same seed to grant."""
    one = policy_for(job(), 0, seeds=(0,))
    moved = {
        "source": "/srv/moved.{split}.jsonl",
        "train_split": "train[:-9]",
        "train_records": 7,
        "learn": "text",
    }
    elsewhere = one.model_copy(
        update={
            "client": one.client.model_copy(update=moved),
            "data_root": "/srv",
            "seeds": (0, 1),
            "device": "cpu",
            "checkpointing": True,
            "protect": one.protect.model_copy(update={"keys": "/srv/keys"}),
            "privacy": one.privacy.model_copy(update={"ledger": "/srv/ledger"}),
        }
    )
    assert elsewhere.sha256() == one.sha256()
    named = one.client.model_copy(update={"name": "another"})
    for change in ({"rounds": one.rounds + 1}, {"client": named}):
        assert one.model_copy(update=change).sha256() != one.sha256()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"privacy": {"unit": "record"}}, "privacy.ledger: must name a folder"),
        ({"protect": {}}, "protect.keys: must name a folder if protect.scheme=masking"),
        (
            {"privacy": {"unit": "client", "ledger": "/l"}},
            "with privacy.unit=client must be a rule that reads the mean alone",
        ),
        (
            {"privacy": {"unit": "client", "ledger": "/l"}, "protect": {"scheme": "unsafe_plaintext"}},
            "with privacy.unit=client must be",
        ),
        (
            {"protect": {"scheme": "unsafe_plaintext", "min_cohort": 3}},
            "is not enforced with protect.scheme=unsafe_plaintext",
        ),
        (
            {"protect": {"scheme": "unsafe_plaintext", "refuse_differencing": True}},
            "is not enforced with protect.scheme=unsafe_plaintext",
        ),
    ],
)
def test_a_policy_that_would_not_protect_as_it_says_is_refused_when_it_is_read(tmp_path, changes, line):
    file = tmp_path / "policy.yaml"
    asked = job(protect={"keys": None if changes.get("protect") == {} else "/srv/keys"})
    sections = {name: getattr(asked, name).model_copy(update=own) for name, own in changes.items()}
    policy_for(asked.changed(**sections), 0, seeds=(0,)).write(file)
    with pytest.raises(ConfigError, match=line):
        load_policy(file)


def test_provision_writes_a_policy_of_the_changed_settings_and_a_journal_beside_each_key(tmp_path):
    out = tmp_path / "keys"
    changed = ["--set", "federate.rounds=7"]
    said = CliRunner().invoke(app, ["provision", "quickstart", *changed, "--out", str(out)])
    assert said.exit_code == 0, said.stderr
    roster = load_roster(out)
    for name in roster.members:
        load_identity(out, name, roster)
        assert (out / f"{name}.journal").stat().st_mode & 0o777 == 0o600
        policy = load_policy(out / f"{name}.policy.yaml")
        assert policy.client.name == name
        assert policy.protect.keys == str(out)
        assert policy.rounds == 7


@pytest.fixture
def provisioned(tmp_path):
    """Settings, and a folder of keys and policies made for them."""
    out = tmp_path / "keys"
    assert CliRunner().invoke(app, ["provision", "quickstart", "--out", str(out)]).exit_code == 0
    settings = yaml.safe_load(find_config("quickstart").read_text())
    return {**settings, "protect": {**settings.get("protect", {}), "keys": str(out)}}, out


def keyed_job(settings, seed=0, **changes):
    return FederationJob.from_config(parse_config({**settings, **changes}), seed=seed)


def test_keys_serve_the_settings_that_they_were_provisioned_for(provisioned):
    settings, _ = provisioned
    check_keys(keyed_job(settings))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"adapter": {"rank": 3}}, r"adapter\.rank=3 asked by the server: must be 16"),
        ({"protect": {"bits": 24}}, r"protect\.bits=24 asked by the server: must be 32"),
        ({"seed": 7}, r"seed=7 asked by the server: must be one of \[0\]"),
    ],
)
def test_policies_beside_the_keys_refuse_a_run_of_other_settings(provisioned, changes, line):
    settings, out = provisioned
    changes = dict(changes)
    seed = changes.pop("seed", 0)
    merged = {section: {**settings.get(section, {}), **values} for section, values in changes.items()}
    with pytest.raises(ConfigError, match=rf"{out}/\w+\.policy\.yaml: {line}"):
        check_keys(keyed_job(settings, seed, **merged))


def test_a_policy_beside_the_keys_that_cannot_be_read_refuses_every_run(provisioned):
    settings, out = provisioned
    next(out.glob("*.policy.yaml")).write_text("client: [")
    with pytest.raises(ConfigError, match=r"policy\.yaml: is not YAML"):
        check_keys(keyed_job(settings))


@pytest.mark.torch
def test_the_engines_of_one_machine_check_the_policies_beside_the_keys(provisioned):
    from fedproxy_secure.flower.engines import with_keys

    settings, out = provisioned
    with with_keys(keyed_job(settings)) as keyed:
        assert keyed.protect.keys == str(out)
    other = keyed_job(settings, local={**settings["local"], "steps": 3})
    with pytest.raises(ConfigError, match=r"local\.steps=3 asked by the server"), with_keys(other):
        raise AssertionError("must not be reached")


@pytest.mark.torch
@pytest.mark.parametrize("command", [["run"], ["run", "--dry-run"], ["matrix"], ["compare", "--dry-run"]])
def test_a_misspelt_folder_of_keys_ends_a_command_before_it_begins(command, tmp_path):
    words = [command[0], "quickstart", "--set", "protect.keys=/nope", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*words, *command[1:]])
    assert done.exit_code == 2
    assert done.stderr == (
        "error: protect.keys=/nope: has no roster.json; "
        "must be a folder made by `fedproxy-secure provision`\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.torch
def test_a_dry_run_refuses_settings_that_a_policy_beside_the_keys_refuses(provisioned, tmp_path):
    _, out = provisioned
    words = ["--set", f"protect.keys={out}", "--set", "local.steps=3", "--out", str(tmp_path / "out")]
    for more in ([], ["--dry-run"]):
        done = CliRunner().invoke(app, ["run", "quickstart", *words, *more])
        assert done.exit_code == 2
        assert "local.steps=3 asked by the server: must be" in done.stderr
    assert not (tmp_path / "out").exists()
