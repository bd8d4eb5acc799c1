"""The page's table of losses on free text, where a comparison or a run has it."""

from __future__ import annotations

from fedproxy_secure.evidence.number import Number
from fedproxy_secure.report.comparison import (
    LOSS_ABOUT,
    LOSS_TITLE,
    few_seeds,
    loss_rows,
    loss_seeds,
    loss_tasks,
    perplexity_of,
)
from fedproxy_secure.report.html.tables import MethodTable, named, numbers_of
from fedproxy_secure.report.report import Report, pointer


def loss_table(report: Report) -> MethodTable | None:
    """Return the losses on free text, or None if there is none."""
    tasks, lines = loss_tasks(report), []
    labels = {
        "tuned_proxy_loss": "tuned proxy (nats)",
        "loss": "fused LLM (nats)",
        "perplexity": "perplexity",
        "loss_gap_closed": "gap closed by loss (%)",
    }
    for i, row in loss_rows(report):
        assert row.loss is not None
        place = pointer(f"rows/{i}")
        numbers = numbers_of(row, f"rows/{i}", [key for key in labels if key != "perplexity"])
        numbers["perplexity"] = Number(perplexity_of(row.loss), f"{place}/loss")
        numbers |= {f"on {t}": Number(e, f"{place}/tasks_loss/{t}") for t, e in row.tasks_loss.items()}
        few = few_seeds(loss_seeds(row), report.seeds)
        lines.append((*named(row.method, row.remove_ratio, few), numbers))
    if not lines:
        return None
    there = {name for *_, numbers in lines for name in numbers}
    columns = [(name, label) for name, label in labels.items() if name in there]
    columns += [(f"on {t}", f"{t} (nats)") for t in tasks]
    return MethodTable(title=LOSS_TITLE, about=LOSS_ABOUT, columns=tuple(columns), lines=tuple(lines))
