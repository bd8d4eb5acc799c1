"""Threat models are small, printable declarations; others can add theirs."""

import sys
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from fedproxy_secure.cli.app import app
from fedproxy_secure.errors import ConfigError
from threat_models import ThreatModel, every, get

NAMES = [
    "server",
    "active_server",
    "client",
    "colluding_clients",
    "server_with_clients",
    "network",
    "api_user",
    "active_server_with_clients",
    "parallel_server",
    "malicious_proxy",
    "sybils",
    "lying_clients",
    "active_network",
]
DEVIATING = {
    "active_server_with_clients": "the server, 1 client;",
    "parallel_server": "the server;",
    "malicious_proxy": "the server;",
    "sybils": "the server;",
    "lying_clients": "1 client;",
    "active_network": "the network;",
}


def run(*arguments):
    return CliRunner().invoke(app, ["threat-model", *arguments])


def test_the_adversaries_are_there_in_order():
    assert list(every()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_model_says_who_is_corrupted_what_it_can_what_is_assumed_and_what_it_does_not_show(name):
    model = get(name)
    text = model.text()
    assert text.startswith(f"{name}: {model.title}\ncorrupted: ")
    assert f"{'active' if model.active else 'passive'}; {model.knowledge}" in text
    for heading, sentences in (
        ("can", model.capabilities),
        ("assumed", model.assumptions),
        ("not meant to show", model.non_goals),
    ):
        assert sentences
        assert f"\n{heading}:\n  - {sentences[0]}" in text


@pytest.mark.parametrize(
    ("name", "parties"),
    [
        ("server", "the server;"),
        ("client", "1 client;"),
        ("server_with_clients", "the server, 2 clients;"),
        ("network", "the network;"),
        ("api_user", "a user of the API;"),
        *DEVIATING.items(),
    ],
)
def test_the_corrupted_parties_are_named(name, parties):
    assert f"corrupted: {parties}" in get(name).text()


def test_only_those_who_own_the_llm_are_white_box_and_only_outsiders_black_box():
    for model in every().values():
        assert (model.knowledge == "white box") == model.server
        assert (model.knowledge == "black box") == (model.api and not model.clients and not model.network)


def test_a_model_that_corrupts_nobody_or_fewer_is_refused():
    with pytest.raises(ConfigError, match="server: corrupts no party; must corrupt at least one"):
        replace(get("server"), server=False)
    with pytest.raises(ConfigError, match=r"server: clients=-1: must be >= 0"):
        replace(get("server"), clients=-1)


@pytest.mark.parametrize(("typed", "hint"), [("sever", "'server'"), ("api-user", "'api_user'")])
def test_a_misspelt_name_gets_the_nearest_one_and_exit_code_2(typed, hint):
    with pytest.raises(ConfigError, match=f"threat model '{typed}': is not known; did you mean {hint}"):
        get(typed)
    result = run("show", typed)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: threat model '{typed}': is not known; did you mean {hint}?")
    assert "Traceback" not in result.output


def test_a_name_like_none_lists_them_all():
    with pytest.raises(ConfigError, match="there are server, active_server, client"):
        get("zzz")


def test_list_shows_a_line_for_each():
    result = run("list")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == NAMES


@pytest.mark.parametrize("name", DEVIATING)
def test_those_that_deviate_are_active_and_say_what_they_leave_open(name):
    model = get(name)
    assert model.active
    assert model.assumptions
    assert model.non_goals


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "wanted", "other"),
    [
        ("parallel_server", ["A10 secagg_active", "A10 trapped_proxy"], "A13 poisoning"),
        ("malicious_proxy", ["A10 secagg_active", "A10 trapped_proxy"], "A13 poisoning"),
        ("sybils", ["A10 secagg_active"], "A13 poisoning"),
        ("active_server_with_clients", ["A10 secagg_active", "A13 poisoning"], "A1 nothing"),
        ("active_network", ["A10 secagg_active", "A11 masked_words"], "A13 poisoning"),
        ("lying_clients", ["A13 poisoning"], "A10 secagg_active"),
        ("client", ["A13 poisoning"], "A10 trapped_proxy"),
    ],
)
def test_the_attacks_shown_are_those_of_the_parties_that_are_corrupted(name, wanted, other):
    shown = run("show", name).stdout.partition("attacks that fit:")[2]
    assert all(f"  - {attack}: " in shown for attack in wanted)
    assert f"  - {other}: " not in shown


def test_with_tls_an_active_network_can_drop_and_delay_no_more():
    assert any("with TLS" in line and "no more" in line for line in get("active_network").assumptions)


@pytest.mark.torch
def test_show_prints_the_model_and_the_attacks_that_fit():
    result = run("show", "server")
    assert result.exit_code == 0
    assert get("server").text() in result.stdout
    assert "\nattacks that fit:\n" in result.stdout
    assert "  - A2 lora_span_tokens: " in result.stdout


GUEST = """
from threat_models import ThreatModel


def models():
    return [
        ThreatModel(
            name={name!r},
            title="backup operator",
            server=True,
            knowledge="white box",
            capabilities=("reads last night's disks",),
            assumptions=(),
            non_goals=(),
        )
    ]
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs a distribution with a threat model of the given name."""

    def install(name):
        (tmp_path / "guest_models.py").write_text(GUEST.format(name=name))
        info = tmp_path / "guest_models-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: guest-models\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(
            "[fedproxy_secure.threat_models]\nguest = guest_models:models\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        every.cache_clear()

    yield install
    every.cache_clear()
    sys.modules.pop("guest_models", None)


def test_a_package_of_somebody_else_adds_its_own(installed):
    installed("backups")
    assert list(every()) == [*NAMES, "backups"]
    assert isinstance(get("backups"), ThreatModel)
    assert "reads last night's disks" in run("show", "backups").stdout


def test_a_package_that_cannot_be_loaded_is_named(installed, tmp_path):
    installed("backups")
    (tmp_path / "guest_models.py").write_text("import nothing_of_the_kind\n")
    with pytest.raises(ConfigError, match=r"entry point 'guest' of .* cannot be loaded: No module named"):
        every()


def test_a_name_that_is_taken_is_refused(installed):
    installed("server")
    with pytest.raises(ConfigError, match="threat model 'server': is registered twice; names must differ"):
        every()
    assert run("list").exit_code == 2


def test_attacks_of_a_package_that_is_broken_are_one_line(installed, tmp_path):
    installed("backups")
    points = tmp_path / "guest_models-1.0.dist-info" / "entry_points.txt"
    points.write_text("[fedproxy_secure.attacks_that_fit]\nguest = nothing_of_the_kind:fit\n")
    shown = run("show", "server")
    assert shown.exit_code == 2
    assert "entry point 'guest' of fedproxy_secure.attacks_that_fit" in shown.stderr
    assert isinstance(shown.exception, SystemExit)
