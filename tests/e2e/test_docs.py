"""The documentation builds strictly and offline, says what the code says, and its examples run."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

import fedproxy_secure
from attacks.registry import every as every_attack
from tests.support.sample_report import sample_report
from threat_models import every as every_threat_model

ROOT = Path(__file__).parents[2]
needs_sphinx = pytest.mark.skipif(
    find_spec("myst_parser") is None or find_spec("furo") is None, reason="needs the extra `docs`"
)


def build(docs: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """What `make docs` runs."""
    return subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-b", "html", docs, out],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def html(tmp_path_factory) -> Path:
    """The pages, built once; `.ci/run` has built them a moment ago, as strictly, and says where."""
    if "FEDPROXY_DOCS" in os.environ:
        return Path(os.environ["FEDPROXY_DOCS"])
    out = tmp_path_factory.mktemp("html")
    done = build(ROOT / "docs", out)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return out


@pytest.mark.change
@needs_sphinx
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_pages_build_strictly_and_ask_for_nothing_from_elsewhere(html):
    pages = sorted(html.glob("*.html"))
    assert len(pages) >= 20
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|link|img|iframe)[^>]*?(?:src|href)=\"(https?:[^\"]+)\"", text)
        assert loaded == [], f"{page.name} loads {loaded}"


@pytest.mark.change
@needs_sphinx
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_every_attack_threat_model_and_public_name_has_its_place(html):
    attacks = (html / "attacks.html").read_text(encoding="utf-8")
    for one in every_attack().values():
        assert f'id="attack-{one.info.name.replace("_", "-")}"' in attacks, one.info.name
    models = (html / "threat-models.html").read_text(encoding="utf-8")
    for name in every_threat_model():
        assert f'id="threat-model-{name.replace("_", "-")}"' in models, name
    api = (html / "api.html").read_text(encoding="utf-8")
    for name in fedproxy_secure.__all__:
        assert name.startswith("__") or f'id="fedproxy_secure.{name}"' in api, name


@needs_sphinx
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_broken_page_does_not_build(tmp_path):
    docs = tmp_path / "docs"
    shutil.copytree(ROOT / "docs", docs)
    for name in (
        "README.png",
        "examples",
        "fedproxy_secure",
        "configs",
        *(p.name for p in ROOT.glob("*.md")),
    ):
        (tmp_path / name).symlink_to(ROOT / name)
    broken = {
        "no-such-page.md": "[gone](no-such-page.md)",
        "no-such-heading": "[gone](results.md#no-such-heading)",
        "no_such_name": "{py:func}`fedproxy_secure.no_such_name`",
        "no-such-part": "<!-- generated: no-such-part -->",
        "sideways": "```{dataflow} wrong\nsideways: one | two\n```",
        "no_such_file": "```{literalinclude} ../examples/no_such_file.py\n```",
    }
    page = docs / "limits.md"
    page.write_text("\n\n".join((page.read_text(encoding="utf-8"), *broken.values())), encoding="utf-8")
    done = build(docs, tmp_path / "out")
    assert done.returncode != 0
    for name in broken:
        assert name in done.stderr, done.stderr
    assert "limits" in done.stderr


def test_the_files_page_names_every_file():
    page = (ROOT / "docs/files.md").read_text(encoding="utf-8")
    named, folders = set(), []
    for line in page[page.index("fedproxy_secure/  ") : page.index("\nconfigs/ ")].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        folders[depth:] = [name]
        named.add("".join(folders))
    packages = ("fedproxy_secure", "threat_models", "attacks")
    modules = [m.relative_to(ROOT) for package in packages for m in (ROOT / package).rglob("*.py")]
    there = {str(m) for m in modules if m.name != "__init__.py"} | {f"{m.parent}/" for m in modules}
    assert {name for name in named if (ROOT / name).exists()} == named
    assert there <= named


def test_the_architecture_shows_the_layers_that_are_held():
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (c["layers"] for c in contracts if c["type"] == "layers")
    assert "\n".join(layers) in page


def test_what_the_architecture_says_is_where_it_says():
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    table = page[page.index("| question |") : page.index("## One round")]
    rows = [line.split("|")[2:4] for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 20
    for place, within in rows:
        places = [ROOT / path for path in re.findall(r"`([\w/]+/(?:\w+\.py)?)`", place + within)]
        beside = re.findall(r"`(\w+\.py)`", place + within)
        folders = [path if path.is_dir() else path.parent for path in places]
        siblings = [folder / name for folder in folders for name in beside if (folder / name).exists()]
        assert {file.name for file in siblings} == set(beside), within
        files = [
            *siblings,
            *(f for path in places for f in (path.rglob("*.py") if path.is_dir() else [path])),
        ]
        code = "\n".join(file.read_text(encoding="utf-8") for file in files)
        for name in re.findall(r"`(?:[A-Z]\w+\.)?(\w+)`", within):
            assert re.search(rf"^ *(?:def|class) {name}\b|^{name}\b.* = ", code, re.MULTILINE), name
    for path in re.findall(r"`([\w]+/[\w/]+\.py)`", page):
        assert (ROOT / path).exists() or (ROOT / "fedproxy_secure" / path).exists(), path


def run_example(name: str, *arguments: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")


@pytest.mark.change
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_model_and_data_of_ones_own_are_tuned_and_the_report_is_read_in_pandas(
    tmp_path, monkeypatch, capsys
):
    run_example("own_model_and_data.py", tmp_path / "own", monkeypatch=monkeypatch)
    printed = capsys.readouterr().out
    assert re.search(r"^performance +accuracy_fused +[\d.]+ share$", printed, re.MULTILINE)
    assert (tmp_path / "own/run/seed-0/fused/model.safetensors").exists()
    run_example("reading_a_report.py", tmp_path / "own/run/report.json", monkeypatch=monkeypatch)
    read = capsys.readouterr().out
    assert re.search(r"^performance +accuracy_fused", read, re.MULTILINE)
    assert "no suite of attacks ran" in read


def test_findings_and_intervals_of_a_report_are_read_in_pandas(tmp_path, monkeypatch, capsys):
    sample_report().write(tmp_path)
    run_example("reading_a_report.py", tmp_path / "report.json", monkeypatch=monkeypatch)
    read = capsys.readouterr().out
    for expected in ("token_auc", "A2 lora_span_tokens", "SUCCEEDED", "RESISTED", "This report is made up"):
        assert expected in read
