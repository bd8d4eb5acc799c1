"""What a run assumes of the owner's API: its settings, their digest, views, notes of reports, the gate."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedproxy_secure.config import ANSWERS, Answers, ApiConfig, Config, load_config, parse_config
from fedproxy_secure.errors import ConfigError, RunFolderError
from fedproxy_secure.gate.judge import judge
from fedproxy_secure.gate.policy import load_policy
from fedproxy_secure.gate.verdict import Verdict
from fedproxy_secure.record.view import api_policy_of, view
from fedproxy_secure.report.measured import configuration_of
from fedproxy_secure.report.report import Report
from fedproxy_secure.report.trilemma import Configuration
from fedproxy_secure.runtime.artifacts import RunFolder
from threat_models import get as threat_model

ROOT = Path(__file__).parents[2]
# digests of shipped settings before there was a section `api`
BEFORE = {
    "quickstart": "8e2526f826cbf2c4",
    "demo_trilemma": "c222343d20d60119",
    "real": "acd1a5758d5f7cf2",  # since aligned; before: b907ee1ecff1d7e4
}


# Settings


@pytest.mark.parametrize("name", BEFORE)
def test_settings_without_an_api_have_the_digest_that_they_had_before_there_was_one(name):
    config = load_config(ROOT / "configs" / f"{name}.yaml")
    assert config.sha256().startswith(BEFORE[name])
    spelled_out = config.model_copy(update={"api": ApiConfig()})
    assert spelled_out.sha256() == config.sha256()


@pytest.mark.parametrize("api", [{"answers": "text"}, {"noise": 0.5}, {"queries": 10}, {"tokens": 640}])
def test_another_api_is_another_run_but_the_same_cell_of_a_comparison(api):
    plain, other = Config(), parse_config({"api": api})
    assert other.sha256() != plain.sha256()
    assert other.cell_sha256() == plain.cell_sha256()  # nothing is trained otherwise


@pytest.mark.parametrize(
    ("api", "line"),
    [
        ({"answers": "everything"}, "api.answers='everything'"),
        ({"top_k": 0}, "api.top_k=0"),
        ({"top_k": 101}, "api.top_k=101"),
        ({"noise": -1}, "api.noise=-1"),
        ({"noise": float("inf")}, "api.noise=inf"),
        ({"queries": 0}, "api.queries=0"),
        ({"answer": "text"}, "api.answer: unknown key; did you mean 'answers'"),
    ],
)
def test_a_wrong_policy_is_refused_in_one_line(api, line):
    with pytest.raises(ConfigError) as refused:
        parse_config({"api": api})
    assert str(refused.value).startswith(line)
    assert "\n" not in str(refused.value)


@given(queries=st.integers(1, 10**6), each=st.integers(1, 4096))
def test_a_limit_of_queries_alone_is_one_of_tokens_too(queries, each):
    policy = ApiConfig(queries=queries)
    allowed = policy.texts_of(each)
    assert allowed <= queries
    assert allowed * each <= 64 * queries < (allowed + 1) * each or allowed == queries
    assert ApiConfig(queries=queries, tokens=10 * each).texts_of(each) == min(queries, 10)


def test_only_an_api_that_holds_nothing_back_is_open():
    assert ApiConfig().open
    for held_back in (
        {"answers": "text"},
        {"answers": "top_k"},
        {"noise": 0.1},
        {"queries": 9},
        {"tokens": 9},
    ):
        assert not ApiConfig(**held_back).open


def test_each_policy_says_what_it_tells_and_for_how_much():
    assert ApiConfig().says == (
        "API (assumed): after each token it returns all logits of the next token; without a query limit."
    )
    weaker = ApiConfig(answers="top_k", top_k=5, noise=0.5, queries=100).says
    for words in (
        "the 5 likeliest",
        "0.5 nats",
        "at most 100 texts and 6,400 tokens",
        "returns no more than this",
    ):
        assert words in weaker
    assert "only the likeliest next token" in ApiConfig(answers="text").says


# Views and reports


def outsiders_folder(folder: Path, api: dict) -> Path:
    """A run's folder with as much in it as the view of an outsider needs."""
    RunFolder.create(folder, parse_config({"api": api}))
    (folder / "seed-0" / "federation" / "transcript" / "clients" / "c0").mkdir(parents=True)
    (folder / "seed-0" / "fused").mkdir()
    return folder / "seed-0"


def test_a_view_is_told_what_the_runs_settings_say(tmp_path):
    seed = outsiders_folder(tmp_path / "run", {"answers": "text", "queries": 20})
    seen = view(seed, threat_model("api_user"))
    assert seen.api_policy == ApiConfig(answers="text", queries=20)
    assert seen.api is not None
    assert seen.open_api is None
    plain = view(outsiders_folder(tmp_path / "open", {}), threat_model("api_user"))
    assert plain.open_api == plain.api is not None


def test_a_folder_without_settings_tells_all_and_damaged_settings_are_refused(tmp_path):
    assert api_policy_of(tmp_path) == ApiConfig()
    for damaged in ("api: {answers: whatever}", "api: [", "- 1", "api: 3", "seeds: [0]"):
        (tmp_path / "config.yaml").write_text(damaged)
        with pytest.raises(RunFolderError, match="cannot be read") as refused:
            api_policy_of(tmp_path)
        assert "\n" not in str(refused.value)


def test_a_configuration_says_what_the_api_tells():
    config = parse_config({"api": {"answers": "text"}})
    assert configuration_of([], config, name="x", settings={}).api_answers == "text"


# The gate


def judged(folder: Path, bound: str, told: Answers | None) -> list[Verdict]:
    policy = folder / "policy.yaml"
    policy.write_text(f"schema_version: 1\nrules: [{{require_api: {bound}}}]\n")
    configuration = Configuration(name="x", scheme="masking", settings={}, seeds=(0,), api_answers=told)
    report = Report(
        name="x",
        command="",
        config_sha256="",
        environment={},
        seeds=(0,),
        configurations=(configuration,),
    )
    return [row.verdict for row in judge(report, load_policy(policy)).rows]


@pytest.mark.parametrize("bound", ANSWERS)
@pytest.mark.parametrize("told", ANSWERS)
def test_a_gate_passes_an_api_that_tells_no_more_than_the_policy_allows(tmp_path, bound, told):
    order = ("text", "top_k", "logits")
    passes = order.index(told) <= order.index(bound)
    assert judged(tmp_path, bound, told) == [Verdict.PASSED if passes else Verdict.FAILED]


def test_a_report_that_does_not_say_what_the_api_tells_is_missing_evidence(tmp_path):
    assert judged(tmp_path, "logits", None) == [Verdict.MISSING]


def test_a_policy_asks_for_an_api_that_there_is(tmp_path):
    with pytest.raises(ConfigError, match=r"require_api='words': must be .*text, top_k, logits"):
        judged(tmp_path, "words", "text")
