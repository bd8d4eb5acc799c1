"""Attacks of third parties: found by entry point, with measures of their own, none hides another."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
from typer.testing import CliRunner

from attacks import registry
from attacks.cli import app
from fedproxy_secure.config import parse_config
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.evidence.finding import Outcome
from fedproxy_secure.evidence.measure import MEASURES
from fedproxy_secure.gate.judge import Verdict
from fedproxy_secure.gate.judge import judge as judge_report
from fedproxy_secure.gate.policy import load_policy
from fedproxy_secure.report.html.page import page
from fedproxy_secure.report.measured import configuration_of, read_seed
from fedproxy_secure.report.report import Report
from fedproxy_secure.report.tables.measures import first_tables
from fedproxy_secure.report.text.markdown import markdown_report
from fedproxy_secure.report.text.trilemma_table import headings
from tests.support.finished_run import FIDELITY
from tests.support.toys import (
    INFO,
    Toy,
    suite,
)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A way to install a package that names an entry point; undone afterwards."""

    def install(value, measures=""):
        place = tmp_path / "somebody-1.0.dist-info"
        place.mkdir()
        (place / "METADATA").write_text("Metadata-Version: 2.1\nName: somebody\nVersion: 1.0\n")
        (place / "entry_points.txt").write_text(
            f"[{registry.GROUP}]\nmine = {value}\n[{MEASURES.group}]\n{measures}\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(MEASURES, "_looked", False)
        monkeypatch.setattr(MEASURES, "_places", dict(MEASURES._places))
        registry._load.cache_clear()

    registry.every()  # modules register their attacks once a process, when first imported
    registered = dict(registry._REGISTERED)
    yield install
    registry._REGISTERED.clear()
    registry._REGISTERED.update(registered)
    registry._load.cache_clear()


@pytest.fixture
def own(installed, monkeypatch):
    """The example's module: its attack is found by its entry point, its measure is registered."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples")
    sys.modules.pop("own_attack", None)
    installed("own_attack:WorstToken")
    registry.every()
    module = sys.modules["own_attack"]
    with MEASURES.added(module.WORST_TOKEN_AUC.key, module.WORST_TOKEN_AUC):
        yield module


def test_an_attack_of_thirty_lines_is_found_by_its_entry_point_and_runs(own, clean_run):
    lines = Path(own.__file__).read_text(encoding="utf-8").splitlines()
    assert len(lines) - lines.index("ABOUT = AttackInfo(") <= 30
    assert len(lines) <= 60  # with its measure, and how a package names both
    names = list(registry.every())
    assert names[-1] == "worst_token"
    (result,) = suite(clean_run, *registry.find("X1"))
    assert (result.attack, result.id) == ("worst_token", "X1")
    assert result.outcome not in (Outcome.ERROR, Outcome.NOT_APPLICABLE), result.reason
    assert 0 <= result.headline.value <= 1
    assert result.positive is not None
    assert result.negative is not None


def test_the_measure_of_an_attack_of_ones_own_is_a_column_a_chapter_and_a_rule(own, clean_run, tmp_path):
    suite(clean_run, *registry.find("X1"))
    answers = {"alpha": "0101", "beta": "0011"}
    result = {
        "fidelity": FIDELITY,
        "perplexity": {"fused": 7.0},
        "plug_back": {"scale": 1.0, "tried": [], "aligned_windows": 0},
        "truncated": 0,
        "privacy_notes": [],
        "verbatim_share": 0.5,
        "spent": {},
        "events": {},
        "seconds": {"federate": 2.0},
        "peak_memory_bytes": 100,
        **dict.fromkeys(("zero_shot", "proxy", "tuned", "fused"), answers),
    }
    (clean_run / "seed-0" / "result.json").write_text(json.dumps(result))
    seed = read_seed(clean_run, 0, root=clean_run)
    (clean_run / "seed-0" / "result.json").unlink()
    config = parse_config({"protect": {"scheme": "masking"}})
    configuration = configuration_of([seed], config, name="masking", settings={"protection": "masking"})

    measure = configuration.measure("worst_token_auc")
    (headline,) = (f.headline for f in seed.findings)
    assert (measure.axis, measure.better) == ("privacy", "lower")
    assert (measure.estimate.value, measure.estimate.high) == (headline.value, headline.high)
    assert "the worst of X1 over all views" in measure.estimate.how

    assert "worst token's AUC" in headings([configuration])
    report = Report(
        name="own",
        command="c",
        config_sha256="5a" * 32,
        environment={},
        seeds=(0,),
        configurations=(configuration,),
    )
    shown = f"{measure.estimate.value:.2f}"
    assert "worst token's AUC" in markdown_report(report)
    assert f"| {shown} [" in markdown_report(report)
    (table,) = (t for t in first_tables(report) if t.axis == "privacy")
    (column,) = (c for c in table.columns if c.key == "worst_token_auc")
    assert (column.title, column.arrow) == ("worst token's AUC", "↓")
    assert f'<data class="num" value="{measure.estimate.value}"' in page(report)

    # a finding that could not tell proves nothing, so that only one that does meets the rule
    told = replace(seed.findings[0], outcome=Outcome.RESISTED)
    sure = replace(report, configurations=(replace(configuration, findings=(told,)),))
    verdicts = {}
    for bound in (1.0, headline.low - 0.01):
        (tmp_path / "policy.yaml").write_text(
            f"schema_version: 1\nrules:\n- max_worst_token_auc: {bound}\n"
        )
        (row,) = judge_report(sure, load_policy(tmp_path / "policy.yaml")).rows
        verdicts[bound] = row.verdict
        assert row.why.startswith("worst_token_auc: ")
    assert list(verdicts.values()) == [Verdict.PASSED, Verdict.FAILED]


def test_every_attack_of_this_project_feeds_registered_measures():
    attacks = registry.every().values()
    registry.check_measures(attacks)
    fed = {feeds.measure for a in attacks for feeds in a.info.measures}
    by_attacks = {key for key, kind in MEASURES.every().items() if kind.by == "attacks"}
    assert fed == by_attacks


def test_an_entry_point_that_cannot_be_loaded_is_named_in_one_line(installed):
    installed("somebody.nowhere:Nothing")
    with pytest.raises(ConfigError, match=r"entry point 'mine' .*somebody.nowhere:Nothing: cannot be"):
        registry.every()


BROKEN = """
from dataclasses import replace
from attacks import Feeds, attack
from tests.support.toys import INFO, Toy
FEEDS = Feeds(measure="mine", metric="auc"), Feeds(measure="membership_auc", metric="auc")
@attack(replace(INFO, id="T9", name="theirs", measures=FEEDS))
class Theirs(Toy):
    def __init__(self):
        self.guesses = 0
"""
MEASURE = """
from fedproxy_secure.evidence.measure import MeasureKind
MINE = MeasureKind(key="mine", title="mine", axis="privacy", better="lower", unit="")
"""
WHY = "measure 'mine': unit='': must be a unit, such as share"


@pytest.fixture
def broken(installed, tmp_path, request):
    """A package with a broken measure, in the module of its attack or in another."""
    (tmp_path / "their_attack.py").write_text(BROKEN + (MEASURE if request.param == "one module" else ""))
    (tmp_path / "their_measure.py").write_text(MEASURE)
    home = "their_attack" if request.param == "one module" else "their_measure"
    installed("their_attack:Theirs", f"mine = {home}:MINE")
    yield
    for module in ("their_attack", "their_measure"):
        sys.modules.pop(module, None)


def command(*words):
    return CliRunner().invoke(app, [*words], catch_exceptions=False)


@pytest.mark.parametrize("broken", ["two modules"], indirect=True)
def test_a_broken_measure_is_left_out_and_its_attack_feeds_its_others(broken, clean_run, caplog):
    assert command("list").exit_code == 0
    assert command("info", "theirs").exit_code == 0
    (line,) = caplog.messages
    assert line.startswith("entry point 'mine' of fedproxy_secure.measures: is left out: ")
    assert line.endswith(WHY)
    theirs = registry.get("theirs")
    assert [feeds.measure for feeds in theirs.info.measures] == ["membership_auc"]
    (found,) = suite(clean_run, theirs)
    assert found.outcome == Outcome.SUCCEEDED
    assert list(found.measures) == ["membership_auc"]


@pytest.mark.parametrize("broken", ["one module"], indirect=True)
def test_an_attack_whose_module_fails_with_a_broken_measure_is_left_out_and_no_other(broken, caplog):
    shown = command("list")
    assert shown.exit_code == 0
    assert "theirs" not in shown.output
    assert "lora_span_tokens" in shown.output
    assert command("info", "theirs").exit_code == 2
    (line,) = caplog.messages
    assert line == (f"entry point 'mine' of {registry.GROUP}: their_attack:Theirs: is left out: {WHY}")


@pytest.mark.parametrize("broken", ["one module", "two modules"], indirect=True)
def test_no_policy_can_name_a_broken_measure(broken, tmp_path):
    policy = tmp_path / "policy.yaml"
    policy.write_text("schema_version: 1\nrules: [{max_mine: 0.6, not_applicable: pass}]\n")
    registry.every()
    with pytest.raises(ConfigError, match=f"cannot be loaded: {WHY}"):
        load_policy(policy)


def test_an_entry_point_that_registers_no_attack_is_named_in_one_line(installed):
    installed("this")  # prints a poem when imported
    with pytest.raises(ConfigError, match=r"entry point 'mine' .*: this: registers no attack; decorate"):
        registry.every()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"needs": ("MOD",)}, r"attack 'toy': needs=\('MOD',\): must be a tuple of sets of surfaces"),
        ({"needs": (frozenset({"MODEL"}),)}, "must be of IND, AGG, MR, MOD, API, ACT"),
        ({"id": 7}, "attack 'toy': id=7: must be a text"),
        ({"name": ""}, "attack '': name='': must be a text"),
        ({"chance": "half"}, "chance='half': must be a finite number"),
        ({"margin": float("nan")}, "margin=nan: must be a finite number"),
        ({"margin": 10**400}, "margin=10+: must be a finite number"),
        ({"measures": ("token_auc",)}, "must be a tuple of Feeds"),
        ({"mapping": (("ATLAS", "1"),)}, r"must be a tuple of \(framework, version, id\)"),
        ({"by": ("owner",)}, "must be a tuple of server, network, clients, api"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_attack_that_is_badly_declared_is_refused_where_it_is_declared(change, line):
    """Else it would stop a whole suite, or leave results that nothing can read."""
    with pytest.raises(ConfigError, match=line):
        replace(INFO, **change)


def test_numbers_of_numpy_are_numbers():
    made = replace(INFO, chance=np.float32(0.25), margin=np.int64(1))
    assert (type(made.chance), made.chance, type(made.margin)) == (float, 0.25, float)


def test_an_entry_point_whose_attack_another_package_has_registered_before_is_found(installed, tmp_path):
    (tmp_path / "their_attacks.py").write_text(
        "from dataclasses import replace\nfrom attacks.registry import attack\n"
        "from tests.support.toys import INFO, Toy\n\n\n"
        "@attack(replace(INFO, name='theirs'))\nclass Theirs(Toy): ...\n"
    )
    (tmp_path / "somebody.py").write_text("from their_attacks import Theirs\n")
    installed("somebody")
    try:
        import_module("their_attacks")
        assert "theirs" in registry.every()
    finally:
        for module in ("their_attacks", "somebody"):
            sys.modules.pop(module, None)


def test_the_name_of_an_attack_is_no_id_of_others():
    with pytest.raises(ConfigError, match="attack 'X9': name and id are the same; must differ"):
        registry.attack(replace(INFO, name="X9", id="X9"))(type("Mine", (Toy,), {}))
    registry.every()
    for change in ({"name": "A2"}, {"id": "lora_span_tokens"}):
        with pytest.raises(ConfigError, match="names and ids must differ"):
            registry.attack(replace(INFO, **change))(type("Mine", (Toy,), {}))


def test_what_is_no_attack_cannot_be_registered(installed):
    with pytest.raises(ConfigError, match=r"must be a subclass of attacks\.base\.Attack"):
        registry.attack(replace(INFO, name="function"))(len)  # type: ignore[type-var]


def test_an_attack_that_needs_arguments_is_one_line(installed):
    """The fixture takes it out again."""

    class Wants(Toy):
        def __init__(self, what):
            self.what = what

    registry.attack(replace(INFO, name="wants"))(Wants)
    with pytest.raises(ConfigError, match=r"attack 'wants' of .*: cannot be made without arguments: "):
        registry.every()


def test_the_decorator_keeps_the_type_of_the_class_for_type_checkers():
    assert get_type_hints(registry.attack)["return"] == Callable[[type[registry.A]], type[registry.A]]


def test_two_attacks_cannot_have_one_name():
    registry.every()
    with pytest.raises(ConfigError, match="attack 'lora_span_tokens': is registered already"):
        registry.attack(replace(INFO, name="lora_span_tokens"))(Toy)


def test_an_attack_is_found_by_name_and_all_of_an_id_by_it():
    assert [a.info.name for a in registry.find("A2")] == ["lora_span_tokens"]
    assert {a.info.id for a in registry.find("A11")} == {"A11"}
    assert len(registry.find("A11")) == 4
    with pytest.raises(ConfigError, match="attack 'lora_span_token': is not known; did you mean 'lora_sp"):
        registry.find("lora_span_token")
    with pytest.raises(ConfigError, match="attack '%': is not known; there are embedding_bow, "):
        registry.get("%")


def test_ids_are_in_order_and_every_attack_says_what_it_is_for():
    infos = [a.info for a in registry.every().values() if a.info.id != "X1"]
    numbers = [int(i.id[1:]) for i in infos]
    assert numbers == sorted(numbers)
    assert set(numbers) == set(range(1, 17))
    for info in infos:
        assert info.needs
        assert info.title
        assert info.paper
        assert info.mapping
        assert info.margin >= 0
