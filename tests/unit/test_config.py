"""Settings are checked before anything runs, and a wrong one is one line that helps."""

import math
from pathlib import Path

import pytest

from fedproxy_secure.config import Config, FusionConfig, load_config, parse_config
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.runtime.untrusted import read_json

ROOT = Path(__file__).parents[2]


def complaint(raw: dict) -> str:
    with pytest.raises(ConfigError) as raised:
        parse_config(raw)
    message = str(raised.value)
    assert "\n" not in message
    return message


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_text("name: mine\nseeds: [0, 1]\ncompress: {remove_ratio: 0.25}\n")
    return path


def test_defaults_are_valid():
    assert parse_config({}) == Config()


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"seed": [0]}, "seed: unknown key; did you mean 'seeds'?"),
        (
            {"compress": {"remove_ration": 0.5}},
            "compress.remove_ration: unknown key; did you mean 'remove_ratio'?",
        ),
        (
            {"data": {"clients": [{"name": "a", "task": "t", "sorce": "demo"}]}},
            "data.clients.0.sorce: unknown key; did you mean 'source'?",
        ),
        (
            {"zzzzz": 1},
            "zzzzz: unknown key; there are name, seeds, model, data, compress, heal, adapter, local, "
            "fusion, federate, plug_back, protect, privacy, audit, api, attacks, compare, matrix, track",
        ),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(raw: dict, expected: str):
    assert complaint(raw) == expected


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        ({"compress": {"remove_ratio": 1.0}}, "compress.remove_ratio=1.0"),
        ({"compress": {"remove_ratio": "half"}}, "compress.remove_ratio='half'"),
        ({"federate": {"rounds": 0}}, "federate.rounds=0"),
        ({"fusion": {"rule": "average"}}, "fusion.rule=average"),
        ({"local": {"learning_rate": -1}}, "local.learning_rate=-1"),
        ({"local": {"learning_rate": math.nan}}, "local.learning_rate=nan"),
        ({"attacks": {"seconds": math.inf}}, "attacks.seconds=inf"),
        ({"privacy": {"max_epsilon": math.inf}}, "privacy.max_epsilon=inf"),
        ({"model": "demo"}, "model='demo'"),
    ],
)
def test_a_wrong_value_is_named_with_its_key(raw: dict, key: str):
    assert complaint(raw).startswith(f"{key}: ")


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        (
            {"federate": None},
            "federate: is empty; must be a mapping of settings (`key: value`), or leave the",
        ),
        (
            {"model": "demo"},
            "model='demo': must be a mapping of settings (`key: value`), or leave the line",
        ),
        ({"fusion": {"options": 3}}, "fusion.options=3: must be a mapping of settings"),
        ({"seeds": 3}, "seeds=3: must be a list, such as [3]"),
        ({"track": "mlflow"}, "track='mlflow': must be a list, such as [mlflow]"),
        ({"audit": {"canaries": 5}}, "audit.canaries=5: must be a list, such as [5]"),
        ({"seeds": {}}, "seeds={}: must be a list"),
        ({"plug_back": {"scale": -1}}, "plug_back.scale=-1: must be greater than 0 or 'public_text'"),
        (
            {"data": {"partition": {"alpha": 0.5}}},
            "data.partition.task: is missing; must be given beside alpha; it has no default (and 1 more)",
        ),
        (
            {"name": "a/b"},
            "name='a/b': must be ASCII letters, digits, _, . and -, the first not . or -",
        ),
        (
            {"data": {"clients": [{"name": "a b", "task": "t"}]}},
            "data.clients.0.name='a b': must be ASCII letters, digits, _ and -, at least one",
        ),
        ({"federate": {"rounds": True}}, "federate.rounds=True: must be a number, not true or false"),
        ({"seeds": [True]}, "seeds=[True]: must be a number, not true or false"),
        ({"compress": {"remove_ratio": False}}, "compress.remove_ratio=False: must be a number"),
        ({"heal": {"fit_windows": True}}, "heal.fit_windows=True: must be a number, not true or false"),
        ({"plug_back": {"scale": True}}, "plug_back.scale=True: must be a number, not true or false"),
    ],
)
def test_what_is_wrong_with_a_value_is_told_in_words_of_the_settings_file(raw: dict, line: str):
    told = complaint(raw)
    assert told.startswith(line)
    assert not any(word in told for word in ("instance", "tuple", "constrained", "dictionary", "pattern"))


def test_truth_values_stay_allowed_where_they_are_meant():
    assert parse_config({"compress": {"trace": True}}).compress.trace
    assert FusionConfig(options={"on": True}).options == {"on": True}


def test_one_item_of_a_list_that_the_file_does_not_have_cannot_be_set(file: Path):
    with pytest.raises(
        ConfigError, match=r"bank: the file has no list clients of which one item could be set"
    ):
        load_config(file, ["data.clients.0.name=bank"])


def test_further_errors_are_counted():
    assert complaint({"a1": 1, "b1": 2, "c1": 3}).endswith("(and 2 more)")


@pytest.mark.parametrize(
    ("raw", "part"),
    [
        ({"seeds": []}, "seeds=[]: must be at least one"),
        ({"seeds": [1, 1]}, "seeds=[1, 1]"),
        ({"federate": {"min_clients": 9}}, "federate.min_clients=9: must be <= 4"),
        ({"federate": {"participation": 0.25}}, "selects 1 of 4 clients"),
        (
            {
                "privacy": {"unit": "record", "target_epsilon": 8, "target_delta": 1e-5, "clip_norm": 1},
                "adapter": {"dropout": 0.1},
            },
            "adapter.dropout=0.1: must be 0 with privacy.unit=record",
        ),
        (
            {"federate": {"engine": "deployment"}, "privacy": {"randomness": "unsafe_simulated"}},
            "privacy.randomness=unsafe_simulated: must be os",
        ),
        ({"fusion": {"r0": 0.2, "delta": 0.2}}, "delta=0.2: must be < r0=0.2"),
        ({"data": {"clients": [{"name": "a", "task": "t"}] * 2}}, "name 'a' is used twice"),
        ({"data": {"clients": []}}, "must name at least one client"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(raw: dict, part: str):
    assert part in complaint(raw)


def test_set_changes_values_inside_the_file(file: Path):
    changes = ["compress.remove_ratio=0.5", "federate.rounds=2", "seeds=[7]", "seeds.0=8"]
    config = load_config(file, changes)
    assert (config.compress.remove_ratio, config.federate.rounds, config.seeds) == (0.5, 2, (8,))
    assert config.name == "mine"


def test_set_fills_a_section_that_the_file_leaves_empty(file: Path):
    file.write_text("protect:\ndata:\n")
    config = load_config(file, ["protect.bits=16", "data.root=here"])
    assert (config.protect.bits, config.data.root) == (16, "here")


@pytest.mark.parametrize(
    "change", ["compress.remove_ratio", "=1", "seeds.9=1", "name.first=x", "name=[", "seeds.x=1"]
)
def test_a_change_that_cannot_be_made_is_quoted(file: Path, change: str):
    with pytest.raises(ConfigError) as raised:
        load_config(file, [change])
    assert f"--set {change}: " in str(raised.value)


def test_a_value_that_cannot_be_read_is_not_taken_for_an_unknown_key(file: Path):
    with pytest.raises(ConfigError) as raised:
        load_config(file, ["name=2024-02-30"])
    assert str(raised.value) == (
        "--set name=2024-02-30: the value cannot be read: day is out of range for month; put text in quotes"
    )
    assert load_config(file, ["name='2024-02-30'"]).name == "2024-02-30"


def test_a_misspelt_change_gets_a_hint(file: Path):
    with pytest.raises(ConfigError, match=r"federate.round: unknown key; did you mean 'rounds'"):
        load_config(file, ["federate.round=2"])


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "just text", "false", "[]"])
def test_a_file_that_holds_no_settings_is_named(tmp_path: Path, text: str):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml: "):
        load_config(path)


def test_a_key_that_is_given_twice_is_refused_with_its_line(file: Path):
    """YAML would let the last one win, so that a slip changes a setting without a word."""
    file.write_text("seeds: [0]\nlocal:\n  steps: 1\n  batch_size: 2\n  steps: 9\n")
    with pytest.raises(ConfigError, match=r"settings\.yaml: line 5: steps is given twice$"):
        load_config(file)
    file.write_text("seeds: [0]\n")
    with pytest.raises(ConfigError, match=r"^--set local={steps: 1, steps: 2}: line 1: steps is given tw"):
        load_config(file, ["local={steps: 1, steps: 2}"])


def test_what_is_no_yaml_is_told_with_its_line(file: Path):
    file.write_text("name: mine\nlocal:\n  steps: 1\n rounds: 2\n")
    with pytest.raises(ConfigError, match=r"settings\.yaml: is not YAML: line 4: "):
        load_config(file)


def test_a_folder_instead_of_settings_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="is a folder; must be settings: give a YAML file"):
        load_config(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read"):
        load_config(tmp_path / "none.yaml")


def test_the_hash_follows_the_settings_not_the_spelling(file: Path):
    assert load_config(file).sha256() == load_config(file, ["federate.rounds=4"]).sha256()
    assert load_config(file).sha256() != load_config(file, ["federate.rounds=5"]).sha256()


@pytest.mark.parametrize("change", [{"protect": {"scheme": "ckks"}}, {"fusion": {"rule": "fedavg"}}])
def test_encrypted_cosines_need_masking_and_h_ties(change):
    raw = {"protect": {}, **change}
    raw["protect"] = {**raw["protect"], "weights": "encrypted_gram"}
    with pytest.raises(ConfigError, match=r"protect\.weights=encrypted_gram: needs"):
        parse_config(raw).check_protection()


@pytest.mark.parametrize(
    ("written", "line"),
    [("name: é".encode("latin-1"), "can't decode"), (b"name: 2024-13-45", "month must be in 1..12")],
)
def test_a_file_of_another_encoding_or_with_an_impossible_date_is_one_line(tmp_path, written, line):
    path = tmp_path / "settings.yaml"
    path.write_bytes(written)
    with pytest.raises(ConfigError, match=f"settings.yaml: cannot be read: .*{line}"):
        load_config(path)


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        (
            {"matrix": {"protections": [{"scheme": "masking"}, {"scheme": "masking"}]}},
            "protections=[masking, masking]",
        ),
        ({"matrix": {"remove_ratios": [0.5, 0.50000001]}}, "remove_ratios=[0.5, 0.5]"),
        ({"compare": {"methods": ["zero_shot", "zero_shot"]}}, "methods=[zero_shot, zero_shot]"),
    ],
)
def test_two_cells_of_one_name_are_refused(raw: dict, line: str):
    assert f"{line}: must all differ" in complaint(raw)


@pytest.mark.parametrize("epsilon", [0.5, 4, 8])
@pytest.mark.parametrize("scheme", ["unsafe_plaintext", "masking", "ckks"])
def test_a_matrix_takes_any_scheme_with_any_epsilon(scheme: str, epsilon: float):
    swept = {"scheme": scheme, "epsilon": epsilon}
    (protection,) = parse_config({"matrix": {"protections": [swept]}}).matrix.protections
    assert protection.name == f"{scheme}_dp{epsilon:g}"


def test_what_belongs_to_one_party_is_marked_once_and_left_out_of_all_that_is_agreed():
    config = parse_config({"protect": {"keys": "/k"}, "privacy": {"unit": "record", "ledger": "/l"}})
    job = FederationJob.from_config(config, seed=0)
    assert "/k" in job.to_json()
    own = {"clients", "data_root", "audit", "device", "dtype", "checkpointing"}
    assert set(job.model_dump()) - set(job.agreed()) == own
    assert not {"/k", "/l"} & {str(v) for section in job.agreed().values() for v in _leaves(section)}
    elsewhere = config.model_copy(update={"protect": config.protect.changed(keys="/elsewhere")})
    assert elsewhere.sha256() == config.sha256()


def _leaves(value: object) -> list[object]:
    return list(value.values()) if isinstance(value, dict) else [value]


@pytest.mark.parametrize(
    ("folder", "changes"),
    [
        ("paper_small", []),
        ("paper_small_fit", ["heal.fit_windows=512", "heal.steps=60"]),
        ("paper_small_mixed", ["model.dtype=mixed"]),
    ],
)
def test_the_published_cells_are_cells_of_the_shipped_settings(folder: str, changes: list[str]):
    config = load_config(ROOT / "configs/paper_small.yaml", ["data.root=/data", *changes])
    cells = sorted((ROOT / "docs/tables" / folder / "cells").glob("*.json"))
    assert cells
    for cell in map(read_json, cells):
        digest = config.cell_sha256(has_proxy=cell["remove_ratio"] is not None)
        assert cell["made_with"]["settings"] == digest, cell["method"]


def test_cells_of_an_earlier_version_stay_valid_where_a_new_setting_is_not_said():
    class Later(Config):
        added: int | None = None

    assert Later().cell_sha256() == Config().cell_sha256()
    assert parse_config({"heal": {"fit_windows": 0}}).sha256() == Config().sha256()
    assert parse_config({"heal": {"fit_windows": 1}}).sha256() != Config().sha256()
    assert Later(added=1).cell_sha256() != Config().cell_sha256()


def test_a_value_or_key_of_any_size_is_refused_in_one_line_of_ordinary_length():
    for raw in ({"seeds": "x" * 10**6}, {"max_tokens": 10**5000}, {"data": 10**5000}, {"y\n" * 10**5: 1}):
        with pytest.raises(ConfigError) as raised:
            parse_config(raw)
        assert len(str(raised.value)) < 1000
        assert str(raised.value).isprintable()
