"""The command line starts fast, explains itself, and fails in one line."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from packaging.requirements import Requirement
from rich.console import Console
from typer.testing import CliRunner

import fedproxy_secure
from fedproxy_secure.cli import doctor
from fedproxy_secure.cli.app import COMMANDS, add_commands, app
from fedproxy_secure.cli.errors import plain_errors
from fedproxy_secure.cli.experiments import _typed
from fedproxy_secure.cli.options import find_config, typed
from fedproxy_secure.cli.progress import Bars, PlainLines, shown_on
from fedproxy_secure.errors import (
    ConfigError,
    FedProxyError,
    FolderInUse,
    ProtocolAborted,
    RoundAborted,
    RunFolderError,
)

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "peft", "flwr", "ray", "datasets", "pandas", "scipy")


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return done.stdout


@pytest.mark.parametrize(
    "code",
    [
        "import fedproxy_secure; fedproxy_secure.load_config",
        "from typer.testing import CliRunner; from fedproxy_secure.cli.app import app; "
        "assert CliRunner().invoke(app, ['compare', '--help']).exit_code == 0",
    ],
    ids=["import", "help"],
)
def test_nothing_heavy_is_loaded(code: str):
    loaded = python(f"{code}\nimport sys; print([m for m in {HEAVY} if m in sys.modules])")
    assert loaded.strip() == "[]"


@pytest.mark.torch
def test_the_public_names_are_these():
    names = (
        "COMPRESSIONS Compression Config Configuration Estimate FUSION_RULES Federate FederationJob "
        "Finding Fused FusionRule MEASURES METHODS Measure MeasureKind Method MethodResult MethodRow "
        "OneMessage PROTECTIONS Protection Proxy Report __version__ attach average block_deltas "
        "build_proxy compare evaluate load_config load_llm make_fused_llm make_proxy matrix plan "
        "plug_back prepare run save_adapter save_model scale_for tune"
    )
    assert dir(fedproxy_secure) == fedproxy_secure.__all__ == names.split()
    assert all(hasattr(fedproxy_secure, name) for name in names.split())
    with pytest.raises(AttributeError, match="no attribute 'runn'"):
        _ = fedproxy_secure.runn


def test_version_is_printed():
    shown = CliRunner().invoke(app, ["--version"])
    assert (shown.exit_code, shown.stdout) == (
        0,
        f"fedproxy-secure {fedproxy_secure.__version__}\n",
    )


@pytest.mark.parametrize("command", ["run", "compare", "pretrain-demo", "doctor"])
def test_every_command_has_help(command: str):
    shown = CliRunner().invoke(app, [command, "--help"])
    assert shown.exit_code == 0
    assert command in shown.stdout
    assert ("name of a shipped one" in " ".join(shown.stdout.split())) == (command in ("run", "compare"))


@pytest.mark.parametrize("command", ["run", "compare"])
def test_a_wrong_setting_is_one_line_and_exit_code_2(command: str, tmp_path: Path):
    path = tmp_path / "settings.yaml"
    path.write_text("sedes: [1]\n")
    shown = CliRunner().invoke(app, [command, str(path)])
    assert shown.exit_code == 2
    assert shown.stderr == "error: sedes: unknown key; did you mean 'seeds'?\n"
    assert shown.stdout == ""


def test_a_config_is_found_by_path_or_by_shipped_name(tmp_path: Path):
    shipped = tmp_path / "quickstart.yaml"
    shipped.touch()
    assert find_config(str(shipped), []) == shipped
    assert find_config("quickstart", [tmp_path]) == shipped
    assert find_config("quickstart.yaml", [tmp_path]) == shipped


def test_an_unknown_config_gets_a_hint(tmp_path: Path):
    (tmp_path / "quickstart.yaml").touch()
    with pytest.raises(ConfigError, match="did you mean 'quickstart'"):
        find_config("quikstart", [tmp_path])
    with pytest.raises(ConfigError, match="there are quickstart"):
        find_config("zzz", [tmp_path])


def test_an_interrupt_says_how_to_go_on(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(typer.Exit) as left, plain_errors(again="fedproxy-secure run x --resume"):
        raise KeyboardInterrupt
    assert left.value.exit_code == 130
    assert "resume with: fedproxy-secure run x --resume" in capsys.readouterr().err


def test_errors_not_raised_on_purpose_are_not_hidden():
    with pytest.raises(ZeroDivisionError), plain_errors(again=None):
        _ = 1 // 0
    with pytest.raises(typer.Exit), plain_errors(again=None):
        raise FedProxyError("expected")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (RunFolderError("cannot be written"), 2),
        (RoundAborted("too few"), 75),
        (ProtocolAborted("signature of c0: verification failed"), 2),
        (FolderInUse("runs here already"), 75),
    ],
)
def test_what_may_pass_by_itself_ends_with_the_code_by_which_a_service_manager_tries_again(error, code):
    with pytest.raises(typer.Exit) as left, plain_errors(again=None):
        raise error
    assert left.value.exit_code == code


def test_a_file_that_the_system_does_not_let_a_command_look_at_is_one_line(capsys):
    with pytest.raises(typer.Exit) as left, plain_errors(again=None):
        Path("n" * 300).is_file()
    assert left.value.exit_code == 2
    assert capsys.readouterr().err == f"error: {'n' * 300}: File name too long\n"


def test_a_file_that_the_program_itself_forgot_is_shown_whole(tmp_path, caplog):
    with pytest.raises(FileNotFoundError), plain_errors(again=None):
        (tmp_path / "none").read_text()
    with caplog.at_level("DEBUG"), pytest.raises(typer.Exit), plain_errors(again=None):
        tmp_path.read_text()
    assert "IsADirectoryError" in caplog.text


def test_an_error_that_nobody_foresaw_is_no_verdict(capsys):
    """Exit code 1 says that a rule is broken, or that a signature is not as it was."""
    with pytest.raises(typer.Exit) as left, plain_errors(again=None, verdict=True):
        _ = 1 // 0
    assert left.value.exit_code == 2
    assert "ZeroDivisionError" in capsys.readouterr().err
    with pytest.raises(typer.Exit) as left, plain_errors(again=None, verdict=True):
        raise typer.Exit(3)
    assert left.value.exit_code == 3


UNSUPPORTED = """
from typing import Any
import typer
APP, TEXT, ODD = typer.Typer(), 'text', typer.Typer()
@ODD.command()
def one(x: dict[str, Any] = None): ...
"""


@pytest.fixture
def somebody(tmp_path, monkeypatch):
    """Return a function that installs a package of these commands."""

    def install(points):
        place = tmp_path / "somebody-1.0.dist-info"
        place.mkdir()
        (place / "METADATA").write_text("Metadata-Version: 2.1\nName: somebody\nVersion: 1.0\n")
        (place / "entry_points.txt").write_text(f"[{COMMANDS}]\n{points}")
        (tmp_path / "somebody.py").write_text(UNSUPPORTED)
        (tmp_path / "somebody_ends.py").write_text("raise SystemExit(1)\n")
        monkeypatch.syspath_prepend(tmp_path)

    yield install
    sys.modules.pop("somebody", None)  # other tests have packages of this name


def test_a_command_of_another_package_is_left_out_where_it_is_broken_or_takes_a_name(somebody, capsys):
    """Else a package that is broken, or means ill, keeps a user from `gate`, or stands in its place."""
    broken = (
        "broken = somebody:NOTHING\nends = somebody_ends:APP\nno_app = somebody:TEXT\nodd = somebody:ODD"
    )
    somebody(f"gate = somebody:APP\n{broken}\nfine = somebody:APP\n")
    commands = typer.Typer()
    commands.command("gate")(lambda: None)
    add_commands(commands)
    added = {group.name for group in commands.registered_groups}
    assert "fine" in added
    assert not added & {"gate", "broken", "ends", "no_app", "odd"}
    warned = capsys.readouterr().err.splitlines()
    assert [line.partition(" of ")[0] for line in warned] == [
        f"warning: command {name!r}" for name in ("broken", "ends", "gate", "no_app", "odd")
    ]
    assert CliRunner().invoke(commands, ["gate"]).exit_code == 0


def test_no_other_package_stands_in_for_a_command_of_this_project(somebody, capsys):
    somebody("attack = a_first_by_name:APP\n")
    commands = typer.Typer()
    add_commands(commands)
    (attack,) = [group for group in commands.registered_groups if group.name == "attack"]
    modules = {c.callback.__module__ for c in attack.typer_instance.registered_commands}
    assert "attacks.cli" in modules
    assert all(m == "attacks.cli" or m.startswith("attacks.commands.") for m in modules)
    assert (
        "warning: command 'attack' of a_first_by_name:APP is left out: a command of this name exists"
        in (capsys.readouterr().err)
    )


def test_a_command_to_type_again_is_quoted_for_a_shell():
    assert typed("deploy", "run", Path("my runs/a;b"), wait="5", status_port=None) == (
        "fedproxy-secure deploy run 'my runs/a;b' --wait 5"
    )
    assert typed("x", against=None, quick=False, strict=True, view=["a", "b"], set=[]) == (
        "fedproxy-secure x --strict --view a --view b"
    )


@pytest.mark.torch
def test_the_demo_llm_is_written_over_no_other(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    done = CliRunner().invoke(app, ["pretrain-demo", "--out", str(tmp_path), "--steps", "1"])
    assert done.exit_code == 2
    assert "is not empty: has config.json; choose another --out" in done.output
    assert (tmp_path / "config.json").read_text() == "{}"


def test_a_log_gets_a_line_at_most_every_five_seconds():
    now, lines = [0.0], []
    progress = PlainLines(write=lines.append, clock=lambda: now[0])
    progress.start("seed 0", total=100)
    for second in range(1, 13):
        now[0] = float(second)
        progress.advance("seed 0", steps=5, note=f"loss {second}")
    progress.done("seed 0")
    assert lines == [
        "seed 0: 5/100 (5 %), 1 s elapsed, about 19 s left, loss 1",
        "seed 0: 30/100 (30 %), 6 s elapsed, about 14 s left, loss 6",
        "seed 0: 55/100 (55 %), 11 s elapsed, about 9 s left, loss 11",
        "seed 0: done in 12 s",
    ]


def test_a_log_of_many_tasks_has_a_line_for_each_and_ever_more_rarely():
    now, lines = [0.0], []
    progress = PlainLines(write=lines.append, clock=lambda: now[0])
    progress.start("compare", total=100_000)
    progress.start("cell: federate", total=40)
    for minute in range(40):
        for second in range(1, 61):
            now[0] = minute * 60.0 + second
            progress.advance("compare", steps=40)
        progress.advance("cell: federate")
    assert lines[1] == "compare: 0 %, 6 s elapsed, about 42 min left"
    assert "cell: federate: 20/40 (50 %), 20 min elapsed, about 20 min left" in lines
    alone = [line for line in lines if line.startswith("compare")]
    assert 50 < len(alone) < 120  # of 2400 calls in 40 minutes


def test_a_terminal_shows_running_tasks_and_keeps_a_line_of_long_ones():
    text, now = io.StringIO(), [0.0]
    console = Console(file=text, force_terminal=True, width=160)
    with shown_on(console) as progress:
        assert isinstance(progress, Bars)
        progress.clock = lambda: now[0]
        progress.start("cell: federate", total=4)
        progress.advance("cell: federate", steps=2, note="agnews")
        progress.bars.refresh()
        assert "2/4 (50 %)" in text.getvalue()
        assert "agnews" in text.getvalue()
        now[0] = 300.0
        progress.done("cell: federate")
        progress.start("cell: short", total=1)
        progress.done("cell: short")
        assert not progress.bars.tasks
    assert "cell: federate: done in 5 min" in text.getvalue()
    assert "cell: short: done" not in text.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_takes_any_order_of_calls(terminal: bool):
    text = io.StringIO()
    with shown_on(Console(file=text, force_terminal=terminal, width=120)) as progress:
        progress.advance("never started")
        progress.done("never started")
        progress.start("[bold]seed", total=2)
        progress.advance("[bold]seed", note="loss [1.0]")
        progress.start("[bold]seed", total=3)
        progress.done("[bold]seed")
    assert "[bold]seed" in text.getvalue()


def test_doctor_knows_a_wrong_version_from_a_missing_one():
    def check(text: str, *, required: bool) -> tuple[bool, str]:
        found = doctor.against_pin(Requirement(text), required=required)
        return found.ok, found.found

    assert check("numpy>=2", required=True)[0]
    assert check("numpy<1", required=False) == (
        False,
        check("numpy", required=True)[1] + "; needs <1",
    )
    assert check("no-such-package", required=True) == (False, "is missing: install it")
    assert check("no-such-package", required=False) == (True, "not installed (optional)")


def test_doctor_refuses_other_pythons_and_full_disks(tmp_path: Path):
    assert doctor.python_version((3, 13)).ok
    assert not doctor.python_version((3, 10)).ok
    assert not doctor.python_version((3, 14)).ok
    assert doctor.free_disk(tmp_path / "not" / "yet", need=0).ok
    assert not doctor.free_disk(tmp_path, need=2**80).ok


def test_doctor_reads_the_pins_of_this_project():
    pins = {Requirement(text).name for text in doctor.declared_requirements()}
    assert {"torch", "flwr", "transformers"} <= pins


@pytest.mark.change
@pytest.mark.slow
def test_doctor_finds_this_installation_fit():
    shown = CliRunner().invoke(app, ["doctor"])
    assert shown.exit_code == 0, shown.output
    assert "demo LLM" in shown.stdout


def test_the_command_that_resumes_a_run_with_a_suite_attacks_it_again():
    typed = _typed("run", "quickstart", ["matrix.suite=smoke"], Path("runs/q"), "smoke")
    assert typed == "fedproxy-secure run quickstart --set matrix.suite=smoke --suite smoke --out runs/q"


def test_doctor_names_a_package_once_and_the_extras_that_install_it(monkeypatch):
    lines = ["numpy>=1", "pytest>=8; extra == 'deploy'", "pytest>=8; extra == 'dev'"]
    monkeypatch.setattr(doctor, "declared_requirements", lambda: lines)
    found = {check.name: check.found for check in doctor.package_versions()}
    assert found["pytest"].endswith("(extra `deploy`, `dev`)")
    assert "extra" not in found["numpy"]
    assert len(list(doctor.package_versions())) == 2
