"""The page holds the whole report, says what every number rests on, and loads and runs nothing foreign."""

import base64
import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.report.html.drawing import DARK, LIGHT
from fedproxy_secure.report.html.page import MORE_DARK, MORE_LIGHT, page, write_page
from fedproxy_secure.report.publish import publish
from fedproxy_secure.report.report import Report
from fedproxy_secure.report.schema import FILE, report_schema
from tests.support.page_walk import Element, faults, numbers, parse
from tests.support.sample_report import sample_comparison, sample_report

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)> ]]> {{ 7 * 7 }} `a`"


@pytest.fixture(scope="module")
def html(report: Report) -> str:
    return page(report)


@pytest.fixture(scope="module")
def root(html: str) -> Element:
    return parse(html)


def test_every_number_says_its_n_interval_seeds_and_source(root: Element):
    assert len(numbers(root)) > 500
    assert faults(root) == []


@pytest.mark.parametrize("copies", [1, 2])
def test_every_number_of_a_comparison_and_of_a_longer_report_does_so_too(copies: int):
    assert faults(parse(page(sample_comparison()))) == []
    assert faults(parse(page(sample_report(seeds=(3,), rounds=2, copies=copies)))) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (' data-n="3"', ' data-n=""'),
        (' data-seeds="0 1 2"', ""),
        (" data-exact", ""),
        (' data-source="cells', ' data-origin="cells'),
        (
            '<section id="cost" data-measured>',
            '<section id="cost" data-measured><p>about 3 times as slow</p>',
        ),
    ],
)
def test_the_walk_finds_a_number_that_does_not(html: str, old: str, new: str):
    assert old in html
    assert len(faults(parse(html.replace(old, new, 1)))) == 1


def test_every_measure_stands_on_the_page_with_its_value_and_source(report: Report, root: Element):
    shown = {(n.attributes["value"], n.attributes["data-source"]) for n in numbers(root)}
    for configuration in report.configurations:
        for m in configuration.measures:
            assert (str(float(m.estimate.value)), m.source) in shown, (configuration.name, m.key)


def test_every_finding_stands_on_the_page_with_its_controls_and_its_reason(report: Report, root: Element):
    rows = [r for r in root.every("tr") if any(c.startswith("row-") for c in r.classes)]
    findings = [f for c in report.configurations for f in c.findings]
    assert len(rows) == len(findings)
    for outcome in {f.outcome for f in findings}:
        mine = [r for r in rows if f"row-{outcome}" in r.classes]
        assert len(mine) == sum(f.outcome == outcome for f in findings)
        reasons = {f.reason for f in findings if f.outcome == outcome}
        assert all(any(reason in r.text for reason in reasons) for r in mine)
    shown = {n.attributes["value"] for r in rows for n in numbers(r)}
    for f in findings:
        for e in (*f.estimates, f.positive, f.negative):
            assert e is None or str(float(e.value)) in shown


def test_every_curve_point_stands_in_a_table_beside_its_chart(report: Report, root: Element):
    values = {n.attributes["value"] for part in root.every("details", css="drawn") for n in numbers(part)}
    points = [e for c in report.configurations for curve in c.curves for _, e in curve.points]
    assert points
    assert {str(float(e.value)) for e in points} <= values


def test_stamps_and_failed_seeds_stand_before_everything_else(report: Report, html: str, root: Element):
    (first,) = root.every("aside", css="stamps")
    for configuration in report.configurations:
        for line in (*configuration.unsafe, *configuration.failed):
            assert line in first.text
            assert configuration.name in first.text
    assert html.index('<aside class="stamps"') < html.index('<main id="main"')


def test_the_rest_of_the_report_is_there_word_for_word(report: Report, root: Element):
    text = root.text.replace("`", "")
    lines = [*report.notes, *report.guarantees, *report.not_measured, report.command, report.config_sha256]
    for configuration in report.configurations:
        lines += [*configuration.guarantees, *configuration.commands]
        lines += [row.reveals for row in configuration.ledger]
        lines += [" ".join(m) for f in configuration.findings for m in f.mapping]
    assert report.audit_head is not None
    for line in [*lines, report.audit_head]:
        assert line.replace("`", "") in text


def test_the_ledger_is_a_matrix_of_messages_and_parties(root: Element):
    tables = list(root.every("table", css="ledger"))
    heads = [[th.text for th in next(iter(t.every("thead"))).every("th")] for t in tables]
    assert heads == [["message", "clients learn", "server learns"]] * 2  # without and with masking


def test_the_page_names_no_other_file_to_load(html: str, root: Element):
    assert not [e for e in root.every() if e.tag in ("img", "iframe", "object", "embed", "video", "base")]
    loaded = [e.attributes.get("src") for e in root.every() if "src" in e.attributes]
    assert loaded == []
    targets = [str(e.attributes["href"]) for e in root.every() if "href" in e.attributes]
    assert not [t for t in targets if re.match(r"[a-z]+:", t) and t != "data:,"]
    assert not [t for t in targets if t.startswith("/")]
    assert not re.search(r"url\(|@import", next(iter(root.every("style"))).text)


def test_the_policy_allows_the_pages_own_two_scripts_and_nothing_else(root: Element):
    (policy,) = [str(m.attributes["content"]) for m in root.every("meta") if "http-equiv" in m.attributes]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    allowed = re.findall(r"'sha256-([^']+)'", policy)
    scripts = ["".join(map(str, s.parts)) for s in root.every("script") if "type" not in s.attributes]
    assert [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts] == allowed
    assert len(allowed) == 2
    assert "unsafe-eval" not in policy
    assert "http" not in policy


def test_hostile_text_is_shown_and_not_run(report: Report, root: Element):
    c = report.configurations[0]
    finding = replace(c.findings[0], reason=HOSTILE, attack=HOSTILE, title=HOSTILE, view=HOSTILE)
    curve = replace(c.curves[0], title=HOSTILE)
    measure = replace(c.measures[0], key=HOSTILE, source=f"javascript:{HOSTILE}")
    settings = {**c.settings, "protection": HOSTILE, HOSTILE: HOSTILE}
    bad = replace(
        c,
        name=HOSTILE,
        settings=settings,
        findings=(finding,),
        curves=(curve,),
        measures=(measure, *c.measures),
        unsafe=(HOSTILE,),
        failed=(HOSTILE,),
        commands=(HOSTILE,),
        guarantees=(HOSTILE,),
    )
    made = replace(
        report,
        name=HOSTILE,
        command=HOSTILE,
        notes=(HOSTILE,),
        not_measured=(HOSTILE,),
        environment={HOSTILE: HOSTILE},
        configurations=(bad, *report.configurations[1:]),
    )
    attacked = parse(page(made))
    assert len(list(attacked.every("script"))) == len(list(root.every("script")))
    assert not list(attacked.every("img"))
    assert "onerror=alert(1)" in attacked.text
    assert "49" not in next(iter(attacked.every("h1"))).text
    hrefs = [str(e.attributes.get("href", "")) for e in attacked.every("a")]
    assert not [h for h in hrefs if h.startswith("javascript")]


def test_the_same_report_makes_the_same_page_also_after_the_disk(report: Report, html: str, tmp_path: Path):
    report.write(tmp_path)
    assert page(Report.load(tmp_path)) == html


def test_a_report_of_one_configuration_or_of_nothing_is_a_page_too(report: Report):
    alone = replace(report, configurations=report.configurations[:1])
    assert faults(parse(page(alone))) == []
    bare = replace(report, configurations=(), estimates=(), guarantees=(), not_measured=())
    text = parse(page(bare)).text
    assert report.command in text
    assert "Pareto" not in text
    empty = replace(report.configurations[0], seeds=(), measures=(), curves=(), findings=(), ledger=())
    broken = parse(page(replace(report, configurations=(*report.configurations, replace(empty, name="z")))))
    assert faults(broken) == []


def test_a_report_with_configurations_follows_the_schema_which_is_what_the_classes_say(report: Report):
    assert json.loads(FILE.read_text()) == report_schema()
    jsonschema.validate(json.loads(report.to_json()), report_schema())


def test_publish_writes_every_form_and_the_json_last(report: Report, tmp_path: Path):
    assert publish(report, tmp_path) == tmp_path / "report.html"
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {
        "report.html",
        "report.md",
        "report.json",
        "report.sarif",
        "summary.md",
        "glance.png",
        "pareto.png",
        "curves-loss.png",
        "curves-step_norm.png",
        "roc.png",
    }
    assert max(tmp_path.iterdir(), key=lambda p: p.stat().st_mtime_ns).name == "report.json"
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page(report)


def test_a_folder_that_cannot_be_written_is_a_one_line_error(report: Report, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot be written"):
        write_page(report, tmp_path / "file")


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colours", [{**LIGHT, **MORE_LIGHT}, {**DARK, **MORE_DARK}], ids=["light", "dark"])
def test_colours_have_the_contrast_of_wcag_aa(colours: dict[str, str]):
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    text = ["ink", "muted", "link", "alarm", "warn", "calm", "fault"]
    pairs = [(name, paper, 4.5) for name in text for paper in ("paper", "raised")]
    pairs += [("alarm-ink", "alarm-paper", 4.5), ("warn-ink", "warn-paper", 4.5)]
    pairs += [(f"kind-{i}", "paper", 3.0) for i in range(6)] + [("edge", "paper", 3.0)]
    low = [p for p in pairs if contrast(colours[p[0]], colours[p[1]]) < p[2]]
    assert low == []


def test_the_page_is_made_without_torch_and_imported_without_what_draws():
    loaded = "import sys, fedproxy_secure.report.publish; print(*sys.modules)"
    names = subprocess.run(
        [sys.executable, "-c", loaded], capture_output=True, text=True, check=True
    ).stdout
    assert not {"torch", "transformers", "vl_convert", "jinja2"} & set(names.split())


@pytest.mark.slow
def test_a_page_of_18_configurations_with_20_findings_each_is_smaller_than_five_megabytes():
    ratios = (0.25, 0.5, 0.75)
    big = sample_report(ratios=ratios, adapters=("lora", "ffa"), seeds=(0,), rounds=10, copies=4)
    assert len(big.configurations) == 18
    assert min(len(c.findings) for c in big.configurations) >= 20
    assert len(page(big)) < 5_000_000  # with all attacks side by side
