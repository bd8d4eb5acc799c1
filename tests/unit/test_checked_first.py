"""What cannot be corrected once a run has begun is checked before anything is written or trained."""

import pytest
import yaml
from typer.testing import CliRunner

from fedproxy_secure.cli.app import app
from fedproxy_secure.cli.options import find_config
from fedproxy_secure.config import load_config, parse_config
from fedproxy_secure.config.kinds import METHODS, PROTECTIONS
from fedproxy_secure.errors import ConfigError, ModelError, RunFolderError
from fedproxy_secure.experiments import attacked, matrix
from fedproxy_secure.experiments.attacked import check_attacks
from fedproxy_secure.experiments.compare import compare, compare_report
from fedproxy_secure.experiments.inputs import check_inputs
from fedproxy_secure.experiments.join import join
from fedproxy_secure.experiments.method import Method
from fedproxy_secure.experiments.run import run
from fedproxy_secure.experiments.sweeps.matrix_cells import cells_of
from fedproxy_secure.experiments.sweeps.method_cells import Cell
from fedproxy_secure.experiments.sweeps.method_folder import open_folder
from fedproxy_secure.experiments.tracking import NEEDS
from fedproxy_secure.protect.plaintext import Plaintext
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.names import CELL_DONE
from tests.support.tiny import tiny_settings

pytestmark = pytest.mark.torch
MISSPELT = ["--set", 'attacks.views=["server", "clinet"]']


@pytest.mark.parametrize(
    "command",
    [
        ["matrix", "demo_matrix"],
        ["matrix", "demo_matrix", "--dry-run"],
        ["run", "quickstart", "--suite", "smoke"],
        ["run", "quickstart", "--suite", "smoke", "--dry-run"],
    ],
    ids=" ".join,
)
def test_a_misspelt_view_ends_a_command_before_it_writes_anything(command, tmp_path):
    done = CliRunner().invoke(app, [*command, *MISSPELT, "--out", str(tmp_path / "out")])
    assert done.exit_code == 2, done.output
    assert done.output.startswith(
        "error: attacks.views=clinet: is not a known threat model; did you mean 'client'?"
    )
    assert len(done.output.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_run_whose_attacks_could_not_read_its_transcript_ends_before_it_begins(tmp_path):
    words = ["run", "quickstart", "--suite", "smoke", "--set", f"audit.folder={tmp_path}/elsewhere"]
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "out")])
    assert done.exit_code == 2, done.output
    assert (
        "elsewhere: attacks read only the transcript in the run's own folder; leave it out" in done.output
    )
    assert not (tmp_path / "out").exists()


def test_views_do_not_matter_where_nothing_is_attacked():
    check_attacks(parse_config({"attacks": {"suite": "none", "views": ["clinet"]}}))


def test_a_matrix_without_an_installed_suite_ends_before_it_begins(monkeypatch, tmp_path):
    monkeypatch.setattr(attacked, "SUITES", "fedproxy_secure.no_such_group")
    with pytest.raises(ConfigError, match=r"attacks\.suite=smoke: no suite is installed; set it to none"):
        matrix.matrix(parse_config({}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["run", "compare", "matrix"])
@pytest.mark.parametrize(
    ("section", "key", "wrong", "line"),
    [
        ("model", "path", "no/such/model", "model.path=no/such/model: no such folder"),
        ("data", "public_text", "no/such.txt", "no/such.txt"),
        ("data", "root", "no/such/records", "no/such/records"),
    ],
)
def test_a_misspelt_path_can_be_corrected_without_another_folder(
    tmp_path, command, section, key, wrong, line
):
    """A folder belongs to its settings from its first file on."""
    raw = tiny_settings(tmp_path, attacks={"suite": "none"})
    file, out = tmp_path / "mine.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump({**raw, section: {**raw[section], key: wrong}}))
    done = CliRunner().invoke(app, [command, str(file), "--out", str(out)])
    assert done.exit_code == 2, done.output
    assert line in done.output
    assert not out.exists()
    assert not (tmp_path / "out.audit.key").exists()


WORKS = {"run": "run", "matrix": "matrix", "compare": "comparison"}


@pytest.mark.parametrize(
    ("begun", "command"), [(a, b) for a in WORKS.values() for b in WORKS if WORKS[b] != a]
)
def test_no_command_resumes_in_the_folder_of_another(tmp_path, begun, command):
    """A matrix and a run of the same settings would replace each other's signed report."""
    file, out = tmp_path / "mine.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump(tiny_settings(tmp_path, attacks={"suite": "none"})))
    config = load_config(file)
    if begun == "comparison":
        open_folder(config, out, resume=False)
    else:
        RunFolder.create(out, config, begun)
    before = {f.name: f.read_bytes() for f in out.iterdir()}
    done = CliRunner().invoke(app, [command, str(file), "--out", str(out), "--resume"])
    assert done.exit_code == 2, done.output
    rule = f"out: is the folder of a {begun}; must be that of a {WORKS[command]}"
    assert rule in done.output
    assert len(done.output.splitlines()) == 1
    assert {f.name: f.read_bytes() for f in out.iterdir()} == before


@pytest.mark.parametrize("begun", ["run", "matrix"])
def test_a_comparison_writes_no_report_into_the_folder_of_another(tmp_path, begun):
    config = parse_config({})
    RunFolder.create(tmp_path, config, begun)
    with pytest.raises(RunFolderError, match=f"is the folder of a {begun}; must be that of a comparison"):
        compare_report(config, tmp_path)


def test_resuming_where_nothing_began_says_so(tmp_path):
    missing = {**tiny_settings(tmp_path), "model": {"path": "no/such/model"}}
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(missing))
    done = CliRunner().invoke(app, ["run", str(file), "--out", str(tmp_path / "nonexist"), "--resume"])
    assert "nonexist: has nothing to resume; a new run begins in it\n" in done.stderr


def test_inputs_are_not_read_again_where_a_run_has_begun(tmp_path):
    config = parse_config({"model": {"path": str(tmp_path / "gone")}})
    RunFolder.create(tmp_path / "out", config)
    check_inputs(config, tmp_path / "out")


def test_a_wrong_signing_key_leaves_no_folder_behind(tmp_path):
    config = parse_config(tiny_settings(tmp_path)).with_signing_key(str(tmp_path / "no.key"))
    for begin in (run, matrix.matrix):
        with pytest.raises(ConfigError, match=r"no\.key: cannot be read as a key"):
            begin(config, tmp_path / "out")
        assert not (tmp_path / "out").exists()


class NeedsMore(Plaintext):
    """A protection whose library is missing."""

    name = "needs_more"

    def check_installed(self):
        raise ConfigError("protect.scheme=needs_more: needs the extra more")


class UnderIt(Method):
    """A method whose clients send what that protection protects."""

    def federation(self, config):
        return config.model_copy(
            update={"protect": config.protect.model_copy(update={"scheme": "needs_more"})}
        )

    def run(self, inputs):
        raise AssertionError("must not be run")


@pytest.mark.parametrize("begin", [compare, matrix.matrix])
def test_a_missing_library_ends_a_sweep_before_it_begins(begin, tmp_path):
    method = UnderIt(name="under_it", title="for the test", needs_ratio=False)
    with PROTECTIONS.added("needs_more", NeedsMore()), METHODS.added("under_it", method):
        swept = {
            "attacks": {"suite": "none"},
            "compare": {"methods": ["under_it"]},
            "matrix": {"protections": [{"scheme": "needs_more"}]},
        }
        with pytest.raises(ConfigError, match="needs the extra more"):
            begin(parse_config(tiny_settings(tmp_path, **swept)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_finished_needs_no_library_any_more(tmp_path):
    method = UnderIt(name="under_it", title="for the test", needs_ratio=False)
    with PROTECTIONS.added("needs_more", NeedsMore()), METHODS.added("under_it", method):
        swept = {"protections": [{"scheme": "needs_more"}, {"scheme": "masking"}], "remove_ratios": [0.5]}
        config = parse_config({"seeds": [0, 1], "track": ["mlflow"], "matrix": swept})
        every, refused = cells_of(config)
        assert (len(every), len(refused)) == (2, 1)
        RunFolder(path=tmp_path).write_json(f"cells/needs_more-0.5-fedavg-lora-seed0/{CELL_DONE}", {})
        cells, refused = cells_of(config, tmp_path)
        assert len(cells) == 3
        assert refused == ["needs_more-0.5-fedavg-lora: protect.scheme=needs_more: needs the extra more"]
        RunFolder(path=tmp_path).write_json(f"cells/needs_more-0.5-fedavg-lora-seed1/{CELL_DONE}", {})
        cells, refused = cells_of(config, tmp_path)
        assert (len(cells), refused) == (4, [])

        raw = tiny_settings(tmp_path, compare={"methods": ["under_it"], "jobs": 1})
        with pytest.raises(ConfigError, match="needs the extra more"):
            compare(parse_config(raw), tmp_path / "out", resume=True)
        cell = Cell(method="under_it", remove_ratio=None, seed=0)
        RunFolder(path=tmp_path / "out").write_text(f"cells/{cell.name}.json", "{")
        with pytest.raises(RunFolderError, match="is not a run folder"):  # the library is not asked for
            compare(parse_config(raw), tmp_path / "out", resume=True)


def test_a_tracker_that_is_missing_ends_a_matrix_only_where_a_cell_is_to_run(tmp_path, monkeypatch):
    monkeypatch.setitem(NEEDS, "mlflow", ("no_such_module", "the extra"))
    swept = {"protections": [{"scheme": "masking"}], "remove_ratios": [0.5]}
    raw = tiny_settings(tmp_path, track=["mlflow"], attacks={"suite": "none"}, matrix=swept)
    assert matrix.plan_rows(parse_config(raw))
    with pytest.raises(ConfigError, match="track=mlflow: is not installed"):
        matrix.matrix(parse_config(raw), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("begin", [run, compare, matrix.matrix])
def test_a_folder_with_something_in_it_is_refused_before_anything_is_read(tmp_path, begin):
    (tmp_path / "mine.txt").write_text("")
    config = parse_config({"model": {"path": "no/such/model"}, "attacks": {"suite": "none"}})
    with pytest.raises(RunFolderError, match="is not empty; add --resume"):
        begin(config, tmp_path)


@pytest.mark.parametrize("begin", [run, compare, matrix.matrix])
def test_a_model_without_weights_leaves_no_folder_behind(tmp_path, begin):
    raw = tiny_settings(tmp_path, attacks={"suite": "none"}, compare={"jobs": 1}, matrix={"jobs": 1})
    for weights in (tmp_path / "llm").glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(ModelError, match=r"has no \*\.safetensors; must hold the model's weights"):
        begin(parse_config(raw), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_matrix_of_which_no_cell_finished_does_not_end_with_0(tmp_path):
    swept = {
        "attacks": {"suite": "none"},
        "privacy": {"target_delta": 0.5},  # more than one over a client's records: no cell can train
        "matrix": {"protections": [{"scheme": "masking", "epsilon": 8}], "remove_ratios": [0.5], "jobs": 1},
    }
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(tiny_settings(tmp_path, **swept)))
    done = CliRunner().invoke(app, ["matrix", str(file), "--out", str(tmp_path / "out")])
    assert done.exit_code == 2, done.output
    assert "no cell of the matrix finished" in done.output
    assert (tmp_path / "out" / "report.json").exists()


def test_a_joined_report_is_written_over_no_run(tmp_path):
    """The run's own report is signed."""
    RunFolder.create(tmp_path / "run", parse_config({}))
    for name in ("audit.jsonl", "report.sig"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("")
        with pytest.raises(RunFolderError, match=f"has {name}, so it is a run's own folder"):
            join([tmp_path / "a"], tmp_path / name, command="c")
    with pytest.raises(RunFolderError, match=r"has manifest\.json, so it is a run's own folder"):
        join([tmp_path / "a"], tmp_path / "run", command="c")


def test_a_suite_that_cannot_be_loaded_ends_a_matrix_before_it_begins(monkeypatch, tmp_path):
    place = tmp_path / "somebody-1.0.dist-info"
    place.mkdir()
    (place / "METADATA").write_text("Metadata-Version: 2.1\nName: somebody\nVersion: 1.0\n")
    (place / "entry_points.txt").write_text(f"[{attacked.SUITES}]\nmine = somebody_else:MEASURE\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"entry point 'mine' .*somebody_else:MEASURE: cannot be loaded"):
        matrix.matrix(parse_config({}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_provision_that_was_cut_short_before_there_were_keys_can_be_typed_again(tmp_path):
    """Policies come first: keys are never overwritten, so what follows them could not be made again."""
    words = ["provision", "quickstart", "--out", str(tmp_path)]
    clients = [c.name for c in load_config(find_config("quickstart")).data.clients]
    in_the_way = tmp_path / f"{clients[-1]}.policy.yaml"
    in_the_way.mkdir()
    assert CliRunner().invoke(app, words).exit_code == 2
    in_the_way.rmdir()
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert {f.name for f in tmp_path.glob("*.policy.yaml")} == {f"{c}.policy.yaml" for c in clients}
    before = in_the_way.read_bytes()
    assert "keys are never overwritten" in CliRunner().invoke(app, words).output
    assert in_the_way.read_bytes() == before


@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["run", "dry"])
def test_a_dry_run_refuses_a_key_and_a_tracker_that_a_run_would_refuse(tmp_path, monkeypatch, more):
    monkeypatch.setitem(NEEDS, "mlflow", ("no_such_module", "the extra"))
    words = ["run", "quickstart", "--out", str(tmp_path / "out"), *more]
    done = CliRunner().invoke(app, [*words, "--set", "track=[mlflow]"])
    assert (done.exit_code, "track=mlflow: is not installed" in done.stderr) == (2, True)
    done = CliRunner().invoke(app, [*words, "--set", f"audit.signing_key={tmp_path}/no.key"])
    assert (done.exit_code, "no.key: cannot be read as a key" in done.stderr) == (2, True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [["run"], ["run", "--dry-run"], ["matrix", "--dry-run"]], ids=" ".join)
def test_a_rank_that_no_map_of_the_llm_has_ends_a_command_before_anything_is_trained(tmp_path, command):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(tiny_settings(tmp_path, attacks={"suite": "none"})))
    words = [command[0], str(file), "--set", "adapter.rank=100000", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*words, *command[1:]])
    assert done.exit_code == 2, done.output
    assert "adapter.rank=100000: must be <= " in done.stderr
    assert not list((tmp_path / "out").glob("seed-*/proxy"))
