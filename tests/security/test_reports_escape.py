"""Whatever a name or a detail of a report says, each form shows its letters and does no more.

Names come from settings and files, details from attacks (anybody's, by an entry point) and from clients.
"""

import io
import json
from dataclasses import replace

import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from attacks.commands.table import outcome_line, rich_tables
from fedproxy_secure.evidence.estimate import counted, mean_interval
from fedproxy_secure.gate.judge import judge
from fedproxy_secure.gate.policy import load_policy
from fedproxy_secure.gate.table import markdown_gate, rich_gate, summary
from fedproxy_secure.report.html.charts import figures
from fedproxy_secure.report.html.drawing import to_svg
from fedproxy_secure.report.html.page import page
from fedproxy_secure.report.report import MethodDifference, MethodRow, TaskScale
from fedproxy_secure.report.text.markdown import markdown_report
from fedproxy_secure.report.text.pull_request import pull_request_summary
from fedproxy_secure.report.text.sarif import sarif
from fedproxy_secure.report.text.table import rich_tables as method_tables
from fedproxy_secure.report.text.trilemma_table import rich_trilemma
from fedproxy_secure.runtime.escape import Markdown, code, escaped, escaped_line, printable
from tests.support.page_walk import parse
from tests.support.sample_report import sample_report

ATTEMPTS = {
    "html": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "entity": "&lt;b&gt; &#x202e;",
    "cell": "a | b | c",
    "cell behind a backslash": "a \\| b \\\\| c",
    "code": "`a` ```b``` ~~~",
    "emphasis": "*a* _b_ **c** __d__ ~~e~~",
    "link": "[a](https://evil.example) ![b](https://evil.example/x.png)",
    "autolink": "<https://evil.example> https://evil.example www.evil.example",
    "script link": "[a](javascript:alert(1))",
    "footnote": "[^1] and [^1]: b",
    "heading": "# a",
    "list": "- an item",
    "numbers": "1. a",
    "quotation": "> a",
    "task": "[x] a",
    "mathematics": "$$\\href{https://evil.example}{a}$$",
    "line": "a\n\n# b\n\n| c |\n| --- |\n",
    "rule": "a\n---",
    "console markup": "[red]a[/red] [link=https://evil.example]b[/link]",
}
TERMINAL = "\x1b[2J\x1b]8;;https://evil.example\x07a\x9b31m\u202egnp\r\n\x00\x08"
GFM = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def hostile_report(text):
    """A report in which every text that is not this program's own is `text`."""
    made = sample_report(ratios=(0.5,), seeds=(0, 1), rounds=2)
    estimate = counted(1.0, metric=text, unit="count", seeds=(0,))
    sampled = replace(mean_interval({0: 0.5, 1: 0.6}, metric=text, unit="share"), how=text)
    first = made.configurations[0]
    finding = replace(
        first.findings[0], attack=text, title=text, view=text, reason=text, id=text, estimates=(estimate,)
    )
    bad = replace(
        first,
        name=text,
        scheme=text,
        recipe=text,
        settings={**first.settings, "protection": text, text: text},
        findings=(finding, *first.findings[1:]),
        curves=tuple(replace(c, title=text) for c in first.curves),
        ledger=tuple(replace(r, message=text, party=text, reveals=text) for r in first.ledger),
        measures=(replace(first.measures[0], key=text, source=text, estimate=estimate), *first.measures),
        unsafe=(text,),
        failed=(text,),
        commands=(text,),
        guarantees=(text,),
    )
    other = replace(sampled, value=0.54)
    row = MethodRow(
        method=text,
        tasks={text: sampled},
        average=sampled,
        tasks_norm={text: other},
        average_norm=other,
        gap_closed_counting=sampled,
    )
    pair = MethodDifference(
        method=text, against=text, remove_ratio=0.5, average=sampled, average_norm=other
    )
    ends = dict.fromkeys(("constant", "zero_shot", "ceiling", "above_constant", "above_zero_shot"), sampled)
    scale = TaskScale(task=text, counts=True, **ends)
    return replace(
        made,
        name=text,
        command=text,
        environment={"system": text},
        rows=(row, MethodRow(method="other", tasks={text: sampled}, average=sampled)),
        differences=(pair,),
        task_scales=(scale, replace(scale, counts=False)),
        estimates=(estimate,),
        attack_differences=(
            replace(
                made.attack_differences[0],
                attack=text,
                id=text,
                view=text,
                base=sampled,
                value=sampled,
                difference=sampled,
                configuration=text,
                why=text,
            ),
            *made.attack_differences[1:],
        ),
        notes=(text,),
        guarantees=(text,),
        not_measured=(text,),
        composition=(text,),
        configurations=(bad, *made.configurations[1:]),
    )


def in_words(text):
    """As names of settings are shown."""
    return " ".join(text.replace("_", " ").split())


def tags(rendered):
    return [e.tag for e in parse(rendered).every() if e.tag]


@pytest.fixture(scope="module")
def harmless():
    report = hostile_report("harmless")
    return {form: GFM.render(form(report)) for form in (markdown_report, pull_request_summary)}


@pytest.mark.parametrize("form", [markdown_report, pull_request_summary], ids=lambda f: f.__name__)
@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_markdown_has_the_same_structure_whatever_names_and_details_are(harmless, form, attempt):
    """The same elements in the same order as with the word `harmless` in their place."""
    text = ATTEMPTS[attempt]
    rendered = GFM.render(form(hostile_report(text)))
    assert tags(rendered) == tags(harmless[form])
    count = in_words(parse(rendered).text).count(in_words(printable(text)))
    assert count == parse(harmless[form]).text.count("harmless")
    links = [e.attributes.get("href") for e in parse(rendered).every("a")]
    assert set(links) <= {"report.html"}


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_a_gates_markdown_has_one_row_a_rule_whatever_names_are(tmp_path, attempt):
    (tmp_path / "p.yaml").write_text("schema_version: 1\nrules:\n- forbid_unsafe: true\n- resist: [A2]\n")
    policy = load_policy(tmp_path / "p.yaml")
    rendered = {
        text: parse(GFM.render(markdown_gate(judge(hostile_report(text), replace(policy, name=text)))))
        for text in ("harmless", ATTEMPTS[attempt])
    }
    plain, bad = rendered["harmless"], rendered[ATTEMPTS[attempt]]
    assert [e.tag for e in bad.every()] == [e.tag for e in plain.every()]
    assert " ".join(printable(ATTEMPTS[attempt]).split()) in bad.text


def test_numbers_and_rules_stay_readable():
    assert escaped("max_token_auc: 0.6") == "max_token_auc: 0.6"
    assert escaped("0.93 [0.91, 0.95], n = 3") == "0.93 [0.91, 0.95], n = 3"
    assert escaped_line("masking + DP 8, 50% removed") == "masking + DP 8, 50% removed"


def test_what_is_markdown_already_stays_and_only_that():
    assert escaped(Markdown("**a**")) == escaped_line(Markdown("**a**")) == "**a**"
    assert escaped("**a**") == "\\*\\*a\\*\\*"
    assert type(escaped("a" + Markdown("**b**"))) is Markdown
    assert "**" not in escaped("a" + Markdown("**b**"))  # joined to a text it is a text


def test_code_is_code_only_for_what_cannot_end_it():
    assert code("5a5a") == "`5a5a`"
    assert code("`<b>") == "\\`&lt;b&gt;"


def test_a_page_has_the_same_structure_whatever_names_and_details_are():
    every_attempt = " ".join([*ATTEMPTS.values(), TERMINAL])
    plain, bad = (parse(page(hostile_report(t))) for t in ("harm, less", every_attempt))
    assert sorted({e.tag for e in bad.every()} - {"code"}) == sorted(
        {e.tag for e in plain.every()} - {"code"}
    )
    for tag in ("script", "img", "a", "tr", "section", "li"):
        assert len(list(bad.every(tag))) == len(list(plain.every(tag))), tag


def control_characters(text):
    return {c for c in text if not c.isprintable() and c not in "\n\u00a0\u202f\u2009"}


def test_no_form_holds_what_a_terminal_or_an_editor_would_obey():
    report = hostile_report(TERMINAL)
    texts = {
        "page": page(report),
        "markdown": markdown_report(report),
        "summary": pull_request_summary(report),
        "sarif": json.dumps(sarif(report), ensure_ascii=False),
        "charts": "".join(to_svg(f.spec) for f in figures(report)),
        "outcome": outcome_line(report.configurations[0].findings[0]),
    }
    script = texts["page"][texts["page"].index('<script type="application/json"') :]
    texts["page"] = texts["page"].removesuffix(script)  # Vega's own text has such characters
    for name, text in texts.items():
        assert control_characters(text) == set(), name
        assert "evil.example" in text, name
    specs = script[: script.index("</script>")]
    assert control_characters(specs) == set()
    assert "\\u001b" not in specs
    assert "\\u202e" not in specs


def printed(*shown, width=200):
    written = io.StringIO()
    Console(width=width, file=written, color_system=None).print(*shown)
    return written.getvalue()


@pytest.mark.parametrize("text", [TERMINAL, ATTEMPTS["console markup"]], ids=["escapes", "markup"])
def test_tables_of_a_terminal_show_brackets_and_obey_nothing(tmp_path, text):
    (tmp_path / "p.yaml").write_text("schema_version: 1\nrules:\n- forbid_unsafe: true\n")
    policy = replace(load_policy(tmp_path / "p.yaml"), name=text)
    report = hostile_report(text)
    judgement = judge(report, policy)
    for shown in (
        printed(*method_tables(report)),
        printed(*rich_trilemma(report.configurations, width=200)),
        printed(rich_gate(judgement)),
        printed(rich_tables(report.configurations[0].findings)),
        summary(judgement),
    ):
        assert control_characters(shown) == set()
        assert ("[red]" if "red" in text else "[2J") in shown


def test_a_dashboard_gets_no_link_from_a_message():
    messages = json.dumps(sarif(hostile_report(ATTEMPTS["link"])))
    assert "evil.example" in messages
    assert "](" not in messages
